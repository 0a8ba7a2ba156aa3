"""What a training reads: the task and the labelled texts of DATA_DIR, and token rows as the Trainer takes them."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from lowbit.data.heldout import HeldOut
from lowbit.data.task import TASK_FILE, Task, read_task
from lowbit.data.tokens import Row, width
from lowbit.data.tsv import SPLITS, Text, count_shared, describe, read_split
from lowbit.data.unlabelled import NO_LABEL, NO_NUMBER, draw_unlabelled, unlabelled_files
from lowbit.pipeline.files import resolve
from lowbit.pipeline.settings import check


@dataclass
class LabelledData:
    """What DATA_DIR holds: its task, each split's (texts, label ids or numbers); and the texts of UNLABELLED."""

    folder: Path
    task: Task
    splits: dict[str, tuple[list, list]]
    unlabelled: list[Text] = field(default_factory=list)
    unlabelled_from: list[Path] = field(default_factory=list)

    def files(self) -> list[Path]:
        """The files that training depends on."""
        return training_files(self.folder) + self.unlabelled_from

    def learned(self) -> tuple[list[Text], list]:
        """(texts, answers) that training reads: train's, then the unlabelled ones, which have none."""
        texts, answers = self.splits["train"]
        return texts + self.unlabelled, answers + [NO_LABEL if self.task.labels else NO_NUMBER] * len(self.unlabelled)


def training_files(folder: Path) -> list[Path]:
    """The files of a data folder that training depends on: train, valid and, where there is one, the task."""
    files = [folder / name for name in ("train.tsv", "valid.tsv", TASK_FILE)]
    return files if files[-1].exists() else files[:-1]


def read_data(s: dict) -> LabelledData:
    """The task and the splits of DATA_DIR, each described in a line; and UNLABELLED, where a stage has that setting."""
    folder = resolve(s["DATA_DIR"])
    task = read_task(folder)
    labels = len(task.labels) if task.labels else 1
    known = ", ".join(task.labels) if task.labels else "none but a number, which is 1"
    check(s["NUM_LABELS"] in (0, labels), f"NUM_LABELS is {s['NUM_LABELS']}; the data has {labels} labels: {known}")
    splits = {name: read_split(folder, name, task) for name in SPLITS}
    for name, (texts, answers) in splits.items():
        shared = f", {count_shared(splits['train'][0], texts)} of them also in train" if name != "train" else ""
        print(f"  {describe(name, texts, answers, task)}{shared}")
    if not s.get("UNLABELLED"):
        return LabelledData(folder, task, splits)
    check(s["UNLABELLED_TEXTS"] >= 0, f"UNLABELLED_TEXTS is {s['UNLABELLED_TEXTS']}; it must be 0, for all, or more")
    held = HeldOut(text for split in ("valid", "test") for text in splits[split][0])
    drawn = draw_unlabelled(s["UNLABELLED"], s["UNLABELLED_TEXTS"], s["SEED"], task, splits["train"][0], held)
    return LabelledData(folder, task, splits, drawn, unlabelled_files(s["UNLABELLED"]))


def to_dataset(rows: list[Row], answers: list) -> Dataset:
    """Unpadded rows; the collator pads each batch to its own longest."""
    return Dataset.from_dict({**{name: [row[name] for row in rows] for name in rows[0]},
                              "attention_mask": [[1] * width(row) for row in rows], "labels": answers})
