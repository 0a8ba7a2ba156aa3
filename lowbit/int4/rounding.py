"""Rounding to few levels without training: the scale of least squared error, one an output channel or row."""

import torch

from lowbit.int4.levels import Levels

REACHES = (0.9, 1.3, 1.7, 2.1, 2.6, 3.2, 4.0)  # places of the outermost level tried, in root mean squares of a row
SHARES = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0)  # and of its largest weight, which decide at 8 bits
REFINED = 4  # steps of alternating rounding and least squares from the best of them
WEIGHTS = 2**18  # weights at a time: what they take stays in the processor's cache


def to_levels(ratio: torch.Tensor, levels: Levels) -> torch.Tensor:
    """The nearest level to each weight / scale, as floats that hold integers."""
    if levels.step == 2:  # odd integers
        return (ratio / 2).floor_().mul_(2).add_(1).clamp_(-levels.top, levels.top)
    return ratio.round().clamp_(-levels.top, levels.top)


@torch.no_grad()
def best_scales(weight: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Scale of each row of a weight [rows, columns] by which rounding it costs least squared error: [rows]; 1 if all 0.
    """
    some = max(WEIGHTS // weight.shape[1], 1)
    return torch.cat([_best_of_rows(rows, levels) for rows in weight.split(some)])


def _best_of_rows(rows: torch.Tensor, levels: Levels) -> torch.Tensor:
    size, largest = rows.square().mean(1, keepdim=True).sqrt(), rows.abs().amax(1, keepdim=True)
    best, least, refit = torch.ones_like(size), torch.full_like(size, torch.inf), torch.ones_like(size)

    def try_scale(scale):
        nonlocal best, least, refit
        scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
        integers = to_levels(rows / scale, levels)
        along, power = (integers * rows).sum(1, keepdim=True), integers.square().sum(1, keepdim=True)
        error = scale.square() * power - 2 * scale * along  # less the row's own power, which no scale changes
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
        refit = torch.where(better, along / power, refit)  # the scale of least error for these integers

    for reach in (*(share * size for share in REACHES), *(share * largest for share in SHARES)):
        try_scale(reach / levels.top)
    for _ in range(REFINED):
        try_scale(refit)
    return best.flatten()
