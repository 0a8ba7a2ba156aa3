"""Which INT8 arithmetic is meant: the settings that training, file and evaluation must share."""

import torch

from lowbit.int8 import dynamic, learned
from lowbit.pipeline.errors import UserError
from lowbit.training.fine_tune import autocast_dtype

LEARNED_ONLY = ("TARGET", "QUANTIZE_ATTENTION")
ARITHMETIC = ("ACTIVATION_RANGES", "PER_CHANNEL", "QUANTIZE_EMBEDDINGS", "REDUCE_RANGE", *LEARNED_ONLY)
MODES = ("dynamic", "learned")


def is_learned(s: dict) -> bool:
    """Whether activation ranges are learned; raises UserError for an unknown ACTIVATION_RANGES."""
    mode = s.get("ACTIVATION_RANGES", MODES[0])  # runs made before there was a choice
    if mode not in MODES:
        raise UserError(f"ACTIVATION_RANGES is {mode!r}; choose {' or '.join(MODES)}")
    return mode == "learned"


def simulate(model: torch.nn.Module, s: dict) -> torch.nn.Module:
    """Give `model` the arithmetic of the INT8 file that settings `s` describe, in place; returns it."""
    if is_learned(s):
        return learned.simulate(model, s["TARGET"], s["PER_CHANNEL"], s["QUANTIZE_EMBEDDINGS"],
                                s["QUANTIZE_ATTENTION"], s["REDUCE_RANGE"])
    return dynamic.simulate(model, s["PER_CHANNEL"], s["QUANTIZE_EMBEDDINGS"], s["REDUCE_RANGE"])


def step_dtype(s: dict) -> torch.dtype | None:
    """What training steps compute in: BF16 where the device has it, None (FP32) otherwise.

    FP16, which older GPUs have instead, ends at 65,504: sums of integers pass that unless they are scaled inside the
    product, as only dynamic ranges with one weight scale a tensor do.
    """
    dtype = autocast_dtype() if s["AUTOCAST"] else None
    return None if dtype is torch.float16 and (is_learned(s) or s["PER_CHANNEL"]) else dtype


def refuse_other_arithmetic(s: dict, trained: dict) -> None:
    """What is trained is what ships: raise UserError if a QAT run is to be quantized otherwise than simulated."""
    if is_learned(s) and not (trained["QAT"] and is_learned(trained)):
        raise UserError(f"ACTIVATION_RANGES is learned here but {s['RUN']} has learned none: train it with "
                        "--activation-ranges learned" + ("" if trained["QAT"] else " and without --no-qat"))
    for name in ARITHMETIC if is_learned(s) else [name for name in ARITHMETIC if name not in LEARNED_ONLY]:
        if trained["QAT"] and name in trained and s[name] != trained[name]:
            raise UserError(f"{name} is {s[name]} here but {s['RUN']} was trained with {trained[name]}: "
                            f"set it to {trained[name]}, or train again with --{name.lower().replace('_', '-')} "
                            f"{str(s[name]).lower()}")
