"""Stage 2 of 2: fine-tune the pretrained encoder on SMSA with each text cleaning, pack the best on valid.

Reads   models/<RUN>/                       pretrain_bert_mini_id.py
        DATA_DIR/{train,valid,test}.tsv     python data/download_smsa.py
Writes  models/bert-mini-id/                FP16 weights, config.json, tokenizer files, results.json
"""
import json
import statistics
from pathlib import Path

import torch

from lowbit.data.task import SENTIMENT
from lowbit.data.tokens import TextReader, load_reader
from lowbit.data.tsv import read_split
from lowbit.graph.agreement import simulated_logits
from lowbit.measure.score import score
from lowbit.pipeline.files import atomic_folder, claim, publish, resolve, run_dir, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import recorded, stages_of
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import load_pretrained, load_run, save_run
from lowbit.training.fine_tune import autocast_dtype, fine_tune
from lowbit.training.weights import WEIGHTS

# ---- settings: edit here, or for one run: --seeds 1 ----------------------------------------------
RUN = "bert-mini-id-mlm"        # folder under models/ of the pretrained encoder
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv, from the project's root
CLEANINGS = "minimal,negation-safe,documents"  # text cleanings to compare; the best mean macro-F1 on valid wins
SEEDS = "1,2,3"                 # fine-tuning runs a cleaning; the winner's best, or their mean, is packed
NUM_EPOCHS = 3                  # passes over train
BATCH_SIZE = 32                 # texts a step
LEARNING_RATE = 2e-4            # peak of the linear schedule
MAX_LENGTH = 128                # tokens; longer texts are cut
AUTOCAST = True                 # BF16/FP16 arithmetic in training steps where the device has it
OUT_DIR = "models/bert-mini-id"  # folder that the winner is packed into
PACK = True                     # --no-pack trains only: several cleanings can run side by side
# --------------------------------------------------------------------------------------------------

STAGE, PRETRAIN = "pretrain/finetune_bert_mini_id.py", "pretrain/pretrain_bert_mini_id.py"


def train_once(cleaning: str, seed: int) -> tuple[Path, dict]:
    """(run folder, its kept epoch's scores on valid); a finished run of the same settings is not repeated."""
    settings = {"RUN": f"bert-mini-id-{cleaning}-{seed}", "MODEL_NAME": f"models/{RUN}", "MODEL_REVISION": "",
                "DATA_DIR": DATA_DIR, "CLEANING": cleaning, "MAX_LENGTH": MAX_LENGTH, "NUM_LABELS": 0,
                "NUM_EPOCHS": NUM_EPOCHS, "BATCH_SIZE": BATCH_SIZE, "LEARNING_RATE": LEARNING_RATE,
                "WARMUP_RATIO": 0.1, "WEIGHT_DECAY": 0.01, "SEED": seed, "AUTOCAST": AUTOCAST}
    folder = run_dir(settings["RUN"])
    if stages_of(folder).get(STAGE, {}).get("settings") != settings:
        print(f"{cleaning}, seed {seed}")
        fine_tune(settings, STAGE, autocast=autocast_dtype() if AUTOCAST else None)
    recorded(folder, STAGE, WEIGHTS, "training.json")
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return folder, next(epoch for epoch in training["epochs"] if epoch["epoch"] == training["kept_epoch"])


def mean_weights(folders: list[Path]) -> dict[str, torch.Tensor]:
    """The average of the runs' weights: all start from one point (Wortsman et al. 2022, arXiv:2203.05482)."""
    states = [torch.load(folder / WEIGHTS, weights_only=True) for folder in folders]
    return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}


def score_split(model, reader: TextReader, split: str) -> dict:
    """Scores on a split, one text at a time in FP32."""
    texts, labels = read_split(resolve(DATA_DIR), split)
    logits = simulated_logits(model, reader.rows(texts), reader.pad_id)
    return {"texts": len(labels), **score(labels, logits, SENTIMENT)}


def main(settings):
    recorded(run_dir(RUN), PRETRAIN, "model.safetensors", "config.json")
    results = {}
    for cleaning in CLEANINGS.split(","):
        for seed in map(int, SEEDS.split(",")):
            folder, best = train_once(cleaning, seed)
            results.setdefault(cleaning, []).append({
                "seed": seed, "run": folder.name, "epoch": best["epoch"], "valid_accuracy": best["eval_accuracy"],
                "valid_macro_f1": best["eval_macro_f1"]})
    means = {name: statistics.mean(run["valid_macro_f1"] for run in runs) for name, runs in results.items()}
    for name, mean in sorted(means.items(), key=lambda item: -item[1]):
        each = ", ".join(f"{run['valid_macro_f1']:.4f}" for run in results[name])
        print(f"  {name:14} valid macro-F1 {mean:.4f} ({each})")
    if not PACK:
        return
    winner = max(means, key=means.get)
    folders = [run_dir(run["run"]) for run in results[winner]]
    model, reader = load_run(folders[0]), load_reader(folders[0])
    candidates = {**{f"seed {run['seed']}": [folder] for run, folder in zip(results[winner], folders, strict=True)},
                  "mean of the seeds": folders}
    valid = {}
    for name, members in candidates.items():
        model.load_state_dict(mean_weights(members))
        valid[name] = score_split(model, reader, "valid")["macro_f1"]
        print(f"  {winner}, {name:18} valid macro-F1 {valid[name]:.4f}")
    kept = max(valid, key=valid.get)
    model.load_state_dict(mean_weights(candidates[kept]))
    out = resolve(OUT_DIR)
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    with atomic_folder(out) as scratch:
        save_run(scratch, model, reader, SENTIMENT)
        model.half().save_pretrained(scratch)
        config = json.loads((scratch / "config.json").read_text(encoding="utf-8"))
        config |= {"dtype": "float32"}  # stored in FP16, computed in FP32
        write_json(scratch / "config.json", config)
        publish(scratch)
    model, _ = load_pretrained(OUT_DIR, "", SENTIMENT)
    scores = {split: score_split(model, load_reader(out), split) for split in ("valid", "test")}
    write_json(out / "results.json", {
        "cleaning": winner, "cleanings": results, "candidates_valid_macro_f1": valid, "kept": kept, **scores,
        "settings": settings, "pretraining": stages_of(run_dir(RUN))[PRETRAIN]["settings"],
        "machine": machine(), "versions": versions()})
    for split, values in scores.items():
        print(f"  {split}: accuracy {values['accuracy']:.4f}, macro-F1 {values['macro_f1']:.4f}")
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
