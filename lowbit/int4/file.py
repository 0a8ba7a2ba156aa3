"""From the FP32 graph to weights packed at their bits, which the runtime unpacks once, when it makes the session.

    INT8 weight = Reshape(Gather(table [256, weights a byte] of INT8, Cast(bytes, INT32)))

All of it is constant: ONNX Runtime and OpenVINO fold it and run the graph of an INT8 file, counted in the graph as ONNX
Runtime optimises it, and equal to the last bit. The bit operators fold in ONNX Runtime alone (OpenVINO computes them
wrongly), DequantizeLinear of 4-bit weights in neither; the look-up takes any levels, with operators of opset 13. A
table of many words stays packed: its rows are unpacked as they are looked up, which takes less memory.
"""

import numpy as np
import onnx

from lowbit.graph.names import LOOK_UP, shorten_names
from lowbit.graph.writer import GraphWriter
from lowbit.int4.levels import LEVELS, Levels, pack, table_of

WIDE = 2**18  # weights from which two bytes are looked up at once: half the indices that unpacking holds
# rows of a table from which it stays packed: with 12,000 words it costs a small model 5 % of its time at 1 x 32
MANY_ROWS = 2**14


class _Writer(GraphWriter):
    """GraphWriter with packed weights, and the layers of both modes."""

    def __init__(self):
        super().__init__()
        self.tables = {}

    def table(self, levels: Levels, wide: bool) -> str:
        """The look-up of a byte, or of two: the second is computed from the first, and takes no room in the file."""
        name = f"{LOOK_UP}_{levels.base}" + "_wide" * wide
        if name in self.tables:
            return name
        self.tables[name] = levels
        if not wide:
            return self.constant(name, table_of(levels))
        byte, count = self.table(levels, False), levels.base**levels.a_byte
        zero, one, end, base = (self.constant(f"{name}/{part}", np.array(value, np.int32)) for part, value in (
            ("zero", 0), ("one", 1), ("end", count**2), ("base", count)))
        every = self.node("Range", [zero, end, one], f"{name}/every", f"{name}/Range")
        halves = []
        for part, operator in (("low", "Mod"), ("high", "Div")):
            half = self.node(operator, [every, base], f"{name}/{part}", f"{name}/{operator}")
            halves.append(self.node("Gather", [byte, half], f"{name}/{part}/levels", f"{name}/{part}/Gather"))
        return self.node("Concat", halves, name, f"{name}/Concat", axis=1)

    def looked_up(self, path: str, source: str, levels: Levels, wide: bool, shape: list[int], columns: int) -> str:
        """Bytes (or pairs of bytes, if wide) of tensor `source` as levels of `shape`, cut to their columns, INT8."""
        index = self.node("Cast", [source], f"{path}/index", f"{path}/Cast", to=onnx.TensorProto.INT32)
        found = self.node("Gather", [self.table(levels, wide), index], f"{path}/levels", f"{path}/Gather")
        target = self.constant(f"{path}/shape", np.array(shape, np.int64))
        if columns % (levels.a_byte * (1 + wide)) == 0:
            return self.node("Reshape", [found, target], f"{path}/integers", f"{path}/Reshape")
        rows = self.node("Reshape", [found, target], f"{path}/filled", f"{path}/Reshape")
        edges = [self.constant(f"{path}/{name}", np.array([value], np.int64))
                 for name, value in (("start", 0), ("end", columns), ("axis", -1))]
        return self.node("Slice", [rows, *edges], f"{path}/integers", f"{path}/Slice")

    def unpacked(self, path: str, integers: np.ndarray, levels: Levels) -> str:
        """The INT8 tensor of levels [rows, columns], stored packed where several share a byte."""
        if levels.a_byte == 1:
            return self.constant(f"{path}/integers", integers)
        wide = integers.size >= WIDE
        packed = pack(integers, levels, wide)
        return self.looked_up(path, self.constant(f"{path}/packed", packed), levels, wide, [len(packed), -1],
                              integers.shape[1])

    def linear(self, node: onnx.NodeProto, path: str, module) -> None:
        """A Linear layer whose input range is measured at run time."""
        stored = _stored(module)
        x, output, gemm = node.input[0], node.output[0], node.op_type == "Gemm"
        if x not in self.quantized:  # Q, K and V take one tensor
            names = [f"{x}/{part}" for part in ("quantized", "scale", "zero_point")]
            self.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", [x], names,
                                                    name=f"{path}/DynamicQuantizeLinear"))
            self.quantized[x] = names
        integers, scale, zero_point = self.quantized[x]
        weight = self.unpacked(f"{path}/weight", stored["weight.integers"].T, module.levels)
        product = self.node("MatMulInteger", [integers, weight, zero_point], f"{path}/product",
                            f"{path}/MatMulInteger")
        product = self.node("Cast", [product], f"{path}/float", f"{path}/Cast", to=onnx.TensorProto.FLOAT)
        scale = self.node("Mul", [scale, self.constant(f"{path}/weight/scale", stored["weight.scale"])],
                          f"{path}/scale", f"{path}/scale/Mul")
        product = self.node("Mul", [product, scale], f"{path}/scaled" if gemm else output, f"{path}/Mul")
        if gemm:
            self.node("Add", [product, node.input[2]], output, f"{path}/Add")

    def weight(self, path: str, module) -> tuple[list[str], dict]:
        stored = _stored(module)
        integers = self.unpacked(f"{path}/weight", stored["weight.integers"].T, module.levels)
        scaling = [self.constant(f"{path}/weight/{part}", stored[f"weight.{part}"]) for part in ("scale", "zero_point")]
        return [integers, *scaling], {"axis": 1}

    def layer(self, node: onnx.NodeProto, path: str, module) -> bool:
        if getattr(module, "levels", None) not in LEVELS.values():
            return False
        if hasattr(module, "quantize") and node.op_type in ("MatMul", "Gemm", "Add"):
            return self.learned_linear(node, path, module)
        if node.op_type not in ("MatMul", "Gemm", "Gather"):
            return False
        (self.embedding if node.op_type == "Gather" else self.linear)(node, path, module)
        return True

    def embedding(self, node: onnx.NodeProto, path: str, module) -> None:
        """Rows are looked up as integers, and only these are multiplied by their scales; of many rows, as bytes."""
        stored = _stored(module)
        integers, levels = stored["weight.integers"], module.levels
        if len(integers) >= MANY_ROWS and levels.a_byte > 1:
            table = self.constant(f"{path}/weight/packed", pack(integers, levels))
            rows = self.node("Gather", [table, node.input[1]], f"{path}/bytes", f"{path}/Gather")
            rows = self.looked_up(f"{path}/rows", rows, levels, False, [0, 0, -1], integers.shape[1])
        else:
            table = self.unpacked(f"{path}/weight", integers, levels)
            rows = self.node("Gather", [table, node.input[1]], f"{path}/rows", f"{path}/Gather")
        rows = self.node("Cast", [rows], f"{path}/float", f"{path}/Cast", to=onnx.TensorProto.FLOAT)
        scales = self.constant(f"{path}/weight/scale", stored["weight.scale"][:, None])
        scale = self.node("Gather", [scales, node.input[1]], f"{path}/scale", f"{path}/scale/Gather")
        self.node("Mul", [rows, scale], node.output[0], f"{path}/Mul")


def _stored(module) -> dict[str, np.ndarray]:
    return {part: tensor.numpy() for part, tensor in module.stored().items()}


def quantize(exported: onnx.ModelProto, model) -> onnx.ModelProto:
    """The low-bit form of an exported FP32 graph; `model` is the simulation on the CPU, its weights loaded.

    Integers, scales and zero points are the simulation's own tensors. Raises RuntimeError if a part of the simulation
    has no place in the graph.
    """
    return write(exported, dict(model.named_modules()))


def write(exported: onnx.ModelProto, modules: dict) -> onnx.ModelProto:
    """The low-bit form of an exported graph; `modules` maps names to what has `stored()` and, with it, `levels`.

    Those with `quantize` take an input of a learned scale, the others one whose range is measured at run time.
    """
    made = _Writer().rewrite(exported, modules)
    shorten_names(made)
    return made
