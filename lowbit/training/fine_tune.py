"""Fine-tuning with simulated low precision: one recipe for every precision folder, on Transformers' Trainer."""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lowbit.data.cleaning import require_preset
from lowbit.data.tokens import PREPROCESSING, Row, TextReader, input_names, load_reader
from lowbit.measure.score import HEADINGS, quick_score
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import SCRATCH, atomic_folder, file_bytes, resolve, run_dir, shown, write_json
from lowbit.pipeline.manifest import begin_run, publish, record
from lowbit.pipeline.settings import check
from lowbit.training.checkpoints import COMPLETE, delete_unfinished, file_sizes, fingerprint_of, last_checkpoint
from lowbit.training.encoder import load_pretrained, longest_input, save_run
from lowbit.training.first_token import choose_first_token_only
from lowbit.training.labelled import LabelledData, read_data, to_dataset
from lowbit.training.weights import save_state

Simulate = Callable[[nn.Module, list[Row]], None]  # gives the model its arithmetic, in place; gets train's token rows
CheckEpoch = Callable[[nn.Module], None]  # raises UserError for a model that training has spoiled
Observe = Callable[[nn.Module, list[Row]], dict[str, object]]  # on valid's token rows: file name -> saved as JSON
Save = Callable[[nn.Module, Path], None]  # writes the weights into a folder


def check_settings(s: dict) -> None:
    """Refuse values that cannot train, each with one sentence."""
    for name in ("BATCH_SIZE", "LEARNING_RATE"):
        check(0 < s[name] < math.inf, f"{name} is {s[name]}; it must be above 0 and finite")
    check(s["NUM_EPOCHS"] >= 0, f"NUM_EPOCHS is {s['NUM_EPOCHS']}; it must be 0 or more")
    for name, most in (("NUM_EPOCHS", 10_000), ("BATCH_SIZE", 100_000)):
        check(s[name] <= most, f"{name} is {s[name]}; at most {most} is possible")
    check(0 <= s["SEED"] < 2**32, f"SEED is {s['SEED']}; it must be from 0 to 4294967295")
    check(s["MAX_LENGTH"] >= 3, f"MAX_LENGTH is {s['MAX_LENGTH']}; at least 3 tokens: [CLS], a word, [SEP]")
    check(0 <= s["WEIGHT_DECAY"] < math.inf, f"WEIGHT_DECAY is {s['WEIGHT_DECAY']}; it must be 0 or more and finite")
    check(0 <= s["WARMUP_RATIO"] < 1, f"WARMUP_RATIO is {s['WARMUP_RATIO']}; it must be from 0 to below 1")
    require_preset(s["CLEANING"])


def autocast_dtype() -> torch.dtype | None:
    """BF16 where the device multiplies it natively, FP16 on older CUDA devices, None (FP32) elsewhere."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return None


class FineTuner(Trainer):
    """Trainer with BF16 autocast in training steps only: every score is measured in FP32 around the simulation.

    A stage that trains by another loss hands a subclass to fine_tune().
    """

    by_loss = False  # the epoch of least loss on valid is kept; else that of the task's best score
    train_dtype: torch.dtype | None = None
    unfit_epochs: float = 0.0  # first epochs, after which the weights are not what is wanted yet: none of them is kept

    def get_decay_parameter_names(self, model):
        """Matrices decay; biases, LayerNorms and scales, of fewer dimensions, do not."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def _determine_best_metric(self, metrics, trial):
        return self.state.epoch > self.unfit_epochs and super()._determine_best_metric(metrics, trial)

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

    def __init__(self, fingerprint: str, check_epoch: CheckEpoch | None, by_loss: bool):
        self.fingerprint, self.check_epoch, self.by_loss = fingerprint, check_epoch, by_loss
        self.started = time.monotonic()

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise UserError(f"the loss is {logs['loss']} in epoch {state.epoch:.0f}: training diverged at "
                            f"LEARNING_RATE {args.learning_rate}; lower it and run again")

    def on_evaluate(self, args, state, control, metrics, model=None, **kwargs):
        if self.check_epoch:
            self.check_epoch(model)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if state.is_world_process_zero:
            told = ({"loss": "loss"} if self.by_loss else {}) | HEADINGS
            scores = "".join(f"valid {name} {metrics[f'eval_{key}']:.4f}  " for key, name in told.items()
                             if f"eval_{key}" in metrics)
            epoch = f"epoch {state.epoch:.0f}/{args.num_train_epochs:.0f}  loss {losses[-1]:.4f}" if losses else "as is"
            print(f"{epoch}  {scores}{time.monotonic() - self.started:.0f} s", flush=True)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / COMPLETE, {"fingerprint": self.fingerprint, "bytes": file_sizes(folder)})


def training_arguments(s: dict, out: Path, kept_by: str, autocast: torch.dtype | None) -> TrainingArguments:
    """The recipe: a linear schedule, texts grouped by length, the epoch of best score or least loss on valid kept."""
    args = TrainingArguments(
        output_dir=str(out / "checkpoints"), num_train_epochs=s["NUM_EPOCHS"], learning_rate=s["LEARNING_RATE"],
        per_device_train_batch_size=s["BATCH_SIZE"], per_device_eval_batch_size=64,
        weight_decay=s["WEIGHT_DECAY"], warmup_steps=s["WARMUP_RATIO"], seed=s["SEED"],
        train_sampling_strategy="group_by_length", fp16=autocast is torch.float16,
        eval_strategy="epoch", save_strategy="epoch", logging_strategy="epoch", logging_nan_inf_filter=False,
        save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model=kept_by, greater_is_better=kept_by != "loss",
        use_cpu=not torch.cuda.is_available(), average_tokens_across_devices=False, report_to="none",
        dataloader_pin_memory=torch.cuda.is_available())
    if args.n_gpu > 1:  # DataParallel would measure a range by replica, and its replicas cannot share a scale
        print(f"  {args.n_gpu} GPUs are here and one is used; start the stage with torchrun to use them all")
        args._n_gpu = 1
    return args


def check_finished(model, s: dict) -> None:
    """Refuse to take a model as it is whose head is new, or that learned on texts cleaned otherwise."""
    check(not model.untrained, f"NUM_EPOCHS is 0, and {', '.join(model.untrained[:2])} of MODEL_NAME was not trained "
          "for these labels: name a fine-tuned model, or train for an epoch or more")
    folder = resolve(s["MODEL_NAME"])
    if (folder / PREPROCESSING).exists():
        learned = load_reader(folder).cleaning
        check(learned == s["CLEANING"], f"NUM_EPOCHS is 0, and {shown(folder)} learned on texts of CLEANING {learned}, "
              f"not {s['CLEANING']}: run again with --cleaning {learned}, or train for an epoch or more")


def start_at_mean(model, numbers) -> None:
    """Let a new head of a number answer train's mean before it has learned anything, in place.

    From zero, the first passes only move the answer there.
    """
    for name, parameter in model.named_parameters():
        if name in model.untrained and parameter.shape == (1,):  # the bias of its one output
            torch.nn.init.constant_(parameter, sum(numbers) / len(numbers))


def fine_tune(settings: dict, stage: str, simulate: Simulate | None = None, *, autocast: torch.dtype | None = None,
              check_epoch: CheckEpoch | None = None, observe: Observe | None = None, save: Save = save_state,
              trainer_class: type[FineTuner] = FineTuner) -> Path:
    """Train the model, simulated, on DATA_DIR and write the run's folder; returns it.

    Training steps compute in `autocast`, or in FP32. Each epoch scores the simulated model on valid; the epoch of the
    task's best score, or of the trainer's least loss, is kept. With NUM_EPOCHS 0 a fine-tuned model is simulated,
    scored and kept as it is. Writes the weights, config.json, tokenizer files, preprocessing.json, task.json,
    training.json, and what `observe` says of the kept epoch.
    """
    s = settings
    check_settings(s)
    out = run_dir(s["RUN"])
    check(resolve(s["MODEL_NAME"]).resolve() != out.resolve(), f"MODEL_NAME and RUN are one folder, {shown(out)}: "
          "choose a new name for RUN, the model would be replaced by what is made of it")
    data = read_data(s)
    set_seed(s["SEED"])
    model, tokenizer = load_pretrained(s["MODEL_NAME"], s["MODEL_REVISION"], data.task)
    if not s["NUM_EPOCHS"]:
        check_finished(model, s)
    if data.task.labels is None:
        start_at_mean(model, data.splits["train"][1])
    limit = longest_input(model)
    check(s["MAX_LENGTH"] <= limit, f"MAX_LENGTH is {s['MAX_LENGTH']}; {s['MODEL_NAME']} reads at most {limit} tokens")
    reader = TextReader(tokenizer, s["CLEANING"], s["MAX_LENGTH"], input_names(model.config, data.task.pairs))
    (texts, answers), (valid_texts, valid_answers) = data.learned(), data.splits["valid"]
    rows, valid_rows = reader.rows(texts), reader.rows(valid_texts)
    begin_run(out, stage, "checkpoints")
    fingerprint = fingerprint_of(s, data.files(), model)
    choose_first_token_only(model, s["FIRST_TOKEN_ONLY"])
    if simulate:
        simulate(model, rows[: len(data.splits["train"][0])])
    trainer = trainer_class(
        model=model, args=training_arguments(s, out, "loss" if trainer_class.by_loss else data.task.score, autocast),
        train_dataset=to_dataset(rows, answers), eval_dataset=to_dataset(valid_rows, valid_answers),
        processing_class=tokenizer, data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[_EpochLine(fingerprint, check_epoch, trainer_class.by_loss)],
        compute_metrics=lambda p: quick_score(p.label_ids, p.predictions, data.task))
    trainer.train_dtype = autocast
    for printer in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(printer)
    if sys.stderr.isatty():
        trainer.add_callback(_Progress)
    print(f"  {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {trainer.args.device}, "
          f"training steps in {autocast or 'FP32'}, scores in FP32", flush=True)
    with trainer.args.main_process_first(desc="looking for checkpoints"):
        checkpoint = last_checkpoint(out / "checkpoints", fingerprint)
    try:
        if s["NUM_EPOCHS"]:
            trainer.train(resume_from_checkpoint=checkpoint)
        else:
            trainer.evaluate()
    except Exception:
        if trainer.is_world_process_zero():
            delete_unfinished(out / "checkpoints")
        raise
    if trainer.is_world_process_zero():  # the first process alone writes the artifacts
        publish_run(out, stage, s, trainer, reader, data, save, observe(model, valid_rows) if observe else {})
    return out


def publish_run(out: Path, stage: str, s: dict, trainer: FineTuner, reader: TextReader, data: LabelledData,
                save: Save, observed: dict[str, object]) -> None:
    """Write and record the files of a trained run, then delete its checkpoints."""
    key, name = f"eval_{data.task.score}", data.task.score_name
    epochs = [entry for entry in trainer.state.log_history if key in entry]
    best = next(entry for entry in epochs if entry["step"] == (trainer.state.best_global_step or 0))
    if s["NUM_EPOCHS"]:
        why = f", of least loss on valid, {best['eval_loss']:.4f}" if trainer.by_loss else ""
        print(f"keeping epoch {best['epoch']:.0f}{why}: valid {name} {best[key]:.4f}")
    with atomic_folder(out) as scratch:
        save_run(scratch, trainer.model, reader, data.task)
        save(trainer.model, scratch)
        write_json(scratch / "training.json", {"epochs": epochs, "kept_epoch": best["epoch"]})
        for file, value in observed.items():
            write_json(scratch / file, value)
        names = publish(scratch)
    record(out, stage, s, data.files(), names)
    discarded = out / "checkpoints".join(SCRATCH)
    (out / "checkpoints").rename(discarded)  # at once: a kill leaves all of them or none
    shutil.rmtree(discarded)
    for file in names:
        if not file.endswith((".json", ".jinja")):
            print(f"wrote {shown(out / file)} ({file_bytes(out / file) / 1e6:.1f} MB)")
