"""How a record is written: a line of JSON, or of a TSV."""

import json
from pathlib import Path

from packed import Refusal
from rows import Row

FORMATS = ("jsonl", "tsv")
OWN = ("row", "label", "probabilities", "value", "error", "note")  # names that a record has by itself
EMPTY = "nothing is left of the text after cleaning"
NOTED = "note on the row"  # what such a record is counted as, beside its label
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})  # in kept columns of a TSV


class Form:
    """How a record is written: `tsv` or `jsonl`, the model's labels (None: it gives a number), the kept columns."""

    def __init__(self, kind: str, labels: list[str] | None, keep: list[str]):
        self.kind, self.labels, self.keep = kind, labels, keep
        twice = [label for label in labels or () if label in OWN and kind == "tsv"]
        if twice:
            raise Refusal(f"the label {twice[0]!r} has the name of a column of the TSV: name an OUTPUT that ends in "
                          ".jsonl")
        taken = [name for name in keep if name in OWN or name in (labels or ()) and kind == "tsv"]
        if taken:
            raise Refusal(f"KEEP names {taken[0]!r}, which a record has already: rename the column")

    def head(self) -> str:
        """The first line of a TSV."""
        answers = ["label", *self.labels] if self.labels else ["value"]
        names = [name.translate(ESCAPES) for name in (*self.keep, *answers)]
        return "\t".join(["row", *names, "error", "note"]) + "\n" if self.kind == "tsv" else ""

    def kind_of(self, answer) -> str:
        """What a record is counted as: its label, "value", or "" for an error."""
        if answer is None:
            return ""
        return self.labels[int(answer.argmax())] if self.labels else "value"

    def line(self, number: int, row: Row, answer, empty: bool) -> str:
        """One record; `answer` holds probabilities or a number, None for a row with an error."""
        note, error = "; ".join(filter(None, (EMPTY * empty, row.note))), row.error
        numbers = [] if answer is None else [round(float(value), 6) for value in answer]
        label = self.kind_of(answer)
        if self.kind == "tsv":
            kept = row.kept or [""] * len(self.keep)
            cells = [value if isinstance(value, str) else "" if value is None else as_json(value) for value in kept]
            blank = [""] * (len(self.labels) if self.labels else 1)
            labels = [label] if self.labels else []
            return "\t".join([
                str(number), *(cell.translate(ESCAPES) for cell in (*cells, *labels)),
                *(map(str, numbers) if numbers else blank), " ".join(error.split()), note]) + "\n"
        record = {"row": number, **dict(zip(self.keep, row.kept, strict=False))}
        if error:
            record["error"] = error
        elif self.labels:
            record |= {"label": label, "probabilities": dict(zip(self.labels, numbers, strict=True))}
        else:
            record["value"] = numbers[0]
        if note:
            record["note"] = note
        return as_json(record) + "\n"


def as_json(value) -> str:
    """JSON of a record or of what is kept; a time or a decimal becomes its text, what is no number null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        plain = json.loads(json.dumps(value, default=str), parse_constant=lambda name: None)
        return json.dumps(plain, ensure_ascii=False)


def form_of(path: str) -> str:
    """The format of an output file's name, jsonl for standard output; raises Refusal for another."""
    form = Path(path).suffix.removeprefix(".").lower() if path else "jsonl"
    if form not in FORMATS:
        raise Refusal(f"OUTPUT {path} must end in .jsonl or .tsv")
    return form
