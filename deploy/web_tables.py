"""What Python's strings and the packed tokenizer do with each character, as tables: JavaScript then does the same.

Browsers know other versions of Unicode than the Python and the tokenizer that the model was trained with. So nothing is
left to them: every class and mapping is asked here of the code that cleaned and tokenized the training texts.
"""
import itertools
import unicodedata

from predictor import SPECIAL
from tokenizers import Tokenizer

HANGUL = range(0xAC00, 0xD7A4)  # syllables: their parts are computed, not listed
FENCE = "|"  # stands between characters that are normalized in one call; it maps to itself


def ranges(points) -> list[list[int]]:
    """[first, last] of each run of code points, in order."""
    found: list[list[int]] = []
    for point in points:
        if found and found[-1][1] == point - 1:
            found[-1][1] = point
        else:
            found.append([point, point])
    return found


def python_tables() -> dict:
    """Classes and lower case of every character, as `clean` sees them.

    `cased` and `ignorable` decide whether a capital sigma ends a word. Python shows them by that alone.
    """
    points = range(0x110000)
    lower = {point: chr(point).lower() for point in points if chr(point).lower() != chr(point)}
    cased = [point for point in points if (chr(point) + "Σ").lower()[-1] == "ς"]
    known = set(cased)
    return {
        "unicode": unicodedata.unidata_version,
        "special": ranges(point for point in points if SPECIAL.match(chr(point))),
        "space": ranges(point for point in points if chr(point).isspace()),
        "cased": ranges(cased),
        "ignorable": ranges(point for point in points
                            if point not in known and ("A" + chr(point) + "Σ").lower()[-1] == "ς"),
        "lower": list(lower.items()),
    }


def tokenizer_tables(tokenizer: Tokenizer) -> dict:
    """What the normalizer makes of each character, and where the pre-tokenizer cuts.

    `order`: combining classes of marks that outlive it, by which neighbours are sorted.
    """
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000 and chr(point) != FENCE]
    made = tokenizer.normalizer.normalize_str(FENCE.join(map(chr, points))).split(FENCE)
    results = dict(zip(points, made, strict=True))
    left = sorted(set("".join(made)) | {FENCE})
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("a" + "a".join(left) + "a")  # each stands between two letters
    places = [place for _, place in pieces]
    alone = [start // 2 for start, end in places if end - start == 1 and start % 2]
    between = [end // 2 for (_, end), (start, _) in itertools.pairwise(places) if start > end]
    return {
        "dropped": ranges(point for point in points if results[point] == ""),
        "apart": ranges(point for point in points if results[point] == f" {chr(point)} "),
        "mapped": [[point, result] for point, result in results.items()
                   if point not in HANGUL and result not in ("", chr(point), f" {chr(point)} ")],
        "order": [[ord(char), unicodedata.combining(char)] for char in left if unicodedata.combining(char)],
        "between": ranges(ord(left[place]) for place in between),
        "alone": ranges(ord(left[place]) for place in alone),
    }
