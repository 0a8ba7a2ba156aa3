"""Which assignment keeps a budget at the least loss: proposals by rules and by integer programs, each one measured.

    proposals   uniform bits; the hand rule; the integer program on measured divergences, and on Fisher scores; from its
                answer down by the divergence that added logits foretell (shifts.py)
    then        around the best of them: every module one step up and one step down, measured; the integer program on
                these differences, for at most 2, 4 and 8 changes, measured; again from what is better

Modules change each other at few bits, so no proposal is believed: the file of each is asked. The steps fit the
texts that they are measured on, so other texts decide among all of these.
"""

import random
from dataclasses import dataclass, field

from tqdm import tqdm

from lowbit.mixed.assignment import Assignment
from lowbit.mixed.budget import Budget, Table, hand_rules, limit_of, solve, total, uniform_choices
from lowbit.mixed.files import Files, digest_of
from lowbit.mixed.memory import Memory
from lowbit.mixed.shifts import Shifts

CHANGES = (2, 4, 8)  # modules that a step around the best assignment may change
LADDER = (4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25)  # shares of max_kl that the predicted divergence is held to


@dataclass
class Candidate:
    """An assignment by name, what was foretold of it, and what its file measures on the search texts."""

    name: str
    assignment: Assignment
    predicted: dict = field(default_factory=dict)
    measured: dict = field(default_factory=dict)
    fits: bool = False


@dataclass
class Search:
    """A budget, what each choice costs and is foretold to lose, and the files that are asked."""

    budget: Budget
    files: Files
    memory: Memory
    choices: dict[str, list[float]]  # module -> bits that it may have, most first
    cost: Table  # in the budget's own unit; of max_kl bytes
    base: float  # FP32's
    losses: dict[str, Table]  # score -> what each choice is foretold to lose
    fp32_bytes: float
    size: Table
    shared: dict[float, float]  # bits -> bytes that a file with them has once, whatever modules have them
    shifts: Shifts | None = None  # what the divergence is foretold by where they were measured; else it is a sum

    def measure(self, name: str, assignment: Assignment) -> Candidate:
        """A candidate with all of its figures."""
        measured = self.memory.get(digest_of(assignment), lambda: self.files.measured(assignment))
        predicted = {score: total(table, assignment) for score, table in self.losses.items()} | {
            "bytes": self.fp32_bytes + total(self.size, assignment) + sum(
                self.shared.get(bits, 0) for bits in set(assignment.values()))}
        if self.shifts:
            predicted |= {"kl": self.shifts.divergence(assignment), "kl_sum": predicted["kl"]}
        kept = measured["divergence"] if self.budget.kind == "max_kl" else (
            measured["bytes"] if self.budget.kind == "size_mb" else self.base + total(self.cost, assignment))
        return Candidate(name, assignment, predicted, measured, kept <= limit_of(self.budget, self.base) * (1 + 1e-9))

    def rank(self, candidate: Candidate) -> tuple:
        """What candidates are sorted by: those within the budget first, then by what it leaves open."""
        measured = candidate.measured
        open_ = (measured["bytes"], measured["divergence"]) if self.budget.kind == "max_kl" else (
            measured["divergence"], measured["bytes"])
        return not candidate.fits, *open_

    def solved(self, loss: Table, base_loss: float = 0.0, share: float = 1.0, **around) -> Assignment | None:
        """The integer program's answer; of max_kl the least cost whose foretold divergence keeps `share` of it."""
        if self.budget.kind == "max_kl":
            return solve(self.cost, loss, self.budget.limit * share - base_loss, **around)
        return solve(loss, self.cost, self.room(), **around)

    def room(self) -> float:
        """What the modules' costs may add up to; not of max_kl."""
        once = sum(self.shared.values()) if self.budget.kind == "size_mb" else 0
        return limit_of(self.budget, self.base) - self.base - once

    def proposals(self) -> list[Candidate]:
        """Uniform bits, hand rules and the integer program's answers, measured."""
        bits = sorted(set().union(*self.choices.values()), reverse=True)
        found = {f"uniform {each:g}": self.files.uniform(each) for each in uniform_choices(bits)}
        found |= hand_rules(self.files.parts, bits)
        for score, loss in self.losses.items():
            for share in LADDER if self.budget.kind == "max_kl" else (1.0,):
                answer = self.solved(loss, share=share)
                if answer:
                    found[f"milp {score}" + f" {share:g}" * (self.budget.kind == "max_kl")] = answer
        start = found.get("milp kl")  # of max_kl there are several, one for each share
        if self.shifts and start:
            found["added logits"] = self.shifts.descend(start, self.cost, self.room() - total(self.cost, start))
        return [self.measure(name, assignment) for name, assignment in tqdm(
            found.items(), desc="  proposals", unit="file", disable=None)]

    def improve(self, best: Candidate, rounds: int) -> list[Candidate]:
        """What some rounds of steps around a candidate found, each better than the one before; [] if no step is."""
        found = []
        for number in range(1, rounds + 1):
            loss = self.around(best, number)
            steps = []
            for changes in CHANGES:
                answer = self.solved(loss, best.measured["divergence"], start=best.assignment, changes=changes)
                if answer:
                    steps.append(self.measure(f"swaps {number}", answer))
            better = min([best, *steps], key=self.rank)
            if better is best:
                break
            found.append(better)
            best = better
        return found

    def decide(self, candidates: list[Candidate], confirm: Files) -> list[Candidate]:
        """The candidates, best first, by texts that none was proposed on; these are asked here."""
        for one in candidates:
            one.measured["confirm"] = confirm.measured(one.assignment)
            one.fits &= self.budget.kind != "max_kl" or one.measured["confirm"]["divergence"] <= self.budget.limit
        return sorted(candidates, key=lambda one: self.rank(Candidate(
            one.name, one.assignment, one.predicted, one.measured["confirm"], one.fits)))

    def around(self, best: Candidate, number: int) -> Table:
        """Module -> bits -> by how much the divergence grows where this module alone goes one step up or down."""
        loss: Table = {name: {} for name in best.assignment}
        steps = [(name, self.choices[name][place]) for name, bits in best.assignment.items()
                 for place in range(self.choices[name].index(bits) - 1, self.choices[name].index(bits) + 2)
                 if 0 <= place < len(self.choices[name])]
        for name, bits in tqdm(steps, desc=f"  swaps {number}", unit="file", disable=None):
            changed = best.assignment | {name: bits}
            found = self.memory.get(digest_of(changed), lambda changed=changed: self.files.measured(changed))
            loss[name][bits] = found["divergence"] - best.measured["divergence"]
        return loss


def random_assignment(size: Table, room: float, seed: int) -> Assignment:
    """An assignment drawn at random that takes up nearly all of `room`, bytes beyond FP32's (below 0).

    From the fewest bits, modules drawn at random go up to a number of bits drawn at random, while there is room.
    """
    draw = random.Random(seed)
    found = {name: min(held) for name, held in size.items()}
    left = room - total(size, found)
    for _ in range(40 * len(size)):
        name = draw.choice(list(size))
        wanted = draw.choice([bits for bits in size[name] if bits > found[name]] or [found[name]])
        spent = size[name][wanted] - size[name][found[name]]
        if spent <= left:
            found[name], left = wanted, left - spent
    return found
