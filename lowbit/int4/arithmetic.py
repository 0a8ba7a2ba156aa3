"""Which low-bit arithmetic is meant: the settings that training, file and evaluation must share."""

from pathlib import Path

import torch

from lowbit.int4 import simulation
from lowbit.int4.levels import LEVELS, Levels, levels_of
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.settings import flag_of
from lowbit.training.encoder import load_run
from lowbit.training.lsq import TARGETS
from lowbit.training.weights import WEIGHTS, load_weights

PARTS = {"weights": "BITS", "tables": "TABLE_BITS", "positions": "POSITION_BITS", "head": "HEAD_BITS"}
LEARNED_ONLY = ("TARGET", "QUANTIZE_ATTENTION")
ARITHMETIC = (*PARTS.values(), "ACTIVATION_RANGES", *LEARNED_ONLY)
PRECISIONS = {4.0: "int4", 2.0: "int2", 1.6: "ternary"}  # what BITS make of a file
MODES = ("dynamic", "learned")
TEACHER, FP32 = "model_fp32.pth", "model_fp32.onnx"  # the model that was followed, and its graph


def is_learned(s: dict) -> bool:
    """Whether activation ranges are learned; raises UserError for an unknown ACTIVATION_RANGES."""
    if s["ACTIVATION_RANGES"] not in MODES:
        raise UserError(f"ACTIVATION_RANGES is {s['ACTIVATION_RANGES']!r}; choose {' or '.join(MODES)}")
    return s["ACTIVATION_RANGES"] == "learned"


def levels_by_part(s: dict) -> dict[str, Levels]:
    """The levels of each of PARTS; raises UserError for bits that there is no format of."""
    return {part: levels_of(s[name], name, tuple(PRECISIONS if part == "weights" else LEVELS))
            for part, name in PARTS.items()}


def simulate(model: torch.nn.Module, s: dict) -> torch.nn.Module:
    """Give `model` the arithmetic of the file that settings `s` describe, in place; returns it."""
    learned, levels = is_learned(s), levels_by_part(s)
    if learned and s["TARGET"] not in TARGETS:
        raise UserError(f"TARGET is {s['TARGET']!r}; choose {', '.join(TARGETS)}")
    return simulation.simulate(model, levels, s["TARGET"] if learned else None, s["QUANTIZE_ATTENTION"])


def refuse_older(run: str, s: dict, trained: dict) -> None:
    """Raise UserError for a run that was trained for, or rounded to, positions and token types as they were once."""
    if "POSITION_BITS" not in (trained if trained["QAT"] else s):
        raise UserError(f"{run} was made by an older version, whose positions and token types have TABLE_BITS: run its "
                        "stages again, or go on with that version")


def load_simulation(folder: Path, s: dict, trained: dict) -> torch.nn.Module:
    """The simulated model of a run, its weights loaded: with trained scales, or, without QAT, those of least error."""
    refuse_older(folder.name, s, trained)
    model = load_run(folder)
    if trained["QAT"]:
        load_weights(simulate(model, s), folder / WEIGHTS)
    else:
        load_weights(model, folder / WEIGHTS)
        simulation.start_scales(simulate(model, s))
    return model.eval()


def refuse_other_arithmetic(s: dict, trained: dict) -> None:
    """What is trained is what ships: raise UserError if a QAT run is to be quantized otherwise than simulated."""
    levels_by_part(s)
    refuse_older(s["RUN"], s, trained)
    if is_learned(s) and not (trained["QAT"] and is_learned(trained)):
        raise UserError(f"ACTIVATION_RANGES is learned here but {s['RUN']} has learned none: train it with "
                        "--activation-ranges learned" + ("" if trained["QAT"] else " and without --no-qat"))
    for name in ARITHMETIC if is_learned(s) else [name for name in ARITHMETIC if name not in LEARNED_ONLY]:
        if trained["QAT"] and s[name] != trained[name]:
            raise UserError(f"{name} is {s[name]} here but {s['RUN']} was trained with {trained[name]}: "
                            f"set it to {trained[name]}, or train again with {flag_of(name)} {str(s[name]).lower()}")
