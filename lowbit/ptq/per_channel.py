"""Few levels without training, one scale an output channel: rounded to nearest, or with errors made good by GPTQ.

    error of column i = (w_i - rounded w_i) / U_ii;  columns j > i:  w_j -= error * U_ij
    U = upper Cholesky factor of (X.T @ X + damping)**-1                              X: inputs of the layer on texts

Frantar et al. 2022, arXiv:2210.17323. The file is that of int4_eager/: packed, unpacked when it is loaded.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from lowbit.data.tokens import Row, pad
from lowbit.graph.names import module_of
from lowbit.int4.file import write
from lowbit.int4.levels import LEVELS, Levels
from lowbit.int4.rounding import best_scales, to_levels
from lowbit.int4.simulation import FEW_ROWS

HEAD = ("pooler", "classifier")
KEPT = (*HEAD, "position_embeddings")  # at 8 bits, as int4_eager/ keeps them
DAMPING = 0.01  # share of the mean diagonal that is added to X.T @ X


@dataclass
class Rounded:
    """A weight [out, in] or table [rows, width] of few levels, as the file writer takes it."""

    levels: Levels
    integers: torch.Tensor
    scale: torch.Tensor

    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores."""
        return {"weight.integers": self.integers.to(torch.int8), "weight.scale": self.scale}


def weights_of(graph: onnx.GraphProto) -> dict[str, tuple[onnx.NodeProto, np.ndarray]]:
    """Module -> (its operator, its weight [out, in] or table [rows, width]) of an exported FP32 graph."""
    tensors = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    found = {}
    for node in graph.node:
        name = node.input[0 if node.op_type == "Gather" else 1] if len(node.input) > 1 else ""
        if node.op_type in ("MatMul", "Gemm", "Gather") and name in tensors:
            weight = numpy_helper.to_array(tensors[name])
            found[module_of(node)] = node, np.ascontiguousarray(weight.T) if node.op_type == "MatMul" else weight
    return found


def quantize_per_channel(source: Path, target: Path, bits: float, table_bits: float, moments: Path | None) -> None:
    """Write `target`, `source` rounded to levels of `bits`; with `moments` (second_moments) errors are made good."""
    exported = onnx.load(source)
    sums = np.load(moments) if moments else {}
    rounded = {}
    for name, (node, weight) in weights_of(exported.graph).items():
        if node.op_type == "Gather" and len(weight) < FEW_ROWS:
            continue
        kept = any(part in name.split(".") for part in KEPT)
        levels = LEVELS[8.0 if kept else table_bits if node.op_type == "Gather" else bits]
        weight = torch.from_numpy(weight.copy())
        scale = best_scales(weight, levels)
        if name in sums:
            integers = compensated(weight, scale, levels, torch.from_numpy(sums[name]))
        else:
            integers = to_levels(weight / scale[:, None], levels)
        rounded[name] = Rounded(levels, integers, scale)
    onnx.save(write(exported, rounded), target)


def compensated(weight: torch.Tensor, scale: torch.Tensor, levels: Levels, moment: torch.Tensor) -> torch.Tensor:
    """Levels of a weight [out, in] by GPTQ, column after column; `moment` is X.T @ X of its inputs [in, in]."""
    moment = moment.double()
    moment += DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(moment), upper=True).float()
    left, integers = weight.clone(), torch.empty_like(weight)
    for column in range(weight.shape[1]):
        integers[:, column] = to_levels(left[:, column] / scale, levels)
        error = (left[:, column] - integers[:, column] * scale) / factor[column, column]
        left[:, column + 1:] -= error[:, None] * factor[column, column + 1:]
    return integers


def second_moments(source: Path, target: Path, rows: list[Row]) -> None:
    """Sum over the texts of X.T @ X of each Linear layer's input X [tokens, in], to an .npz: module -> [in, in]."""
    model = onnx.load(source)
    inputs = {name: node.input[0] for name, (node, _) in weights_of(model.graph).items()
              if node.op_type != "Gather" and not any(part in name.split(".") for part in HEAD)}
    tensors = sorted(set(inputs.values()))
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    sums = {}
    for row in rows:
        for name, value in zip(tensors, session.run(tensors, pad([row], 0)), strict=True):
            flat = value.reshape(-1, value.shape[-1])
            sums[name] = sums.get(name, 0) + flat.T @ flat
    np.savez(target, **{name: sums[tensor] for name, tensor in inputs.items()})
