"""From the FP32 graph to integers with learned scales: Q/DQ pairs where the simulation has its quantizers.

Runtimes put an integer kernel in place of DequantizeLinear -> MatMul, if the graph allows it. Three things that ONNX
Runtime needs were found by counting the operators of its optimised graph: every product has Q/DQ pairs of its own
(a pair that Q, K and V share keeps all three on floats if it is int8), with scale and zero point of their own (equal
pairs are merged again if they name the same tensors), and no product has rank 2 (MatMul and Add of rank 2 become a
float Gemm). OpenVINO and TensorRT take the same graph: both inputs of every MatMul are dequantized. Linear layers of
uint8 activations are for ONNX Runtime: they become its own MatMulIntegerToFloat, which adds the bias as well.
"""

import onnx

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

    def weight(self, path: str, module: LearnedQuantLinear) -> tuple[list[str], dict]:
        return self.stored(path, module), {"axis": 1} if module.per_channel else {}

    def layer(self, node: onnx.NodeProto, path: str, module) -> bool:
        if isinstance(module, LearnedQuantLinear) and node.op_type in ("MatMul", "Gemm", "Add"):
            return self.learned_linear(node, path, module)
        if isinstance(module, SymmetricQuantEmbedding) and node.op_type == "Gather":
            self.embedding(node, path, module)
            return True
        return False

    def embedding(self, node: onnx.NodeProto, path: str, module: SymmetricQuantEmbedding) -> None:
        """Rows are looked up as integers, and only these are dequantized."""
        table, *scaling = self.stored(path, module)
        rows = self.node("Gather", [table, node.input[1]], f"{path}/rows", f"{path}/Gather")
        self.node("DequantizeLinear", [rows, *scaling], node.output[0], f"{path}/DequantizeLinear")


def quantize(exported: onnx.ModelProto, model, target: str = "openvino") -> onnx.ModelProto:
    """The Q/DQ form of an exported FP32 graph; `model` is the simulation on the CPU (learned.simulate, weights loaded).

    For `target` tensorrt each pair stands right at its product; the other runtimes look through transpositions.

    Scales, zero points and integers are the simulation's own tensors. Raises RuntimeError if a part of the simulation
    has no place in the graph.
    """
    return _Writer(pairs_at_products=target == "tensorrt").rewrite(exported, dict(model.named_modules()))
