"""What FP32 and INT8 kernels cost in time here: two files of one model in turns, and the tokens of each layer."""

import statistics
import tempfile
from pathlib import Path

import onnx

from lowbit.measure.session import random_inputs, take_turns
from lowbit.mixed.files import SOURCE, Files
from lowbit.training.first_token import last_attention

ROUNDS, RUNS = 5, 20  # turns that FP32 and INT8 take, and measured runs a turn


def tokens_of_layers(files: Files, tokens: int) -> dict[str, int]:
    """Linear layer -> how many tokens of a text of `tokens` it computes: the last layer and the head may see one."""
    one = set()
    if getattr(files.model.config, "first_token_only", False):
        attention = last_attention(files.model)
        layers = [name for name, module in files.model.named_modules() if module is attention]
        layer = layers[0].rpartition(".")[0]
        one = {name for name in files.parts if name.startswith(f"{layer}.") and not name.endswith((".key", ".value"))}
    return {name: 1 if part == "head" or name in one else tokens
            for name, part in files.parts.items() if part != "tables"}


def kernel_times(files: Files, tokens: int, vocabulary: int, inputs: tuple[str, ...]) -> tuple[float, float]:
    """(FP32's, uniform INT8's) median milliseconds of a text of `tokens`, in turns, a process each."""
    with tempfile.TemporaryDirectory() as scratch:
        int8_path = Path(scratch) / "uniform_8.onnx"
        onnx.save(files.graph(files.uniform(8.0)), int8_path)
        paths = {"fp32": (files.folder / SOURCE, "onnxruntime"), "int8": (int8_path, "onnxruntime")}
        batches = {"batch": random_inputs(vocabulary, 1, tokens, RUNS, inputs)}
        turns = [take_turns(paths, batches, "CPUExecutionProvider", 0) for _ in range(ROUNDS)]
    for turn in (turn for each in turns for turn in each.values() if "error" in turn):
        raise RuntimeError(turn["error"])
    fp32, int8 = (statistics.median(statistics.median(turn[name]["ms"]["batch"]) for turn in turns)
                  for name in ("fp32", "int8"))
    return fp32, int8
