"""From the FP32 graph to integers with learned scales: Q/DQ pairs where the simulation has its quantizers.

Runtimes put an integer kernel in place of DequantizeLinear -> MatMul, if the graph allows it. Three things that ONNX
Runtime needs were found by counting the operators of its optimised graph: every product has Q/DQ pairs of its own
(a pair that Q, K and V share keeps all three on floats if it is int8), with scale and zero point of their own (equal
pairs are merged again if they name the same tensors), and no product has rank 2 (MatMul and Add of rank 2 become a
float Gemm). OpenVINO and TensorRT take the same graph: both inputs of every MatMul are dequantized.
"""

import numpy as np
import onnx

from lowbit.graph.names import dequantized, module_of
from lowbit.graph.writer import GraphWriter
from lowbit.int8.learned import LearnedQuantLinear, SymmetricQuantEmbedding


class _Writer(GraphWriter):
    """GraphWriter with the layers of the learned file; names start with those of the model's modules."""

    def stored(self, path: str, module) -> list[str]:
        """Integers, scale and zero point of a weight [in, out] or a table [rows, width]."""
        stored = {part: module.stored()[f"weight.{part}"].numpy() for part in ("integers", "scale", "zero_point")}
        if isinstance(module, LearnedQuantLinear):
            stored["integers"] = stored["integers"].T
        return [self.constant(f"{path}/weight/{part}", tensor) for part, tensor in stored.items()]

    def linear(self, node: onnx.NodeProto, path: str, module: LearnedQuantLinear) -> None:
        """MatMul, or Gemm as MatMul and Add of rank 3, with both inputs dequantized."""
        x, output = node.input[0], node.output[0]
        gemm = node.op_type == "Gemm"
        if gemm:
            axis = self.constant(f"{path}/axis", np.array([0]))
            x = self.node("Unsqueeze", [x, axis], f"{path}/input", f"{path}/Unsqueeze")
        x = self.activation(x, f"{path}/input", module.quantize)
        weight = self.node("DequantizeLinear", self.stored(path, module), dequantized(f"{path}/weight"),
                           f"{path}/weight/DequantizeLinear", **({"axis": 1} if module.per_channel else {}))
        product = self.node("MatMul", [x, weight], f"{path}/product" if gemm else output, f"{path}/MatMul")
        if gemm:
            total = self.node("Add", [product, node.input[2]], f"{path}/sum", f"{path}/Add")
            self.node("Squeeze", [total, axis], output, f"{path}/Squeeze")

    def embedding(self, node: onnx.NodeProto, path: str, module: SymmetricQuantEmbedding) -> None:
        """Rows are looked up as integers, and only these are dequantized."""
        table, *scaling = self.stored(path, module)
        rows = self.node("Gather", [table, node.input[1]], f"{path}/rows", f"{path}/Gather")
        self.node("DequantizeLinear", [rows, *scaling], node.output[0], f"{path}/DequantizeLinear")


def quantize(exported: onnx.ModelProto, model) -> onnx.ModelProto:
    """The Q/DQ form of an exported FP32 graph; `model` is the simulation on the CPU (learned.simulate, weights loaded).

    Scales, zero points and integers are the simulation's own tensors. Raises RuntimeError if a part of the simulation
    has no place in the graph.
    """
    modules, writer = dict(model.named_modules()), _Writer()
    wanted = {name for name, module in modules.items()
              if isinstance(module, (LearnedQuantLinear, SymmetricQuantEmbedding)) or hasattr(module, "quantizers")}
    for node in exported.graph.node:
        name, path = module_of(node), node.name.rpartition("/")[0]
        module = modules.get(name)
        if isinstance(module, LearnedQuantLinear) and node.op_type in ("MatMul", "Gemm"):
            writer.linear(node, path, module)
        elif isinstance(module, SymmetricQuantEmbedding) and node.op_type == "Gather":
            writer.embedding(node, path, module)
        elif hasattr(module, "quantizers") and node.op_type == "MatMul":
            writer.product(node, path, module.quantizers)
        else:
            writer.nodes.append(node)
            continue
        wanted.discard(name)
    if wanted:
        raise RuntimeError(f"the exported graph has no product for {', '.join(sorted(wanted))}")
    return writer.model(exported)
