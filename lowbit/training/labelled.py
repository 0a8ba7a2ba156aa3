"""What a training reads: the task and the labelled texts of DATA_DIR, and token rows as the Trainer takes them."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from lowbit.data.task import TASK_FILE, Task, read_task
from lowbit.data.tokens import Row, width
from lowbit.data.tsv import SPLITS, count_shared, describe, read_split
from lowbit.pipeline.files import resolve
from lowbit.pipeline.settings import check


@dataclass
class LabelledData:
    """What DATA_DIR holds: its task, and each split's (texts, label ids or numbers)."""

    folder: Path
    task: Task
    splits: dict[str, tuple[list, list]]

    def files(self) -> list[Path]:
        """The files that training depends on."""
        return training_files(self.folder)


def training_files(folder: Path) -> list[Path]:
    """The files of a data folder that training depends on: train, valid and, where there is one, the task."""
    files = [folder / name for name in ("train.tsv", "valid.tsv", TASK_FILE)]
    return files if files[-1].exists() else files[:-1]


def read_data(s: dict) -> LabelledData:
    """The task and the splits of DATA_DIR, each described in a line."""
    folder = resolve(s["DATA_DIR"])
    task = read_task(folder)
    labels = len(task.labels) if task.labels else 1
    known = ", ".join(task.labels) if task.labels else "none but a number, which is 1"
    check(s["NUM_LABELS"] in (0, labels), f"NUM_LABELS is {s['NUM_LABELS']}; the data has {labels} labels: {known}")
    splits = {name: read_split(folder, name, task) for name in SPLITS}
    for name, (texts, answers) in splits.items():
        shared = f", {count_shared(splits['train'][0], texts)} of them also in train" if name != "train" else ""
        print(f"  {describe(name, texts, answers, task)}{shared}")
    return LabelledData(folder, task, splits)


def to_dataset(rows: list[Row], answers: list) -> Dataset:
    """Unpadded rows; the collator pads each batch to its own longest."""
    return Dataset.from_dict({**{name: [row[name] for row in rows] for name in rows[0]},
                              "attention_mask": [[1] * width(row) for row in rows], "labels": answers})
