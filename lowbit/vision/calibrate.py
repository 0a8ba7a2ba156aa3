"""First scales of the pairs, from what flows through the FP32 network on the calibration pictures.

    minmax       the whole range                     percentile   all but the outermost 0.01 % of the values
    entropy      the range whose rounded histogram has the least divergence from the whole one (Migacz 2017, GTC S7310)

Histograms, percentile and entropy are ONNX Runtime's own (onnxruntime.quantization). Guard: where a method gives no
range, or one by which rounding costs more than GUARD times the squared error of minmax, that tensor keeps minmax, by
name. Entropy on a tensor that is mostly zeros clips most of what it carries.
"""

import contextlib
import io
from collections.abc import Callable, Iterable

import numpy as np
import torch
from onnxruntime.quantization.calibrate import HistogramCollector
from torch import fx

from lowbit.pipeline.errors import UserError
from lowbit.vision.placement import pairs_of
from lowbit.vision.preprocessing import Preprocessing
from lowbit.vision.simulation import Pair

METHODS = ("minmax", "entropy", "percentile")
BINS = 1024  # of a histogram; ONNX Runtime's 128 would leave entropy one range to choose from
QUANTIZED_BINS = 128  # integers of one sign
PERCENTILE = 99.99  # % of the values that are kept
GUARD = 4.0  # times minmax's squared error
BATCH = 32  # pictures at a time

Batches = Callable[[], Iterable[torch.Tensor]]


def batches_of(crops: np.ndarray, preprocessing: Preprocessing, size: int = BATCH) -> Batches:
    """A function that gives the inputs of uint8 crops, batch by batch, each time it is called."""
    def give():
        for start in range(0, len(crops), size):
            yield torch.from_numpy(preprocessing.inputs(crops[start : start + size]))

    return give


@torch.no_grad()
def _observe(model: fx.GraphModule, batches: Batches, watch: Callable[[str, torch.Tensor], None]) -> None:
    """Run the FP32 network, every tensor with a pair given to watch(name, values) once."""
    pairs = pairs_of(model)
    seen = set()

    def watcher(name):
        def once(values):  # a pair that several tensors share is asked for the one that is made first
            if name not in seen:
                seen.add(name)
                watch(name, values)
        return once

    for name, pair in pairs.items():
        pair.enabled, pair.watch = False, watcher(name)
    bits = {layer: layer.bits for layer in model.modules() if hasattr(layer, "bits")}
    for layer in bits:
        layer.bits = 0
    model.eval()
    for batch in batches():
        seen.clear()
        model(batch)
    for layer, held in bits.items():
        layer.bits = held
    for pair in pairs.values():
        pair.enabled, pair.watch = True, None


def set_range(pair: Pair, low: float, high: float) -> None:
    """Scale and zero point for values from low to high, widened to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    with torch.no_grad():
        if pair.zero_point.dtype == torch.uint8:
            pair.scale.fill_((high - low) / 255 or 1.0)
            pair.zero_point.fill_(min(max(round(-low / pair.scale.item()), 0), 255))
        else:
            pair.scale.fill_(max(-low, high) / 127 or 1.0)


def calibrate(model: fx.GraphModule, batches: Batches, method: str) -> dict[str, dict]:
    """Set every scale and zero point by a method of METHODS; returns what the guard put back to minmax.

    Name -> {"range": [low, high] that the method gave, "error": its squared error as a multiple of minmax's}.
    """
    if method not in METHODS:
        raise UserError(f"METHOD is {method!r}; choose {', '.join(METHODS)}")
    pairs, whole = pairs_of(model), {}
    symmetric = all(pair.zero_point.dtype == torch.int8 for pair in pairs.values())
    collector = HistogramCollector(method, symmetric, BINS, QUANTIZED_BINS, PERCENTILE, "same")

    def watch(name, values):
        low, high = whole.get(name, (0.0, 0.0))
        whole[name] = min(low, float(values.min())), max(high, float(values.max()))
        if method != METHODS[0]:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints a line a tensor and batch
                collector.collect({name: values.numpy()})

    _observe(model, batches, watch)
    for name, (low, high) in whole.items():
        if not np.isfinite([low, high]).all():
            raise UserError(f"the network gives values that are no numbers at {name}: train it again")
        set_range(pairs[name], low, high)
    if method == METHODS[0]:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):
        ranges = {name: tuple(float(edge) for edge in found[:2])
                  for name, found in collector.compute_collection_result().items()}
    return _guarded(model, batches, whole, ranges)


def _guarded(model: fx.GraphModule, batches: Batches, whole: dict, ranges: dict) -> dict[str, dict]:
    """Set the ranges that a method gave where they cost no more than GUARD times minmax's error."""
    pairs, errors = pairs_of(model), {name: [0.0, 0.0] for name in whole}
    usable = {name: edges for name, edges in ranges.items() if np.isfinite(edges).all() and edges[1] > edges[0]}

    def watch(name, values):
        pair = pairs[name]
        for place, (low, high) in enumerate((whole[name], usable.get(name, whole[name]))):
            set_range(pair, low, high)
            rounded = (values / pair.scale).round_().clamp_(*pair.bounds()).mul_(pair.scale)
            errors[name][place] += float((rounded - values).square().sum())

    _observe(model, batches, watch)
    refused = {}
    for name, (least, found) in errors.items():
        if name in usable and found <= GUARD * max(least, 1e-30):
            set_range(pairs[name], *usable[name])
            continue
        set_range(pairs[name], *whole[name])
        refused[name] = {"range": list(ranges[name]), "error": found / max(least, 1e-30)}
    return refused


def calibration_lines(model: fx.GraphModule, method: str, refused: dict[str, dict], pictures: int) -> list[str]:
    """What calibrate() did, as a user reads it."""
    lines = [f"  {len(pairs_of(model))} scales by {method} on {pictures} pictures"]
    if refused:
        worst = max(refused, key=lambda name: refused[name]["error"])
        lines.append(f"  guard: {len(refused)} of them keep minmax, as {method} would cost more than {GUARD:g} times "
                     f"its squared error: {', '.join(list(refused)[:5])}{' …' * (len(refused) > 5)} (at most "
                     f"{refused[worst]['error']:.0f} times, {worst})")
    return lines
