"""The names that the exporter gives to nodes, spelled out here alone."""

import onnx


def module_of(node: onnx.NodeProto) -> str:
    """Name of the PyTorch module that a node was exported from: /model/bert/pooler/dense/Gemm -> bert.pooler.dense."""
    return ".".join(node.name.removeprefix("/model/").split("/")[:-1])
