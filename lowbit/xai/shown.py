"""How a record is shown: the text in pieces, each with the value of its word, and the words that matter most."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lowbit.data.task import Task
from lowbit.xai.explain import UNSIGNED

COLOURS = ("#8a94a6", "#1f6feb", "#b35900", "#7d4cc9")  # FP32, then the others
PICTURED = 15  # words in a picture
LONGEST_WORD = 30  # characters of a word in a list
NAMES = {"shap": "SHAP", "lime": "LIME", "occlusion": "Occlusion", "ig": "Integrated Gradients",
         "attention": "Attention"}


class Piece(NamedTuple):
    """A part of a text: for, against, weight (no sign), none (a word of value 0), plain, or why it is not read."""

    text: str
    kind: str
    value: float
    strength: int  # percent of the largest value shown


def pieces(record: dict, part: int, values: list[float], largest: float, method: str) -> list[Piece]:
    """One of the record's texts in order, nothing left out."""
    text, at, found = record["texts"][part], 0, []
    marks = [(start, end, value) for (of, start, end), value in zip(record["words"], values, strict=True) if of == part]
    marks += [(start, end, why) for of, start, end, why in record["gaps"] if of == part]
    for start, end, mark in sorted(marks, key=lambda one: one[0]):
        if at < start:
            found.append(Piece(text[at:start], "plain", 0, 0))
        if isinstance(mark, str):
            found.append(Piece(text[start:end], mark, 0, 0))
        else:
            strength = round(100 * abs(mark) / largest) if largest else 0
            kind = "none" if not strength else "weight" if method in UNSIGNED else "for" if mark > 0 else "against"
            found.append(Piece(text[start:end], kind, mark, strength))
        at = end
    if at < len(text):
        found.append(Piece(text[at:], "plain", 0, 0))
    return found


def written(record: dict) -> list[str]:
    """The words that were read, as they were written."""
    return [record["texts"][part][start:end] for part, start, end in record["words"]]


def shortened(word: str) -> str:
    """A word as it stands in a list, on one line."""
    return word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD - 1]}…"


def methods_of(record: dict) -> list[str]:
    """The methods that explain at least one file, in their own order."""
    return [method for method in NAMES if any(method in held["methods"] for held in record["files"].values())]


def largest_of(record: dict, method: str) -> float:
    """Largest magnitude of a method's values over all files: they are shown on one scale."""
    return max((abs(value) for held in record["files"].values() for value in held["methods"].get(method, ())),
               default=0.0)


def answer_of(held: dict, task: Task, label: int | None) -> str:
    """What a file says of a text: its label and how sure it is, or its number; of another label than FP32's also that.
    """
    outputs = np.array(held["outputs"])
    if label is None:
        return f"{outputs[0]:.3f}"
    powers = np.exp(outputs - outputs.max())
    shares = powers / powers.sum()
    own = int(outputs.argmax())
    said = f"{task.labels[own]} {shares[own]:.2f}"
    return said if own == label else f"{said} ({task.labels[label]} {shares[label]:.2f})"


def top_words(record: dict, values: list[float], count: int) -> str:
    """`+2.31 enak  -1.20 tidak`: the words of largest values, as they were written."""
    order = sorted(range(len(values)), key=lambda place: -abs(values[place]))[:count]
    words = written(record)
    return "  ".join(f"{values[place]:+.2f} {shortened(words[place])}" for place in order)


def picture(record: dict, path: Path) -> None:
    """A PNG: the words of largest values for each method, a bar a file, in the order of the text."""
    methods, words = methods_of(record), written(record)
    rows = min(len(words), PICTURED)
    figure = Figure(figsize=(4.2 * len(methods), 1.6 + 0.34 * rows), layout="constrained")
    for axis, method in zip(np.atleast_1d(figure.subplots(1, len(methods))), methods, strict=True):
        files = {name: np.array(held["methods"][method]) for name, held in record["files"].items()
                 if method in held["methods"]}
        largest = np.max([np.abs(values) for values in files.values()], 0)
        chosen = np.sort(np.argsort(-largest, kind="stable")[:PICTURED])
        height = 0.8 / len(files)
        for number, (name, values) in enumerate(files.items()):
            axis.barh(np.arange(len(chosen)) + (number - (len(files) - 1) / 2) * height, values[chosen], height,
                      color=COLOURS[number % len(COLOURS)], label=name)
        axis.set_yticks(range(len(chosen)), [shortened(words[place]) for place in chosen])
        for label in axis.get_yticklabels():
            label.set_parse_math(False)  # a dollar is a dollar
        axis.invert_yaxis()
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_title(NAMES[method], fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a letter that the font lacks becomes a box
        figure.savefig(path, dpi=120)
