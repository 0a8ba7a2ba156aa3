"""Lines of a file or stream of any size, also .gz and other encodings: what it plainly is not is said at once."""

import codecs
import gzip
import io
import os
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

from packed import Refusal

FORMATS = ("tsv", "csv", "jsonl", "txt")
SEPARATORS = {"tsv": "\t", "csv": ","}


class Source(NamedTuple):
    """An opened input: its line reader, format, name for messages, separator; `said`: which of those a flag named."""

    readline: object
    form: str
    where: str
    separator: str
    said: tuple[str, ...]


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
        where, packed = path, ends[:1] == ["gz"]
        try:
            stream = gzip.open(path, "rb") if packed else open(path, "rb")  # noqa: SIM115
        except OSError as error:
            raise Refusal(f"INPUT {path} cannot be read: {error.strerror}") from None
        if packed and os.path.isfile(path) and os.path.getsize(path) == 0:
            raise Refusal(f"{where} is no gzip (it has no bytes): fetch it again")
    said = tuple(name for name, given in (("format", form or path), ("separator", separator)) if given)
    return Source(_decoding(stream, encoding, where), kind, where, between, said)


def _decoding(stream, encoding: str, where: str):
    """readline(limit) -> bytes in UTF-8 of a stream in `encoding`; raises Refusal for what it plainly is not."""
    stream = io.BufferedReader(stream) if not hasattr(stream, "peek") else stream
    try:
        start = stream.peek(4)[:4]
    except gzip.BadGzipFile as error:
        raise Refusal(f"{where} is no gzip ({error}): take .gz off its name, or fetch it again") from None
    except (OSError, EOFError, zlib.error) as error:
        raise Refusal(f"{where} cannot be read ({error}): fetch it again") from None
    try:
        if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise Refusal(f"{where} is UTF-16, as spreadsheets save \"Unicode text\": read it with --encoding "
                              "utf-16; if it has columns, with --format tsv too")
            return stream.readline
        text = io.TextIOWrapper(stream, encoding, newline="\n")
    except LookupError:
        raise Refusal(f"ENCODING {encoding!r} is not known: try utf-8, utf-16 or cp1252") from None
    return lambda limit: text.readline(limit).encode("utf-8", "surrogatepass")


class Lines:
    """Lines as text without their ends, each read to `limit` bytes at most; `number` is the last one's.

    A longer line is passed over, and `whole` is False until somebody sets it again. Bytes that are not UTF-8 survive
    as surrogates, for the row's own error. Raises Refusal, behind the last line, for an input that breaks off, and at
    once for one whose lines do not end in line feeds.
    """

    def __init__(self, source: Source, limit: int):
        self.source, self.limit, self.number, self.whole = source, limit, 0, True
        self.first = self._read(limit).removeprefix(codecs.BOM_UTF8)
        if b"\r" in self.first and not self.first.endswith(b"\n"):
            raise Refusal(f"{source.where} has carriage returns for line ends: turn them into line feeds, such as with "
                          "tr '\\r' '\\n'")

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line, self.first = self._read(self.limit) if self.first is None else self.first, None
        if not line:
            raise StopIteration
        long = part = len(line) >= self.limit and not line.endswith(b"\n")
        while part:
            part = self._read(1 << 20)
            part = part and not part.endswith(b"\n")
        self.number += 1
        self.whole = self.whole and not long
        return "" if long else line.decode("utf-8", "surrogateescape").rstrip("\r\n")

    def _read(self, limit: int) -> bytes:
        try:
            return self.source.readline(limit)
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
            raise Refusal(f"{self.source.where} breaks off behind line {self.number} ({error}): it was cut short or is "
                          "not what it says; the rows before are labelled") from None
