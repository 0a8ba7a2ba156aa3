"""Texts without labels, one a line, that a model can follow its teacher on."""

import gzip
import math
import random
import zlib
from pathlib import Path

from lowbit.data.heldout import HeldOut
from lowbit.data.task import Task
from lowbit.data.tsv import Text, decoded, folded, is_answer, lines_of, refuse_bad_rows
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve, shown
from lowbit.pipeline.settings import check

GZIPPED = ".gz"
NO_LABEL = -100  # label id of a text without one, as PyTorch's cross-entropy skips it
NO_NUMBER = math.nan  # the same where the answer is a number


def unlabelled_files(setting: str) -> list[Path]:
    """The files that UNLABELLED names with commas."""
    return [resolve(name.strip()) for name in setting.split(",") if name.strip()]


def read_lines(path: Path, task: Task) -> list[Text]:
    """The texts of a file, UTF-8, plain or gzipped; a pair is two texts with a tab between. Empty lines say nothing.

    Raises UserError for a missing file, another encoding or line end, and for bad lines, among them labelled ones: the
    first ten, and their total.
    """
    check(path.is_file(), f"UNLABELLED names {shown(path)}, which is no file: name text files, one text a line, with "
          "commas, or leave it empty")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == GZIPPED else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{shown(path)} cannot be unpacked ({error}): pack it again with gzip") from None
    texts, bad = [], []
    lines = lines_of(path, content)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cells = decoded(line)
            if task.pairs and (len(cells) != 2 or not all(cells)):
                raise ValueError(f"has {len(cells)} texts instead of <TAB>-separated {' and '.join(task.texts)}")
            if not task.pairs and len(cells) == 2 and is_answer(cells[1], task):
                raise ValueError(f"ends in {cells[1]!r} after a tab, as labelled rows do: keep the texts alone")
            texts.append(tuple(cells) if task.pairs else " ".join(cells))
        except ValueError as error:
            bad.append(f"line {number} {error}: {line.decode('utf-8', 'backslashreplace')!r}")
    refuse_bad_rows(path, bad, len(lines))
    return texts


def draw_unlabelled(setting: str, most: int, seed: int, task: Task, train: list[Text], held: HeldOut) -> list[Text]:
    """At most `most` different texts of the files (0: all), none of train, none that `held` refuses; with a line.

    The draw is the same for the same seed.
    """
    known, found, total = {folded(text) for text in train}, [], 0
    for path in unlabelled_files(setting):
        for text in read_lines(path, task):
            total += 1
            key = folded(text)
            if key not in known and held.allows(text):
                known.add(key)
                found.append(text)
    check(bool(found), f"UNLABELLED is {setting!r}, and no text is left of {total}: {held.line()} in valid or test, "
          "the others stand in train")
    drawn = random.Random(seed).sample(found, most) if 0 < most < len(found) else found
    print(f"  unlabelled {len(drawn)} of {total} texts; left out for valid and test: {held.line()}")
    return drawn
