"""Stage 4 of 4: pack the best student on valid as the bundled model, if it is better than the one that lies there.

Reads   models/<run>/ for RUNS              distill_bert_mini_id.py, or train_teachers.py
        DATA_DIR/{valid,test}.tsv           python data/download_smsa.py
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
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import load_pretrained, load_run, save_run
from lowbit.training.weights import WEIGHTS

# ---- settings: edit here, or for one run: --out-dir models/mine ----------------------------------
RUNS = ("bert-mini-id-distilled-1,bert-mini-id-distilled-2,"
        "bert-mini-id-distilled-3")  # folders under models/ that started from one encoder
RECIPE = "e5-small-id,e5-small-id-adapted,bert-mini-id-mlm"  # folders whose settings are kept beside those of RUNS
DATA_DIR = "data"               # folder of valid.tsv and test.tsv, from the project's root
OUT_DIR = "models/bert-mini-id"  # folder that the winner is packed into
TEST = True                     # score test as well; --no-test while anything is still chosen
# --------------------------------------------------------------------------------------------------

RESULTS = "results.json"
MAKERS = ("pretrain/distill_bert_mini_id.py", "pretrain/train_teachers.py")  # stages that may have trained RUNS


def mean_weights(folders: list[Path]) -> dict[str, torch.Tensor]:
    """The average of the runs' weights: all start from one point (Wortsman et al. 2022, arXiv:2203.05482)."""
    states = [torch.load(folder / WEIGHTS, weights_only=True) for folder in folders]
    return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]}


def score_split(model, reader: TextReader, split: str) -> dict:
    """Scores on a split, one text at a time in FP32."""
    texts, labels = read_split(resolve(DATA_DIR), split)
    logits = simulated_logits(model, reader.rows(texts), reader.pad_id)
    return {"texts": len(labels), **score(labels, logits, SENTIMENT)}


def made_by(folder: Path) -> str:
    """The stage that trained a run; raises UserError for one that none of MAKERS did."""
    found = [stage for stage in MAKERS if stage in stages_of(folder)]
    check(bool(found), f"{shown(folder)} was trained by none of {', '.join(MAKERS)}: name their runs with --runs")
    return found[0]


def choose(folders: list[Path]) -> tuple[dict, str]:
    """(candidate -> its scores on valid, the one of best macro-F1): each run, and the mean of their weights."""
    candidates = {folder.name: [folder] for folder in folders}
    if len(folders) > 1:
        candidates["mean of the weights"] = folders
    model, reader, valid = load_run(folders[0]), load_reader(folders[0]), {}
    for name, members in candidates.items():
        model.load_state_dict(mean_weights(members))
        valid[name] = score_split(model, reader, "valid")
        print(f"  {name:28} valid macro-F1 {valid[name]['macro_f1']:.4f}", flush=True)
    return valid, max(valid, key=lambda name: valid[name]["macro_f1"])


def pack(out: Path, folders: list[Path], reader: TextReader) -> None:
    """Write the mean of the folders' weights in FP16 and all that a model folder needs."""
    model = load_run(folders[0])
    model.load_state_dict(mean_weights(folders))
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    with atomic_folder(out) as scratch:
        save_run(scratch, model, reader, SENTIMENT)
        model.half().save_pretrained(scratch)
        config = json.loads((scratch / "config.json").read_text(encoding="utf-8"))
        write_json(scratch / "config.json", config | {"dtype": "float32"})  # stored in FP16, computed in FP32
        publish(scratch)


def main(settings):
    folders, out = [run_dir(name.strip()) for name in RUNS.split(",")], resolve(OUT_DIR)
    for folder in folders:
        recorded(folder, made_by(folder), WEIGHTS, "config.json")
    valid, kept = choose(folders)
    before = json.loads((out / RESULTS).read_text(encoding="utf-8"))["valid"] if (out / RESULTS).exists() else None
    check(before is None or valid[kept]["macro_f1"] > before["macro_f1"],
          f"{shown(out)} has valid macro-F1 {(before or valid[kept])['macro_f1']:.4f}, the best of RUNS "
          f"{valid[kept]['macro_f1']:.4f}: it stays as it is; name another folder with --out-dir")
    chosen = folders if kept not in {folder.name for folder in folders} else [run_dir(kept)]
    reader = load_reader(chosen[0])
    pack(out, chosen, reader)
    model, _ = load_pretrained(OUT_DIR, "", SENTIMENT)
    found = {split: score_split(model, reader, split) for split in ("valid", *(["test"] if TEST else []))}
    each = {}
    for folder in folders if TEST else ():
        model.load_state_dict(mean_weights([folder]))
        each[folder.name] = score_split(model, reader, "test")
    if each:
        found["test_of_each_run"] = each
        found["test_macro_f1_mean_of_runs"] = statistics.mean(scores["macro_f1"] for scores in each.values())
    recipe = {name: {stage: made["settings"] for stage, made in stages_of(run_dir(name)).items()}
              for name in [*RECIPE.split(","), *(folder.name for folder in folders)]}
    write_json(out / RESULTS, {"kept": kept, "valid_of_candidates": valid, **found, "settings": settings,
                               "recipe": recipe, "machine": machine(), "versions": versions()})
    for split in found.keys() & {"valid", "test"}:
        print(f"  {split}: accuracy {found[split]['accuracy']:.4f}, macro-F1 {found[split]['macro_f1']:.4f}")
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
