"""Records out, as JSON lines or TSV: in order, each output whole or not at all, and a killed one can go on."""

import fcntl
import hashlib
import json
import os
import sys
from collections import Counter
from pathlib import Path

from predictor import Refusal
from rows import Row

FORMATS = ("jsonl", "tsv")
OWN = ("row", "label", "probabilities", "value", "error", "note")  # names that a record has by itself
EMPTY = "nothing is left of the text after cleaning"
ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})  # in kept columns of a TSV


class Finished(Exception):
    """The output that was to be resumed is whole."""


class Form:
    """How a record is written: `tsv` or `jsonl`, the model's labels (None: it gives a number), the kept columns."""

    def __init__(self, kind: str, labels: list[str] | None, keep: list[str]):
        self.kind, self.labels, self.keep = kind, labels, keep
        taken = [name for name in keep if name in OWN or name in (labels or ()) and kind == "tsv"]
        if taken:
            raise Refusal(f"KEEP names {taken[0]!r}, which a record has already: rename the column")

    def head(self) -> str:
        """The first line of a TSV."""
        answers = ["label", *self.labels] if self.labels else ["value"]
        return "\t".join(["row", *self.keep, *answers, "error", "note"]) + "\n" if self.kind == "tsv" else ""

    def kind_of(self, answer) -> str:
        """What a record is counted as: its label, "value", or "" for an error."""
        if answer is None:
            return ""
        return self.labels[int(answer.argmax())] if self.labels else "value"

    def line(self, number: int, row: Row, answer, empty: bool) -> str:
        """One record; `answer` holds probabilities or a number, None for a row with an error."""
        note, error = EMPTY * empty, row.error
        numbers = [] if answer is None else [round(float(value), 6) for value in answer]
        label = self.kind_of(answer)
        if self.kind == "tsv":
            kept = row.kept or [""] * len(self.keep)
            cells = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in kept]
            blank = [""] * (len(self.labels) if self.labels else 1)
            return "\t".join([
                str(number), *(cell.translate(ESCAPES) for cell in cells), *([label] if self.labels else []),
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
        return json.dumps(record, ensure_ascii=False) + "\n"


def form_of(path: str) -> str:
    """The format of an output file's name, jsonl for standard output; raises Refusal for another."""
    form = Path(path).suffix.removeprefix(".").lower() if path else "jsonl"
    if form not in FORMATS:
        raise Refusal(f"OUTPUT {path} must end in .jsonl or .tsv")
    return form


class Output:
    """Records on standard output, or in <path>.part, which is renamed to <path> when every row is there.

    `made_of` is what a resumed run must have in common with the one that began. <path>.part.json holds it, and behind
    it a line for each window of rows that was written: rows, bytes, a digest of the rows, counts. `done` rows are
    there already; they are to be given to pass_over(). The part is locked while a process writes it.
    """

    def __init__(self, path: str, source, form: Form, made_of: dict, resume: bool, force: bool):
        """`source` is the input's path or descriptor, which must not be the output. Raises Refusal, or Finished."""
        self.path, self.form, self.made_of, self.force = Path(path) if path else None, form, made_of, force
        self.rows = self.done = 0
        self.counts, self.digest, self.wanted = Counter(), hashlib.sha256(), ""
        if not path:
            if sys.stdout is None:
                raise Refusal("standard output is closed: name a file with --output")
            self.file = sys.stdout.fileno()
            put(self.file, form.head())
            return
        self.part, self.mark = (self.path.with_name(f"{self.path.name}.{end}") for end in ("part", "part.json"))
        self._refuse(source, resume)
        self.file = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        if not self._locked():
            raise Refusal(f"another process is writing {self.path}: wait for its end, or name another --output")
        if self.path.exists() and not (resume or force):  # a process that was faster has finished it since
            self._refuse(source, resume)
        if resume and self.mark.exists():
            self._resume()
        else:
            os.ftruncate(self.file, 0)
            self._begin([{"made_of": made_of}])
            put(self.file, form.head())

    def _refuse(self, source, resume: bool) -> None:
        """Raise Refusal rather than lose the input, a finished output, or the work of another run."""
        if not self.path.parent.is_dir():
            raise Refusal(f"OUTPUT {self.path}: there is no folder {self.path.parent}")
        for path in filter(os.path.exists, (self.path, self.part, self.mark)):
            if not path.is_file():
                raise Refusal(f"OUTPUT {self.path}: {path} is no file but a folder or device: name a file")
            if source is not None and os.path.samestat(os.stat(path), os.stat(source)):
                raise Refusal(f"OUTPUT {self.path} is the input itself: {path} is the same file; name another")
        begun = self.part.exists() and self.part.stat().st_size > 0
        if self.path.exists() and resume and not begun:
            raise Finished
        if self.path.exists() and not self.force:
            raise Refusal(f"OUTPUT {self.path} exists already: name another file, move it away, or replace it with "
                          "--force")
        if begun and not self.force and not (resume and self.mark.exists()):
            self.file = os.open(self.part, os.O_RDWR)
            if not self._locked():
                raise Refusal(f"another process is writing {self.path}: wait for its end, or name another --output")
            raise Refusal(f"{self.part} holds what a run that did not end has labelled"
                          + (", but its .part.json is gone" if resume else ": go on with --resume")
                          + ", begin again with --force, or name another --output")

    def _locked(self) -> bool:
        """Whether the part is this process's alone now; a part that was renamed since it was opened is not."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.part.exists() and os.path.samestat(os.stat(self.part), os.fstat(self.file)):
                return True
        except BlockingIOError:
            pass
        os.close(self.file)
        return False

    def _begin(self, notes: list[dict]) -> None:
        """Write .part.json anew, whole or not at all, and leave it open for the notes to come."""
        fresh = self.mark.with_name(f"{self.mark.name}.new")
        fresh.write_text("".join(json.dumps(note) + "\n" for note in notes), encoding="utf-8")
        os.replace(fresh, self.mark)
        self.notes = os.open(self.mark, os.O_WRONLY | os.O_APPEND)

    def _resume(self) -> None:
        """Keep the whole windows that were written: batches, and with them every probability, stay the same."""
        notes = []
        for line in self.mark.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                notes.append(json.loads(line))
            except ValueError:
                break  # the kill cut it in two
        begun = notes[0].get("made_of", {}) if notes and isinstance(notes[0], dict) else {}
        other = [name for name in self.made_of if begun.get(name) != self.made_of[name]]
        if other:
            raise Refusal(f"{self.part} was begun with another {other[0]} ({begun.get(other[0])}, now "
                          f"{self.made_of[other[0]]}): resume with the same, begin again with --force, or name another "
                          "--output")
        size = os.fstat(self.file).st_size
        held = next((note for note in reversed(notes[1:]) if note["bytes"] <= size), None)
        self._begin(notes[: notes.index(held) + 1] if held else notes[:1])
        os.ftruncate(self.file, held["bytes"] if held else 0)
        os.lseek(self.file, 0, os.SEEK_END)
        if held:
            self.done, self.wanted, self.counts = held["rows"], held["digest"], Counter(held["counts"])
        else:
            put(self.file, self.form.head())

    def _seen(self, row: Row) -> None:
        self.digest.update(repr(tuple(row)).encode("utf-8", "backslashreplace"))
        self.rows += 1

    def pass_over(self, rows) -> None:
        """Take the rows that are labelled already; raises Refusal if they are not those that were."""
        for row in rows:
            self._seen(row)
        if self.rows < self.done or (self.done and self.digest.hexdigest() != self.wanted):
            raise Refusal(f"the input has changed since its first {self.done} rows were labelled: begin again with "
                          "--force, or name another --output")

    def write(self, rows: list[Row], answers: dict) -> None:
        """The records of a window of rows, on disk when this returns; `answers`: place -> (answer, empty)."""
        lines = []
        for place, row in enumerate(rows):
            answer, empty = answers.get(place, (None, False))
            self._seen(row)
            lines.append(self.form.line(self.rows, row, answer, empty))
            self.counts[self.form.kind_of(answer)] += 1
            self.counts[EMPTY] += empty
        put(self.file, "".join(lines))
        if self.path:
            put(self.notes, json.dumps({"rows": self.rows, "bytes": os.fstat(self.file).st_size,
                                        "digest": self.digest.hexdigest(), "counts": self.counts}) + "\n")

    def finish(self) -> None:
        """Give the file its name: it holds every row. Raises Refusal for a file that has appeared there meanwhile."""
        if not self.path:
            return
        os.fsync(self.file)
        if self.path.exists() and not self.force:
            raise Refusal(f"OUTPUT {self.path} has appeared meanwhile, and is left as it is: move it away and finish "
                          "with --resume")
        os.replace(self.part, self.path)
        self.mark.unlink()
        os.close(self.file)


def put(file: int, text: str) -> None:
    """Write to a descriptor, without a buffer that could be lost or written later; raises OSError."""
    left = memoryview(text.encode("utf-8", "backslashreplace"))
    while left:
        left = left[os.write(file, left):]
