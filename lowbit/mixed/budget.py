"""What a file may cost: a budget as its setting gives it, each choice's cost, the integer program that spends it.

    minimise  sum of loss[module][bits]      subject to  sum of cost[module][bits] <= limit,  one choice a module

For size_mb, effective_bits and speed the loss is the divergence and the cost bytes, bits or milliseconds; for max_kl
the two change places. Losses of modules are taken to add up, which misses how their shifts cancel; what comes out is
measured in any case.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from lowbit.mixed.assignment import FP32, Assignment
from lowbit.pipeline.errors import UserError

KINDS = ("size_mb", "effective_bits", "max_kl", "speed")
MILLION = 1e6  # bytes of an MB

Table = dict[str, dict[float, float]]  # module -> bits -> what that choice costs or loses


class Budget(NamedTuple):
    """A kind of KINDS and its limit, as the setting gave them."""

    kind: str
    limit: float

    def __str__(self):
        return f"{self.kind}={self.limit:g}"


def read_budget(text: str) -> Budget:
    """The budget of a setting such as size_mb=4.6; raises UserError for anything else."""
    kind, _, value = text.partition("=")
    try:
        limit = float(value)
    except ValueError:
        limit = 0.0
    if kind.strip() not in KINDS or not 0 < limit < np.inf:
        raise UserError(f"BUDGET is {text!r}; write one of {', '.join(f'{name}=…' for name in KINDS)} with a number "
                        "above 0, such as size_mb=4.6")
    return Budget(kind.strip(), limit)


def choices_of(parts: dict[str, str], choices: list[float], keep_speed: bool) -> dict[str, list[float]]:
    """Module -> the bits that it may have; with `keep_speed` no encoder layer keeps FP32, which is slower than INT8."""
    return {name: [bits for bits in choices if bits != FP32 or part != "weights" or not keep_speed]
            for name, part in parts.items()}


def bytes_table(modules: dict[str, dict], choices: dict[str, list[float]]) -> Table:
    """By how many bytes each choice makes the file larger than FP32's, as measured; below 0."""
    return loss_table(modules, choices, "bytes")


def loss_table(modules: dict[str, dict], choices: dict[str, list[float]], score: str) -> Table:
    """What each choice loses by a score of sensitivity.json; FP32 loses nothing."""
    return {name: {bits: 0.0 if bits == FP32 else modules[name]["bits"][f"{bits:g}"][score] for bits in held}
            for name, held in choices.items()}


def bits_table(weights: dict[str, int], choices: dict[str, list[float]]) -> Table:
    """Each choice's share of the mean bits of a weight."""
    every = sum(weights.values())
    return {name: {bits: bits * weights[name] / every for bits in held} for name, held in choices.items()}


def time_table(weights: dict[str, int], choices: dict[str, list[float]], tokens: dict[str, int], fp32_ms: float,
               int8_ms: float) -> Table:
    """Milliseconds by which each choice changes FP32's time: what an INT8 file saves, by multiplications of each layer.

    `tokens` counts those that each Linear layer computes; all numbers of bits below FP32 run the same kernel.
    """
    work = {name: count * tokens.get(name, 0) for name, count in weights.items()}
    saved = {name: (int8_ms - fp32_ms) * share / max(sum(work.values()), 1) for name, share in work.items()}
    return {name: {bits: 0.0 if bits == FP32 else saved[name] for bits in held} for name, held in choices.items()}


def total(table: Table, assignment: Assignment) -> float:
    """The sum of a table over an assignment."""
    return sum(table[name][bits] for name, bits in assignment.items())


def solve(loss: Table, cost: Table, limit: float, start: Assignment | None = None, changes: int = 0) -> (
        Assignment | None):
    """The assignment of least loss whose cost keeps the limit, None where there is none.

    With `start`, one that differs from it in at most `changes` modules.
    """
    places = [(name, bits) for name, held in loss.items() for bits in held if bits in cost[name]]
    names = list(loss)
    one = np.array([[float(name == wanted) for name, _ in places] for wanted in names])
    rules = [LinearConstraint(one, 1, 1),
             LinearConstraint(np.array([[cost[name][bits] for name, bits in places]]), -np.inf, limit)]
    if start:
        kept = np.array([[float(start[name] == bits) for name, bits in places]])
        rules.append(LinearConstraint(kept, len(names) - changes, np.inf))
    weights = np.array([loss[name][bits] for name, bits in places])
    scale = np.abs(weights).max() or 1.0  # losses of 1e-6 are below the solver's tolerances
    found = milp(weights / scale, integrality=np.ones(len(places)), bounds=Bounds(0, 1), constraints=rules)
    if found.x is None:
        return None
    return {name: bits for (name, bits), taken in zip(places, found.x, strict=True) if taken > 0.5}


def refuse_out_of_reach(budget: Budget, cost: Table, base: float) -> None:
    """Raise UserError if even the cheapest choice of every module does not keep the limit."""
    if budget.kind == "max_kl":
        return
    least = base + sum(min(held.values()) for held in cost.values())
    limit = limit_of(budget, base)
    if least > limit:
        units = {"size_mb": (MILLION, "MB"), "effective_bits": (1, "bits"), "speed": (1, "ms")}
        scale, unit = units[budget.kind]
        raise UserError(f"BUDGET {budget} is out of reach: with the fewest bits that sensitivity.json has for each "
                        f"module it is {least / scale:.3g} {unit}, the limit is {limit / scale:.3g}")


def limit_of(budget: Budget, base: float) -> float:
    """The limit in the cost's own unit; `base` is FP32's cost, which a speed is a multiple of."""
    return {"size_mb": budget.limit * MILLION, "speed": base / budget.limit}.get(budget.kind, budget.limit)


def uniform_choices(choices: list[float]) -> list[float]:
    """The numbers of bits below FP32."""
    return [bits for bits in choices if bits != FP32]


def hand_rules(parts: dict[str, str], choices: list[float]) -> dict[str, Assignment]:
    """Name -> assignment of the hand rule for each number of bits: embedding tables one step higher than the layers."""
    found = {}
    steps = uniform_choices(choices)
    for higher, lower in zip(steps, steps[1:], strict=False):
        found[f"hand {lower:g}, tables {higher:g}"] = {
            name: higher if part == "tables" else lower for name, part in parts.items()}
    return found
