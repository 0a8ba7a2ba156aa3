"""The one reader of labelled text: tab-separated rows of texts and label, quoting off, every bad row named."""

import codecs
import math
from collections import Counter
from pathlib import Path

from lowbit.data.task import SENTIMENT, Task
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

SPLITS = ("train", "valid", "test")
LARGEST = 1e15  # of a number to be learned
BAD_ROWS_SHOWN = 10
BAD_ROW_LENGTH = 1000  # characters of a row that an error shows
BOM = codecs.BOM_UTF8

Text = str | tuple[str, ...]  # one text of a row, or the two of a pair
Answers = list[int] | list[float]  # label ids, or numbers


def decoded(line: bytes) -> list[str]:
    """The cells of a line; raises ValueError with what is wrong."""
    if b"\0" in line:
        raise ValueError("holds a NUL byte")
    try:
        return [cell.strip() for cell in line.decode("utf-8").split("\t")]
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start + 1}") from None


def _read_answer(cell: str, ids: dict[str, int], task: Task) -> int | float:
    """A cell as label id or number; raises ValueError with what is wrong."""
    if task.labels is None:
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"has {cell!r} instead of a number")
        if abs(number) > LARGEST:
            raise ValueError(f"has {cell!r}, a number beyond {LARGEST:g} whose square FP32 does not hold")
        return number
    if cell.casefold() not in ids:
        raise ValueError(f"has the unknown label {cell!r} (known: {', '.join(task.labels)})")
    return ids[cell.casefold()]


def is_answer(cell: str, task: Task) -> bool:
    """Whether a cell is a label or number of the task."""
    try:
        _read_answer(cell, {label.casefold(): i for i, label in enumerate(task.labels or ())}, task)
    except ValueError:
        return False
    return True


def lines_of(path: Path, content: bytes, each: bytes = b"") -> list[bytes]:
    """The lines of a text file's bytes, without BOM and line ends; the last may have none.

    Raises UserError for UTF-16, and for lines, each of them with `each` in it, that end with CR alone.
    """
    content = content.removeprefix(BOM)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{shown(path)} is UTF-16, as spreadsheets save \"Unicode text\": save it as UTF-8")
    rows = [] if b"\n" in content else content.rstrip(b"\r").split(b"\r")
    if len(rows) > 1 and all(each in row for row in rows):
        raise UserError(f"{shown(path)} ends its lines with CR alone: save it with LF or CRLF")
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _header(line: bytes, task: Task) -> list[str] | None:
    """The column names of a first line that names every column of the task, lower-cased; None for a row."""
    try:
        cells = [cell.casefold() for cell in decoded(line)]
    except ValueError:
        return None
    return cells if {name.casefold() for name in (*task.texts, task.answer)} <= set(cells) else None


def read_tsv(path: Path, task: Task = SENTIMENT) -> tuple[list[Text], Answers]:
    """(texts, label ids or numbers) of a file: UTF-8 with or without BOM, LF or CRLF.

    A text is a str, or a tuple of two for a pair. Columns are found by a first line that names them all (others may
    stand beside them), and without one they are the task's texts and its label, in this order and no more.
    Raises UserError for a missing or empty file, another encoding or line end, and for bad rows: the first ten, and
    their total.
    """
    wanted = "<TAB>".join((*task.texts, task.answer))
    if not path.is_file():
        smsa = ", or run `python data/download_smsa.py` for SMSA" if task == SENTIMENT else ""
        raise UserError(f"{shown(path)} is missing: put a TSV `{wanted}` there{smsa}")
    lines = lines_of(path, path.read_bytes(), b"\t")
    names = [name.casefold() for name in (*task.texts, task.answer)]
    header = _header(lines[0], task) if lines else None
    for name in names if header else ():
        if header.count(name) > 1:
            raise UserError(f"{shown(path)} line 1 names the column {name!r} twice: rename one of them")
    places = [header.index(name) for name in names] if header else list(range(len(names)))
    width = len(header or names)
    ids = {label.casefold(): i for i, label in enumerate(task.labels or ())}
    texts: list[Text] = []
    answers, bad = [], []
    for number, line in enumerate(lines[bool(header):], 1 + bool(header)):
        try:
            cells = decoded(line)
            if len(cells) != width:
                raise ValueError(f"has {len(cells)} column{'s' * (len(cells) > 1)} instead of "
                                 + (f"the {width} of the header" if header else wanted))
            *row, answer = (cells[place] for place in places)
            if not all(row):
                raise ValueError("has an empty text")
            answers.append(_read_answer(answer, ids, task))
            texts.append(tuple(row) if task.pairs else row[0])
        except ValueError as error:
            bad.append(f"line {number} {error}: {line.decode('utf-8', 'backslashreplace')!r}")
    refuse_bad_rows(path, bad, len(lines))
    if not texts:
        raise UserError(f"{shown(path)} is empty: it needs rows of {wanted}")
    return texts, answers


def refuse_bad_rows(path: Path, bad: list[str], total: int) -> None:
    """Raise UserError with the first ten sentences of `bad`, cut where a row is long, and their number, if any are bad.
    """
    if bad:
        told = [row if len(row) <= BAD_ROW_LENGTH else f"{row[:BAD_ROW_LENGTH]}…" for row in bad[:BAD_ROWS_SHOWN]]
        more = f"\n  … and {len(bad) - BAD_ROWS_SHOWN} more" if len(bad) > BAD_ROWS_SHOWN else ""
        raise UserError(f"{shown(path)} has {len(bad)} bad row{'s' * (len(bad) > 1)} of {total}; "
                        "correct them and run again:\n  " + "\n  ".join(told) + more)


def read_split(folder: Path, split: str, task: Task = SENTIMENT) -> tuple[list[Text], Answers]:
    """`read_tsv` of folder/<split>.tsv; one with a single answer is refused: nothing can be learned or measured."""
    path = folder / f"{split}.tsv"
    texts, answers = read_tsv(path, task)
    if len(set(answers)) < 2:
        only = f"label {task.labels[int(answers[0])]}" if task.labels else f"number {answers[0]:g}"
        known = f"two of {', '.join(task.labels)}" if task.labels else "two different numbers"
        raise UserError(f"{shown(path)} holds only the {only}: at least {known} are needed to train or to measure")
    return texts, answers


def describe(name: str, texts: list[Text], answers: Answers, task: Task = SENTIMENT) -> str:
    """`train 11000 texts (positive 6416, neutral 1148, negative 3436), 3 of them with several labels`."""
    if task.labels:
        counts = Counter(answers)
        what = ", ".join(f"{label} {counts[i]}" for i, label in enumerate(task.labels))
    else:
        what = f"numbers from {min(answers):g} to {max(answers):g}, mean {sum(answers) / len(answers):.3g}"
    torn = count_conflicting(texts, answers)
    return (f"{name} {len(texts)} {'pairs' if task.pairs else 'texts'} ({what})"
            + (f", {torn} of them with several {'labels' if task.labels else 'numbers'}" if torn else ""))


def folded(text: Text) -> Text:
    """A text or pair with letter case and white space evened out."""
    parts = (text,) if isinstance(text, str) else text
    even = tuple(" ".join(part.lower().split()) for part in parts)
    return even[0] if isinstance(text, str) else even


def count_shared(texts: list[Text], others: list[Text]) -> int:
    """How many of `others` also stand in `texts`, letter case and white space aside."""
    known = {folded(text) for text in texts}
    return sum(folded(other) in known for other in others)


def count_conflicting(texts: list[Text], answers: list) -> int:
    """How many different texts stand with more than one label, letter case and white space aside."""
    found = {}
    for text, answer in zip(texts, answers, strict=True):
        found.setdefault(folded(text), set()).add(answer)
    return sum(len(given) > 1 for given in found.values())
