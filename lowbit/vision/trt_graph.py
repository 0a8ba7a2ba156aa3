"""An ONNX graph as TensorRT's rules read it: what makes and takes each tensor, which pair stands behind it."""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper


class Finding(NamedTuple):
    """What a rule says of a node."""

    kind: str
    node: str
    rule: str
    said: str

    def __str__(self):
        return f"{self.kind}: {self.node}: {self.said}"


class Graph:
    """A graph with what its tensors are made and taken by; constants are initializers and Constant nodes alike."""

    def __init__(self, model: onnx.ModelProto):
        self.model, self.nodes = model, list(model.graph.node)
        self.values = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
                self.values[node.output[0]] = value if value is not None else numpy_helper.from_array(
                    np.array(next(onnx.helper.get_attribute_value(entry) for entry in node.attribute), np.float32))
        for node in self.nodes:  # exporters put an Identity where two operators share one constant
            if node.op_type == "Identity" and node.input[0] in self.values:
                self.values[node.output[0]] = self.values[node.input[0]]
        self.maker = {name: node for node in self.nodes for name in node.output if name not in self.values}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)
        self.results = {value.name for value in model.graph.output}

    def array(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self.values[name]) if name in self.values else None

    def pair(self, name: str) -> tuple[onnx.NodeProto | None, onnx.NodeProto | None]:
        """(DequantizeLinear that makes a tensor, QuantizeLinear before it), None for what is not there."""
        dequantize = self.maker.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None, None
        quantize = self.maker.get(dequantize.input[0])
        return dequantize, quantize if quantize is not None and quantize.op_type == "QuantizeLinear" else None

    def is_weight(self, name: str) -> bool:
        """Whether a layer's operand is stored, behind a pair or not."""
        dequantize, quantize = self.pair(name)
        source = quantize.input[0] if quantize is not None else dequantize.input[0] if dequantize is not None else name
        return source in self.values


def called(node: onnx.NodeProto) -> str:
    """A node's name, or what it makes where it has none."""
    return node.name or f"{node.op_type} of {node.output[0]}"


def attribute(node: onnx.NodeProto, name: str, otherwise: int) -> int:
    """A whole-number attribute of a node."""
    return next((entry.i for entry in node.attribute if entry.name == name), otherwise)
