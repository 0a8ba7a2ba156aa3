"""A traced graph without work that no logit needs: shapes computed anew in every run, a fusion that is slow."""

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnxruntime.transformers.onnx_model import OnnxModel

EXAMPLES = ((3, 7), (5, 11))  # batch and length of the inputs that shapes are compared for
LARGEST_SHAPE = 64  # elements of a stored tensor that can be a shape; larger ones are weights


def _shapes(model: onnx.ModelProto, batch: int, length: int) -> dict[str, list[int]]:
    """Tensor -> its shape where the graph's inputs are [batch, length], of those that can be inferred as a whole."""
    graph, small = model.graph, []
    given = [(value.name, value.type.tensor_type.elem_type, [batch, length]) for value in graph.input]
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= LARGEST_SHAPE:
            small.append(tensor)
        else:  # a weight, whose values no shape depends on
            given.append((tensor.name, tensor.data_type, tensor.dims))
    outputs = [helper.make_empty_tensor_value_info(value.name) for value in graph.output]
    example = helper.make_model(
        helper.make_graph(graph.node, graph.name, [helper.make_tensor_value_info(*value) for value in given], outputs,
                          small), opset_imports=model.opset_import)
    inferred = shape_inference.infer_shapes(example, data_prop=True).graph
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*inferred.input, *inferred.value_info)
            if value.type.tensor_type.HasField("shape")
            and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)}


def store_shapes(model: onnx.ModelProto) -> None:
    """Give every Reshape whose target is computed a stored one that says the same, in place.

    0 copies the input's dimension, a number is one that does not change, one other dimension is -1.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    seen = [_shapes(model, *example) for example in EXAMPLES]
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] in stored:
            continue
        if not all({node.input[0], node.output[0]} <= shapes.keys() for shapes in seen):
            continue
        given, wanted = ([shapes[name] for shapes in seen] for name in (node.input[0], node.output[0]))
        target = []
        for place, sizes in enumerate(zip(*wanted, strict=True)):
            copied = all(len(shape) > place and shape[place] == size for shape, size in zip(given, sizes, strict=True))
            target.append(0 if copied else sizes[0] if len(set(sizes)) == 1 else -1)
        if target and target.count(-1) <= 1:
            shape = numpy_helper.from_array(np.array(target), f"{node.name}/shape")
            model.graph.initializer.append(shape)
            node.input[1] = shape.name


def keep_residuals_apart(model: onnx.ModelProto) -> None:
    """Make each Add before a LayerNormalization a Sum, in place.

    ONNX Runtime fuses Add and LayerNormalization to SkipLayerNormalization, which takes three times as long on a CPU.
    """
    normalized = {node.input[0] for node in model.graph.node if node.op_type == "LayerNormalization"}
    for node in model.graph.node:
        if node.op_type == "Add" and node.output[0] in normalized:
            node.op_type = "Sum"


def simplify(model: onnx.ModelProto) -> None:
    """Both, in place, and without the nodes that are no longer of use."""
    store_shapes(model)
    keep_residuals_apart(model)
    OnnxModel(model).prune_graph()
