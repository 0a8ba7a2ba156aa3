"""What is trained is what ships: the low-bit file against the PyTorch simulation, stored weights and logits."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from lowbit.data.tokens import pad
from lowbit.fp16.simulation import FP16_MAX
from lowbit.graph.names import module_of
from lowbit.int8.dynamic import DynamicQuantLinear, QuantEmbedding
from lowbit.int8.learned import LearnedQuantLinear, SymmetricQuantEmbedding


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
        elif node.op_type == "Gather" and node.input[0].endswith("_quantized"):
            found[f"{module}.weight.integers"] = value(node.input[0])
        elif node.op_type == "DequantizeLinear" and maker.get(node.input[0], node).op_type == "Gather":
            dequantized(f"{module}.weight", node)
        elif node.op_type == "MatMul":
            for operand in node.input:  # named <module's path>/<tensor>/dequantized
                dequantized(f"{module}.{'/'.join(operand.split('/')[-2:-1])}", maker.get(operand))
    return found


def simulated_tensors(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The same of a model that went through fake_quant.prepare or learned.prepare: what training simulated."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (DynamicQuantLinear, QuantEmbedding)):
            found[f"{name}.weight.integers"] = module.stored_integers()
        elif isinstance(module, (LearnedQuantLinear, SymmetricQuantEmbedding)):
            integers, scale = module.stored()
            found |= {f"{name}.weight.integers": integers, f"{name}.weight.scale": scale,
                      f"{name}.weight.zero_point": torch.zeros(scale.shape, dtype=torch.int8)}
        inputs = getattr(module, "quantizers", {})
        if isinstance(module, LearnedQuantLinear):
            inputs = {"input": module.quantize}
        for tensor, quantizer in inputs.items():
            found |= {f"{name}.{tensor}.scale": quantizer.scale.detach(),
                      f"{name}.{tensor}.zero_point": quantizer.zero_point}
    return {name: tensor.numpy() for name, tensor in found.items()}


def differing_tensors(path: Path, model: torch.nn.Module) -> tuple[int, list[str]]:
    """How many tensors were simulated, and which of them the file lacks or stores otherwise, in type or in a bit."""
    stored, simulated = stored_tensors(path), simulated_tensors(model)
    return len(simulated), [name for name, tensor in simulated.items()
                            if name not in stored or stored[name].dtype != tensor.dtype
                            or not np.array_equal(tensor, stored[name])]


def stored_parameters(path: Path) -> dict[str, np.ndarray]:
    """State-dict name -> the tensor that a float file stores for it, in PyTorch's orientation."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {name.removeprefix("model."): numpy_helper.to_array(tensor) for name, tensor in tensors.items()
             if name.startswith("model.")}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            found[f"{module_of(node)}.weight"] = numpy_helper.to_array(tensors[node.input[1]]).T
    return found


def differing_parameters(stored: dict[str, np.ndarray], model: torch.nn.Module) -> list[str]:
    """Parameters of `model` that `stored` lacks or holds otherwise: an FP16 one is the nearest value, bit for bit."""
    def same(name, parameter):
        ours = stored.get(name)
        if ours is not None and ours.dtype == np.float16:
            parameter = parameter.clamp(-FP16_MAX, FP16_MAX).half()
        return ours is not None and np.array_equal(ours, parameter.numpy())

    return [name for name, parameter in model.named_parameters() if not same(name, parameter.detach())]


@torch.inference_mode()
def simulated_logits(model: torch.nn.Module, rows: list[list[int]], pad_id: int) -> np.ndarray:
    """Logits [n, labels] of the simulation, one text at a time, as a server would ask."""
    model.eval()
    return np.concatenate([
        model(**{name: torch.from_numpy(value) for name, value in pad([row], pad_id).items()}).logits.numpy()
        for row in rows])
