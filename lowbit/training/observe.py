"""Watching what flows through a model on real texts: for calibration, and for the ranges that a report shows."""

import itertools
from collections.abc import Callable

import torch
from torch import nn

from lowbit.data.tokens import Row, pad, width

BATCH_SIZE = 32  # texts a batch


@torch.no_grad()
def observe(model: nn.Module, rows: list[Row], watchers: dict[nn.Module, Callable]) -> None:
    """Run token rows through `model` in eval mode, each module of `watchers` with its function as `watch` meanwhile.

    Texts of one length run together: padding must not widen a range.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    for module, watch in watchers.items():
        module.watch = watch
    for _, group in itertools.groupby(sorted(rows, key=width), key=width):
        same = list(group)
        for start in range(0, len(same), BATCH_SIZE):
            given = pad(same[start : start + BATCH_SIZE], 0)
            model(**{name: torch.from_numpy(value).to(device) for name, value in given.items()})
    for module in watchers:
        module.watch = None
    model.train(was_training)
