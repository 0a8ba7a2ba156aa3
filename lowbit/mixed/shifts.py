"""What a mix is foretold to lose: the shifts of the logits by each module alone, added up.

    foretold(assignment) = divergence of y + sum over modules of shift[module][bits] from y
    shift[module][bits]  = logits of the file in which this module alone has these bits, less FP32's logits y

Adding divergences would take the shifts of two modules to be at right angles. Added as vectors they may cancel or join,
text by text; what is missing then is only how modules change each other.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lowbit.measure.score import divergence, divergences
from lowbit.mixed.assignment import FP32, Assignment

SHIFTS = "sensitivity.npz"  # reference [texts, outputs], and "module bits" -> [texts, outputs]
STEPS = 200  # of descend(), at most: it ends long before


class Shifts:
    """FP32's logits [texts, outputs] and module -> bits -> the shift of the same shape, zero at FP32."""

    def __init__(self, reference: np.ndarray, shifts: dict[str, dict[float, np.ndarray]]):
        self.reference, self.shifts = reference, shifts

    def save(self, path: Path) -> None:
        """Write sensitivity.npz."""
        arrays: dict[str, Any] = {f"{name} {bits:g}": shift for name, held in self.shifts.items()
                                  for bits, shift in held.items()}
        np.savez(path, reference=self.reference, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Shifts":
        """Read sensitivity.npz."""
        with np.load(path) as held:
            shifts: dict[str, dict[float, np.ndarray]] = {}
            for key in held.files:
                name, _, bits = key.rpartition(" ")
                if name:
                    shifts.setdefault(name, {})[float(bits)] = held[key]
            return cls(held["reference"], shifts)

    def of(self, name: str, bits: float) -> np.ndarray:
        """The shift of one module."""
        return self.shifts[name][bits] if bits != FP32 else np.zeros_like(self.reference)

    def logits(self, assignment: Assignment) -> np.ndarray:
        """The logits [texts, outputs] that an assignment is foretold to give."""
        return self.reference + sum(self.of(name, bits) for name, bits in assignment.items())

    def divergence(self, assignment: Assignment) -> float:
        """The divergence that an assignment is foretold to have."""
        return divergence(self.logits(assignment), self.reference)

    def descend(self, start: Assignment, cost: dict[str, dict[float, float]], room: float) -> Assignment:
        """From an assignment by the best change of one or two modules, while one lowers the foretold divergence.

        `room` is by how much `cost`, module -> bits -> cost, may grow over that of `start`.
        """
        found, logits = dict(start), self.logits(start)
        taken: tuple[int, ...]
        for _ in range(STEPS):
            moves = [(name, bits) for name, held in cost.items() for bits in held if bits != found[name]]
            grown = [cost[name][bits] - cost[name][found[name]] for name, bits in moves] + [0.0]
            moved = np.stack([self.of(name, bits) - self.of(name, found[name]) for name, bits in moves]
                             + [np.zeros_like(logits)])  # the last one is no move: with it a pair is a single change
            best, taken = divergence(logits, self.reference) * (1 - 1e-9), ()
            for first, (name, _) in enumerate(moves):
                others = [i for i in range(first + 1, len(grown)) if grown[first] + grown[i] <= room
                          and (i == len(moves) or moves[i][0] != name)]
                each = divergences(logits + moved[first] + moved[others], self.reference)
                if others and each.min() < best:
                    best, taken = float(each.min()), (first, others[int(each.argmin())])
            if not taken:
                break
            found |= dict(moves[i] for i in taken if i < len(moves))
            logits = logits + moved[list(taken)].sum(0)
            room -= sum(grown[i] for i in taken)
        return found
