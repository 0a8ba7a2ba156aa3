"""Fine-tuning with simulated low precision: one recipe for every precision folder, on Transformers' Trainer."""

import contextlib
import math
import shutil
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import ProgressCallback

from lowbit.data.cleaning import require_preset
from lowbit.data.tokens import encode
from lowbit.data.tsv import LABELS, SPLITS, count_shared, describe, read_split
from lowbit.int8.learned import refuse_lost_scales
from lowbit.measure.score import accuracy_and_f1
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import (
    atomic_folder,
    file_bytes,
    publish,
    remove_leftovers,
    resolve,
    run_dir,
    shown,
    write_json,
)
from lowbit.pipeline.manifest import record
from lowbit.pipeline.settings import require
from lowbit.training.checkpoints import COMPLETE, file_sizes, fingerprint_of, last_checkpoint
from lowbit.training.encoder import load_pretrained, save_run
from lowbit.training.weights import save_state


def check_settings(s: dict) -> None:
    """Refuse values that cannot train, each with one sentence."""
    for name in ("NUM_EPOCHS", "BATCH_SIZE", "LEARNING_RATE"):
        require(0 < s[name] < math.inf, f"{name} is {s[name]}; it must be above 0 and finite")
    require(0 <= s["SEED"] < 2**32, f"SEED is {s['SEED']}; it must be from 0 to 4294967295")
    require(s["MAX_LENGTH"] >= 3, f"MAX_LENGTH is {s['MAX_LENGTH']}; at least 3 tokens: [CLS], a word, [SEP]")
    require(0 <= s["WEIGHT_DECAY"] < math.inf, f"WEIGHT_DECAY is {s['WEIGHT_DECAY']}; it must be 0 or more and finite")
    require(0 <= s["WARMUP_RATIO"] < 1, f"WARMUP_RATIO is {s['WARMUP_RATIO']}; it must be from 0 to below 1")
    require(s["NUM_LABELS"] == len(LABELS),
            f"NUM_LABELS is {s['NUM_LABELS']}; the data has {len(LABELS)} labels: {', '.join(LABELS)}")
    require_preset(s["CLEANING"])


def autocast_dtype() -> torch.dtype | None:
    """BF16 where the device multiplies it natively, FP16 on older CUDA devices, None (FP32) elsewhere."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return None


class _Trainer(Trainer):
    """Trainer with BF16 autocast in training steps only: every score is measured in FP32 around the simulation."""

    train_dtype = None

    def get_decay_parameter_names(self, model):
        """Without the scales of activations: what decays is weights."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith(".scale")]

    def compute_loss_context_manager(self):
        if self.train_dtype is torch.bfloat16 and self.model.training:
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return contextlib.nullcontext()


class _Progress(ProgressCallback):
    """The progress bar alone; facts are printed once an epoch by _EpochLine."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


class _EpochLine(TrainerCallback):
    """One line an epoch, and a mark in every checkpoint that was written to its end."""

    def __init__(self, fingerprint: str):
        self.fingerprint, self.started = fingerprint, time.monotonic()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise UserError(f"the loss is {logs['loss']} in epoch {state.epoch:.0f}: training diverged at "
                            f"LEARNING_RATE {args.learning_rate}; lower it and run again")

    def on_evaluate(self, args, state, control, metrics, model=None, **kwargs):
        refuse_lost_scales(model)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if state.is_world_process_zero:
            print(f"epoch {state.epoch:.0f}/{args.num_train_epochs:.0f}  loss {losses[-1]:.4f}  "
                  f"valid accuracy {metrics['eval_accuracy']:.4f}  valid macro-F1 {metrics['eval_macro_f1']:.4f}  "
                  f"{time.monotonic() - self.started:.0f} s", flush=True)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / COMPLETE, {"fingerprint": self.fingerprint, "bytes": file_sizes(folder)})








def to_dataset(rows: list[list[int]], labels: list[int]) -> Dataset:
    """Unpadded rows; the collator pads each batch to its own longest."""
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows],
                              "labels": labels})




def fine_tune(settings: dict, stage: str, prepare, autocast: torch.dtype | None = None, observe=None,
              save=save_state) -> Path:
    """Train `prepare(model, token rows of train)` on DATA_DIR and write the run's folder; returns it.

    Training steps compute in `autocast`, or in FP32. Each epoch scores the simulated model on valid; the epoch of
    best macro-F1 is kept. Writes model_qat.pth (plain state dict: FP32, and learned scales), config.json, tokenizer
    files, preprocessing.json, training.json, and what `observe(model, token rows of valid, padding id)` says of the
    kept epoch: file name -> value, as JSON. `save(model, folder)` writes the weights.
    """
    s = settings
    check_settings(s)
    out = run_dir(s["RUN"])
    data_dir = resolve(s["DATA_DIR"])
    splits = {name: read_split(data_dir, name) for name in SPLITS}
    for name, (texts, labels) in splits.items():
        shared = count_shared(splits["train"][0], texts) if name != "train" else 0
        print(f"  {describe(name, labels)}" + (f", {shared} of them also in train" if name != "train" else ""))

    set_seed(s["SEED"])
    model, tokenizer = load_pretrained(s["MODEL_NAME"], s["MODEL_REVISION"], s["NUM_LABELS"])
    limit = model.config.max_position_embeddings
    require(s["MAX_LENGTH"] <= limit,
            f"MAX_LENGTH is {s['MAX_LENGTH']}; {s['MODEL_NAME']} reads at most {limit} tokens")
    rows = {name: encode(splits[name][0], tokenizer, s["CLEANING"], s["MAX_LENGTH"]) for name in ("train", "valid")}
    data = {name: to_dataset(rows[name], splits[name][1]) for name in rows}
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    fingerprint = fingerprint_of(s, [data_dir / f"{name}.tsv" for name in rows], model)
    model = prepare(model, rows["train"])

    args = TrainingArguments(
        output_dir=str(out / "checkpoints"), num_train_epochs=s["NUM_EPOCHS"], learning_rate=s["LEARNING_RATE"],
        per_device_train_batch_size=s["BATCH_SIZE"], per_device_eval_batch_size=64,
        weight_decay=s["WEIGHT_DECAY"], warmup_steps=s["WARMUP_RATIO"], seed=s["SEED"],
        train_sampling_strategy="group_by_length", fp16=autocast is torch.float16,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch", logging_nan_inf_filter=False,
        save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="macro_f1", greater_is_better=True,
        use_cpu=not torch.cuda.is_available(), average_tokens_across_devices=False, report_to="none",
        dataloader_pin_memory=torch.cuda.is_available())
    if args.n_gpu > 1:  # DataParallel would measure a range by replica, and its replicas cannot share a scale
        print(f"  {args.n_gpu} GPUs are here and one is used; start the stage with torchrun to use them all")
        args._n_gpu = 1
    trainer = _Trainer(
        model=model, args=args, train_dataset=data["train"], eval_dataset=data["valid"], processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer), callbacks=[_EpochLine(fingerprint)],
        compute_metrics=lambda p: accuracy_and_f1(p.label_ids, p.predictions.argmax(-1)))
    trainer.train_dtype = autocast
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Progress)
    print(f"  {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {trainer.args.device}, "
          f"training steps in {autocast or 'FP32'}, scores in FP32", flush=True)
    with trainer.args.main_process_first(desc="looking for checkpoints"):
        checkpoint = last_checkpoint(out / "checkpoints", fingerprint)
    trainer.train(resume_from_checkpoint=checkpoint)
    if not trainer.is_world_process_zero():
        sys.exit()  # the first process alone writes the artifacts
    epochs = [entry for entry in trainer.state.log_history if "eval_macro_f1" in entry]
    best = max(epochs, key=lambda entry: entry["eval_macro_f1"])
    print(f"keeping epoch {best['epoch']:.0f}: valid macro-F1 {best['eval_macro_f1']:.4f}")

    with atomic_folder(out) as scratch:
        save_run(scratch, model, tokenizer, s["CLEANING"], s["MAX_LENGTH"])
        save(model, scratch)
        write_json(scratch / "training.json", {"epochs": epochs, "kept_epoch": best["epoch"]})
        for name, value in (observe(model, rows["valid"], tokenizer.pad_token_id) if observe else {}).items():
            write_json(scratch / name, value)
        names = publish(scratch)
    record(out, stage, s, [data_dir / f"{name}.tsv" for name in rows], names)
    discarded = (out / "checkpoints").rename(out / ".tmp-checkpoints")  # at once: a kill leaves all of them or none
    shutil.rmtree(discarded)
    for name in names:
        if not name.endswith((".json", ".jinja")):
            print(f"wrote {shown(out / name)} ({file_bytes(out / name) / 1e6:.1f} MB)")
    return out
