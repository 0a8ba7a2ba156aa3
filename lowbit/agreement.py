"""What is trained is what ships: the low-bit file against the PyTorch simulation, stored weights and logits."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from lowbit.encode import pad
from lowbit.fake_fp16 import FP16_MAX
from lowbit.fake_quant import DynamicQuantLinear, QuantEmbedding


def stored_integers(path: Path) -> dict[str, np.ndarray]:
    """Module name -> the integers that the file stores for it: [out, in] of a Linear, [rows, width] of a table."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        module = ".".join(node.name.removeprefix("/model/").split("/")[:-1])
        if node.op_type == "MatMulInteger":
            found[module] = numpy_helper.to_array(tensors[node.input[1]]).T
        elif node.op_type == "Gather" and node.input[0].endswith("_quantized"):
            found[module] = numpy_helper.to_array(tensors[node.input[0]])
    return found


def simulated_integers(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Module name -> the integers that training simulated (of a model that went through fake_quant.prepare)."""
    return {name: module.stored_integers().numpy() for name, module in model.named_modules()
            if isinstance(module, (DynamicQuantLinear, QuantEmbedding))}


def differing_modules(path: Path, model: torch.nn.Module) -> tuple[int, list[str]]:
    """How many modules were simulated on integers, and which of them the file stores differently or as floats."""
    file, simulated = stored_integers(path), simulated_integers(model)
    return len(simulated), [name for name, integers in simulated.items()
                            if name not in file or not np.array_equal(integers, file[name])]


def stored_parameters(path: Path) -> dict[str, np.ndarray]:
    """State-dict name -> the tensor that a float file stores for it, in PyTorch's orientation."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {name.removeprefix("model."): numpy_helper.to_array(tensor) for name, tensor in tensors.items()
             if name.startswith("model.")}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            module = ".".join(node.name.removeprefix("/model/").split("/")[:-1])
            found[f"{module}.weight"] = numpy_helper.to_array(tensors[node.input[1]]).T
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
