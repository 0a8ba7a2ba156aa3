"""Records into a file: in order, whole or not at all, and a killed run can go on."""

import fcntl
import hashlib
import json
import os
import select
import stat
import sys
from collections import Counter
from pathlib import Path

from packed import Refusal
from records import EMPTY, NOTED, Form
from rows import Row

BEGUN = b'{"made_of": {'  # how the notes of a run begin


class Finished(Exception):
    """The output that was to be resumed is whole."""


class Output:
    """Records on standard output, or in <path>.part, which is renamed to <path> when every row is there.

    `made_of` is what a resumed run must have in common with the one that began. <path>.part.json holds it, and behind
    it a line for each window of rows that was written: rows, bytes, a digest of the rows, counts. `done` rows are
    there already; they are to be given to pass_over(). The part is locked while a process writes it.
    """

    def __init__(self, path: str, source, form: Form, made_of: dict, resume: bool, force: bool):
        """`source` is the input's path or descriptor, which must not be the output. Raises Refusal, or Finished."""
        self.path = Path(os.path.realpath(path)) if path else None  # a link stays a link
        self.form, self.made_of, self.force = form, made_of, force
        self.rows = self.done = 0
        self.counts, self.digest, self.wanted = Counter(), hashlib.sha256(), ""
        if not path:
            if sys.stdout is None:
                raise Refusal("standard output is closed: name a file with --output")
            self.file = sys.stdout.fileno()
            if source is not None and stat.S_ISREG(os.fstat(self.file).st_mode) and _same(self.file, source):
                raise Refusal("standard output is the input itself: name another file with --output")
            put(self.file, form.head())
            return
        self.part, self.mark, self.fresh = (self.path.with_name(f"{self.path.name}.{end}")
                                            for end in ("part", "part.json", "part.json.new"))
        self._refuse_places(source)
        self.file = os.open(self.part, os.O_RDWR | os.O_CREAT, 0o666)
        if not self._locked():
            raise Refusal(f"another process is writing {self.path}: wait for its end, or name another --output")
        try:
            self._refuse_losses(resume)
        except (Refusal, Finished):
            if os.fstat(self.file).st_size == 0:
                self.part.unlink()
            os.close(self.file)
            raise
        if resume and self.mark.exists():
            self._resume()
        else:
            os.ftruncate(self.file, 0)
            self._begin([{"made_of": made_of}])
            put(self.file, form.head())

    def _refuse_places(self, source) -> None:
        """Raise Refusal where no output can be, or where it would be the input."""
        if not self.path.parent.is_dir():
            raise Refusal(f"OUTPUT {self.path}: there is no folder {self.path.parent}")
        for path in (self.path, self.part, self.mark, self.fresh):
            found = _found(path)
            if found and not stat.S_ISREG(found.st_mode):
                raise Refusal(f"OUTPUT {self.path}: {path} is no file but a folder or device: name a file")
            if source is not None and _same(path, source):
                raise Refusal(f"OUTPUT {self.path} is the input itself: {path} is the same file; name another")
        for path in () if self.force else (self.mark, self.fresh):
            if _is_foreign(path):
                raise Refusal(f"{path} is not what this script writes: move it away, begin again with --force, or name "
                              "another --output")

    def _refuse_losses(self, resume: bool) -> None:
        """Raise Refusal rather than lose a finished output or the work of another run; Finished if all is done."""
        begun = os.fstat(self.file).st_size > 0
        if self.path.exists() and resume and not begun:
            self.mark.unlink(missing_ok=True)  # a kill between the output's name and the end of its notes left it
            raise Finished
        if self.path.exists() and not self.force:
            raise Refusal(f"OUTPUT {self.path} exists already: name another file, move it away, or replace it with "
                          "--force" + "; a run that replaces it has begun: it goes on with --resume --force" * begun)
        if begun and not self.force and not (resume and self.mark.exists()):
            raise Refusal(f"{self.part} holds what a run that did not end has labelled"
                          + (", but its .part.json is gone" if resume else ": go on with --resume")
                          + ", begin again with --force, or name another --output")

    def _locked(self) -> bool:
        """Whether the part is this process's alone now; a part that was renamed since it was opened is not."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(self.part, self.file):
                return True
        except BlockingIOError:
            pass
        os.close(self.file)
        return False

    def _begin(self, notes: list[dict]) -> None:
        """Write .part.json anew, whole or not at all, and leave it open for the notes to come."""
        self.fresh.write_text("".join(json.dumps(note) + "\n" for note in notes), encoding="utf-8")
        os.replace(self.fresh, self.mark)
        self.notes = os.open(self.mark, os.O_WRONLY | os.O_APPEND)

    def _resume(self) -> None:
        """Keep the whole windows that were written: batches, and with them every probability, stay the same."""
        notes = []
        for line in self.mark.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                notes.append(json.loads(line))
            except ValueError:
                break  # the kill cut it in two
        begun = notes[0].get("made_of") if notes and isinstance(notes[0], dict) else None
        if not isinstance(begun, dict) or not all(map(_is_note, notes[1:])):
            raise Refusal(f"{self.mark} is not what this script writes: begin again with --force alone, or name "
                          "another --output")
        other = [name for name in self.made_of if begun.get(name) != self.made_of[name]]
        if other:
            raise Refusal(f"{self.part} was begun with another {other[0]} ({begun.get(other[0])}, now "
                          f"{self.made_of[other[0]]}): resume with the same, begin again with --force alone, or name "
                          "another --output")
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
                          "--force alone, or name another --output")

    def write(self, rows: list[Row], answers: dict, whole: bool) -> None:
        """The records of a window of rows, on disk when this returns; `answers`: place -> (answer, empty).

        A window that is not `whole`, because the input broke off in it, is labelled again when the run is resumed.
        """
        lines = []
        for place, row in enumerate(rows):
            answer, empty = answers.get(place, (None, False))
            self._seen(row)
            lines.append(self.form.line(self.rows, row, answer, empty))
            self.counts[self.form.kind_of(answer)] += 1
            self.counts[EMPTY] += empty
            self.counts[NOTED] += bool(row.note)
        put(self.file, "".join(lines))
        if self.path and whole:
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
        if not _same(self.part, self.file):
            raise Refusal(f"{self.part} was moved or deleted while it was written: begin again")
        os.replace(self.part, self.path)
        if _same(self.mark, self.notes):  # and not those of a run that has begun since
            self.mark.unlink(missing_ok=True)
        os.close(self.notes)
        os.close(self.file)


def _found(file) -> os.stat_result | None:
    """What a path or descriptor is; None where nothing is, or another process has just taken it away."""
    try:
        return os.stat(file)
    except OSError:
        return None


def _is_foreign(path: Path) -> bool:
    """Whether a file is there that does not begin as the notes of a run do."""
    try:
        with path.open("rb") as notes:
            return notes.read(len(BEGUN)) not in (b"", BEGUN)
    except FileNotFoundError:
        return False


def _same(one, other) -> bool:
    """Whether two paths or descriptors are one file, which is there."""
    one, other = _found(one), _found(other)
    return bool(one and other and os.path.samestat(one, other))


def _is_note(note) -> bool:
    """Whether this is a note of a window, as write() makes it."""
    return isinstance(note, dict) and all(type(note.get(key)) is int and note[key] >= 0 for key in ("rows", "bytes")) \
        and isinstance(note.get("digest"), str) and isinstance(note.get("counts"), dict)


def put(file: int, text: str) -> None:
    """Write to a descriptor, without a buffer that could be lost or written later; raises OSError."""
    left = memoryview(text.encode("utf-8", "backslashreplace"))
    while left:
        try:
            left = left[os.write(file, left):]
        except BlockingIOError:  # a pipe that does not wait, such as one of Node's
            select.select([], [file], [])
