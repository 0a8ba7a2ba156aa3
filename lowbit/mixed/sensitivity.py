"""What each module costs at few bits: measured by the answers of files, or foretold from gradients.

    kl      only     divergence of the file in which this module alone has these bits, all others FP32
            all_but  divergence of the file in which all have these bits, less that of the one in which this keeps FP32
    fisher           mean over texts of (g . (rounded - weight))**2 / 2
                     g = gradient of v . logits;  v = sqrt(p) * e - p * (sqrt(p) . e);  e: a random sign a label

p are the model's own probabilities. The mean of v v' is diag(p) - p p', the Fisher matrix of a softmax: so fisher is
the second-order approximation of the KL divergence along the step that rounding takes, from one backward pass a text.
Of a number v is 1. Fisher sees weights alone: what 8-bit inputs cost is in kl only.
"""

import math
import random
import time

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from lowbit.mixed.assignment import FP32, place_of
from lowbit.mixed.files import Files
from lowbit.mixed.memory import Memory
from lowbit.mixed.shifts import Shifts

SENSITIVITY = "sensitivity.json"
FORMAT = 1
SCORES, MODES = ("kl", "fisher"), ("only", "all_but")


def signed(probabilities: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """The vector v of the formula above, [..., labels], from probabilities and random signs."""
    roots = probabilities.sqrt()
    return roots * signs - probabilities * (roots * signs).sum(-1, keepdim=True)


def steps_of(files: Files, bits: list[float]) -> dict[float, dict[str, torch.Tensor]]:
    """bits -> module -> rounded weight less the weight."""
    def step(name, tensors):
        return (tensors["weight.integers"].float() * tensors["weight.scale"][:, None]
                - files.model.get_submodule(name).weight.detach())
    return {each: {name: step(name, rounded.tensors) for name, rounded in files.rounded_at(each).items()}
            for each in bits}


def fisher(files: Files, bits: list[float], seed: int) -> dict[float, dict[str, float]]:
    """bits -> module -> the fisher score of the formula above."""
    steps = steps_of(files, bits)
    totals = {each: dict.fromkeys(files.parts, 0.0) for each in bits}
    wanted = [files.model.get_submodule(name).weight for name in files.parts]
    draw = torch.Generator().manual_seed(seed)
    for row in tqdm(files.rows, desc="  fisher", unit="text", disable=None):
        logits = files.model(**{name: torch.from_numpy(value) for name, value in row.items()}).logits[0]
        weighed = torch.ones_like(logits)
        if len(logits) > 1:
            signs = torch.randint(0, 2, logits.shape, generator=draw) * 2.0 - 1
            weighed = signed(logits.detach().softmax(-1), signs)
        gradients = torch.autograd.grad((weighed * logits).sum(), wanted)
        for name, gradient in zip(files.parts, gradients, strict=True):
            for each in bits:
                totals[each][name] += float(torch.vdot(gradient.flatten(), steps[each][name].flatten())) ** 2 / 2
    return {each: {name: total / len(files.rows) for name, total in held.items()} for each, held in totals.items()}


def measured_divergence(files: Files, bits: list[float], mode: str, memory: Memory) -> dict[float, dict[str, dict]]:
    """bits -> module -> {"divergence", and of mode only "flips" and "shift"} of a MODE."""
    found: dict[float, dict[str, dict]] = {each: {} for each in bits}
    work = [(each, name) for each in bits for name in files.parts]
    for each, name in tqdm(work, desc=f"  {mode}", unit="file", disable=None):
        whole = files.uniform(FP32) if mode == "only" else files.uniform(each)
        changed = whole | {name: each if mode == "only" else FP32}
        held = memory.get(f"{mode} {each:g} {name}",
                          lambda changed=changed: files.measured(changed, shift=mode == "only"))
        found[each][name] = held
        if mode == "all_but":
            every = memory.get(f"uniform {each:g}", lambda whole=whole: files.measured(whole))
            found[each][name] = {"divergence": every["divergence"] - held["divergence"]}
    return found


def noise_ratio_db(files: Files, bits: float) -> dict[str, float]:
    """Module -> signal to noise of its rounded weight, in decibels."""
    def decibels(name, step):
        signal = float(files.model.get_submodule(name).weight.detach().square().sum())
        return 10 * math.log10(signal / max(float(step.square().sum()), 1e-30)) if signal else 0.0
    return {name: decibels(name, step) for name, step in steps_of(files, [bits])[bits].items()}


def analyse(files: Files, bits: list[float], scores: list[str], modes: list[str], seed: int, memory: Memory) -> dict:
    """What sensitivity.json holds: of each module its place, weights, and for each bits the scores and bytes.

    Also seconds of the processor that each score took, how they correlate by rank, and the Shifts, None without
    kl of mode only.
    """
    shifts = None
    spent: dict[str, float] = {}
    modules = {name: dict(zip(("layer", "kind"), place_of(name, part), strict=True)) | {
        "part": part, "weights": files.weights[name], "bits": {f"{each:g}": {} for each in bits}}
        for name, part in files.parts.items()}

    def keep(score, found):
        for each, held in found.items():
            for name, value in held.items():
                modules[name]["bits"][f"{each:g}"][score] = value

    for each in bits:
        keep("sqnr_db", {each: noise_ratio_db(files, each)})
        keep("bytes", {each: bytes_of(files, each, memory)})
    for mode in modes if "kl" in scores else ():
        started = time.process_time()
        found = measured_divergence(files, bits, mode, memory)
        spent[f"kl_{mode}"] = time.process_time() - started
        keep(f"kl_{mode}", {each: {name: value["divergence"] for name, value in held.items()}
                            for each, held in found.items()})
        if mode == "only":
            keep("flips", {each: {name: value["flips"] for name, value in held.items()}
                           for each, held in found.items()})
            shifts = Shifts(files.reference, {name: {each: np.array(found[each][name]["shift"], np.float32)
                                                     for each in bits} for name in files.parts})
    if "fisher" in scores:
        started = time.process_time()
        keep("fisher", memory.get("fisher", lambda: {f"{each:g}": held for each, held in fisher(
            files, bits, seed).items()}) and {each: memory.values["fisher"][f"{each:g}"] for each in bits})
        spent["fisher"] = time.process_time() - started
    return {"format": FORMAT, "modules": modules, "cpu_seconds": spent, "correlation": correlations(modules),
            "shifts": shifts}


def bytes_of(files: Files, bits: float, memory: Memory) -> dict[str, int]:
    """Module -> by how many bytes a file grows if this module has these bits instead of FP32; below 0.

    Beside others at the same bits: what they share, such as the table of the look-up, is not this module's.
    """
    def measure():
        whole = files.uniform(bits)
        every = files.graph(whole).ByteSize()
        return {name: every - files.graph(whole | {name: FP32}).ByteSize() for name in files.parts}
    return memory.get(f"bytes {bits:g}", measure)


def correlations(modules: dict[str, dict]) -> dict[str, float]:
    """Spearman's rank correlation with kl_only, over all modules, of each score and number of bits."""
    found = {}
    for each in next(iter(modules.values()))["bits"]:
        held = [module["bits"][each] for module in modules.values()]
        for score in ("fisher", "kl_all_but", "sqnr_db"):
            if score in held[0] and "kl_only" in held[0] and len(held) > 2:
                ranks = spearmanr([one["kl_only"] for one in held], [one[score] for one in held]).statistic
                if np.isfinite(ranks):
                    found[f"{score} at {each} bits"] = float(ranks)
    return found


def ranked(result: dict, bits: str) -> list[tuple[str, dict]]:
    """Modules with what they cost at `bits`, the most sensitive first."""
    score = main_score(result)
    held = [(name, module["bits"][bits]) for name, module in result["modules"].items()]
    return sorted(held, key=lambda pair: -pair[1][score])


def main_score(result: dict) -> str:
    """The score that modules are ranked by: kl_only where it was measured."""
    first = next(iter(next(iter(result["modules"].values()))["bits"].values()))
    return next(score for score in ("kl_only", "kl_all_but", "fisher") if score in first)


def chosen_texts(rows: list, texts: int, seed: int) -> list:
    """`texts` of the rows, drawn at random, in their order."""
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), min(texts, len(rows))))]
