"""Plain text for pretraining: folders of gzipped files, one document a line, read a part at a time."""

import gzip
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from lowbit.data.heldout import HeldOut
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve, shown
from lowbit.pipeline.settings import check

ENDING = ".txt.gz"
PART = 20_000  # documents held in memory together
DROPPED = re.compile(r"https?://|www\.|@(?!user\b)\w")  # a line with a link or a person's name is not read
NYA = re.compile(r" - nya\b")  # a habit of one source's tokenizer; the others write " nya"


class Corpus:
    """The text files of several folders. `files` maps a source, the file's name, to its path.

    Documents that `held_out` refuses are left out; it counts them. `lower` gives every letter as a small one.
    """

    def __init__(self, folders: str, held_out: HeldOut | None = None, lower: bool = False):
        self.files: dict[str, Path] = {}
        self.held_out, self.lower = held_out, lower
        for folder in (resolve(name.strip()) for name in folders.split(",")):
            found = sorted(folder.glob(f"*{ENDING}"))
            check(bool(found), f"CORPUS_DIRS: {shown(folder)} holds no {ENDING} file: name folders of gzipped text")
            for path in found:
                source = path.name.removesuffix(ENDING)
                check(source not in self.files, f"CORPUS_DIRS: {path.name} stands in two folders: rename one of them")
                self.files[source] = path

    def documents(self, source: str) -> Iterator[str]:
        """The documents of a source that may be trained on, one at a time."""
        for line in self.lines(source):
            text = NYA.sub(" nya", line.strip())
            if text and not DROPPED.search(text) and (self.held_out is None or self.held_out.allows(text)):
                yield text.lower() if self.lower else text

    def lines(self, source: str) -> Iterator[str]:
        """Every line of a source's file; raises UserError if it is not gzipped UTF-8."""
        with gzip.open(self.files[source], "rt", encoding="utf-8") as lines:
            try:
                yield from lines
            except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, zlib.error) as error:
                raise UserError(f"{shown(self.files[source])} is not gzipped UTF-8 text ({error}): pack it again with "
                                "gzip") from None

    def batches(self, source: str) -> Iterator[list[str]]:
        """The same in lists of at most PART documents."""
        part = []
        for text in self.documents(source):
            part.append(text)
            if len(part) == PART:
                yield part
                part = []
        if part:
            yield part

    def weighted(self, weights: dict[str, float], seed: int) -> Iterator[str]:
        """Each document as often as its source weighs: 2 is twice, 0.1 one of ten, drawn by `seed`."""
        rng = random.Random(seed)
        for source, weight in weights.items():
            for text in self.documents(source):
                yield from [text] * (int(weight) + (rng.random() < weight % 1))


def read_weights(text: str, sources, setting: str) -> dict[str, float]:
    """`wiki:1,legal:0.1` as source -> weight, in the order of `sources`; raises UserError for another form or name."""
    weights = {}
    for entry in text.split(","):
        source, _, number = entry.strip().partition(":")
        check(source in sources, f"{setting} names {source!r}; CORPUS_DIRS hold {', '.join(sources)}")
        try:
            weights[source] = float(number)
        except ValueError:
            weights[source] = -1.0
        check(0 <= weights[source] < 1000, f"{setting} weighs {source} with {number!r}; it must be from 0 to 1000")
    check(any(weights.values()), f"{setting} is {text!r}; give at least one file a weight above 0")
    return {source: weights[source] for source in sources if weights.get(source)}
