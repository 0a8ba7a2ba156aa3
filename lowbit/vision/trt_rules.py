"""TensorRT's rules for explicit quantization, checked on an ONNX file without TensorRT, which is not needed here.

An error is what TensorRT refuses or what makes it compute something else; a warning is what keeps it from fusing
layers or leaves one on floats. Both name the node. The rules are those of "Working with Quantized Types" in NVIDIA's
TensorRT documentation: symmetric INT8, scales that are constants, weights per output channel behind a DequantizeLinear,
Q/DQ on both inputs of a layer and on the shortcut of a residual addition, none between a convolution and its
activation.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from lowbit.vision.trt_graph import Finding, Graph, attribute, called

ERROR, WARNING = "error", "warning"
LEAST_OPSET = 13  # the first whose DequantizeLinear has an axis
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FUSED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Selu", "PRelu", "Mish",
         "Softplus", "Gelu", "Swish", "BatchNormalization")  # behind a convolution
INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm", "ConvInteger",
                     "MatMulInteger", "DynamicQuantizeLinear", "QLinearGlobalAveragePool", "QLinearSigmoid",
                     "MatMulIntegerToFloat")
LOW = {onnx.TensorProto.INT8, onnx.TensorProto.INT4, onnx.TensorProto.FLOAT8E4M3FN}


def check(path: Path, floats: tuple[str, ...] = ()) -> list[Finding]:
    """Every finding in a file, errors first; `floats` are names of nodes that are to stay on floats."""
    return check_model(onnx.load(path), floats)


def check_model(model: onnx.ModelProto, floats: tuple[str, ...] = ()) -> list[Finding]:
    """The findings in a model."""
    graph, found = Graph(model), []
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        found.append(Finding(ERROR, "the file", "opset", f"has opset {opset}; scales per channel take {LEAST_OPSET}"))
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _check_scaling(graph, node)
        if node.op_type == "QuantizeLinear":
            found += _check_quantize(graph, node)
        elif node.op_type == "DequantizeLinear":
            found += _check_dequantize(graph, node)
        elif node.op_type in INTEGER_OPERATORS:
            found.append(Finding(ERROR, called(node), "operator", f"{node.op_type} is no operator of TensorRT, which "
                                 "takes QuantizeLinear and DequantizeLinear around operators of floats"))
        elif node.op_type in LAYERS:
            found += _check_layer(graph, node, called(node) in floats)
        elif node.op_type == "Add":
            found += _check_addition(graph, node)
    return sorted(found, key=lambda finding: finding.kind)


def _check_scaling(graph: Graph, node: onnx.NodeProto) -> list[Finding]:
    """Scale and zero point of one operator."""
    found, name = [], called(node)
    scale = graph.array(node.input[1])
    if scale is None:
        return [Finding(ERROR, name, "constant scale", "its scale is computed; TensorRT takes constants only")]
    if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        found.append(Finding(ERROR, name, "positive scale", "its scale has values that are not above 0"))
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear" and not attribute(node, "output_dtype", 0):
            found.append(Finding(ERROR, name, "int8", "it has no zero point and so makes UINT8; TensorRT takes INT8"))
        return found
    zero_point = graph.values.get(node.input[2])
    if zero_point is None:
        return [*found, Finding(ERROR, name, "constant zero point", "its zero point is computed; it must be 0")]
    if zero_point.data_type not in LOW:
        kind = onnx.TensorProto.DataType.Name(zero_point.data_type)
        found.append(Finding(ERROR, name, "int8", f"it makes or takes {kind}; TensorRT takes INT8"))
    values = numpy_helper.to_array(zero_point).astype(np.float32)
    if np.any(values != 0):
        largest = values.flat[np.abs(values).argmax()]
        found.append(Finding(ERROR, name, "zero point 0", f"its zero point is {largest:g}; TensorRT's quantization is "
                             "symmetric"))
    if values.size != scale.size:
        found.append(Finding(ERROR, name, "zero point 0", f"it has {scale.size} scales but {values.size} zero points"))
    return found


def _check_quantize(graph: Graph, node: onnx.NodeProto) -> list[Finding]:
    found, name = [], called(node)
    takers = graph.takers.get(node.output[0], [])
    others = [taker for taker in takers if taker.op_type != "DequantizeLinear"]
    if others or not takers:
        taken = f"{called(others[0])} takes its integers" if others else "nothing takes its integers"
        found.append(Finding(ERROR, name, "pair", f"{taken}; TensorRT takes a DequantizeLinear behind it"))
    if node.input[0] in graph.values:
        found.append(Finding(ERROR, name, "stored int8", "it quantizes a stored FP32 weight; the file should store "
                             "INT8 behind a DequantizeLinear"))
    elif (scale := graph.array(node.input[1])) is not None and scale.size > 1:
        found.append(Finding(ERROR, name, "one scale an activation", f"it has {scale.size} scales for an activation; "
                             "TensorRT takes one"))
    before = graph.maker.get(node.input[0])
    if before is not None and before.op_type in LAYERS and graph.pair(before.input[0])[0] is not None:
        for taker in (deeper for pair in takers for deeper in graph.takers.get(pair.output[0], [])):
            if taker.op_type in FUSED:
                found.append(Finding(WARNING, name, "fused activation", f"it stands between {called(before)} and its "
                                     f"{taker.op_type}, which are fused only without it"))
                break
    return found


def _check_dequantize(graph: Graph, node: onnx.NodeProto) -> list[Finding]:
    source, name = graph.maker.get(node.input[0]), called(node)
    if node.input[0] in graph.values:
        return []
    if source is None or source.op_type != "QuantizeLinear":
        return [Finding(ERROR, name, "pair", "no QuantizeLinear stands before it and its input is not stored")]
    for place, what in ((1, "scale"), (2, "zero point")):
        ours, theirs = (graph.array(each.input[place]) if len(each.input) > place else None for each in (node, source))
        if (ours is None) != (theirs is None) or (ours is not None and not np.array_equal(ours, theirs)):
            return [Finding(ERROR, name, "equal pair", f"its {what} is not that of {called(source)}")]
    return []


def _check_layer(graph: Graph, node: onnx.NodeProto, kept_float: bool) -> list[Finding]:
    name, found = called(node), []
    quantized = [graph.pair(operand)[0] is not None for operand in node.input[:2]]
    if not any(quantized):
        stored = any(graph.is_weight(operand) for operand in node.input[:2])
        if not kept_float and stored:
            found.append(Finding(WARNING, name, "float layer", "neither of its inputs has Q/DQ: it computes on floats"))
        return found
    for operand, has, what in zip(node.input[:2], quantized, ("first input", "second input"), strict=True):
        if not has:
            kind = "weight" if graph.is_weight(operand) else what
            found.append(Finding(ERROR, name, "both inputs", f"its {kind} has no Q/DQ, but its other input has"))
    for place, operand in enumerate(node.input[:2]):
        if quantized[place] and graph.is_weight(operand):
            found += _check_weight(graph, node, place)
    if len(node.input) > 2 and graph.pair(node.input[2])[0] is not None:
        found.append(Finding(ERROR, name, "float bias", "its bias is behind a DequantizeLinear; TensorRT takes FP32"))
    return found + _check_fused(graph, node)


def _check_weight(graph: Graph, node: onnx.NodeProto, place: int) -> list[Finding]:
    """Type, axis and number of scales of a stored weight."""
    name, dequantize = called(node), graph.pair(node.input[place])[0]
    scale, stored = graph.array(dequantize.input[1]), graph.values.get(dequantize.input[0])
    if scale is None or stored is None:
        return []
    found, shape = [], list(stored.dims)
    if stored.data_type not in LOW:
        kind = onnx.TensorProto.DataType.Name(stored.data_type)
        found.append(Finding(ERROR, name, "stored int8", f"its weight is stored as {kind}; TensorRT takes INT8"))
    elif stored.data_type == onnx.TensorProto.INT8 and np.any(numpy_helper.to_array(stored) == -128):
        found.append(Finding(WARNING, name, "symmetric", "its weight holds -128: symmetric quantization ends at -127"))
    if scale.size == 1:
        found.append(Finding(WARNING, name, "per channel", "its weight has one scale, not one an output channel"))
        return found
    wanted = {"Conv": 0, "ConvTranspose": 1, "MatMul": len(shape) - 1}.get(
        node.op_type, 0 if attribute(node, "transB", 0) else 1)
    axis = attribute(dequantize, "axis", 1)
    axis += len(shape) * (axis < 0)
    if scale.ndim > 1:
        found.append(Finding(ERROR, name, "per channel", "its weight's scales are no list of one a channel"))
    elif axis != wanted:
        found.append(Finding(ERROR, name, "axis", f"its weight's scales lie along axis {axis}; its output channels lie "
                             f"along axis {wanted}"))
    elif scale.size != shape[wanted]:
        found.append(Finding(ERROR, name, "axis", f"its weight has {scale.size} scales for {shape[wanted]} channels"))
    return found


def _check_fused(graph: Graph, node: onnx.NodeProto) -> list[Finding]:
    """BatchNormalization or Identity where a layer and its neighbours would be fused."""
    found = []
    for taker in graph.takers.get(node.output[0], []):
        if taker.op_type == "BatchNormalization":
            found.append(Finding(WARNING, called(taker), "folded", f"it was not folded into {called(node)}"))
    for operand in node.input[:2]:
        between = graph.maker.get(operand)
        if between is not None and between.op_type == "Identity":
            found.append(Finding(WARNING, called(between), "folded", f"it stands between Q/DQ and {called(node)}"))
    return found


def _check_addition(graph: Graph, node: onnx.NodeProto) -> list[Finding]:
    """A residual addition: one operand straight from a layer on integers, the other behind Q/DQ."""
    name = called(node)
    layers = [_layer_behind(graph, operand) for operand in node.input]
    if sum(graph.is_weight(operand) for operand in node.input) or not any(layers):
        return []
    paired = [graph.pair(operand)[0] is not None for operand in node.input]
    if all(paired):
        return [Finding(WARNING, name, "residual addition", "both its operands have Q/DQ: it is not fused to the "
                        "convolution of its main branch")]
    if not any(paired) and any(layer is not None and not paired[place] for place, layer in enumerate(layers)):
        return [Finding(WARNING, name, "residual addition", "its shortcut has no Q/DQ: it computes on floats")]
    return []


def _layer_behind(graph: Graph, name: str) -> onnx.NodeProto | None:
    """The layer with quantized inputs that makes a tensor, Q/DQ between aside."""
    dequantize, quantize = graph.pair(name)
    if dequantize is not None:
        name = quantize.input[0] if quantize is not None else name
    made = graph.maker.get(name)
    if made is None or made.op_type not in LAYERS or graph.pair(made.input[0])[0] is None:
        return None
    return made


def finding_lines(found: list[Finding]) -> list[str]:
    """The findings as a user reads them: how many of each kind, then each."""
    counts = {kind: sum(finding.kind == kind for finding in found) for kind in (ERROR, WARNING)}
    return [f"  TensorRT's rules: {counts[ERROR]} errors, {counts[WARNING]} warnings of layers that are not fused",
            *(f"    {finding}" for finding in found)]
