"""The one text cleaning that training, calibration, evaluation and deployment share."""

import functools
import re

from Sastrawi.StopWordRemover.StopWordRemover import StopWordRemover
from Sastrawi.StopWordRemover.StopWordRemoverFactory import StopWordRemoverFactory

from lowbit.pipeline.errors import UserError

# Words of Sastrawi's list that carry polarity or contrast: without them "tidak enak" reads "enak".
NEGATIONS = frozenset((
    "tidak", "belum", "nggak", "tanpa", "kecuali", "hanya", "agak", "bisa", "boleh", "dapat", "tapi", "tetapi",
    "namun", "melainkan", "sedangkan", "walau", "bagaimanapun", "apalagi", "amat", "masih", "seharusnya",
    "setidaknya", "saja"))

# The steps, in order; white space is always collapsed last.
PRESETS = {
    "documents": {"LOWER_CASE": True, "REMOVE_SPECIAL": True, "REMOVE_STOP_WORDS": True, "KEEP_NEGATIONS": False},
    "negation-safe": {"LOWER_CASE": True, "REMOVE_SPECIAL": True, "REMOVE_STOP_WORDS": True, "KEEP_NEGATIONS": True},
    "minimal": {"LOWER_CASE": True, "REMOVE_SPECIAL": False, "REMOVE_STOP_WORDS": False, "KEEP_NEGATIONS": True},
}

SPECIAL = re.compile(r"[^\w\s]|_")  # all but letters, digits and white space


class _Words:
    """Sastrawi's dictionary interface over a set: its own list makes 11,000 texts take tens of seconds."""

    def __init__(self, words):
        self.words = frozenset(words)

    def contains(self, word):
        return word in self.words


@functools.cache
def stop_words(keep_negations: bool) -> frozenset[str]:
    """Sastrawi's list, whole or without NEGATIONS."""
    return frozenset(StopWordRemoverFactory().get_stop_words()) - (NEGATIONS if keep_negations else frozenset())


@functools.cache
def remover(keep_negations: bool) -> StopWordRemover:
    """Sastrawi's own remover with that list."""
    return StopWordRemover(_Words(stop_words(keep_negations)))


def require_preset(preset: str) -> None:
    """Raises UserError unless `preset` is one of PRESETS."""
    if preset not in PRESETS:
        raise UserError(f"CLEANING is {preset!r}; choose one of {', '.join(PRESETS)}")


def clean(text: str, preset: str) -> str:
    """`text` after the preset's steps: lower case, special characters, stop words, white space.

    Stop words go through Sastrawi's own remover, with its habit of leaving the second of two neighbours.
    """
    steps = PRESETS[preset]
    if steps["LOWER_CASE"]:
        text = text.lower()
    if steps["REMOVE_SPECIAL"]:
        text = SPECIAL.sub(" ", text)
    text = " ".join(text.split())
    if steps["REMOVE_STOP_WORDS"]:
        text = " ".join(remover(steps["KEEP_NEGATIONS"]).remove(text).split())
    return text
