"""The one reader of labelled text: TSV `text<TAB>label`, quoting off, every bad row named."""

from collections import Counter
from pathlib import Path

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

LABELS = ("positive", "neutral", "negative")  # the position is the label's id
SPLITS = ("train", "valid", "test")
BAD_ROWS_SHOWN = 10
BOM = b"\xef\xbb\xbf"


def _read_row(line: bytes) -> tuple[str, int]:
    """One row's text and label id; raises ValueError with what is wrong."""
    if b"\0" in line:
        raise ValueError("holds a NUL byte")
    try:
        row = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start + 1}") from None
    columns = row.split("\t")
    if len(columns) != 2:
        raise ValueError(f"has {len(columns)} column{'s' * (len(columns) > 1)} instead of text<TAB>label")
    text, label = columns[0].strip(), columns[1].strip().lower()
    if not text:
        raise ValueError("has an empty text")
    if label not in LABELS:
        raise ValueError(f"has the unknown label {label!r} (known: {', '.join(LABELS)})")
    return text, LABELS.index(label)


def read_tsv(path: Path) -> tuple[list[str], list[int]]:
    """Texts and label ids of a file: UTF-8 with or without BOM, LF or CRLF, optional header `text<TAB>label`.

    Raises UserError for a missing or empty file, and for bad rows: the first ten in full, and their total.
    """
    if not path.is_file():
        raise UserError(f"{shown(path)} is missing: put a TSV `text<TAB>label` there, "
                        "or run `python data/download_smsa.py` for SMSA")
    lines = path.read_bytes().removeprefix(BOM).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    texts, labels, bad = [], [], []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix(b"\r")
        if number == 1 and [cell.strip() for cell in line.lower().split(b"\t")] == [b"text", b"label"]:
            continue
        try:
            text, label = _read_row(line)
        except ValueError as error:
            bad.append(f"line {number} {error}: {line.decode('utf-8', 'backslashreplace')!r}")
            continue
        texts.append(text)
        labels.append(label)
    _refuse_bad_rows(path, bad, len(lines))
    if not texts:
        raise UserError(f"{shown(path)} is empty: it needs rows of text<TAB>label")
    return texts, labels


def _refuse_bad_rows(path: Path, bad: list[str], total: int) -> None:
    if bad:
        more = f"\n  … and {len(bad) - BAD_ROWS_SHOWN} more" if len(bad) > BAD_ROWS_SHOWN else ""
        raise UserError(f"{shown(path)} has {len(bad)} bad row{'s' * (len(bad) > 1)} of {total}; "
                        "correct them and run again:\n  " + "\n  ".join(bad[:BAD_ROWS_SHOWN]) + more)




def read_split(folder: Path, split: str) -> tuple[list[str], list[int]]:
    """`read_tsv` of folder/<split>.tsv; a file with one label only is refused: nothing can be learned or measured."""
    path = folder / f"{split}.tsv"
    texts, labels = read_tsv(path)
    found = sorted(set(labels))
    if len(found) < 2:
        raise UserError(f"{shown(path)} holds only the label {LABELS[found[0]]}: at least two of "
                        f"{', '.join(LABELS)} are needed to train or to measure")
    return texts, labels


def describe(name: str, labels: list[int]) -> str:
    """`train 11000 texts (positive 6416, neutral 1148, negative 3436)`."""
    counts = Counter(labels)
    return f"{name} {len(labels)} texts ({', '.join(f'{label} {counts[i]}' for i, label in enumerate(LABELS))})"


def count_shared(texts: list[str], others: list[str]) -> int:
    """How many of `others` also stand in `texts`, letter case and white space aside."""
    known = {" ".join(text.lower().split()) for text in texts}
    return sum(" ".join(other.lower().split()) in known for other in others)
