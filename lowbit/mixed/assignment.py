"""Which module has how many bits: an assignment, its sizes, and the file that it is kept in."""

import json
import math
import re
from pathlib import Path

from torch import nn

from lowbit.int4.levels import LEVELS, Levels
from lowbit.int4.simulation import parts_of
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

FP32 = 32.0  # bits of a module that is left as it is
INT8 = 8.0
BITS = (FP32, *LEVELS)
ASSIGNMENT = "assignment.json"

Assignment = dict[str, float]  # module -> bits


def read_bits(text: str, setting: str) -> list[float]:
    """The bits in a comma-separated setting, most first; raises UserError for those that there is no format of."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        known = next((bits for bits in BITS if part == f"{bits:g}"), None)
        if known is None:
            raise UserError(f"{setting} names {part!r}; choose from {', '.join(f'{bits:g}' for bits in BITS)}")
        found.append(known)
    if not found:
        raise UserError(f"{setting} is empty; choose from {', '.join(f'{bits:g}' for bits in BITS)}")
    return sorted(set(found), reverse=True)


def levels_of(assignment: Assignment) -> dict[str, Levels]:
    """The levels of every module that is not left in FP32."""
    return {name: LEVELS[bits] for name, bits in assignment.items() if bits != FP32}


def mean_bits(assignment: Assignment, weights: dict[str, int]) -> float:
    """Bits of a weight, the mean over all weights; `weights` counts those of each module."""
    return sum(bits * weights[name] for name, bits in assignment.items()) / sum(weights.values())


def place_of(name: str, part: str) -> tuple[int | None, str]:
    """(layer, kind) of a module: bert.encoder.layer.3.attention.self.query -> (3, "query"); layer None outside them."""
    number = re.search(r"\.(\d+)\.", name)
    tail = name.split(".")
    if part != "weights" or number is None:
        return None, tail[-1] if tail[-1] != "dense" else tail[-2]
    kind = tail[-1]
    if kind == "dense":
        kind = {("attention", "output"): "attention output", ("intermediate",): "feed-forward in"}.get(
            tuple(part for part in ("attention", "output", "intermediate") if part in tail), "feed-forward out")
    return int(number[1]), kind


def read_assignment(path: Path, model: nn.Module | None = None) -> dict:
    """What an assignment.json holds; raises UserError unless it fits the modules of `model`, where one is given."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        bits = held["bits"]
        wrong = [name for name, value in bits.items() if value not in BITS]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown(path)} is not an assignment of bits to modules ({error}): "
                        "run `python mixed/mixed_precision.py`") from None
    if wrong:
        raise UserError(f"{shown(path)} gives {wrong[0]} {bits[wrong[0]]!r} bits; "
                        f"choose from {', '.join(f'{value:g}' for value in BITS)}")
    if model is not None and (other := bits.keys() ^ parts_of(model).keys()):
        raise UserError(f"{shown(path)} is of another encoder: {min(other)} is a module of only one of the two")
    return held


def assignment_lines(assignment: Assignment, weights: dict[str, int], parts: dict[str, str]) -> list[str]:
    """An assignment as a user reads it: a line a number of bits, with how many weights have it and which modules."""
    lines, total = [], sum(weights.values())
    for bits in sorted(set(assignment.values()), reverse=True):
        names = [name for name, value in assignment.items() if value == bits]
        share = sum(weights[name] for name in names) / total
        listed = ", ".join(short_name(name, parts[name]) for name in names)
        lines.append(f"  {bits:4g} bits: {len(names):2} modules, {100 * share:4.1f} % of the weights: {listed}")
    return lines


def short_name(name: str, part: str) -> str:
    """What a table shows of a module: `3 query`, `word_embeddings`."""
    layer, kind = place_of(name, part)
    return kind if layer is None else f"{layer} {kind}"


def weights_of(model: nn.Module) -> dict[str, int]:
    """How many weights each Linear layer and table has."""
    return {name: math.prod(model.get_submodule(name).weight.shape) for name in parts_of(model)}
