"""The names that the exporter and the file writers give to nodes and tensors, spelled here alone."""

import onnx

ROOT = "/model/"  # torch's exporter puts the path of a module before its nodes: /model/bert/pooler/dense/Gemm
PARAMETER = "model."  # and this before a parameter that no operator changed: model.bert.pooler.dense.bias
LOOK_UP = "levels_of_a_byte"  # start of the constants that packed weights are looked up in, one a number of bits
DEQUANTIZED = "/dequantized"  # end of the name of a tensor behind a Q/DQ pair
RUNTIME_DOMAIN = "com.microsoft"  # of the operators that ONNX Runtime alone has
LAYOUT = ("Transpose", "Reshape")  # operators that only lay numbers out anew
FUSED_PRODUCT = "MatMulIntegerToFloat"  # one of these: product of integers, both scales, bias
QUANTIZED_TABLE = "_quantized"  # ONNX Runtime's dynamic quantizer ends an integer initializer's name so


def module_of(node: onnx.NodeProto) -> str:
    """Name of the PyTorch module that a node was exported from: /model/bert/pooler/dense/Gemm -> bert.pooler.dense."""
    return ".".join(node.name.removeprefix(ROOT).split("/")[:-1])


def parameter_of(initializer: str) -> str | None:
    """State-dict name of a parameter that is stored as it is, None for a tensor that is no parameter."""
    return initializer.removeprefix(PARAMETER) if initializer.startswith(PARAMETER) else None


def dequantized(path: str) -> str:
    """Name of the tensor behind the Q/DQ pair of operand `path`, such as /model/bert/pooler/dense/input."""
    return f"{path}{DEQUANTIZED}"


def shorten_names(model: onnx.ModelProto) -> None:
    """Give tensors names of one or two letters, in place: the exporter's make up a twentieth of the smallest files.

    Kept are the graph's inputs and outputs, look-up tables, operands that operand_of() reads, and operators' own names.
    """
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    known = {}

    def short(name):
        if name in kept or name.startswith(LOOK_UP) or name.endswith(DEQUANTIZED):
            return name
        return known.setdefault(name, f"t{len(known):x}")

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [short(name) for name in names]


def operand_of(tensor: str) -> str:
    """The operand's own name, of a tensor named by dequantized(): input, weight, query, key, probabilities, value."""
    return "/".join(tensor.split("/")[-2:-1])
