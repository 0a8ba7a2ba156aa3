"""Rows in and records out: .tsv, .csv, .jsonl and .txt of any size, every bad row an error of its own."""

import csv
import gzip
import json
import os
import re
import sys
import zlib
from collections import Counter
from pathlib import Path

from predictor import Refusal

FORMATS = ("tsv", "csv", "jsonl", "txt")
BOM = b"\xef\xbb\xbf"
BAD_BYTES = re.compile("[\udc80-\udcff]")  # how surrogateescape keeps what is not UTF-8
LONGEST_CELL = 10_000_000  # characters; more is a quote that is never closed
csv.field_size_limit(LONGEST_CELL)


def decoded(line: bytes) -> str:
    """A line as text; bytes that are not UTF-8 survive as surrogates, for the row's own error."""
    return line.decode("utf-8", "surrogateescape")


def column_of(header: list[str], column: str, where: str) -> int:
    """Place of the wanted column in a header."""
    names = [name.strip() for name in header]
    if column not in names:
        listed = ", ".join(repr(name[:40]) for name in names) or "none"
        raise Refusal(f"{where} has no column {column!r}, but {listed}: name one with --column, or its number, from 1, "
                      "if the first line is no header")
    return names.index(column)


def cells_of(lines, kind: str):
    """Rows of cells of a tsv (quoting off) or csv (quoting on)."""
    if kind == "tsv":
        return (decoded(line).rstrip("\r\n").split("\t") for line in lines)
    return csv.reader(decoded(line).rstrip("\r\n").replace("\r", " ") + "\n" for line in lines)


def texts_of(lines, kind: str, column: str, where: str):
    """Each row's text, or a ValueError that says what is wrong with the row."""
    def cell(cells, place):
        return cells[place] if place < len(cells) else ValueError(f"has {len(cells)} columns, no number {place + 1}")

    if kind in ("tsv", "csv"):
        rows = cells_of(lines, kind)
        numbered = column.isdecimal() and int(column) > 0
        place = int(column) - 1 if numbered else column_of(next(rows, []), column, where)
        try:
            yield from (cell(cells, place) for cells in rows)
        except csv.Error as error:
            raise Refusal(f"{where} line {rows.line_num} is no csv ({error}): is a quote not closed?") from None
    elif kind == "jsonl":
        for line in lines:
            try:
                record = json.loads(decoded(line))
                text = record[column] if isinstance(record, dict) else None
                yield text if isinstance(text, str) else ValueError(f"has no text under the key {column!r}")
            except KeyError:
                yield ValueError(f"has no key {column!r}")
            except (ValueError, RecursionError) as error:
                yield ValueError(f"is no JSON ({error})")
    else:
        yield from (decoded(line).rstrip("\r\n") for line in lines)


def checked(text):
    """The text, or a ValueError: what no model should be asked about."""
    if isinstance(text, ValueError):
        return text
    if BAD_BYTES.search(text):
        return ValueError("is not UTF-8")
    if "\0" in text:
        return ValueError("holds a NUL byte")
    return text if text.strip() else ValueError("has an empty text")


def lines_of(stream):
    """Lines as bytes, the byte-order mark left out; a file that ends too early raises Refusal behind its last line."""
    number = 0
    try:
        for number, line in enumerate(stream, 1):
            yield line.removeprefix(BOM) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refusal(f"the input breaks off behind line {number} ({error}): it was cut short or is no gzip; the rows "
                      "before are labelled") from None


def open_input(path: str, form: str, words: list[str]):
    """(lines as bytes, format, name for messages) of the words, of a file, or of standard input."""
    kind = form or ("txt" if not path else next(
        (part for part in Path(path).name.lower().split(".")[:0:-1] if part != "gz"), ""))
    if kind not in FORMATS:
        raise Refusal(f"FORMAT of {path} is {kind!r}; name one with --format: {', '.join(FORMATS)}")
    if words:
        return [text.encode("utf-8", "surrogateescape") for text in words], "txt", "the command line"
    if not path:
        return sys.stdin.buffer, kind, "standard input"
    try:
        return (gzip.open if path.endswith(".gz") else open)(path, "rb"), kind, path
    except OSError as error:
        raise Refusal(f"INPUT {path} cannot be read: {error.strerror}") from None


def record_line(row: int, result, labels: list[str], form: str) -> str:
    """One record as JSON or TSV: result is an array of probabilities or a ValueError."""
    if isinstance(result, ValueError):
        if form == "tsv":
            return "\t".join([str(row), "", *[""] * len(labels), " ".join(str(result).split())])
        return json.dumps({"row": row, "error": str(result)}, ensure_ascii=False)
    chances = [round(float(value), 6) for value in result]
    label = labels[int(result.argmax())]
    if form == "tsv":
        return "\t".join([str(row), label, *map(str, chances), ""])
    return json.dumps({"row": row, "label": label, "probabilities": dict(zip(labels, chances, strict=True))},
                      ensure_ascii=False)


class Output:
    """Records on standard output, or in <path>.part, which is renamed to <path> when every row is there.

    `made_of` is what a resumed run must have in common with the one that began the file.
    """

    def __init__(self, path: str, labels: list[str], made_of: dict, resume: bool):
        self.path, self.labels, self.made_of = Path(path) if path else None, labels, made_of
        self.done, self.counts = 0, Counter()
        self.form = self.path.suffix.removeprefix(".") if path else "jsonl"
        if self.form not in ("jsonl", "tsv"):
            raise Refusal(f"OUTPUT {path} must end in .jsonl or .tsv")
        if not path:
            self.stream = sys.stdout.buffer
            return
        if not self.path.parent.is_dir():
            raise Refusal(f"OUTPUT {path}: there is no folder {self.path.parent}")
        self.part, self.mark = (self.path.with_name(f"{self.path.name}.{end}") for end in ("part", "part.json"))
        if resume and self.part.exists() and self.mark.exists():
            self._resume()
            return
        self.stream = open(self.part, "wb")  # noqa: SIM115 (close() is finish()); before the mark that vouches for it
        fresh = self.mark.with_suffix(".new")
        fresh.write_text(json.dumps(made_of), encoding="utf-8")
        os.replace(fresh, self.mark)
        if self.form == "tsv":
            self.stream.write(("\t".join(["row", "label", *labels, "error"]) + "\n").encode())

    def _resume(self) -> None:
        """Keep the whole windows that were written: batches, and with them every probability, stay the same."""
        begun = json.loads(self.mark.read_text(encoding="utf-8"))
        other = [name for name in self.made_of if begun.get(name) != self.made_of[name]]
        if other:
            raise Refusal(f"{self.part} was begun with another {other[0]} ({begun.get(other[0])}, now "
                          f"{self.made_of[other[0]]}): resume with the same, or start again without --resume")
        keep = at = rows = 0
        seen = Counter()
        with open(self.part, "rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    break
                at += len(line)
                if number == 0 and self.form == "tsv":
                    keep = at
                    continue
                rows += 1
                seen[label_of(line, self.form)] += 1
                if rows % self.made_of["window"] == 0:
                    keep, self.done = at, rows
                    self.counts = Counter(seen)
        self.stream = open(self.part, "r+b")  # noqa: SIM115
        self.stream.truncate(keep)
        self.stream.seek(0, os.SEEK_END)
        if self.form == "tsv" and keep == 0:
            self.stream.write(("\t".join(["row", "label", *self.labels, "error"]) + "\n").encode())

    def write(self, first_row: int, results: list) -> None:
        """The records of consecutive rows, on disk when this returns."""
        lines = (record_line(row, result, self.labels, self.form) for row, result in enumerate(results, first_row))
        self.stream.write("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        self.stream.flush()
        self.counts.update("" if isinstance(result, ValueError) else self.labels[int(result.argmax())]
                           for result in results)

    def finish(self) -> None:
        """Give the file its name: it holds every row."""
        if self.path:
            os.fsync(self.stream.fileno())
            self.stream.close()
            os.replace(self.part, self.path)
            self.mark.unlink()


def label_of(line: bytes, form: str) -> str:
    """The label of a written record, "" for an error."""
    return line.split(b"\t", 2)[1].decode() if form == "tsv" else json.loads(line).get("label", "")
