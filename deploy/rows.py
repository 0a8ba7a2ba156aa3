"""Rows of a .tsv, .csv, .jsonl or .txt of any size, also .gz: every bad row is an error of its own."""

import csv
import json
import re
from typing import NamedTuple

from lines import Lines, Source
from packed import Refusal

BAD_BYTES = re.compile("[\udc80-\udcff]")  # how surrogateescape keeps what is not UTF-8
SURROGATE = re.compile("[\ud800-\udfff]")
NOT_UTF8, HALF = "is not UTF-8", "holds half of a character (a lone surrogate)"
MOST_COLUMNS = 100_000
LEAST_LINE = 4_000_000  # bytes of a line that are read in any case: beside a short text much may stand
NAMED_COLUMNS = 10  # of a header, in a sentence
ROWS_IN_QUOTES = 8  # lines of one cell that, most looking like rows, are taken for rows behind a quote left open
SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?\r?\n')  # which spreadsheets write before the header


class Row(NamedTuple):
    """A row of the input: its text, or the two of a pair; the columns to keep; what is wrong with it."""

    text: str | tuple | None
    kept: list
    error: str = ""
    note: str = ""  # what may be wrong with it

    def characters(self) -> int:
        """Length of the texts and of what is kept."""
        texts = self.text if isinstance(self.text, tuple) else (self.text or "",)
        return sum(map(len, texts)) + sum(len(value if isinstance(value, str) else repr(value)) for value in self.kept)


def read_rows(source: Source, columns: list[str], keep: list[str], text_bytes: int):
    """The rows of the input, lazily; a header is read, and the columns looked up in it, before this returns.

    Raises Refusal, also later, for an input whose rows cannot be told apart any more.
    """
    if source.form == "txt" and (len(columns) > 1 or keep):
        raise Refusal(f"{source.where} has no columns, and {' and '.join(columns + keep)} are wanted: it must be "
                      "tsv, csv or jsonl")
    lines = Lines(source, max(4 * text_bytes, LEAST_LINE))
    named = SEPARATOR_LINE.fullmatch(lines.first) if source.form == "csv" else None
    if named:
        next(lines)
        source = source._replace(separator=source.separator if "separator" in source.said else named[1].decode())
    if source.form == "txt" and "format" not in source.said and lines.first.startswith(b"{"):
        raise Refusal(f"{source.where} looks like JSON lines: read it with --format jsonl, or as text with --format "
                      "txt")
    if source.form == "txt":
        found = ((line, [], "") for line in lines)
    elif source.form == "jsonl":
        found = ((*_of_json(line, columns, keep), "") for line in lines)
    else:
        found = _of_table(source, lines, columns, keep)

    def checked():
        for text, kept, note in found:
            whole, lines.whole = lines.whole, True
            if not whole:
                yield Row(None, kept, f"is longer than {lines.limit} bytes")
            elif isinstance(text, str) and source.form != "txt":
                yield Row(None, kept, text)  # what is wrong
            else:
                yield row_of((text,) if isinstance(text, str) else text, kept, text_bytes)._replace(note=note)
    return checked()


def rows_of_words(words: list[str], texts: int, text_bytes: int):
    """Rows of the texts behind a command, one or two a row."""
    if len(words) % texts:
        raise Refusal(f"{len(words)} texts stand behind the command, but this model reads pairs: give two, or four, …")
    return (row_of(tuple(words[i : i + texts]), [], text_bytes) for i in range(0, len(words), texts))


def row_of(texts: tuple[str, ...], kept: list, text_bytes: int) -> Row:
    """A Row, with an error where no model should be asked about it."""
    if any(isinstance(value, str) and BAD_BYTES.search(value) for value in kept):
        return Row(None, kept, "has a column to keep that " + NOT_UTF8)
    for text in texts:
        if SURROGATE.search(text):
            return Row(None, kept, NOT_UTF8 if BAD_BYTES.search(text) else HALF)
        if "\0" in text:
            return Row(None, kept, "holds a NUL byte")
        if not text.strip():
            return Row(None, kept, "has an empty text")
        if 4 * len(text) > text_bytes and len(text.encode()) > text_bytes:
            return Row(None, kept, f"is longer than TEXT_BYTES, {text_bytes} bytes")
    return Row(texts[0] if len(texts) == 1 else texts, kept)


def _of_json(line: str, columns: list[str], keep: list[str]):
    """(texts, kept), or (what is wrong, kept)."""
    if BAD_BYTES.search(line):
        return NOT_UTF8, []
    try:
        record = json.loads(line, parse_constant=lambda name: None)  # NaN, which is no JSON
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error})" if line else "is an empty line", []
    if not isinstance(record, dict):
        return "is no JSON object", []
    kept, texts = [record.get(name) for name in keep], [record.get(name) for name in columns]
    absent = [name for name in (*columns, *keep) if name not in record]
    if absent:
        return f"has no key {absent[0]!r}", kept
    wrong = [name for name, text in zip(columns, texts, strict=True) if not isinstance(text, str)]
    if wrong:
        return f"has no text under the key {wrong[0]!r}", kept
    return (HALF if any(map(SURROGATE.search, texts)) else tuple(texts)), kept


def _of_table(source: Source, lines: Lines, columns: list[str], keep: list[str]):
    """(texts or what is wrong, kept, note) of each row; the header is understood before this returns."""
    rows = _cells(source, lines)
    first, _ = next(rows, (None, ""))
    if isinstance(first, str):
        raise Refusal(f"{source.where} line 1 {first}")
    names = [name.strip() for name in first or []]
    wanted = [*columns, *keep]
    header, width = any(name in names for name in wanted), len(names)
    places = [_place(source, names, name, wanted) for name in wanted]
    if not header and "separator" not in source.said:
        _refuse_doubt(source, first or [])
    if len(names) == 1 and max(places) > 0 and _hint(source, names, []):
        raise Refusal(f"{source.where} has one column{_hint(source, names, [])}")

    def pick(cells, note):
        if not isinstance(cells, list):
            return cells, [], ""
        if not cells:
            return "is an empty line", [], ""
        if any(cells[width:]) and header:  # whatever stands behind the cell too many may be in the wrong column
            return f"has {len(cells)} columns, but the first line {width}: a separator stands in a text", [], ""
        if width and (any(cells[width:]) or len(cells) < width):
            note = note or f"has {len(cells)} columns, but the first line {width}"
        if source.form == "tsv" and len(cells) < width and cells[-1].startswith('"') and cells[-1].count('"') % 2:
            return ("a quote opens and is not closed, and columns are missing: if the file is quoted, read it with "
                    f"--format csv --separator {source.separator!r}"), [], ""
        picked = [cells[place] if place < len(cells) else "" for place in places]
        texts, kept = tuple(picked[: len(columns)]), picked[len(columns):]
        short = [place for place in places[: len(columns)] if place >= len(cells)]
        return (f"has {len(cells)} columns, no number {short[0] + 1}" if short else texts), kept, note

    def every():
        if first is not None and not header:
            yield pick(first, "")
        for cells, note in rows:
            yield pick(cells, note)
    return every()


def _refuse_doubt(source: Source, cells: list[str]) -> None:
    """Raise Refusal for a csv without a header whose first line may be separated by something else."""
    for other in ";\t|" if source.form == "csv" else "":
        if sum(cell.count(other) for cell in cells) >= max(len(cells) - 1, 1):
            raise Refusal(f"{source.where} may be separated by {other!r} or by ',': say so with --separator {other!r} "
                          "or --separator ','")


def _place(source: Source, names: list[str], name: str, wanted: list[str]) -> int:
    """Where the column of this name or number is; raises Refusal where that is not sure."""
    if re.fullmatch(r"#[0-9]{1,6}", name) and name not in names and 0 < int(name[1:]) <= MOST_COLUMNS:
        return int(name[1:]) - 1
    number = int(name) if name.isdecimal() and len(name) <= len(str(MOST_COLUMNS)) else 0
    if names.count(name) > 1:
        raise Refusal(f"{source.where} has {names.count(name)} columns of the name {name!r}: rename all but one")
    if name in names and 0 < number <= len(names):
        raise Refusal(f"column {name!r} may be a number, or the name of a column in the first line of {source.where}: "
                      f"write '#{name}' for the number, or give the column another name there")
    if name in names:
        return names.index(name)
    if 0 < number <= MOST_COLUMNS:
        return number - 1
    listed = ", ".join(repr(other[:40]) for other in names[:NAMED_COLUMNS]) or "none"
    more = f" and {len(names) - NAMED_COLUMNS} more" if len(names) > NAMED_COLUMNS else ""
    way = ": name one with --column, or its number, from 1, if the first line is no header"
    way = _hint(source, names, wanted) or way
    raise Refusal(f"{source.where} has no column {name[:40]!r}, but {listed}{more}{way}")


def _hint(source: Source, names: list[str], wanted: list[str]) -> str:
    """What the separator seems to be, where one line is one cell."""
    if len(names) == 1:
        for other in ";,\t|":
            parts = [part.strip().strip('"') for part in names[0].split(other)]
            if other != source.separator and len(parts) > 1 and all(n in parts or n.isdecimal() for n in wanted):
                return f"; it looks separated by {other!r}: read it with --separator {other!r}"
    return ""


def _cells(source: Source, lines: Lines):
    """(each row's cells or what is wrong with it, note), of a tsv (quoting off) or csv (quoting on)."""
    if source.form == "tsv":
        for line in lines:
            many = line.count(source.separator) >= MOST_COLUMNS
            yield (f"has more than {MOST_COLUMNS} columns" if many else line.split(source.separator)), ""
        return
    csv.field_size_limit(lines.limit)
    fed = (line.replace("\r", " ") + "\n" for line in lines)
    reader = csv.reader(fed, delimiter=source.separator, strict=True)
    while True:
        opened = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" not in str(error) and "field larger" not in str(error):
                yield f"breaks the quoting in line {opened} to {lines.number} ({error})", ""
                continue
            # a quote that is never closed, or closed too far away to be one text: every row behind it is in doubt
            raise Refusal(f"{source.where} line {opened}: a quote opens in this row and is not closed within "
                          f"{lines.limit} bytes or before the end: close it; the rows before are labelled") from None
        rows = _rows_in_quotes(cells, source.separator) if lines.number > opened else 0
        runs = f"runs from line {opened} to {lines.number}"
        yield (f"{runs}, and {rows} of these look like rows: a quote is not closed" if rows else cells,
               runs if lines.number - opened >= ROWS_IN_QUOTES else "")


def _rows_in_quotes(cells: list[str], separator: str) -> int:
    """How many lines of a cell look like rows, where most between its first and last do; else 0."""
    numbered = cells[0].strip().isdecimal()  # then its rows are, too: one of them is enough
    for inner in (cell.split("\n")[1:-1] for cell in cells):
        rows = [line for line in inner if line.count(separator) == len(cells) - 1 > 0
                and (not numbered or line.split(separator)[0].strip().isdecimal())]
        if len(rows) >= (1 if numbered else ROWS_IN_QUOTES) and 5 * len(rows) >= 4 * len(inner):
            return len(rows)
    return 0
