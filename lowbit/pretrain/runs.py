"""Runs of one recipe and several seeds: each made once, found again, and their scores told together."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

from lowbit.data.task import SENTIMENT
from lowbit.data.tokens import load_reader
from lowbit.pipeline.files import resolve, run_dir, shown
from lowbit.pipeline.manifest import MANIFEST, is_made, recorded, stages_of
from lowbit.pipeline.settings import check
from lowbit.training.encoder import load_pretrained
from lowbit.training.labelled import training_files
from lowbit.training.weights import WEIGHTS

TRAINING = "training.json"
PACKED = ("results.json", "model.safetensors", "config.json", "tokenizer.json")  # of a packed model


def is_packed(folder: Path) -> bool:
    """Whether a folder is a model that pack_bert_mini_id.py wrote, as the bundled one, and no run of stages."""
    return all((folder / name).exists() for name in PACKED) and not (folder / MANIFEST).exists()


def load_packed(folder: Path, setting: str):
    """(model, reader) of a packed model, computing in FP32; raises UserError, naming `setting`, if it is damaged."""
    return load_pretrained(shown(folder), "", SENTIMENT, setting)[0], load_reader(folder)


def made_by(stage: str, folder: Path, setting: str, *names: str) -> list[Path]:
    """The files `names` that `stage` recorded in `folder`; raises UserError naming `setting` if it made none there."""
    check(stage in stages_of(folder), f"{setting} names {folder.name}, but {shown(folder)} holds nothing that "
                                      f"{Path(stage).name} made: run `python {stage}` first")
    return recorded(folder, stage, *names)


def kept_epoch(settings: dict, stage: str, train: Callable[[], object]) -> dict:
    """The scores on valid of the epoch that the run `settings["RUN"]` keeps: `eval_accuracy`, `eval_macro_f1`, ….

    train() makes the run, unless it lies there whole, made with the same settings and versions from the same data.
    """
    folder, data = run_dir(settings["RUN"]), resolve(settings["DATA_DIR"])
    if not is_made(folder, stage, settings, training_files(data), [WEIGHTS, TRAINING]):
        print(folder.name, flush=True)
        train()
    recorded(folder, stage, WEIGHTS, TRAINING)
    training = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    return next(epoch for epoch in training["epochs"] if epoch["epoch"] == training["kept_epoch"])


def score_lines(epochs: list[dict]) -> list[str]:
    """Mean of the seeds' kept epochs and each of them, a line a score."""
    lines = []
    for name, heading in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        each = [epoch[f"eval_{name}"] for epoch in epochs]
        lines.append(f"  valid {heading} {statistics.mean(each):.4f} ({', '.join(f'{value:.4f}' for value in each)})")
    return lines
