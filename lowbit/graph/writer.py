"""Nodes and constants of an ONNX graph in the making, and the Q/DQ pair of an activation."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowbit.graph.names import dequantized
from lowbit.training.lsq import ActivationQuantizer


@dataclass
class GraphWriter:
    """Nodes and constants of the graph that is being made; names start with those of the model's modules."""

    nodes: list = field(default_factory=list)
    constants: list = field(default_factory=list)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def activation(self, x: str, path: str, quantizer: ActivationQuantizer) -> str:
        """A Q/DQ pair of its own for tensor x; returns the dequantized tensor."""
        scaling = [self.constant(f"{path}/scale", quantizer.scale.detach().numpy()),
                   self.constant(f"{path}/zero_point", quantizer.zero_point.numpy())]
        integers = self.node("QuantizeLinear", [x, *scaling], f"{path}/quantized", f"{path}/QuantizeLinear")
        return self.node("DequantizeLinear", [integers, *scaling], dequantized(path), f"{path}/DequantizeLinear")

    def product(self, node: onnx.NodeProto, path: str, quantizers) -> None:
        """One of attention's two products, of activations."""
        names = ("probabilities", "value") if "Softmax" in node.input[0] else ("query", "key")
        inputs = [self.activation(x, f"{path}/{name}", quantizers[name])
                  for x, name in zip(node.input, names, strict=True)]
        self.node("MatMul", inputs, node.output[0], node.name)

    def model(self, exported: onnx.ModelProto) -> onnx.ModelProto:
        """The new graph, with inputs, outputs and operator set of the exported one and those of its weights still used.
        """
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in exported.graph.initializer if tensor.name in used]
        graph = helper.make_graph(self.nodes, exported.graph.name, exported.graph.input, exported.graph.output,
                                  [*kept, *self.constants])
        return helper.make_model(graph, opset_imports=exported.opset_import, ir_version=exported.ir_version)
