"""Files of any assignment, made from one FP32 run, and what they answer: every figure here is of the file itself.

    divergence(assignment) = mean over texts of KL(softmax(FP32 logits) || softmax(its logits)), a text at a time

A module that keeps FP32 keeps its operators. The others are those of int4_eager/: integers of few levels, a scale an
output channel or row, unpacked when the session is made, inputs of 8 bits whose range is measured at run time.
"""

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from lowbit.data.tokens import Row, pad
from lowbit.int4.file import write
from lowbit.int4.levels import LEVELS
from lowbit.int4.simulation import assign, parts_of, start_scales
from lowbit.measure.score import divergence
from lowbit.mixed.assignment import FP32, Assignment, levels_of, weights_of
from lowbit.pipeline.errors import UserError
from lowbit.training.encoder import load_run
from lowbit.training.weights import load_weights

SOURCE, WEIGHTS = "model_fp32.onnx", "model.safetensors"  # of ptq/finetune_fp32.py


class Rounded:
    """What the file writer takes of a module: levels, and the tensors that the simulation says are stored."""

    def __init__(self, module):
        self.levels = module.levels
        self.tensors = module.stored()

    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores."""
        return self.tensors


def load_fp32(folder: Path) -> torch.nn.Module:
    """The FP32 model of a run of ptq/finetune_fp32.py, in eval mode."""
    model = load_run(folder)
    load_weights(model, folder / WEIGHTS)
    return model


def simulated(model: torch.nn.Module, assignment: Assignment) -> torch.nn.Module:
    """A copy of an FP32 model with the arithmetic of an assignment, its scales those of least squared error."""
    made = assign(copy.deepcopy(model), levels_of(assignment))
    start_scales(made)
    return made.eval()


class Files:
    """Graphs of assignments of one FP32 run, and their answers to given token rows."""

    def __init__(self, folder: Path, rows: list[Row], pad_id: int):
        self.folder, self.model = folder, load_fp32(folder)
        self.parts, self.weights = parts_of(self.model), weights_of(self.model)
        self.exported = onnx.load(folder / SOURCE)
        refuse_layers_used_twice(self.exported.graph, self.parts)
        self.rows = [pad([row], pad_id) for row in rows]
        self.rounded = {FP32: {}}
        self.reference = self.outputs(self.graph(self.uniform(FP32))) if rows else np.empty((0, 0))

    def uniform(self, bits: float) -> Assignment:
        """Every module at the same number of bits."""
        return dict.fromkeys(self.parts, bits)

    def rounded_at(self, bits: float) -> dict[str, Rounded]:
        """Every module rounded to levels of `bits`, by name; rounded once."""
        if bits not in self.rounded:
            made = assign(copy.deepcopy(self.model), dict.fromkeys(self.parts, LEVELS[bits]))
            start_scales(made)
            self.rounded[bits] = {name: Rounded(made.get_submodule(name)) for name in self.parts}
        return self.rounded[bits]

    def graph(self, assignment: Assignment) -> onnx.ModelProto:
        """The file's graph."""
        return write(self.exported, {name: self.rounded_at(bits)[name] for name, bits in assignment.items()
                                     if bits != FP32})

    def shared_bytes(self, bits: float, alone: dict[str, int]) -> int:
        """Bytes that a file with these bits has once, such as the table of the look-up: beyond FP32's and the modules'.

        `alone` are the modules' bytes, beside others at the same bits (sensitivity.bytes_of).
        """
        sizes = [self.graph(self.uniform(each)).ByteSize() for each in (bits, FP32)]
        return sizes[0] - sizes[1] - sum(alone.values())

    def outputs(self, graph: onnx.ModelProto) -> np.ndarray:
        """Logits [texts, outputs] of a graph, one text at a time on one thread."""
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(["logits"], row)[0] for row in self.rows])

    def measured(self, assignment: Assignment, shift: bool = False) -> dict:
        """{"divergence" from FP32, "flips": labels that change, "bytes" of the file} of an assignment.

        With `shift` also that: its logits less FP32's, lists [texts, outputs].
        """
        graph = self.graph(assignment)
        outputs = self.outputs(graph)
        flips = int((outputs.argmax(-1) != self.reference.argmax(-1)).sum()) if outputs.shape[-1] > 1 else 0
        return {"divergence": divergence(outputs, self.reference), "flips": flips, "bytes": graph.ByteSize()} | (
            {"shift": (outputs - self.reference).astype(float).round(7).tolist()} if shift else {})


def refuse_layers_used_twice(graph: onnx.GraphProto, parts: dict[str, str]) -> None:
    """Raise UserError for a graph with more products of stored weights than the model has Linear layers: ALBERT's."""
    stored = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    products = sum(node.op_type in ("MatMul", "Gemm") and node.input[1] in stored for node in graph.node)
    layers = sum(part != "tables" for part in parts.values())
    if products > layers:
        raise UserError(f"this encoder uses its {layers} Linear layers {products} times in one pass, so that no layer "
                        "can have bits of its own: choose int8_eager/ with dynamic ranges for it")


def halves(count: int) -> tuple[list[int], list[int]]:
    """Row numbers of a split to search on and to confirm on: every second one, as files are sorted by label in places.
    """
    return list(range(0, count, 2)), list(range(1, count, 2))


def digest_of(assignment: Assignment) -> str:
    """A short name that only this assignment has."""
    return hashlib.sha256(json.dumps(sorted(assignment.items())).encode()).hexdigest()[:16]
