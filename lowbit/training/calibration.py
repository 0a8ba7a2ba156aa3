"""Where learned activation scales start from, and what they meet on texts."""

import random
from functools import partial

import torch
from torch import nn

from lowbit.data.tokens import Row
from lowbit.training.lsq import quantizers
from lowbit.training.observe import observe

SHRINKAGE = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # shares of the observed range that calibration tries


@torch.no_grad()
def calibrate_scales(model: nn.Module, rows: list[Row], texts: int) -> None:
    """Set every scale and zero point from `texts` of the token rows, drawn at random, with activations in FP32.

    Of the shares SHRINKAGE of the observed range (widened to hold zero), the one of least squared error is taken.
    """
    sample = random.Random(0).sample(rows, min(texts, len(rows)))
    ranges, errors = {}, {}

    def see_range(quantizer, x):
        low, high = ranges.get(quantizer, (0.0, 0.0))
        ranges[quantizer] = min(low, float(x.min())), max(high, float(x.max()))

    def set_range(quantizer, share):
        low, high = (share * edge for edge in ranges[quantizer])
        if quantizer.zero_point.dtype == torch.uint8:
            quantizer.scale.fill_((high - low) / 255 or 1.0)
            quantizer.zero_point.fill_(round(-low / quantizer.scale.item()))
        else:
            quantizer.scale.fill_(max(-low, high) / 127 or 1.0)

    def see_errors(quantizer, x):
        for share in SHRINKAGE:
            set_range(quantizer, share)
            rounded = (x / quantizer.scale).round_().clamp_(*quantizer.bounds()).mul_(quantizer.scale)
            errors.setdefault(quantizer, dict.fromkeys(SHRINKAGE, 0.0))[share] += float((rounded - x).square().sum())

    every = list(quantizers(model).values())
    for quantizer in every:
        quantizer.enabled = False
    observe(model, sample, {quantizer: partial(see_range, quantizer) for quantizer in every})
    observe(model, sample, {quantizer: partial(see_errors, quantizer) for quantizer in every})
    for quantizer in every:
        set_range(quantizer, min(errors[quantizer], key=errors[quantizer].get))
        quantizer.enabled = True


def observed_ranges(model: nn.Module, rows: list[Row]) -> dict[str, dict]:
    """Quantizer -> its learned range and what it met in token rows `rows`: extremes, share of values beyond the range.

    Keys are `learned` and `observed` ([low, high] each), `clipped` (0 to 1), `scale` and `zero_point`.
    """
    names = {quantizer: name for name, quantizer in quantizers(model).items()}
    seen = {name: {"learned": [bound * quantizer.scale.item() for bound in quantizer.bounds()],
                   "observed": [float("inf"), float("-inf")], "clipped": 0, "values": 0,
                   "scale": quantizer.scale.item(), "zero_point": int(quantizer.zero_point)}
            for quantizer, name in names.items()}

    def watch(quantizer, x):
        held, (low, high) = seen[names[quantizer]], quantizer.bounds()
        ratio = (x / quantizer.scale.detach()).round_()
        held["observed"] = [min(held["observed"][0], float(x.min())), max(held["observed"][1], float(x.max()))]
        held["clipped"] += int(((ratio < low) | (ratio > high)).sum())
        held["values"] += x.numel()

    observe(model, rows, {quantizer: partial(watch, quantizer) for quantizer in names})
    for held in seen.values():
        held["clipped"] /= held.pop("values")
    return seen


def range_lines(seen: dict[str, dict]) -> list[str]:
    """What observed_ranges() found, as a user reads it."""
    name = max(seen, key=lambda tensor: seen[tensor]["clipped"])
    return [f"  {len(seen)} activation scales for the file; over valid at most {100 * seen[name]['clipped']:.2g} % of "
            f"a tensor's values lie beyond its range ({name})"]
