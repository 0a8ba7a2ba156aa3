"""What a data set asks: the names of its texts, its labels or a number, and the score that a model is judged by.

`task.json` beside the TSVs says it, such as
    {"texts": ["text"], "labels": ["marah", "senang", "takut"], "score": "macro_f1"}
    {"texts": ["sentence1", "sentence2"], "labels": null, "score": "pearson"}
Without it the task is SMSA's: sentiment with positive, neutral, negative. A label's place in the list is its id.
"""

import difflib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

TASK_FILE = "task.json"
LABEL_SCORES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "f1": "F1", "matthews": "Matthews"}
NUMBER_SCORES = {"pearson": "Pearson", "spearman": "Spearman"}


@dataclass(frozen=True)
class Task:
    """Names of one or two texts; labels, or None where the answer is a number; the score that comes first.

    Scores of labels: accuracy, macro_f1, f1 (of the second of two labels), matthews; of a number: pearson, spearman.
    `answer` names the column of the label or number.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    score: str
    answer: str = "label"

    @property
    def pairs(self) -> bool:
        """Whether each row has two texts."""
        return len(self.texts) == 2

    @property
    def outputs(self) -> int:
        """How many logits a model of this task gives."""
        return len(self.labels) if self.labels else 1

    @property
    def score_name(self) -> str:
        """The score as a heading."""
        return (LABEL_SCORES | NUMBER_SCORES)[self.score]

    def as_json(self) -> dict:
        """What task.json holds."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


SENTIMENT = Task(("text",), ("positive", "neutral", "negative"), "macro_f1")


def read_task(folder: Path) -> Task:
    """The task of a data folder or of a run: its task.json, or SENTIMENT.

    Raises UserError, naming file and key, for one that no model could be trained for.
    """
    path = folder / TASK_FILE
    if not path.exists():
        return SENTIMENT
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{shown(path)} cannot be read as JSON ({error}): see data/README.md for its form") from None
    try:
        return task_of(given)
    except ValueError as error:
        raise UserError(f"{shown(path)} {error}; see data/README.md for its form") from None


def task_of_run(run: Path, data: Path) -> Task:
    """The task of a run; raises UserError if the data folder has a task.json that asks something else."""
    task = read_task(run)
    if (data / TASK_FILE).exists() and read_task(data) != task:
        raise UserError(f"{shown(data / TASK_FILE)} asks something else than {shown(run)} was trained for: "
                        "name data of its task with --data-dir, or train again on this")
    return task


def task_of(given) -> Task:
    """The task that a parsed task.json describes; raises ValueError with what is wrong."""
    if not isinstance(given, dict):
        raise ValueError(f"holds {type(given).__name__} instead of an object")
    for key in given:
        if key not in Task.__dataclass_fields__:
            near = difflib.get_close_matches(key, Task.__dataclass_fields__, n=1, cutoff=0.0)
            raise ValueError(f"has the unknown key {key!r}; the nearest is {near[0]!r}")
    missing = [key for key in ("texts", "labels", "score") if key not in given]
    if missing:
        raise ValueError(f"lacks the key {missing[0]!r}")
    texts = _names(given["texts"], "texts")
    labels = None if given["labels"] is None else _names(given["labels"], "labels")
    answer = _names([given.get("answer", "label")], "answer")[0]
    if not 1 <= len(texts) <= 2:
        raise ValueError(f"names {len(texts)} texts; one or two are possible")
    if answer.casefold() in {name.casefold() for name in texts}:
        raise ValueError(f"names the column {answer!r} as a text and as the answer")
    if labels is not None and len(labels) < 2:
        raise ValueError("names one label; at least two are needed, or null where the answer is a number")
    known = LABEL_SCORES if labels else NUMBER_SCORES
    if not isinstance(given["score"], str) or given["score"] not in known:
        raise ValueError(f"has the score {given['score']!r}; for {'labels' if labels else 'a number'} choose "
                         f"{', '.join(known)}")
    if given["score"] == "f1" and len(labels) != 2:
        raise ValueError(f"has the score 'f1', that of the second of two labels, but {len(labels)} labels: choose "
                         "macro_f1")
    return Task(texts, labels, given["score"], answer)


def _names(given, key: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"has {key!r} that is not a list of texts")
    names = tuple(name.strip() for name in given)
    for name in names:
        if not name or any(character in name for character in "\t\r\n\0"):
            raise ValueError(f"has {name!r} in {key!r}: it must not be empty or hold tabs or line ends")
    if len({name.casefold() for name in names}) < len(names):
        raise ValueError(f"names one of its {key} twice (letter case aside)")
    return names
