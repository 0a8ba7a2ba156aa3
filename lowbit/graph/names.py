"""The names that the exporter and the file writers give to nodes and tensors, spelled here alone."""

import onnx

ROOT = "/model/"  # torch's exporter puts the path of a module before its nodes: /model/bert/pooler/dense/Gemm
PARAMETER = "model."  # and this before a parameter that no operator changed: model.bert.pooler.dense.bias
LOOK_UP = "levels_of_a_byte"  # start of the constants that packed weights are looked up in, one a number of bits
QUANTIZED_TABLE = "_quantized"  # ONNX Runtime's dynamic quantizer ends an integer initializer's name so


def module_of(node: onnx.NodeProto) -> str:
    """Name of the PyTorch module that a node was exported from: /model/bert/pooler/dense/Gemm -> bert.pooler.dense."""
    return ".".join(node.name.removeprefix(ROOT).split("/")[:-1])


def parameter_of(initializer: str) -> str | None:
    """State-dict name of a parameter that is stored as it is, None for a tensor that is no parameter."""
    return initializer.removeprefix(PARAMETER) if initializer.startswith(PARAMETER) else None


def dequantized(path: str) -> str:
    """Name of the tensor behind the Q/DQ pair of operand `path`, such as /model/bert/pooler/dense/input."""
    return f"{path}/dequantized"


def operand_of(tensor: str) -> str:
    """The operand's own name, of a tensor named by dequantized(): input, weight, query, key, probabilities, value."""
    return "/".join(tensor.split("/")[-2:-1])
