"""What is trained is what ships: the low-bit file against the PyTorch simulation, stored weights and logits."""

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from lowbit.data.tokens import Row, pad
from lowbit.graph.export import largest_difference
from lowbit.graph.names import FUSED_PRODUCT, LAYOUT, LOOK_UP, QUANTIZED_TABLE, module_of, operand_of, parameter_of

# what packed weights, and the tables that they are looked up in, are made by
UNPACKING = {"Cast", "Gather", "Reshape", "Slice", "Range", "Mod", "Div", "Concat"}


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Name -> array of every initializer, and of what UNPACKING makes of them by ONNX's own reference."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in UNPACKING and all(name in values for name in node.input):
            given = {name: values[name] for name in node.input}
            values[node.output[0]] = ReferenceEvaluator(node).run(None, given)[0]
    return values


def stored_tensors(path: Path) -> dict[str, np.ndarray]:
    """What an INT8 file computes on, weights unpacked: `<module>.<tensor>.<part>` -> array, in PyTorch's orientation.

    Parts are `integers` of a weight or table, `scale` of a weight that MatMulInteger takes or of a table's rows, and,
    where a product or look-up has Q/DQ pairs, `scale` and `zero_point` of its weight, its `input`, or attention's
    `query`, `key`, `probabilities`, `value`. A product on floats has none.
    """
    graph = onnx.load(path).graph
    values = constants(graph)
    maker = {output: node for node in graph.node for output in node.output if output not in values}
    takers = {name: node for node in graph.node for name in node.input}
    found = {}

    def scale_of_product(node):
        """Of MatMulInteger -> Cast -> Mul by (input's scale * weight's scale)."""
        scaled = takers[takers[node.output[0]].output[0]]
        factor = maker.get(next((name for name in scaled.input if takers[node.output[0]].output[0] != name), None))
        return next((values[name] for name in factor.input if name in values), None) if factor else None

    def rows_of_table(node):
        """(integers, scale a row) of Mul(Cast(rows), Gather(scales)), or None.

        Rows are Gather(table), or looked up in turn: those of a packed table, whose bytes Gather takes at run time.
        """
        cast, scales = (maker.get(name) for name in node.input)
        if cast is None or cast.op_type != "Cast" or not takes_rows(scales):
            return None
        rows, path = maker.get(cast.input[0]), []
        while rows is not None and not takes_rows(rows):
            path.append(rows)
            rows = maker.get(rows.input[rows.input[0] in values])  # a look-up's own table comes before its indices
        if rows is None:
            return None
        table = {rows.output[0]: values[rows.input[0]][None]}  # all rows at once, as one text
        for step in reversed(path):
            given = {name: table.get(name, values.get(name)) for name in step.input}
            table[step.output[0]] = ReferenceEvaluator(step).run(None, given)[0]
        integers = table[cast.input[0]][0]
        return integers, values[scales.input[0]][:, 0]

    def takes_rows(node):
        """Whether a node is the look-up of a constant table's rows by ids of the text."""
        return node is not None and node.op_type == "Gather" and node.input[0] in values and (
            not node.input[0].startswith(LOOK_UP))

    def dequantized(name, node):
        if node is None or node.op_type != "DequantizeLinear":
            return
        source = maker.get(node.input[0])
        if source is None:
            found[f"{name}.integers"] = values[node.input[0]].T
        elif source.op_type == "Gather":
            found[f"{name}.integers"] = values[source.input[0]]
        elif list(source.input[1:]) != list(node.input[1:]):
            return  # quantized with one scale, dequantized with another
        found.update({f"{name}.{part}": values[tensor]
                      for part, tensor in zip(("scale", "zero_point"), node.input[1:], strict=True)})

    for node in graph.node:
        module = module_of(node)
        if node.op_type == "MatMulInteger":
            found[f"{module}.weight.integers"] = values[node.input[1]].T
            found[f"{module}.weight.scale"] = scale_of_product(node)
        elif node.op_type == FUSED_PRODUCT:
            parts = ("weight.integers", "input.scale", "weight.scale", "input.zero_point", "weight.zero_point")
            found |= {f"{module}.{part}": values[tensor].T for part, tensor in zip(parts, node.input[1:6], strict=True)}
        elif node.op_type == "Mul" and rows_of_table(node):
            found[f"{module}.weight.integers"], found[f"{module}.weight.scale"] = rows_of_table(node)
        elif node.op_type == "Gather" and node.input[0].endswith(QUANTIZED_TABLE):
            found[f"{module}.weight.integers"] = values[node.input[0]]
        elif node.op_type == "DequantizeLinear" and maker.get(node.input[0], node).op_type == "Gather":
            dequantized(f"{module}.weight", node)
        elif node.op_type == "MatMul":
            for operand in node.input:
                while operand in maker and maker[operand].op_type in LAYOUT:
                    operand = maker[operand].input[0]
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


def check_against_simulation(model: torch.nn.Module, path: Path) -> tuple[int, float]:
    """(tensors of a low-bit file, each equal to the simulation's bit for bit; largest logit difference to it).

    Raises RuntimeError, naming the first, if tensors differ, or if logits are no numbers.
    """
    simulated = simulated_tensors(model)
    wrong = differing(stored_tensors(path), simulated)
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(simulated)} tensors differ from those that training simulated: "
                           + ", ".join(wrong[:5]))
    worst = largest_difference(model, path)
    if not math.isfinite(worst):
        raise RuntimeError(f"{path.name} or the simulation gives logits that are no numbers")
    return len(simulated), worst


@torch.inference_mode()
def simulated_logits(model: torch.nn.Module, rows: list[Row], pad_id: int) -> np.ndarray:
    """Logits [n, outputs] of the simulation, one text at a time, as a server would ask."""
    model.eval()
    return np.concatenate([
        model(**{name: torch.from_numpy(value) for name, value in pad([row], pad_id).items()}).logits.numpy()
        for row in rows])
