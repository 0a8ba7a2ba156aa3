"""The words that a model reads, each with its place in the text as it was written.

    text -> lower case, special characters, stop words, white space -> tokens        each step keeps every place

Stop words are removed by Sastrawi's own remover, which is given the words together with their places: it deletes the
first equal word of the list that it walks over, so that the place of a word that stays cannot be found afterwards.
"""

import re
from typing import NamedTuple

from lowbit.data.cleaning import PRESETS, SPECIAL, clean, remover
from lowbit.data.tokens import PAIR_INPUT, Row, TextReader
from lowbit.data.tsv import Text

CLEANED, CUT, UNREAD = "cleaned", "cut", "unread"  # why characters are not read: cleaning, length, no token for them
WORD = re.compile(r"\S+")


class Word(NamedTuple):
    """A word that the model reads: which of the texts it is of, its place there, its tokens' places in the row."""

    part: int
    start: int
    end: int
    tokens: tuple[int, ...]


class Gap(NamedTuple):
    """Characters, white space aside, that the model does not read, and why."""

    part: int
    start: int
    end: int
    why: str


class Reading(NamedTuple):
    """A text, or both of a pair, as a model reads it."""

    texts: tuple[str, ...]
    row: Row
    words: list[Word]
    gaps: list[Gap]

    def word(self, place: int) -> str:
        """A word as it was written."""
        found = self.words[place]
        return self.texts[found.part][found.start : found.end]


class _Placed(str):
    """A word of a text that knows where it stands: [start, end)."""

    span: tuple[int, int]

    def __new__(cls, word: str, span: tuple[int, int]):
        made = super().__new__(cls, word)
        made.span = span
        return made


class _AlreadySplit:
    """What Sastrawi's remover takes for a text: its split() gives these very words, and the remover shortens the list.
    """

    def __init__(self, words: list[_Placed]):
        self.words = words

    def split(self, _) -> list[_Placed]:
        return self.words


def cleaned_with_places(text: str, preset: str) -> tuple[str, list[int]]:
    """(clean(text, preset), the place in `text` that each of its characters comes from; a space's is that before it).

    Raises RuntimeError if the two ways of cleaning differ.
    """
    steps, places = PRESETS[preset], list(range(len(text)))
    if steps["LOWER_CASE"]:
        places = [place for place, character in enumerate(text) for _ in character.lower()]
        text_now = text.lower()
    else:
        text_now = text
    if steps["REMOVE_SPECIAL"]:
        text_now = SPECIAL.sub(" ", text_now)
    words = [_Placed(found.group(), found.span()) for found in WORD.finditer(text_now)]
    if steps["REMOVE_STOP_WORDS"]:
        remover(steps["KEEP_NEGATIONS"]).remove(_AlreadySplit(words))
    kept: list[int] = []
    for word in words:
        kept += kept[-1:] + places[slice(*word.span)]
    cleaned = " ".join(words)
    if cleaned != clean(text, preset) or len(kept) != len(cleaned):
        raise RuntimeError(f"the places of {text!r} are lost in cleaning by {preset}")
    return cleaned, kept


def read(reader: TextReader, text: Text) -> Reading:
    """How `reader` reads a text or pair: its row, equal to reader.rows(), and where each word of it was written."""
    texts = (text,) if isinstance(text, str) else text
    cleaned = [cleaned_with_places(part, reader.cleaning) for part in texts]
    tokens = reader.tokenizer(*([part] for part, _ in cleaned), truncation=True, max_length=reader.max_length,
                              return_token_type_ids=PAIR_INPUT in reader.inputs, verbose=False)
    encoding = tokens.encodings[0]
    row = {name: tokens[name][0] for name in reader.inputs if name in tokens and name != "attention_mask"}
    words, gaps = [], []
    for part, (written, places) in enumerate(cleaned):
        grouped = _words_of(encoding, part, written)
        words += [Word(part, places[start], places[end - 1] + 1, tuple(found)) for start, end, found in grouped]
        gaps += _gaps_of(part, texts[part], places, grouped)
    return Reading(texts, row, words, gaps)


def _words_of(encoding, part: int, cleaned: str) -> list[tuple[int, int, list[int]]]:
    """(start and end in the cleaned text, tokens) of each word: what white space or the tokenizer's own rule splits."""
    numbers = [0] * (len(cleaned) + 1)  # of the white-space word that each character stands in
    for number, found in enumerate(WORD.finditer(cleaned)):
        for place in range(*found.span()):
            numbers[place] = number
    words: list = []
    last, ahead = None, []  # the word of the token before; tokens of white space alone, which go with what follows
    for token, of in enumerate(encoding.sequence_ids):
        if of != part:
            continue
        start, end = encoding.offsets[token]
        while start < end and cleaned[start].isspace():
            start += 1
        if start == end:
            ahead.append(token)
            continue
        key = numbers[start], encoding.word_ids[token]
        if key != last:
            words.append([start, end, []])
        words[-1][1] = max(words[-1][1], end)
        words[-1][2] += [*ahead, token]
        last, ahead = key, []
    if ahead and words:
        words[-1][2] += ahead
    return [tuple(word) for word in words]


def _gaps_of(part: int, text: str, places: list[int], words: list) -> list[Gap]:
    """The runs of characters of `text` that no word holds, each with the reason."""
    why = [None if character.isspace() else CLEANED for character in text]
    last = max((end for _, end, _ in words), default=0)
    for at, place in enumerate(places):
        if why[place]:
            why[place] = UNREAD if at < last else CUT
    for start, end, _ in words:
        for place in range(places[start], places[end - 1] + 1):
            why[place] = None
    gaps: list[Gap] = []
    for place, reason in enumerate(why):
        if reason and gaps and gaps[-1].end == place and gaps[-1].why == reason:
            gaps[-1] = gaps[-1]._replace(end=place + 1)
        elif reason:
            gaps.append(Gap(part, place, place + 1, reason))
    return gaps
