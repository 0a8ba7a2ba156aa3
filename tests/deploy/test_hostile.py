"""What a hostile user gives predict.py: for each input or command line the status, what is said, and no traceback.

After each case every file that was there before is there still, byte for byte, unless the case names it.
"""

import gzip
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from packs import NO_NUMBER, Warm, make_pack, write_manifest
from stage_runs import ENVIRONMENT, contents

LONGEST_SENTENCE = 1500  # characters of one refusal, names of 300 characters included
EMPTIED = "nothing is left of the text after cleaning"
SEMICOLONS = "id;text\r\n1;enak, sekali\r\n2;buruk\r\n"
QUOTED = "".join(f'{i},"enak {i}"\n' for i in range(1, 6))

# a process that is killed in its eighth write: three windows of records are written and noted by then
DIES = """
import os
write, calls = os.write, []
def dying(*a):
    calls.append(1)
    if len(calls) == 8:
        os.kill(os.getpid(), 9)
    return write(*a)
os.write = dying
"""
SMALL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"  # else it goes on for ever
INTERRUPTED = """
import builtins, os, signal
load = builtins.__import__
def interrupted(name, *a, **k):
    if name == "predictor":
        os.kill(os.getpid(), signal.SIGINT)
    return load(name, *a, **k)
builtins.__import__ = interrupted
"""


class Lab(NamedTuple):
    """What a case has to work with: a folder of its own, and the packed models."""

    folder: Path
    warm: Warm
    packs: dict[str, Path]


class Case(NamedTuple):
    """A command line; its status, and words that are said, on standard error or in the records.

    `flags` may be functions of the Lab. `records` has an entry a record: "label", words of the error, or a dict of
    what it holds. "a|b" stands for one of both. `changed` names files that may change or go.
    """

    flags: tuple
    status: int
    said: tuple[str, ...]
    records: tuple | None = None
    pack: str | Callable = "minimal"
    stdin: str | Callable = os.devnull
    stdout: str | Callable = ""
    stderr: str | Callable = ""
    before: str = ""
    changed: tuple[str, ...] = ()


# ---- what inputs are made of


def at(name: str) -> Callable:
    """A path in the case's folder."""
    return lambda lab: lab.folder / name


def file(name: str, content: bytes | str) -> Callable:
    """A file in the case's folder."""
    def made(lab):
        path = lab.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path
    return made


def linked(name: str, target: str, link=os.symlink) -> Callable:
    """A link in the case's folder to a file of it, which holds two texts."""
    def made(lab):
        if not os.path.isabs(target):
            (lab.folder / target).write_text("enak\nburuk\n")
        link(os.path.join(lab.folder, target), lab.folder / name)
        return lab.folder / name
    return made


def folder(name: str) -> Callable:
    """A folder in the case's folder."""
    def made(lab):
        (lab.folder / name).mkdir()
        return lab.folder / name
    return made


def also(make: Callable) -> Callable:
    """What is made, but is no flag."""
    return lambda lab: make(lab) and None


def beside(part: Path, mark: Path) -> None:
    """An output of the user's own beside a part."""
    part.with_name("o.jsonl").write_text("mine")


ROWS = "".join(f"enak nomor {i}\n" for i in range(20))


def begun(then: Callable | None = None, name: str = "o.jsonl") -> Callable:
    """The output of a run that was killed behind 12 of the 20 texts of a.txt, changed by `then`."""
    def made(lab):
        (lab.folder / "a.txt").write_text(ROWS)
        ended = lab.warm(lab.packs["minimal"], "--input", lab.folder / "a.txt", "--output", lab.folder / name,
                         "--window", 4, before=DIES)
        part, mark = (lab.folder / f"{name}.{end}" for end in ("part", "part.json"))
        assert ended.status == -9, ended.err
        assert mark.read_text().count("\n") == 1 + 3, ended
        if then:
            then(part, mark)
        return lab.folder / name
    return made


def noted(line: str) -> Callable:
    """A begun output with a further line in its notes."""
    return begun(lambda part, mark: mark.write_text(mark.read_text() + line + "\n"))


def changed_pack(change: Callable[[Path], object], name: str = "minimal") -> Callable:
    """A copy of a packed folder, changed."""
    def made(lab):
        copied = shutil.copytree(lab.packs[name], lab.folder / "pack")
        change(copied)
        return copied
    return made


def manifest(text: str) -> Callable:
    """A packed folder whose manifest is this text."""
    return changed_pack(lambda pack: (pack / "manifest.json").write_text(text))


def listed(**keys) -> Callable:
    """A packed folder whose manifest has these keys."""
    return changed_pack(lambda pack: write_manifest(pack, **keys))


def listing(name: str, digest="0" * 64) -> Callable:
    """A packed folder whose manifest lists one more file, or another hash for one."""
    def change(pack):
        found = json.loads((pack / "manifest.json").read_text())
        found["files"][name] = {"bytes": 1, "sha256": digest}
        (pack / "manifest.json").write_text(json.dumps(found))
    return changed_pack(change)


def rewritten(name: str, text: str) -> Callable:
    """A packed folder with another file of that name, its hash in the manifest."""
    def change(pack):
        (pack / name).write_text(text)
        write_manifest(pack)
    return changed_pack(change)


def without(name: str) -> Callable:
    """A packed folder that lacks a file."""
    return changed_pack(lambda pack: (pack / name).unlink())


def csv_of(*rows: str) -> Callable:
    """a.csv with a header of id and text."""
    return file("a.csv", "id,text\n" + "".join(f"{row}\n" for row in rows))


def jsonl_of(*rows: str) -> Callable:
    """a.jsonl."""
    return file("a.jsonl", "".join(f"{row}\n" for row in rows))


def reads(source: Callable, *flags) -> tuple:
    """Flags that read an input."""
    return ("--input", source, *flags)


def writes(output, *flags) -> tuple:
    """Flags that label a.txt of 20 rows into an output, four at a time."""
    return ("--input", file("a.txt", ROWS), "--output", output, "--window", 4, *flags)


def goes_on(output: Callable, *flags) -> tuple:
    """Flags that resume a begun output: its input is there already."""
    return ("--output", output, "--input", at("a.txt"), "--window", 4, "--resume", *flags)


# ---- rows that are not as they should be

LONG = b"enak sekali " * 90_000  # more than TEXT_BYTES
DEEP = "[" * 100_000
LONE = tuple(rf'{{"text": "{text}"}}' for text in (r"\ud83d", r"enak \udc00 sekali", r"\ud83d\ud83d\ude00", "enak"))
HALF = "half of a character"

BAD_ROWS = {
    "an unclosed quote": Case(reads(csv_of("1,enak", "2,buruk", '3,"bagus', "4,enak", "5,enak")), 2,
                              ("line 4", "quote", "not closed", "before are labelled"), ("label",) * 2),
    "an unclosed quote in the header": Case(reads(file("a.csv", 'id,"text\n1,enak\n')), 2, ("line 1", "quote")),
    "an unclosed quote in the last row": Case(reads(csv_of("1,enak", '2,"buruk')), 2, ("line 3", "quote"), ("label",)),
    "an unclosed quote, gzip": Case(reads(file("a.csv.gz", gzip.compress(b'id,text\n1,enak\n2,"buruk\n'))), 2,
                                    ("line 3", "quote"), ("label",)),
    "an unclosed quote behind a quoted line break": Case(
        reads(csv_of('1,"enak\nsekali"', '2,"buruk', "3,enak")), 2, ("line 4", "quote"), ("label",)),
    "an unclosed quote among quoted rows": Case(
        reads(file("a.csv", "id,text\n" + QUOTED.replace('enak 3"', "enak 3"))), 1, (),
        ("label", "label", "line 4 to 5", "label")),
    "an unclosed quote, far from the end": Case(
        reads(file("a.csv", 'id,text\n1,enak\n2,"' + "buruk\n3," * 600_000), "--text-bytes", 1000), 2,
        ("line 3", "4000000 bytes"), ("label",)),
    "a letter behind a closed quote": Case(reads(csv_of('1,"enak"x', "2,buruk")), 1, (), ("quoting in line 2",
        "label")),
    "a quote that another row closes": Case(  # one text of 90 lines, or an error: either way it is said
        reads(csv_of(*(f'{i},{chr(34) * (i == 5)}enak{" 5" + chr(34) if i == 95 else ""}' for i in range(1, 101)))),
        1, ("line",)),
    "more cells than the header": Case(reads(csv_of("1,enak", "2,bagus, tapi mahal", '3, "bagus, mahal"')), 1,
                                       ("column",), ("label", "column", "column")),
    "more cells than the header, tsv": Case(reads(file("a.tsv", "id\ttext\n1\tbagus\ttapi mahal\n")), 1, (),
                                            ("column",)),
    "fewer cells than the header": Case(reads(csv_of("1", "2,enak")), 1, (), ("has 1 columns", "label")),
    "blank lines in a csv": Case(reads(csv_of("1,enak", "", "2,enak")), 1, (), ("label", "empty line", "label")),
    "a blank line before the header": Case(reads(file("a.csv", "\nid,text\n1,enak\n")), 2, ("empty|blank",)),
    "a NUL": Case(reads(file("a.txt", b"en\0ak\nenak\n")), 1, ("1 error",), ("NUL", "label")),
    "a NUL in a csv": Case(reads(csv_of("1,en\0ak", "2,enak")), 1, (), ("NUL", "label")),
    "a NUL in JSON": Case(reads(jsonl_of(r'{"text": "a\u0000b"}')), 1, (), ("NUL",)),
    "not UTF-8": Case(reads(file("a.txt", b"caf\xe9\nenak\n")), 1, (), ("UTF-8", "label")),
    "not UTF-8, tsv": Case(reads(file("a.tsv", b"text\ncaf\xe9\nenak\n")), 1, (), ("UTF-8", "label")),
    "surrogates as bytes": Case(reads(file("a.txt", b"\xed\xa0\xbd\nenak\n")), 1, (), ("UTF-8", "label")),
    "over-long UTF-8": Case(reads(file("a.txt", b"\xc0\x80\xc1\xa1\n")), 1, (), ("UTF-8",)),
    "a byte that is not UTF-8 behind the command": Case((b"caf\xe9", "enak"), 1, (), ("UTF-8", "label")),
    "lone surrogates, minimal": Case(reads(jsonl_of(*LONE)), 1, ("3 errors",), (HALF, HALF, HALF, "label")),
    "lone surrogates, negation-safe": Case(reads(jsonl_of(*LONE)), 1, (), (HALF, HALF, HALF, "label"),
                                           pack="negation-safe"),
    "lone surrogates, documents": Case(reads(jsonl_of(*LONE)), 1, (), (HALF, HALF, HALF, "label"), pack="documents"),
    "a lone surrogate that looks like a byte": Case(reads(jsonl_of(r'{"text": "\udc80"}')), 1, (), (HALF,)),
    "no text at all": Case(reads(file("a.txt", " \n\u3000\n\t\nenak\n")), 1, ("3 errors",), ("empty text",
        ) * 3 + ("label",)),
    "a text longer than TEXT_BYTES": Case(reads(file("a.txt", LONG + b"\nenak\n")), 1, (), ("TEXT_BYTES", "label")),
    "a text longer than TEXT_BYTES, tsv": Case(reads(file("a.tsv", b"text\n" + LONG + b"\nenak\n")), 1, (),
                                               ("TEXT_BYTES", "label")),
    "a text longer than TEXT_BYTES, csv": Case(reads(file("a.csv", b'text\n"' + LONG + b'"\nenak\n')), 1, (),
                                               ("TEXT_BYTES", "label")),
    "a text longer than TEXT_BYTES, jsonl": Case(reads(file("a.jsonl",
                                                            b'{"text": "' + LONG + b'"}\n{"text": "enak"}\n')),
                                                 1, (), ("TEXT_BYTES", "label")),
    "bytes count, not characters": Case(reads(file("a.txt", "é" * 60 + "\n" + "e" * 100 + "\n"), "--text-bytes", 100),
                                        1, (), ("TEXT_BYTES", "label")),
    "an over-long line": Case(reads(file("a.txt", b"enak " * 900_000 + b"\nenak\n"), "--text-bytes", 1000), 1, (),
                              ("longer than 4000000 bytes", "label")),
    "an over-long line at the end": Case(reads(file("a.txt", b"enak\n" + b"enak " * 900_000), "--text-bytes", 1000), 1,
                                         (),
                                         ("label", "longer than 4000000 bytes")),
    "an over-long line, csv": Case(reads(file("a.csv", b"text\nenak\n" + b"enak " * 900_000 + b"\nenak\n"),
                                         "--text-bytes", 1000), 1, (), ("label", "longer than 4000000 bytes",
                                                                        "label")),
    "an over-long line, jsonl": Case(reads(file("a.jsonl", b'{"x": ' + b"1" * 4_100_000 + b'}\n{"text": "enak"}\n'),
                                           "--text-bytes", 1000), 1, (), ("longer than 4000000 bytes", "label")),
    "a text of many words": Case(("enak " * 20_000,), 0, (), ("label",)),
    "nested JSON": Case(reads(jsonl_of(DEEP, '{"text": ' + DEEP, '{"text": "enak"}')), 1, (),
                        ("no JSON", "no JSON", "label")),
    "nested JSON beside the text": Case(reads(jsonl_of('{"text": "enak", "x": ' + "[" * 50 + "]" * 50 + "}")), 0, (),
                                        ("label",)),
    "JSON that is no object": Case(reads(jsonl_of("5", "null", '"enak"', '["enak"]')), 1, (), ("no JSON object",) * 4),
    "JSON that breaks off": Case(reads(jsonl_of('{"text": "enak"', '{"text": "enak"}')), 1, (), ("no JSON", "label")),
    "JSON without the key": Case(reads(jsonl_of('{"Text": "enak"}')), 1, (), ("no key 'text'",)),
    "JSON with another kind of text": Case(reads(jsonl_of(*(f'{{"text": {value}}}' for value in (
        "5", "null", "true", '["enak"]', "NaN")))), 1, (), ("no text under the key",) * 5),
    "JSON with a number of 5,000 digits": Case(reads(jsonl_of(f'{{"text": "enak", "x": {"1" * 5000}}}')), 1, (),
                                               ("no JSON",)),
    "JSON in one list": Case(reads(jsonl_of("[", '{"text": "enak"},', "]")), 1, (), ("no JSON",) * 3),
    "an empty line in JSONL": Case(reads(jsonl_of('{"text": "enak"}', "", '{"text": "enak"}')), 1, (),
                                   ("label", "empty line", "label")),
    "punctuation alone, documents": Case(("!!!", "enak"), 0, (), ({"note": EMPTIED}, "label"), pack="documents"),
    "emoji alone, documents": Case(("😀😀",), 0, (), ({"note": EMPTIED},), pack="documents"),
    "zero-width characters, documents": Case(("\u200b\ufeff\u200d",), 0, (), ({"note": EMPTIED},), pack="documents"),
    "zero-width characters, minimal": Case(  # the tokenizer drops them: the model sees nothing
        ("\u200b\ufeff\u200d",), 0, (), ({"note": "nothing is left"},)),
    "control characters, minimal": Case(("\x01\x02",), 0, (), ({"note": "nothing is left"},)),
    "a stop word alone": Case(("yang",), 0, (), ({"note": EMPTIED},), pack="documents"),
    "emptied texts are counted": Case(reads(file("a.txt", "!!!\n...\nenak\n")), 0, ("2 empty after cleaning",),
                                      pack="documents"),
    "an answer that is no number": Case(("enak", f"enak {NO_NUMBER}"), 1, (), ("label", "no number")),
    "an answer that is no number, of a number": Case((f"enak {NO_NUMBER}", "enak"), 1, (), ("no number",
        {"value": ...}),
                                                     pack="number"),
    "a pair with an empty half": Case(reads(file("a.tsv", "a\tb\nenak\t\n\tenak\nenak\tburuk\n")), 1, ("2 errors",),
                                      ("empty text", "empty text", "label"), pack="pairs"),
    "an unclosed quote, rows of several shapes": Case(
        reads(csv_of("1,enak", '2,"buruk', "3,bagus, tapi mahal", *("4,enak",) * 20, '5,layar 14"', "6,enak")), 1, (),
        ("label", "a quote is not closed", "label")),
    "an unclosed quote, closed soon": Case(reads(csv_of('1,"enak', "2,buruk", "3,bagus", '4,layar 14"', "5,enak")), 1,
                                           (),
                                           ("line 2 to 5", "label")),
    "an unclosed quote, one column": Case(  # it may be a long text: labelled, but noted
        reads(file("a.csv", 'text\n"enak\n' + "buruk\n" * 20 + 'layar 14"\nenak\n')), 0, ("1 with a note",),
        ({"label": ..., "note": "runs from line 2 to 23"}, "label")),
    "a review of many lines": Case(
        reads(csv_of('1,"' + "\n".join(f"{i}. kamar bersih, staf ramah" for i in range(11)) + '"', "2,enak")), 0, (),
        ({"label": ..., "note": "runs from"}, "label")),
    "a line break without quotes": Case(reads(file("a.csv", "id,text,rating\n1,baris satu\nbaris dua,5\n2,buruk,1\n")),
                                        0, ("2 with a note",), ({"note": "has 2 columns"}, {"note": "has 2 columns"},
                                                               "label")),
    "quotes in a tsv": Case(reads(file("a.tsv", 'id\ttext\trating\n1\t"baris satu\nbaris dua"\t5\n2\tburuk\t1\n')), 1,
                            (), ("--format csv --separator", "label", "label")),
    "a key to keep that is not UTF-8": Case(reads(file("a.csv", b"nama,text\nCaf\xe9,enak\n"), "--keep", "nama"), 1,
                                            (),
                                            ("UTF-8",)),
    "a kept cell that is left out": Case(reads(file("a.csv", "id,text,catatan\n1,enak\n2,buruk,x\n"), "--keep",
                                               "id,catatan"), 0, (), ({"id": "1", "catatan": "", "label": ...},
                                                                      {"catatan": "x"})),
    "trailing separators": Case(reads(csv_of("1,enak,,", "2,buruk,")), 0, (), ("label",) * 2),
    "a carriage return within a text": Case(reads(file("a.txt", "enak\rsekali\nburuk\n")), 0, (), ("label",) * 2),
    "a carriage return far before the first line end": Case(
        reads(file("a.txt", "enak\rsekali " + "enak " * 4000 + "\nburuk\n")), 0, (), ("label",) * 2),
}

# ---- files that are not what they say

BAD_FILES = {
    "UTF-16": Case(reads(file("a.csv", "id,text\n1,enak\n".encode("utf-16"))), 2, ("UTF-16", "--encoding utf-16")),
    "UTF-16, big end first": Case(reads(file("a.txt", b"\xfe\xff" + "enak\n".encode("utf-16-be"))), 2,
                                  ("UTF-16", "--encoding utf-16")),
    "UTF-16, read as such": Case(reads(file("a.csv", "id,text\n1,enak\n2,buruk\n".encode("utf-16")), "--encoding",
                                       "utf-16"), 0, (), ("label",) * 2),
    "UTF-16, gzip": Case(reads(file("a.csv.gz", gzip.compress("text\nenak\n".encode("utf-16")))), 2,
                         ("--encoding utf-16",)),
    "UTF-16 that breaks off": Case(reads(file("a.txt", "enak\nburuk\n".encode("utf-16")[:-1]), "--encoding", "utf-16"),
                                   2, ("breaks off",)),
    "no UTF-16": Case(reads(file("a.csv", "text\nenak\n"), "--encoding", "utf-16"), 2, ("UTF-16",)),
    "semicolons": Case(reads(file("a.csv", SEMICOLONS)), 2, ("';'", "--separator ';'")),
    "semicolons, read as such": Case(reads(file("a.csv", SEMICOLONS), "--separator", ";"), 0, (), ("label",) * 2),
    "semicolons without a header": Case(reads(file("a.csv", "1;enak\n2;buruk, sekali\n"), "--column", "2"), 2,
                                        ("--separator ';'",)),
    "tabs in a csv": Case(reads(file("a.csv", "id\ttext\n1\tenak\n")), 2, (r"--separator '\t'",)),
    "commas in a tsv": Case(reads(file("a.tsv", "id,text\n1,enak\n")), 2, ("--separator ','",)),
    "carriage returns alone": Case(reads(file("a.csv", "id,text\r1,enak\r2,buruk\r")), 2, ("carriage returns",)),
    "carriage returns alone, txt": Case(reads(file("a.txt", "enak\rburuk\r")), 2, ("carriage returns",)),
    "carriage returns alone, from a Mac": Case(reads(file("a.txt", "enak\rburuk\r"), "--encoding", "mac_roman"), 2,
                                               ("carriage returns",)),
    "carriage returns alone, UTF-16": Case(reads(file("a.txt", "enak\rburuk\r".encode("utf-16")), "--encoding",
                                                 "utf-16"), 2, ("carriage returns",)),
    "carriage returns and line feeds": Case(reads(file("a.csv", "id,text\r\n1,enak\r\n")), 0, (), ("label",)),
    "a byte-order mark": Case(reads(file("a.csv", b"\xef\xbb\xbftext\nenak\n")), 0, (), ("label",)),
    ".GZ in capitals": Case(reads(file("A.CSV.GZ", gzip.compress(b"text\nenak\n"))), 0, (), ("label",)),
    "a gzip that was cut short": Case(reads(file("a.txt.gz", gzip.compress(b"".join(
        b"enak %d\n" % (i * 7919 % 65537) for i in range(5000)))[:9000]), "--window", 16), 2,
        ("breaks off behind line",)),
    "a gzip of no bytes": Case(reads(file("a.txt.gz", b"")), 2, ("gz",)),
    "a gzip with something behind": Case(reads(file("a.txt.gz", gzip.compress(b"enak\n") + b"garbage")), 2,
                                         ("breaks off behind line 1",), ("label",)),
    "a gzip with a wrong sum": Case(reads(file("a.txt.gz", gzip.compress(b"enak\n")[:-8] + bytes(8))), 2,
                                    ("breaks off",)),
    "two gzips in one": Case(reads(file("a.txt.gz", gzip.compress(b"enak\n") * 2)), 0, (), ("label",) * 2),
    "no gzip": Case(reads(file("a.csv.gz", "text\nenak\n")), 2, ("is no gzip", ".gz")),
    "a gzip that is not called so": Case(reads(file("a.txt", gzip.compress(b"enak\n"))), 1, (), None),
    "columns of a txt": Case(reads(file("a.txt", "id\tulasan\n1\tenak\n"), "--column", "ulasan"), 2, ("--format",)),
    "columns of standard input": Case(("--column", "ulasan"), 2, ("standard input", "--format"),
                                      stdin=file("r.csv", "id,ulasan\n1,enak\n")),
    "JSON lines as standard input": Case((), 2, ("--format jsonl",), stdin=file("r", '{"text": "enak"}\n')),
    "JSON lines as standard input, said": Case(("--format", "jsonl"), 0, (), ("label",),
                                               stdin=file("r", '{"text": "enak"}\n')),
    "semicolons and commas without a header": Case(reads(file("a.csv", "1;enak, sekali\n2;buruk\n"), "--column", "2"),
                                                   2,
                                                   ("--separator ';'", "--separator ','")),
    "the line sep=;": Case(reads(file("a.csv", "sep=;\r\nid;text\r\n1;enak\r\n")), 0, (), ("label",)),
    "a mark in UTF-16 of a known end": Case(reads(file("a.csv", "\ufefftext\nenak\n".encode("utf-16-le")),
                                                  "--encoding",
                                                  "utf-16-le"), 0, (), ("label",)),
    "UTF-8 by another name": Case(reads(file("a.csv", b"\xef\xbb\xbftext\ncaf\xe9\nenak\n"), "--encoding",
                                        "utf-8-sig"), 1,
                                  (), ("UTF-8", "label")),
    "a header whose quoting breaks": Case(reads(file("a.csv", 'id,"text"x\n1,enak\n')), 2, ("line 1", "quoting")),
    "a blank first line, no header": Case(reads(file("a.csv", "\n1,enak\n"), "--column", "2"), 1, (),
                                          ("empty line", "label")),
    "an empty csv": Case(reads(file("a.csv", "")), 2, ("no column 'text'",)),
    "an empty txt": Case(reads(file("a.txt", "")), 0, ("0 rows",), ()),
    "an empty jsonl": Case(reads(file("a.jsonl", "")), 0, ("0 rows",), ()),
    "a header alone": Case(reads(file("a.csv", "id,text\n")), 0, ("0 rows",), ()),
    "line ends alone": Case(reads(file("a.txt", "\n\n")), 1, ("2 errors",), ("empty text",) * 2),
    "no such file": Case(("--input", at("none.csv")), 2, ("none.csv", "No such file")),
    "a folder": Case(("--input", folder("a.csv")), 2, ("a.csv", "directory")),
    "a link to itself": Case(("--input", linked("a.txt", "/proc/self/nonexistent")), 2, ("cannot be read",)),
    "a name of 300 characters": Case(("--input", "a" * 300 + ".csv"), 2, ("too long",)),
    "another kind of file": Case(reads(file("a.xlsx", b"PK\3\4")), 2, ("'xlsx'", "--format")),
    "a name without an end": Case(reads(file("reviews", "enak\n")), 2, ("--format",)),
    "a gzip without another end": Case(reads(file("reviews.gz", gzip.compress(b"enak\n"))), 2, ("--format",)),
}

# ---- columns

COLUMNS = {
    "no such column": Case(reads(file("a.csv", "teks,id\nenak,1\n")), 2, ("'text'", "'teks', 'id'", "--column")),
    "columns of another case": Case(reads(file("a.csv", "Text\nenak\n")), 2, ("'Text'",)),
    "two columns of the name": Case(reads(file("a.csv", "text,text\nenak,buruk\n")), 2, ("text",)),
    "100,000 columns": Case(reads(file("a.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n")), 2, ("no column",)),
    "column 20 digits": Case(reads(csv_of("1,enak"), "--column", "9" * 20), 2, ("no column '9999",)),
    "column 5,000 digits": Case(reads(csv_of("1,enak"), "--column", "9" * 5000), 2, ("column",)),
    "column 0": Case(reads(csv_of("1,enak"), "--column", "0"), 2, ("no column '0'",)),
    "column -1": Case(reads(csv_of("1,enak"), "--column", "-1"), 2, ("no column '-1'",)),
    "column beyond the row": Case(reads(csv_of("1,enak"), "--column", "7"), 1, (), ("no number 7",) * 2),
    "column ,": Case(reads(csv_of("1,enak"), "--column", ","), 2, ("no column ','",)),
    "a column that is no UTF-8": Case(reads(csv_of("1,enak"), "--column", b"\xe9"), 2, ("no column",)),
    "a header that is a number": Case(reads(file("a.csv", ",0\n0,enak\n1,buruk\n"), "--column", "0"), 0, (),
                                      ("label",) * 2),
    "a cell that is the column's number": Case(  # labels 0 and 1 behind the texts: text 1 or header 1?
        reads(file("a.tsv", "bagus sekali\t1\nburuk\t0\n"), "--column", "1"), 2, ("column",)),
    "a number that is a cell": Case(reads(file("a.csv", "1,enak\n2,buruk\n"), "--column", "2", "--keep", "1"), 2,
                                    ("#1",)),
    "a number that is a cell, said": Case(reads(file("a.csv", "1,enak\n2,buruk\n"), "--column", "2", "--keep", "#1"),
                                          0,
                                          (), ({"#1": "1", "label": ...}, {"#1": "2"})),
    "a comma in a column's name": Case(reads(file("a.csv", '"Bagaimana, menurut Anda?",id\nenak,7\n'), "--column",
                                             "Bagaimana, menurut Anda?"), 0, (), ("label",)),
    "a comma in a name to keep": Case(reads(file("a.csv", '"a, b",text\n7,enak\n'), "--keep", '"a, b"'), 0, (),
                                      ({"a, b": "7"},)),
    "12,000 columns": Case(reads(file("a.tsv", "\t".join(["text", *("c",) * 12_000]) + "\nenak\n")), 0, (), ("label",
        )),
    "one column for a pair": Case(reads(file("a.csv", "a,b\nenak,buruk\n"), "--column", "a"), 2,
                                  ("this model reads 2",),
                                  pack="pairs"),
    "two columns for one text": Case(reads(file("a.csv", "a,b\nenak,buruk\n"), "--column", "a,b"), 2,
                                     ("no column 'a,b'",)),
    "a pair of a txt": Case(reads(file("a.txt", "enak\n")), 2, ("no columns",), pack="pairs"),
    "a pair of JSON without one": Case(reads(jsonl_of('{"a": "enak"}', '{"a": "enak", "b": "buruk"}')), 1, (),
                                       ("no key 'b'", "label"), pack="pairs"),
    "three words for pairs": Case(("enak", "buruk", "bagus"), 2, ("pairs",), pack="pairs"),
    "keep": Case(reads(csv_of("7,enak", "8,"), "--keep", "id"), 1, (),
                 ({"id": "7", "label": ...}, {"id": "8", "error": "empty text"})),
    "keep, of JSON": Case(reads(jsonl_of('{"id": {"a": [1]}, "text": "enak"}', '{"id": null, "text": 5}'), "--keep",
                                "id"),
                          1, (), ({"id": {"a": [1]}, "label": ...}, {"id": None, "error": "no text"})),
    "keep of a row without the text": Case(reads(jsonl_of('{"id": 7}'), "--keep", "id"), 1, (),
                                           ({"id": 7, "error": "no key 'text'"},)),
    "keep of a row that is too short": Case(reads(csv_of("7"), "--keep", "id"), 1, (),
                                            ({"id": "7", "error": "columns"},)),
    "keep what is not there": Case(reads(csv_of("1,enak"), "--keep", "nomor"), 2, ("no column 'nomor'",)),
    "keep what is not there, JSON": Case(reads(jsonl_of('{"text": "enak"}'), "--keep", "nomor"), 1, (), ("'nomor'",)),
    "keep what a record has": Case(reads(file("a.csv", "row,text\n1,enak\n"), "--keep", "row"), 2, ("'row'",
        "rename")),
    "keep a label's name": Case((*reads(file("a.csv", "positive,text\n1,enak\n"), "--keep", "positive"), "--output",
                                 at("o.tsv")), 2, ("'positive'", "rename")),
    "keep of a txt": Case(reads(file("a.txt", "enak\n"), "--keep", "id"), 2, ("no columns",)),
    "keep of words": Case(("--keep", "id", "enak"), 2, ("KEEP",)),
    "keep no number": Case(reads(jsonl_of('{"id": NaN, "text": "enak"}'), "--keep", "id"), 0, (), ({"label": ...},)),
    "keep half a character": Case(reads(jsonl_of(r'{"id": "\ud83d", "text": "enak"}'), "--keep", "id"), 0, (),
                                  ({"id": "\ud83d"},)),
    "keep, nested": Case(reads(jsonl_of(*(f'{{"text": "enak", "id": {"[" * n}{"]" * n}}}' for n in range(
        930, 1000, 2))), "--keep", "id"), 1, (), None),
    "separator of two": Case(reads(csv_of("1,enak"), "--separator", "ab"), 2, ("one character",)),
    "separator quote": Case(reads(csv_of("1,enak"), "--separator", '"'), 2, ("one character",)),
    "separator line feed": Case(reads(csv_of("1,enak"), "--separator", "\n"), 2, ("one character",)),
    "separator of JSON": Case(reads(jsonl_of('{"text": "enak"}'), "--separator", ";"), 2, ("csv or tsv",)),
    "separator that is not there": Case(reads(csv_of("1,enak"), "--separator", ";"), 2, ("--separator ','",)),
    "separator that is no UTF-8": Case(reads(csv_of("1,enak"), "--separator", b"\xe9"), 2, ("--separator ','",)),
    "encoding nonsense": Case(reads(csv_of("1,enak"), "--encoding", "nonsense"), 2, ("'nonsense' is not known",)),
    "encoding of no text": Case(reads(csv_of("1,enak"), "--encoding", "hex"), 2, ("'hex' is not known",)),
    "encoding undefined": Case(reads(csv_of("1,enak"), "--encoding", "undefined"), 2, ("undefined",)),
    "encoding punycode": Case(reads(csv_of("1,enak"), "--encoding", "punycode"), 2, ("punycode|breaks off",)),
    "encoding of another": Case(reads(file("a.txt", "enak\n"), "--encoding", "utf-32"), 2,
                                ("breaks off behind line 0",)),
}

# ---- command lines

LINES = {
    "a text with a dash": Case(("-jelek",), 2, ("'-jelek'", "--")),
    "a text with a dash, behind --": Case(("--", "-jelek"), 0, (), ("label",)),
    "a text with a dash, behind another": Case(("enak", "-jelek"), 2, ("behind --",)),
    "an unknown flag": Case(("--bach-size", "4", "enak"), 2, ("--bach-size", "--batch-size")),
    "a flag without a value": Case(("enak", "--threads"), 2, ("--threads",)),
    "words and an input": Case(("enak", "--input", "a.csv"), 2, ("a.csv", "'enak'", "one of both")),
    "an empty word": Case(("", "enak"), 1, (), ("empty text", "label")),
    "--resume maybe": Case(("--resume", "maybe"), 2, ("RESUME", "true or false", "'maybe'")),
    "--resume teks": Case(("--resume", "teks"), 2, ("RESUME", "true or false", "behind --")),
    "--force teks": Case(("--force", "teks"), 2, ("FORCE", "true or false")),
    "--check teks": Case(("--check", "teks"), 2, ("CHECK", "true or false")),
    "--check": Case(("--check",), 0, ("as they were packed",)),
    "--help": Case(("--help",), 0, ("--text-bytes",)),
    "--help into a full disk": Case(("--help",), 2, ("",), stdout="/dev/full"),
    **{f"{flag} {value}": Case((flag, value, "enak"), 2, (flag[2:].upper().replace("-", "_"),)) for flag, value in (
        ("--threads", "100000"), ("--threads", "2147483648"), ("--threads", "-1"), ("--threads",
            "99999999999999999999"),
        ("--threads", "nan"), ("--threads", "1e3"), ("--threads", ""),
        ("--window", "0"), ("--window", "-4"), ("--window", "99999999999999999999"), ("--window", "1.5"),
        ("--batch-size", "-3"), ("--batch-size", "1e20"), ("--batch-size", "1000000000"), ("--batch-size", "x"),
        ("--text-bytes", "0"), ("--text-bytes", "-1"), ("--text-bytes", "10000000000"))},
    "format nonsense": Case(reads(file("a.txt", "enak\n"), "--format", "xml"), 2, ("'xml'", "jsonl")),
    "model-dir nothing": Case(("--model-dir", at("."), "enak"), 2, ("manifest.json", "--model-dir")),
    "model-dir a file": Case(("--model-dir", file("a.txt", "enak"), "enak"), 2, ("manifest.json",)),
    "model-dir of 300 characters": Case(("--model-dir", "m" * 300, "enak"), 2, ("too long",)),
}

# ---- packed folders

FOLDERS = {
    **{f"manifest {text[:24]}": Case(("enak",), 2, ("manifest.json", "pack again"), pack=manifest(text)) for text in (
        "[]", "{}", "null", "5", '"x"', "{", "", '{"files": []}', '{"files": {}}', '{"files": {"a": 5}}',
        '{"files": {"a": {}}, "model": "a", "batch_size": 1}', '{"files": {}, "model": "a", "batch_size": 1}', DEEP)},
    **{f"batch_size {size!r}": Case(("enak",), 2, ("batch_size", "pack again"), pack=listed(batch_size=size))
       for size in (-3, 0, "x", 1e9, 10**9, True, None, 1.5, [1])},
    **{f"model {name!r}": Case(("enak",), 2, (name if isinstance(name, str) else "manifest.json", "pack again"),
                               pack=listed(model=name))
       for name in ("no.onnx", "../evil.onnx", "/etc/passwd", "", None, 5, ["a"], {})},
    "a model that is none": Case(("enak",), 2, ("task.json",), pack=listed(model="task.json")),
    **{f"a file {name!r}": Case(("--check",), 2, (name[:11], "outside the folder"), pack=listing(name))
       for name in ("../evil.onnx", "/etc/passwd", "onnx/../../evil")},
    "a file that is the folder": Case(("--check",), 2, ("missing",), pack=listing(".")),
    "a hash that is none": Case(("enak",), 2, ("task.json",), pack=listing("task.json", None)),
    "a hash that is a number": Case(("--check",), 2, ("task.json",), pack=listing("task.json", 5)),
    "another model": Case(("enak",), 2, ("model_quantized.onnx (SHA-256", "not the file"), pack=changed_pack(
        lambda pack: (pack / "onnx" / "model_quantized.onnx").write_bytes(b"x"))),
    "another script, --check": Case(("--check",), 2, ("rows.py", "not the file"), pack=changed_pack(
        lambda pack: (pack / "rows.py").write_text((pack / "rows.py").read_text() + "\n"))),
    "no manifest": Case(("enak",), 2, ("manifest.json",), pack=without("manifest.json")),
    "no tokenizer": Case(("enak",), 2, ("tokenizer.json is missing",), pack=without("tokenizer.json")),
    "no task": Case(("--check",), 2, ("task.json is missing",), pack=without("task.json")),
    "an older preprocessing.json": Case(("enak",), 2, ("another version",), pack=rewritten("preprocessing.json",
        "{}")),
    "a preprocessing.json that is a list": Case(("enak",), 2, ("another version",),
                                                pack=rewritten("preprocessing.json", "[]")),
}

# ---- outputs

GONE = ("o.jsonl.part", "o.jsonl.part.json")
OUTPUTS = {
    "output = input": Case(("--input", file("x.jsonl", '{"text": "enak"}\n'), "--output", at("x.jsonl")), 2,
                           ("input itself",)),
    "output = input, --force": Case(("--input", file("x.jsonl", '{"text": "enak"}\n'), "--output", at("x.jsonl"),
                                     "--force"), 2, ("input itself",)),
    "output = input, --resume": Case(("--input", file("x.jsonl", '{"text": "enak"}\n'), "--output", at("x.jsonl"),
                                      "--resume"), 2, ("input itself",)),
    "output = input, by ./": Case(("--input", file("x.jsonl", '{"text": "enak"}\n'), "--output", at("./x.jsonl"),
                                   "--force"), 2, ("input itself",)),
    "output = input, hard link": Case(("--output", linked("o.jsonl", "x.txt", os.link), "--input", at("x.txt"),
                                       "--force"), 2, ("input itself",)),
    "output = input, symlink": Case(("--output", linked("o.jsonl", "x.txt"), "--input", at("x.txt"), "--force"), 2,
                                    ("input itself",)),
    "input = symlink to the output": Case(("--input", linked("x.txt", "o.jsonl"), "--output", at("o.jsonl"),
                                           "--force"),
                                          2, ("input itself",)),
    "output = standard input": Case(("--output", linked("o.jsonl", "x.txt", os.link), "--force"), 2, ("input itself",),
                                    stdin=at("x.txt")),
    "input = the part": Case(("--input", file("o.jsonl.part", "enak\n"), "--format", "txt", "--output", at("o.jsonl"),
                              "--force"), 2, ("input itself",)),
    "input = the part's notes": Case(("--input", file("o.jsonl.part.json", "enak\n"), "--format", "txt", "--output",
                                      at("o.jsonl"), "--force"), 2, ("input itself",)),
    "input = the notes to come": Case(("--input", file("o.jsonl.part.json.new", "enak\n"), "--format", "txt",
                                       "--output",
                                       at("o.jsonl"), "--force"), 2, ("input itself",)),
    "standard output = input": Case((*reads(file("x.txt", ROWS)), "--window", 2), 2, ("input itself",),
                                    stdout=lambda lab: f"+{lab.folder / 'x.txt'}", before=SMALL),
    "output a folder": Case(writes(folder("o.jsonl")), 2, ("o.jsonl is no file",), ()),
    "output's part a folder": Case(writes(at("o.jsonl"), also(folder("o.jsonl.part"))), 2, ("part is no file",), ()),
    "output's notes a folder": Case(writes(at("o.jsonl"), also(folder("o.jsonl.part.json"))), 2,
                                    ("part.json is no file",), ()),
    "output /dev/full": Case(("enak", "--output", "/dev/full"), 2, (".jsonl or .tsv",)),
    "output a link to /dev/full": Case(("enak", "--output", linked("o.jsonl", "/dev/full")), 2, ("device",)),
    "output of another kind": Case(("enak", "--output", at("o.json")), 2, (".jsonl or .tsv",)),
    "output in no folder": Case(("enak", "--output", at("no/o.tsv")), 2, ("there is no folder",)),
    "output in a file": Case(("enak", also(file("f", "x")), "--output", at("f/o.tsv")), 2, ("there is no folder",)),
    "output of 300 characters": Case(("enak", "--output", "o" * 300 + ".jsonl"), 2, ("too long",)),
    "output whose part has 256 characters": Case(("enak", "--output", at("o" * 245 + ".jsonl")), 2, ("too long",)),
    "standard output full": Case(reads(file("a.txt", ROWS)), 2, ("no space is left",), stdout="/dev/full"),
    "standard output for reading": Case(("enak",), 2, ("not open for writing",), before="import os; os.dup2(0, 1)"),
    "standard output closed": Case(("enak",), 2, ("standard output is closed", "--output"), stdout="closed"),
    "standard output closed, but --output": Case(writes(at("o.jsonl")), 0, ("20 rows",), stdout="closed"),
    "standard input closed": Case((), 2, ("standard input is closed", "--input"), stdin="closed"),
    "standard input closed, but words": Case(("enak",), 0, (), ("label",), stdin="closed"),
    "standard error closed": Case(("enak",), 0, (), ("label",), stderr="closed"),
    "standard error closed, a refusal": Case(("--bach-size", "4"), 2, (), stderr="closed"),
    "standard error full": Case(writes(at("o.jsonl")), 0, (), stderr="/dev/full"),
    "standard error full, a refusal": Case(("--bach-size", "4"), 2, (), stderr="/dev/full"),
    "standard error unread, a refusal": Case(("--bach-size", "4"), 2, (), stderr="broken"),
    "all closed": Case(writes(at("o.jsonl")), 0, (), stdin="closed", stdout="closed", stderr="closed"),
    "a reader that has gone": Case(reads(file("a.txt", ROWS)), 0, (), stdout="broken"),
    "Ctrl-C while libraries load": Case(("enak",), 130, (), before=INTERRUPTED),
    "output exists": Case(writes(file("o.jsonl", "mine")), 2, ("exists already", "name another", "move it",
                                                                   "--force")),
    "output exists, wrong column": Case(("--output", file("o.jsonl", "mine"), *reads(csv_of("1,enak"), "--column",
        "x"),
                                         "--force"), 2, ("no column 'x'",)),
    "output exists, --force": Case(writes(file("o.jsonl", "mine"), "--force"), 0, ("20 rows",), changed=("o.jsonl",)),
    "output exists, --resume": Case(writes(file("o.jsonl", "mine"), "--resume"), 0, ("is finished already",)),
    "a part exists": Case(("--output", begun(), "--input", at("a.txt"), "--window", 4), 2,
                          ("o.jsonl.part", "--resume", "--force", "another --output")),
    "a part exists, wrong column": Case(("--output", begun(), *reads(csv_of("1,enak"), "--column", "x", "--force")), 2,
                                        ("no column 'x'",)),
    "a part exists, no such input": Case(("--output", begun(), "--input", at("none.txt"), "--force"), 2, ("none.txt",
        )),
    "a part exists, --force": Case(("--output", begun(), "--input", at("a.txt"), "--window", 4, "--force"), 0,
                                   ("20 rows",), changed=GONE),
    "a part exists, --resume": Case(goes_on(begun()), 0, ("resuming behind row 12", "8 rows in", "20 rows"),
                                    changed=GONE),
    "a part exists, tsv, --resume": Case(goes_on(begun(name="o.tsv")), 0, ("resuming behind row 12",),
                                         changed=("o.tsv.part", "o.tsv.part.json")),
    "a part and an output": Case(goes_on(begun(beside)), 2, ("exists already", "--resume --force")),
    "a part and an output, --force": Case(goes_on(begun(beside), "--force"), 0, ("20 rows",), changed=("o.jsonl",
        *GONE)),
    "a part without notes": Case(goes_on(begun(lambda part, mark: mark.unlink())), 2,
                                 ("o.jsonl.part.json is gone|its .part.json is gone", "--force")),
    "notes without a part": Case(goes_on(begun(lambda part, mark: part.unlink())), 0, ("20 rows",), changed=GONE),
    "a part of foreign bytes": Case(writes(at("o.jsonl"), "--resume", also(file("o.jsonl.part", "mine"))), 2,
                                    ("o.jsonl.part", "--force")),
    "resumed with another window": Case(goes_on(begun(), "--window", 5), 2, ("another window (4, now 5)",)),
    "resumed with another batch size": Case(goes_on(begun(), "--batch-size", 3), 2, ("another batch_size",)),
    "resumed with a column": Case(goes_on(begun(), "--column", "x"), 2, ("COLUMN is x", "--format")),
    "resumed with another encoding": Case(goes_on(begun(), "--encoding", "latin-1"), 2, ("another encoding",)),
    "resumed with another longest text": Case(goes_on(begun(), "--text-bytes", 99), 2, ("another text_bytes",)),
    "resumed with another format": Case(goes_on(begun(), "--format", "tsv", "--column", "1"), 2, ("another",)),
    "resumed with another model": Case(goes_on(begun()), 2, ("another model",), pack="documents"),
    "resumed with another task": Case(goes_on(begun()), 2, ("another",), pack="number"),
    "resumed with another input": Case(goes_on(begun(), "--input", file("b.txt", ROWS.replace("nomor 3", "nomor 33"))),
                                       2, ("the input has changed since its first 12 rows",), changed=()),
    "resumed with a shorter input": Case(goes_on(begun(), "--input", file("b.txt", ROWS[:30])), 2,
                                         ("the input has changed",)),
    "resumed with nothing": Case(goes_on(begun(), "--input", file("b.txt", "")), 2, ("the input has changed",)),
    **{f"notes {text!r}": Case(goes_on(begun(lambda part, mark, text=text: mark.write_text(text))), 2,
                               ("o.jsonl.part", "--force")) for text in ("[]", "5", "null", "{}", "{",
                                                                         '{"made_of": 5}')},
    "notes of another kind": Case(writes(at("o.jsonl"), also(file("o.jsonl.part.json", "precious"))), 2,
                                  ("part.json is not what", "move it away")),
    "notes to come of another kind": Case(writes(at("o.jsonl"), also(file("o.jsonl.part.json.new", "precious"))), 2,
                                          ("part.json.new is not what", "move it away")),
    "notes of no bytes": Case(goes_on(begun(lambda part, mark: mark.write_text(""))), 2, ("o.jsonl.part", "--force")),
    "notes of other bytes": Case(goes_on(begun(lambda part, mark: mark.write_bytes(b"\xff\xfe\0\0"))), 2,
                                 ("o.jsonl.part", "--force")),
    **{f"a note {line}": Case(goes_on(noted(line)), 2, ("o.jsonl.part|changed",), changed=GONE) for line in (
        "[]", "5", "{}", '{"rows": 12}', '{"rows": "x", "bytes": 1, "digest": "x", "counts": {}}',
        '{"rows": -1, "bytes": 1, "digest": "x", "counts": {}}',
        '{"rows": 1, "bytes": -1, "digest": "x", "counts": {}}',
        '{"rows": 1, "bytes": 0, "digest": "x", "counts": []}')},
    "a note that was cut in two": Case(goes_on(noted('{"rows": 16, "byt')), 0, ("resuming behind row 12",),
                                       changed=GONE),
}
CASES = {**BAD_ROWS, **BAD_FILES, **COLUMNS, **LINES, **FOLDERS, **OUTPUTS}
# a part may be cut to the windows that were noted, as long as nothing of them is lost
CUT = {"resumed with another input", "resumed with a shorter input", "resumed with nothing"}


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Name -> packed folder: a model a cleaning, one for pairs, one that gives a number."""
    base = tmp_path_factory.mktemp("packs")
    made = {cleaning: make_pack(base / cleaning, cleaning) for cleaning in ("minimal", "negation-safe", "documents")}
    return made | {"pairs": make_pack(base / "pairs", texts=("a", "b")), "number": make_pack(base / "number",
        labels=None)}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.close()


def strict_json(line: bytes) -> dict:
    """A record as any JSON reader takes it: no NaN, no bytes that are not UTF-8."""
    sys.setrecursionlimit(5000)  # what one reads at its own depth, another may not
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")
    return json.loads(line.decode("utf-8"), parse_constant=refuse)


def says(words: str, text: str) -> bool:
    """Whether one of "a|b" is in the text, whatever the case."""
    return any(word.lower() in text.lower() for word in words.split("|"))


def check_record(record: dict, wanted) -> None:
    """A record is a label, an error with these words, or holds these values."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            assert key in record, record
            assert value is ... or (says(value, record[key]) if key in ("error",
                                                                        "note") else record[key] == value), record
    else:
        assert wanted in record if wanted == "label" else says(wanted, record.get("error", "")), record


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_hostile(case, packs, warm, tmp_path, request):
    """The status, what is said, one sentence and no traceback, the records, and nothing lost."""
    lab = Lab(tmp_path, warm, packs)
    made = [value(lab) if callable(value) else value for value in (case.pack, *case.flags, case.stdin, case.stdout,
                                                                   case.stderr)]
    pack, *flags, stdin, stdout, stderr = made
    flags = [flag for flag in flags if flag is not None]
    before = contents(tmp_path)
    ended = warm(packs.get(pack, pack), *flags, stdin=stdin, stdout=stdout, stderr=stderr, before=case.before,
                 cwd=tmp_path)
    assert "Traceback" not in ended.err, ended.err
    assert ended.status == case.status, ended
    if case.status == 2 and not stderr:
        assert ended.err.count("error: ") == 1, ended.err
        assert len(ended.err) < LONGEST_SENTENCE, ended.err[:LONGEST_SENTENCE]
    shown = ended.err + ended.out.decode("utf-8", "backslashreplace")
    for words in case.said:
        assert says(words, shown), (words, shown)
    records = [] if "--help" in flags else [strict_json(line) for line in ended.out.splitlines()]
    assert [record["row"] for record in records] == list(range(1, len(records) + 1))
    for record, wanted in zip(records, case.records if case.records is not None else (),
                              strict=case.records is not None):
        check_record(record, wanted)
    after = contents(tmp_path)
    for name, content in before.items():
        if name not in case.changed:
            cut = request.node.callspec.id in CUT and name in GONE
            assert name in after, f"{name} is gone"
            assert after[name] == content or (cut and content.startswith(after[name])), f"{name} was changed"


def test_there_are_more_than_a_hundred_of_them():
    assert len(CASES) > 100


# ---- as a shell does it, in an interpreter of its own


def shell(pack: Path, line: str) -> subprocess.CompletedProcess:
    """`python predict.py …` in sh."""
    return subprocess.run(["sh", "-c", line, "sh", sys.executable, pack / "predict.py"], env=ENVIRONMENT,
                          capture_output=True, text=True, cwd=pack)


@pytest.mark.parametrize(("line", "status", "said"), [
    ('"$1" "$2" <&-', 2, "standard input is closed"),
    ('"$1" "$2" enak >&-', 2, "standard output is closed"),
    ('"$1" "$2" enak 2>&-', 0, '"label"'),
    ('"$1" "$2" --bach-size 4 2>&-', 2, ""),
    ('"$1" "$2" enak >/dev/full', 2, "no space is left"),
    ('"$1" "$2" -jelek', 2, "behind --"),
    ('printf "enak\\nburuk\\n" | "$1" "$2" --threads 100000', 2, "THREADS is 100000"),
    ('"$1" "$2" --encoding nonsense --format csv </dev/null', 2, "'nonsense' is not known"),
    ('"$1" "$2" --resume maybe', 2, "true or false"),
], ids=str)
def test_in_a_new_interpreter(packs, line, status, said):
    """The same, from nothing: what the forked ones show is not an accident of forking."""
    ended = shell(packs["minimal"], line)
    assert ended.returncode == status, ended
    assert "Traceback" not in ended.stderr, ended.stderr
    assert said in ended.stderr + ended.stdout


# ---- what needs more than a row of the table


def test_words_on_both_sides_of_a_flag(packs, warm):
    """All are labelled; or the refusal does not take a plain word for a setting, nor tells of dashes."""
    ended = warm(packs["minimal"], "enak", "--threads", 1, "buruk")
    if ended.status != 0:
        assert ended.status == 2
        assert "setting" not in ended.err and "dash" not in ended.err, ended.err
    else:
        assert ended.out.count(b"label") == 2


def test_a_reader_of_errors_that_has_gone_hides_nothing(packs, warm, tmp_path):
    """`predict.py --resume 2>&1 | head -1`: status 0 means that the output is whole."""
    begun()(Lab(tmp_path, warm, packs))
    ended = warm(packs["minimal"], *("--input", tmp_path / "a.txt", "--output", tmp_path / "o.jsonl", "--window", 4,
                                     "--resume"), stderr="broken")
    assert ended.status != 0 or (tmp_path / "o.jsonl").exists(), os.listdir(tmp_path)


def test_a_kept_column_leaves_the_table_of_a_tsv_whole(packs, warm, tmp_path):
    """Whatever stands in the cells, or in the column's own name: every line has as many columns as the first."""
    (tmp_path / "a.csv").write_text('text,"a\tb"\nenak,"1\t2\n3\\"\n\n')
    ended = warm(packs["minimal"], "--input", tmp_path / "a.csv", "--keep", "a\tb", "--output", tmp_path / "o.tsv")
    if ended.status != 2:  # such a name may also be refused
        lines = (tmp_path / "o.tsv").read_text().split("\n")
        assert len({line.count("\t") for line in lines[:-1]}) == 1, lines
    assert "Traceback" not in ended.err


def test_a_pipe_that_cannot_take_all_at_once(packs, warm, tmp_path):
    """A standard output that does not block (such as of a shell that Node started): all records, or a sentence."""
    (tmp_path / "a.txt").write_text("enak\n" * 2000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    child = warm.start(packs["minimal"], "--input", tmp_path / "a.txt", stdout=pipe,
                       before="import os; os.set_blocking(1, False)")
    select.select([reading], [], [])
    time.sleep(0.3)  # until it is full
    os.set_blocking(reading, True)
    with open(reading, "rb") as stream:
        records = stream.read().count(b"\n")
    ended = warm.end(child)
    assert "Traceback" not in ended.err, ended.err
    assert (ended.status, records) == (0, 2000) or ended.status == 2


def test_an_output_that_is_a_link_stays_one(packs, warm, tmp_path):
    """The file that it points to is replaced."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "o.jsonl").write_text("old")
    (tmp_path / "o.jsonl").symlink_to(tmp_path / "far" / "o.jsonl")
    ended = warm(packs["minimal"], "enak", "--output", tmp_path / "o.jsonl", "--force")
    assert ended.status == 0, ended
    assert (tmp_path / "o.jsonl").is_symlink()
    assert "label" in (tmp_path / "far" / "o.jsonl").read_text()


def test_a_label_with_the_name_of_a_column(warm, tmp_path):
    """A TSV would have two of them."""
    pack = make_pack(tmp_path / "pack", labels=("row", "error", "a\tb"))
    ended = warm(pack, "enak", "--output", tmp_path / "o.tsv")
    assert ended.status == 2
    assert "'row'" in ended.err and ".jsonl" in ended.err
    assert warm(pack, "enak", "--output", tmp_path / "o.jsonl").status == 0
