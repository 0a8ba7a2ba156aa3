"""Texts that nothing may be trained on, and whether a text is one of them, or holds a part of one."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lowbit.data.task import SENTIMENT, TASK_FILE, read_task
from lowbit.data.tsv import Text, folded, read_split
from lowbit.pipeline.files import shown
from lowbit.pipeline.settings import check

WORD = re.compile(r"[^\W_]+")
RUN_OF_WORDS = 10  # words in a row that two texts must not share
SHORTEST = 12  # letters and digits from which two texts that are equal in them count as one
EXACT, SAME_LETTERS, SHARED_RUN = KINDS = ("exact", "same letters and digits", f"shared run of {RUN_OF_WORDS} words")


class HeldOut:
    """The texts of valid and test. `found` counts by kind what was refused for them; `digest` tells two sets apart.

    A pair counts as its two texts in a row.
    """

    def __init__(self, given: Iterable[Text]):
        texts = [joined(text) for text in given]
        self.exact = {str(folded(text)) for text in texts}
        self.digest = hashlib.sha256("\n".join(sorted(self.exact)).encode()).hexdigest()
        words = [WORD.findall(text.lower()) for text in texts]
        self.letters = {letters for row in words if len(letters := "".join(row)) >= SHORTEST}
        self.runs = {run for row in words for run in _runs(row)}
        self.found = Counter()

    def kind_of(self, text: str) -> str | None:
        """How `text` meets a held-out one: a name of KINDS, or None."""
        if folded(text) in self.exact:
            return EXACT
        words = WORD.findall(text.lower())
        if "".join(words) in self.letters:
            return SAME_LETTERS
        return SHARED_RUN if any(run in self.runs for run in _runs(words)) else None

    def allows(self, text: Text) -> bool:
        """Whether `text` may be trained on; a refused one is counted."""
        kind = self.kind_of(joined(text))
        self.found.update([kind] if kind else [])
        return kind is None

    def line(self) -> str:
        """What was refused, as a user reads it."""
        return ", ".join(f"{self.found[kind]} {kind}" for kind in KINDS)


def joined(text: Text) -> str:
    """A text, or a pair as one."""
    return text if isinstance(text, str) else " ".join(text)


def _runs(words: list[str]) -> list[str]:
    return [" ".join(words[i : i + RUN_OF_WORDS]) for i in range(len(words) - RUN_OF_WORDS + 1)]


def held_out(folder: Path) -> HeldOut:
    """Valid and test of a folder of sentiment data; raises UserError if one is missing, or the task is another."""
    check(read_task(folder) == SENTIMENT, f"{shown(folder / TASK_FILE)} asks something else than sentiment: "
          "pretrain/ works on positive, neutral and negative texts; name another DATA_DIR")
    return HeldOut(text for split in ("valid", "test") for text in read_split(folder, split)[0])
