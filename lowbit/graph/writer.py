"""Nodes and constants of an ONNX graph in the making, and the Q/DQ pair of an activation."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from lowbit.graph.names import FUSED_PRODUCT, LAYOUT, RUNTIME_DOMAIN, dequantized, module_of
from lowbit.pipeline.errors import UserError
from lowbit.training.lsq import ActivationQuantizer

# axes of a key [text, token, head, channel] in its transposition, and of the two steps that make the same
KEY_TRANSPOSED, HEADS_FIRST, LAST_SWAPPED = [0, 2, 3, 1], [0, 2, 1, 3], [0, 1, 3, 2]


def split_transposition(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A key's transposition in two steps, heads first: OpenVINO's attention takes the second in. Others as they are."""
    if node.op_type != "Transpose" or list(node.attribute[0].ints) != KEY_TRANSPOSED:
        return [node]
    heads = f"{node.output[0]}/heads"
    return [helper.make_node("Transpose", node.input, [heads], name=f"{node.name}/heads", perm=HEADS_FIRST),
            helper.make_node("Transpose", [heads], node.output, name=node.name, perm=LAST_SWAPPED)]


@dataclass
class GraphWriter:
    """Nodes and constants of the graph that is being made; names start with those of the model's modules."""

    nodes: list = field(default_factory=list)
    constants: list = field(default_factory=list)
    quantized: dict = field(default_factory=dict)  # tensors whose integers several layers take
    uses: Counter = field(default_factory=Counter)  # of each tensor of the exported graph
    pairs_at_products: bool = False  # no transposition or reshape between a Q/DQ pair and its product

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def activation(self, x: str, path: str, quantizer: ActivationQuantizer) -> str:
        """A Q/DQ pair of its own for tensor x; returns x's values after it.

        It stands ahead of what only splits or joins attention's heads, unless pairs_at_products: that moves bytes then,
        and OpenVINO rounds in the kernel that made the numbers.
        """
        layout = [] if self.pairs_at_products else self.take_layout(x)
        scaling = [self.constant(f"{path}/scale", quantizer.scale.detach().numpy()),
                   self.constant(f"{path}/zero_point", quantizer.zero_point.numpy())]
        source = layout[0].input[0] if layout else x
        integers = self.node("QuantizeLinear", [source, *scaling], f"{path}/quantized", f"{path}/QuantizeLinear")
        values = self.node("DequantizeLinear", [integers, *scaling], dequantized(path), f"{path}/DequantizeLinear")
        if not layout:
            return values
        layout[0].input[0] = values
        self.nodes.extend(layout)
        return x

    def take_layout(self, x: str) -> list[onnx.NodeProto]:
        """Take out the operators that end in x and only lay numbers out anew, in order; none that others read."""
        taken: list[onnx.NodeProto] = []
        while (made := next((node for node in reversed(self.nodes) if x in node.output), None)) is not None:
            if made.op_type not in LAYOUT or self.uses[x] > 1:
                break
            self.nodes.remove(made)
            taken[:0] = split_transposition(made)
            x = made.input[0]
        return taken

    def product(self, node: onnx.NodeProto, path: str, quantizers) -> None:
        """One of attention's two products, of activations."""
        names = ("probabilities", "value") if "Softmax" in node.input[0] else ("query", "key")
        inputs = [self.activation(x, f"{path}/{name}", quantizers[name])
                  for x, name in zip(node.input, names, strict=True)]
        self.node("MatMul", inputs, node.output[0], node.name)

    def weight(self, path: str, module) -> tuple[list[str], dict]:
        """(integers, scale and zero point of a Linear weight [in, out]; attributes of its DequantizeLinear)."""
        raise NotImplementedError

    def layer(self, node: onnx.NodeProto, path: str, module) -> bool:
        """Write an operator of `module` (None: of no module) anew; False for one to keep as it is."""
        raise NotImplementedError

    def learned_linear(self, node: onnx.NodeProto, path: str, module) -> bool:
        """Product or bias of a Linear layer whose input has a learned scale; False for one to keep as it is.

        Q/DQ pairs for int8, which any runtime takes; uint8 is for ONNX Runtime, in an operator of its own.
        """
        fused = module.quantize.zero_point.dtype == torch.uint8
        if node.op_type == "Add" and not fused:
            return False
        (self.fused_linear if fused else self.qdq_linear)(node, path, module)
        return True

    def qdq_linear(self, node: onnx.NodeProto, path: str, module) -> None:
        """MatMul, or Gemm as MatMul and Add of rank 3, with both inputs dequantized."""
        x, output, gemm = node.input[0], node.output[0], node.op_type == "Gemm"
        if gemm:
            axis = self.constant(f"{path}/axis", np.array([0]))
            x = self.node("Unsqueeze", [x, axis], f"{path}/input", f"{path}/Unsqueeze")
        x = self.activation(x, f"{path}/input", module.quantize)
        stored, attributes = self.weight(path, module)
        weight = self.node("DequantizeLinear", stored, dequantized(f"{path}/weight"),
                           f"{path}/weight/DequantizeLinear", **attributes)
        product = self.node("MatMul", [x, weight], f"{path}/product" if gemm else output, f"{path}/MatMul")
        if gemm:
            total = self.node("Add", [product, node.input[2]], f"{path}/sum", f"{path}/Add")
            self.node("Squeeze", [total, axis], output, f"{path}/Squeeze")

    def fused_linear(self, node: onnx.NodeProto, path: str, module) -> None:
        """Product, scales and bias in one operator: a tenth less time than Q/DQ, behind which the bias stays an Add.

        Layers that take one tensor, such as query, key and value, take its integers from one QuantizeLinear.
        """
        if node.op_type == "Add":  # the bias of the product that stands before it
            product = next(made for made in reversed(self.nodes) if made.output[0] in node.input)
            product.input.extend(name for name in node.input if name not in product.output)
            product.output[0] = node.output[0]
            return
        x = node.input[0]
        if (x, module.quantize) not in self.quantized:
            scaling = [self.constant(f"{path}/input/{part}", tensor.detach().numpy()) for part, tensor in
                       (("scale", module.quantize.scale), ("zero_point", module.quantize.zero_point))]
            self.quantized[x, module.quantize] = scaling, self.node(
                "QuantizeLinear", [x, *scaling], f"{path}/input/quantized", f"{path}/input/QuantizeLinear")
        (scale, zero_point), integers = self.quantized[x, module.quantize]
        (weight, weight_scale, weight_zero_point), _ = self.weight(path, module)
        self.node(FUSED_PRODUCT, [integers, weight, scale, weight_scale, zero_point, weight_zero_point,
                                  *node.input[2:]], node.output[0], f"{path}/{FUSED_PRODUCT}", domain=RUNTIME_DOMAIN)

    def rewrite(self, exported: onnx.ModelProto, modules: dict) -> onnx.ModelProto:
        """The graph with what layer() and product() write of `modules` (name -> module) in place.

        Raises RuntimeError if a module that says what the file stores has no place in it, UserError if one is used in
        several places, as ALBERT's are: the others would stay on floats.
        """
        wanted = {name for name, module in modules.items() if hasattr(module, "stored")}
        self.uses = Counter(name for node in exported.graph.node for name in node.input)
        written = set()  # weights that are stored anew
        for node in exported.graph.node:
            name, path = module_of(node), node.name.rpartition("/")[0]
            module = modules.get(name)
            if hasattr(module, "quantizers") and node.op_type == "MatMul":
                self.product(node, path, module.quantizers)
            elif not self.layer(node, path, module):
                if written.intersection(node.input):
                    raise UserError(f"this encoder uses {node.input[1]} several times, and {node.name} would stay on "
                                    "floats: choose int8_eager/ with --activation-ranges dynamic for it")
                self.nodes.append(node)
                continue
            elif node.op_type in ("MatMul", "Gemm"):
                written.add(node.input[1])
            wanted.discard(name)
        if wanted:
            raise RuntimeError(f"the exported graph has no product for {', '.join(sorted(wanted))}")
        return self.model(exported)

    def model(self, exported: onnx.ModelProto) -> onnx.ModelProto:
        """The new graph, with inputs, outputs and operator set of the exported one and those of its weights still used.
        """
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in exported.graph.initializer if tensor.name in used]
        graph = helper.make_graph(self.nodes, exported.graph.name, exported.graph.input, exported.graph.output,
                                  [*kept, *self.constants])
        opsets = list(exported.opset_import)
        opsets += [helper.make_opsetid(domain, 1) for domain in {node.domain for node in self.nodes} - {""}]
        return helper.make_model(graph, opset_imports=opsets, ir_version=exported.ir_version)
