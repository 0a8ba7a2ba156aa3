"""Rounding to few levels without training: the scale of least squared error, one an output channel or row."""

import torch

from lowbit.int4.levels import Levels

REACHES = torch.linspace(0.8, 4.8, 21)  # places of the outermost level that are tried, in root mean squares of a row
REFINED = 4  # steps of alternating rounding and least squares from the best of them
ROWS = 2048  # rows at a time: a table of 50,000 words is not held 21 times


def to_levels(ratio: torch.Tensor, levels: Levels) -> torch.Tensor:
    """The nearest level to each weight / scale, as floats that hold integers."""
    if levels.step == 2:  # odd integers
        return (ratio / 2).floor_().mul_(2).add_(1).clamp_(-levels.top, levels.top)
    return ratio.round().clamp_(-levels.top, levels.top)


@torch.no_grad()
def best_scales(weight: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Scale of each row of a weight [rows, columns] by which rounding it costs least squared error: [rows]; 1 if all 0.
    """
    return torch.cat([_best_of_rows(rows, levels) for rows in weight.split(ROWS)])


def _best_of_rows(rows: torch.Tensor, levels: Levels) -> torch.Tensor:
    size, largest = rows.square().mean(1, keepdim=True).sqrt(), rows.abs().amax(1, keepdim=True)
    best, least = torch.ones_like(size), torch.full_like(size, torch.inf)

    def integers_at(scale):
        nonlocal best, least
        scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
        integers = to_levels(rows / scale, levels)
        error = (integers * scale - rows).square_().sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        return integers

    for reach in (*(share * size for share in REACHES.to(rows)), largest):
        integers_at(reach / levels.top)
    for _ in range(REFINED):
        integers = integers_at(best)
        integers_at((integers * rows).sum(1, keepdim=True) / integers.square().sum(1, keepdim=True))
    return best.flatten()
