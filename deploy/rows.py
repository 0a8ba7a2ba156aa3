"""Rows of a .tsv, .csv, .jsonl or .txt of any size, also .gz: every bad row is an error of its own."""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

from predictor import Refusal

FORMATS = ("tsv", "csv", "jsonl", "txt")
SEPARATORS = {"tsv": "\t", "csv": ","}
BAD_BYTES = re.compile("[\udc80-\udcff]")  # how surrogateescape keeps what is not UTF-8
SURROGATE = re.compile("[\ud800-\udfff]")
LARGEST_COLUMN = 10_000


class Row(NamedTuple):
    """A row of the input: its text, or the two of a pair; the columns to keep; or what is wrong with it."""

    text: str | tuple | None
    kept: list
    error: str = ""

    def characters(self) -> int:
        """Length of the text, or of both."""
        return sum(map(len, self.text)) if isinstance(self.text, tuple) else len(self.text or "")


class Source(NamedTuple):
    """An opened input: its line reader, format, and name for messages."""

    readline: object
    form: str
    where: str
    separator: str


def open_input(path: str, form: str, encoding: str, separator: str) -> Source:
    """A file (also .gz), or standard input for ""; raises Refusal for what cannot be read as `form`."""
    ends = Path(path).name.lower().split(".")[:0:-1]
    kind = form or ("txt" if not path else next((part for part in ends if part != "gz"), ""))
    if kind not in FORMATS:
        raise Refusal(f"FORMAT of {path} is {kind!r}; name one with --format: {', '.join(FORMATS)}")
    between = {"\\t": "\t", "": SEPARATORS.get(kind, "")}.get(separator, separator)
    if separator and (len(between) != 1 or between in '"\r\n' or kind not in SEPARATORS):
        raise Refusal(f"SEPARATOR is {separator!r}; it is one character between the columns of a csv or tsv")
    if not path:
        if sys.stdin is None:
            raise Refusal("standard input is closed: name a file with --input")
        stream, where = sys.stdin.buffer, "standard input"
    else:
        where = path
        try:
            stream = gzip.open(path, "rb") if ends[:1] == ["gz"] else open(path, "rb")  # noqa: SIM115
        except OSError as error:
            raise Refusal(f"INPUT {path} cannot be read: {error.strerror}") from None
    return Source(_decoding(stream, encoding, where), kind, where, between)


def _decoding(stream, encoding: str, where: str):
    """readline(limit) -> bytes in UTF-8 of a stream in `encoding`; raises Refusal for what it plainly is not."""
    stream = io.BufferedReader(stream) if not hasattr(stream, "peek") else stream
    try:
        start = stream.peek(65536)[:65536]
    except gzip.BadGzipFile as error:
        raise Refusal(f"{where} is no gzip ({error}): take .gz off its name, or fetch it again") from None
    except (OSError, EOFError, zlib.error) as error:
        raise Refusal(f"{where} cannot be read ({error}): fetch it again") from None
    if encoding.lower() in ("utf-8", "utf8"):
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise Refusal(f"{where} is UTF-16, as spreadsheets save \"Unicode text\": read it with --encoding utf-16")
        if b"\r" in start and b"\n" not in start:
            raise Refusal(f"{where} has carriage returns for line ends: turn them into line feeds, such as with "
                          "tr '\\r' '\\n'")
        if start.startswith(b"\xef\xbb\xbf"):
            stream.read(3)  # the byte-order mark
        return stream.readline
    try:
        text = io.TextIOWrapper(stream, encoding, newline="\n")
    except LookupError:
        raise Refusal(f"ENCODING {encoding!r} is not known: try utf-8, utf-16 or cp1252") from None
    return lambda limit: text.readline(limit).encode("utf-8", "surrogatepass")


class Lines:
    """Lines as text without their ends, each read to `limit` bytes at most; `number` is the last one's.

    A longer line is passed over, and `whole` is False until somebody sets it again. Bytes that are not UTF-8 survive
    as surrogates, for the row's own error. Raises Refusal, behind the last line, for an input that breaks off.
    """

    def __init__(self, source: Source, limit: int):
        self.source, self.limit, self.number, self.whole = source, limit, 0, True

    def __iter__(self):
        return self

    def __next__(self) -> str:
        try:
            line = part = self.source.readline(self.limit)
            long = len(line) >= self.limit and not line.endswith(b"\n")
            while long and part and not part.endswith(b"\n"):
                part = self.source.readline(1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
            raise Refusal(f"{self.source.where} breaks off behind line {self.number} ({error}): it was cut short or is "
                          "not what it says; the rows before are labelled") from None
        if not line:
            raise StopIteration
        self.number += 1
        self.whole = self.whole and not long
        return "" if long else line.decode("utf-8", "surrogateescape").rstrip("\r\n")


def read_rows(source: Source, columns: list[str], keep: list[str], text_bytes: int):
    """The rows of the input, lazily; a header is read, and the columns looked up in it, before this returns.

    Raises Refusal, also later, for an input whose rows cannot be told apart any more.
    """
    lines = Lines(source, 8 * text_bytes)
    if source.form == "txt":
        if len(columns) > 1 or keep:
            raise Refusal(f"{source.where} has no columns, and {' and '.join(columns + keep)} are wanted: it must be "
                          "tsv, csv or jsonl")
        found = ((line, []) for line in lines)
    elif source.form == "jsonl":
        found = (_of_json(line, columns, keep) for line in lines)
    else:
        found = _of_table(source, lines, columns, keep, text_bytes)
    def checked():
        for text, kept in found:
            whole, lines.whole = lines.whole, True
            if not whole:
                yield Row(None, kept, f"is longer than {lines.limit} bytes")
            elif isinstance(text, str) and source.form != "txt":
                yield Row(None, kept, text)  # what is wrong
            else:
                yield row_of((text,) if isinstance(text, str) else text, kept, text_bytes)
    return checked()


def rows_of_words(words: list[str], texts: int, text_bytes: int):
    """Rows of the texts behind a command, one or two a row."""
    if len(words) % texts:
        raise Refusal(f"{len(words)} texts stand behind the command, but this model reads pairs: give two, or four, …")
    return (row_of(tuple(words[i : i + texts]), [], text_bytes) for i in range(0, len(words), texts))


def _of_json(line: str, columns: list[str], keep: list[str]):
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            return "is no JSON object", []
        absent = [name for name in (*columns, *keep) if name not in record]
        if absent:
            return f"has no key {absent[0]!r}", []
        kept = [record[name] for name in keep]
        wrong = [name for name in columns if not isinstance(record[name], str)]
        if wrong:
            return f"has no text under the key {wrong[0]!r}", kept
        return tuple(record[name] for name in columns), kept
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error})" if line or not isinstance(error, ValueError) else "is an empty line", []


def _of_table(source: Source, lines: Lines, columns: list[str], keep: list[str], text_bytes: int):
    rows = _cells(source, lines, text_bytes)
    first = next(rows, [])
    names = [name.strip() for name in first] if isinstance(first, list) else []
    wanted, header = [*columns, *keep], any(name in names for name in (*columns, *keep))
    for name in wanted:
        if name not in names and not (name.isdecimal() and 0 < int(name) <= LARGEST_COLUMN):
            listed = ", ".join(repr(other[:40]) for other in names) or "none"
            way = ": name one with --column, or its number, from 1, if the first line is no header"
            raise Refusal(f"{source.where} has no column {name!r}, but {listed}{_hint(source, first, wanted) or way}")
    places = [names.index(name) if name in names else int(name) - 1 for name in wanted]
    if len(names) == 1 and max(places) > 0 and _hint(source, first, []):
        raise Refusal(f"{source.where} has one column{_hint(source, first, [])}")

    def pick(cells):
        if not isinstance(cells, list):
            return cells, []
        if not cells:
            return "is an empty line", []
        short = [place for place in places if place >= len(cells)]
        if short:
            return f"has {len(cells)} columns, no number {short[0] + 1}", []
        picked = [cells[place] for place in places]
        return tuple(picked[: len(columns)]), picked[len(columns):]

    def every():
        if not header and first:
            yield pick(first)
        yield from map(pick, rows)
    return every()


def _hint(source: Source, first, wanted: list[str]) -> str:
    """What the separator seems to be, where one line is one cell."""
    if isinstance(first, list) and len(first) == 1:
        for other in ";,\t|":
            parts = [part.strip().strip('"') for part in first[0].split(other)]
            if other != source.separator and len(parts) > 1 and all(n in parts or n.isdecimal() for n in wanted):
                return f"; it looks separated by {other!r}: read it with --separator {other!r}"
    return ""


def _cells(source: Source, lines: Lines, text_bytes: int):
    """Each row's cells, or what is wrong with it, of a tsv (quoting off) or csv (quoting on)."""
    if source.form == "tsv":
        for line in lines:
            yield line.split(source.separator)
        return
    csv.field_size_limit(8 * text_bytes)
    fed = (line.replace("\r", " ") + "\n" for line in lines)
    reader = csv.reader(fed, delimiter=source.separator, strict=True)
    while True:
        opened = lines.number + 1
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" not in str(error) and "field larger" not in str(error):
                yield f"breaks the quoting in line {opened} to {lines.number} ({error})"
                continue
            # a quote that is never closed, or closed too far away to be one text: every row behind it is in doubt
            raise Refusal(f"{source.where} line {opened}: a quote opens in this row and is not closed within "
                          f"{8 * text_bytes} bytes or before the end: close it; the rows before are labelled") from None


def row_of(texts: tuple[str, ...], kept: list, text_bytes: int) -> Row:
    """A Row, with an error where no model should be asked about it."""
    for text in texts:
        if BAD_BYTES.search(text):
            return Row(None, kept, "is not UTF-8")
        if SURROGATE.search(text):
            return Row(None, kept, "holds half of a character (a lone surrogate)")
        if "\0" in text:
            return Row(None, kept, "holds a NUL byte")
        if not text.strip():
            return Row(None, kept, "has an empty text")
        if 4 * len(text) > text_bytes and len(text.encode()) > text_bytes:
            return Row(None, kept, f"is longer than TEXT_BYTES, {text_bytes} bytes")
    return Row(texts[0] if len(texts) == 1 else texts, kept)
