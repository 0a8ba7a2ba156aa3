"""Stage 4 of 4: pack the best student on valid as the bundled model, if it is better than the one that lies there.

Reads   models/<run>/ for RUNS              distill_bert_mini_id.py, or train_teachers.py
        DATA_DIR/{valid,test}.tsv           python data/download_smsa.py
Writes  <OUT_DIR>/                          FP16 weights, config.json, tokenizer files, results.json
"""
import json
import statistics
from pathlib import Path

import torch
from transformers.utils import logging

from lowbit.data.task import SENTIMENT
from lowbit.data.tokens import PREPROCESSING, TextReader, load_reader
from lowbit.data.tsv import read_split
from lowbit.graph.agreement import simulated_logits
from lowbit.measure.score import score
from lowbit.pipeline.files import SCRATCH, atomic_folder, claim, move_up, resolve, run_dir, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.pretrain.runs import is_packed, load_packed, made_by
from lowbit.training.encoder import load_run, save_run
from lowbit.training.weights import WEIGHTS

# ---- settings: edit here, or for one run: --out-dir models/mine ----------------------------------
RUNS = ("bert-mini-id-distilled-1,bert-mini-id-distilled-2,"
        "bert-mini-id-distilled-3")  # folders under models/ that started from one encoder
RECIPE = "e5-small-id,e5-small-id-adapted,bert-mini-id-mlm"  # folders whose settings are kept beside those of RUNS
DATA_DIR = "data"               # folder of valid.tsv and test.tsv, from the project's root
OUT_DIR = "models/bert-mini-id"  # folder that the winner is packed into
TEST = True                     # score test as well; --no-test while anything is still chosen
# --------------------------------------------------------------------------------------------------

RESULTS, CARD = "results.json", "README.md"
MEAN = "mean of the weights"
MAKERS = ("pretrain/distill_bert_mini_id.py", "pretrain/train_teachers.py")  # stages that may have trained RUNS


def mean_weights(folders: list[Path]) -> dict[str, torch.Tensor]:
    """The average of the runs' weights: all start from one point (Wortsman et al. 2022, arXiv:2203.05482).

    Rounded to FP16, as pack() stores them: what is scored is what is packed.
    """
    states = [torch.load(folder / WEIGHTS, weights_only=True) for folder in folders]
    return {name: torch.stack([state[name].float() for state in states]).mean(0).half().float() for name in states[0]}


def score_split(model, reader: TextReader, split: str) -> dict:
    """Scores on a split, one text at a time in FP32."""
    texts, labels = read_split(resolve(DATA_DIR), split)
    logits = simulated_logits(model, reader.rows(texts), reader.pad_id)
    return {"texts": len(labels), **score(labels, logits, SENTIMENT)}


def choose(folders: list[Path]) -> tuple[dict, str]:
    """(candidate -> its scores on valid, the one of best macro-F1): each run, and the mean of their weights."""
    candidates = {folder.name: [folder] for folder in folders} | ({MEAN: folders} if len(folders) > 1 else {})
    model, reader, valid = load_run(folders[0]), load_reader(folders[0]), {}
    for name, members in candidates.items():
        model.load_state_dict(mean_weights(members))
        valid[name] = score_split(model, reader, "valid")
        print(f"  {name:28} valid macro-F1 {valid[name]['macro_f1']:.4f}", flush=True)
    return valid, max(valid, key=lambda name: valid[name]["macro_f1"])


def present_score(out: Path) -> float:
    """Macro-F1 on valid of the model that lies in `out`; below 0 if there is none. Raises UserError for other files."""
    if set(out.glob("*")) == set(out.glob("*".join(SCRATCH))):  # nothing, or what a kill left
        return -1.0
    check(is_packed(out), f"OUT_DIR {shown(out)} holds something else than a packed model: name a new folder")
    found = score_split(*load_packed(out, "OUT_DIR"), "valid")["macro_f1"]
    print(f"  {shown(out):28} valid macro-F1 {found:.4f}", flush=True)
    return found


def pack(scratch: Path, folders: list[Path]) -> None:
    """Write the mean of the folders' weights in FP16 and all that a model folder needs."""
    model = load_run(folders[0])
    model.load_state_dict(mean_weights(folders))
    save_run(scratch, model, load_reader(folders[0]), SENTIMENT)
    model.half().save_pretrained(scratch)
    config = json.loads((scratch / "config.json").read_text(encoding="utf-8"))
    write_json(scratch / "config.json", config | {"dtype": "float32"})  # stored in FP16, computed in FP32


def score_test(folders: list[Path]) -> dict:
    """Scores on test of each run, and the mean of their macro-F1."""
    model, reader, each = load_run(folders[0]), load_reader(folders[0]), {}
    for folder in folders:
        model.load_state_dict(mean_weights([folder]))
        each[folder.name] = score_split(model, reader, "test")
    return {"test_of_each_run": each,
            "test_macro_f1_mean_of_runs": statistics.mean(scores["macro_f1"] for scores in each.values())}


def recipe_of(folders: list[Path]) -> dict:
    """Folder -> stage -> settings, of RECIPE and the runs; raises UserError for a folder without a record."""
    named = [run_dir(name.strip(), "RECIPE") for name in RECIPE.split(",")]
    for folder in named:
        check(bool(stages_of(folder)), f"RECIPE names {folder.name}, but {shown(folder)} holds no stage's record: "
              "name the folders that RUNS were made from")
    return {folder.name: {stage: made["settings"] for stage, made in stages_of(folder).items()}
            for folder in [*named, *folders]}


def main(settings):
    logging.disable_progress_bar()  # of a second's work
    folders, out = [run_dir(name.strip(), "RUNS") for name in RUNS.split(",")], resolve(OUT_DIR)
    for folder in folders:
        maker = next((stage for stage in MAKERS if stage in stages_of(folder)), MAKERS[0])
        made_by(maker, folder, "RUNS", WEIGHTS, "config.json", PREPROCESSING)
        check((folder / PREPROCESSING).read_bytes() == (folders[0] / PREPROCESSING).read_bytes(),
              f"{folder.name} reads texts otherwise than {folders[0].name} (cleaning, longest input): pack them apart")
    recipe, before = recipe_of(folders), present_score(out)
    valid, kept = choose(folders)
    check(valid[kept]["macro_f1"] > before, f"{shown(out)} has valid macro-F1 {before:.4f}, the best of RUNS "
          f"{valid[kept]['macro_f1']:.4f}: it stays as it is; name another folder with --out-dir")
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    with atomic_folder(out) as scratch:
        pack(scratch, folders if kept == MEAN else [run_dir(kept)])
        packed = load_packed(scratch, "OUT_DIR")
        found = {split: score_split(*packed, split) for split in ("valid", *(["test"] if TEST else []))}
        write_json(scratch / RESULTS, {
            "kept": kept, "valid_of_candidates": valid, **found, **(score_test(folders) if TEST else {}),
            "settings": settings, "recipe": recipe, "machine": machine(), "versions": versions()})
        move_up(scratch)
    for split, scores in found.items():
        print(f"  {split}: accuracy {scores['accuracy']:.4f}, macro-F1 {scores['macro_f1']:.4f}")
    print(f"wrote {shown(out)}")
    if (out / CARD).exists():
        print(f"  {shown(out / CARD)} still describes the model before: write it anew")


if __name__ == "__main__":
    run_stage(main, globals())
