"""What is trained is what ships: the low-bit file against the PyTorch simulation, stored weights and logits."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from lowbit.data.tokens import Row, pad
from lowbit.graph.names import QUANTIZED_TABLE, module_of, operand_of, parameter_of


def stored_tensors(path: Path) -> dict[str, np.ndarray]:
    """What an INT8 file computes on: `<module>.<tensor>.<part>` -> array, weights in PyTorch's orientation.

    Parts are `integers` of a weight or table, and, where a product or look-up has Q/DQ pairs, `scale` and `zero_point`
    of its weight, its `input`, or attention's `query`, `key`, `probabilities`, `value`. A product on floats has none.
    """
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    maker = {output: node for node in graph.node for output in node.output}
    found = {}

    def value(name):
        return numpy_helper.to_array(tensors[name])

    def dequantized(name, node):
        if node is None or node.op_type != "DequantizeLinear":
            return
        source = maker.get(node.input[0])
        if source is None:
            found[f"{name}.integers"] = value(node.input[0]).T
        elif source.op_type == "Gather":
            found[f"{name}.integers"] = value(source.input[0])
        elif list(source.input[1:]) != list(node.input[1:]):
            return  # quantized with one scale, dequantized with another
        found.update({f"{name}.{part}": value(tensor)
                      for part, tensor in zip(("scale", "zero_point"), node.input[1:], strict=True)})

    for node in graph.node:
        module = module_of(node)
        if node.op_type == "MatMulInteger":
            found[f"{module}.weight.integers"] = value(node.input[1]).T
        elif node.op_type == "Gather" and node.input[0].endswith(QUANTIZED_TABLE):
            found[f"{module}.weight.integers"] = value(node.input[0])
        elif node.op_type == "DequantizeLinear" and maker.get(node.input[0], node).op_type == "Gather":
            dequantized(f"{module}.weight", node)
        elif node.op_type == "MatMul":
            for operand in node.input:
                dequantized(f"{module}.{operand_of(operand)}", maker.get(operand))
    return found


def simulated_tensors(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Name -> tensor that the file is to hold: every module that quantizes says in `stored()` what that is."""
    return {f"{name}.{part}": tensor.numpy() for name, module in model.named_modules() if hasattr(module, "stored")
            for part, tensor in module.stored().items()}


def stored_parameters(path: Path) -> dict[str, np.ndarray]:
    """State-dict name -> the tensor that a float file stores for it, in PyTorch's orientation."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {parameter_of(name): numpy_helper.to_array(tensor) for name, tensor in tensors.items()
             if parameter_of(name)}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            found[f"{module_of(node)}.weight"] = numpy_helper.to_array(tensors[node.input[1]]).T
    return found


def differing(stored: dict[str, np.ndarray], simulated: dict[str, np.ndarray]) -> list[str]:
    """The simulated tensors that the file lacks or stores otherwise, in type or in a bit."""
    return [name for name, tensor in simulated.items()
            if name not in stored or stored[name].dtype != tensor.dtype or not np.array_equal(tensor, stored[name])]


@torch.inference_mode()
def simulated_logits(model: torch.nn.Module, rows: list[Row], pad_id: int) -> np.ndarray:
    """Logits [n, outputs] of the simulation, one text at a time, as a server would ask."""
    model.eval()
    return np.concatenate([
        model(**{name: torch.from_numpy(value) for name, value in pad([row], pad_id).items()}).logits.numpy()
        for row in rows])
