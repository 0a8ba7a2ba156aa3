"""What a file holds and what really runs: counts over the graph as ONNX Runtime optimises it, not as it looks."""

import math
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort

from lowbit.graph.names import LOOK_UP

INTEGER_PRODUCTS = {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm",
                    "QAttention"}
INT8_STEPS = 4  # accuracy_level at which MatMulNBits quantizes its input and multiplies integers
FLOAT_PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm"}
INTEGER_CONVOLUTIONS = {"QLinearConv", "ConvInteger"}
FLOAT_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "NhwcConv"}
OPENVINO_KERNELS = {"FullyConnected", "MatMul", "Subgraph", "Convolution"}
OPENVINO_LAYERS = {"FullyConnected", "Convolution"}  # with a stored weight
OPENVINO_INTEGERS = {"i8", "u8"}
INTEGER_TYPES = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}


def optimised_graph(path: Path) -> onnx.GraphProto:
    """The graph, without its weights, that the CPU provider executes for `path`, all of its fusions applied."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3  # it warns that this file is for this machine only: it is read and deleted
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath, load_external_data=False).graph


def census(path: Path) -> dict:
    """Counts of products and table look-ups on integers and on floats, and for each float one the reason.

    `linear` are products with a stored weight, `attention` products of two activations, `embedding` look-ups
    in a stored table. Each is {"integer": n, "float": n}; `float_nodes` maps a node's name to why it is float.
    `packed` counts weights and tables that the file stores several to a byte: {"stored": n, "unpacked_at_load": n,
    "rows": n}, the last being tables whose rows are unpacked as they are looked up.
    """
    graph = optimised_graph(path)
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer
              if len(tensor.dims) >= 2 and tensor.dims[-1] > 1}  # a column holds the scales of a table's rows
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    counts = {kind: {"integer": 0, "float": 0} for kind in ("linear", "attention", "embedding")}
    why, operators = {}, Counter(node.op_type for node in graph.node)
    for node in graph.node:
        weights = [name for name in node.input if name in stored]
        level = next((entry.i for entry in node.attribute if entry.name == "accuracy_level"), 0)
        if node.op_type in INTEGER_PRODUCTS or (node.op_type == "MatMulNBits" and level == INT8_STEPS):
            counts["linear" if weights else "attention"]["integer"] += 1
        elif node.op_type == "MatMulNBits":
            counts["linear"]["float"] += 1
            why[node.name] = "its 4-bit weight is dequantized inside the kernel"
        elif node.op_type in FLOAT_PRODUCTS and (weights or set(node.input) & dequantized):
            counts["linear"]["float"] += 1
            why[node.name] = "its weight is stored as a float" if weights else "its weight is dequantized before it"
        elif node.op_type in FLOAT_PRODUCTS:
            counts["attention"]["float"] += 1
            why[node.name] = "it multiplies two activations that are not quantized"
        elif node.op_type == "Gather" and node.input[0] in stored and not node.input[0].startswith(LOOK_UP):
            integer = stored[node.input[0]] in INTEGER_TYPES
            counts["embedding"]["integer" if integer else "float"] += 1
            if not integer:
                why[node.name] = "its table is stored as a float"
    packed = count_packed(onnx.load(path, load_external_data=False).graph, graph)
    return {**counts, "packed": packed, "float_nodes": why, "operators": dict(operators.most_common())}


def layer_census(path: Path) -> dict:
    """Convolutions and Linear layers that the CPU provider runs on integers and on floats.

    {"integer": n, "float": n, "float_nodes": names, "operators": operator -> n, of the optimised graph}.
    """
    graph = optimised_graph(path)
    stored = {tensor.name for tensor in graph.initializer} | {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    integer = [node for node in graph.node if node.op_type in INTEGER_CONVOLUTIONS | INTEGER_PRODUCTS]
    floats = [node for node in graph.node if node.op_type in FLOAT_CONVOLUTIONS | FLOAT_PRODUCTS
              and stored & set(node.input[1:])]
    return {"integer": len(integer), "float": len(floats), "float_nodes": [node.name for node in floats],
            "operators": dict(Counter(node.op_type for node in graph.node).most_common())}


def openvino_layer_census(path: Path) -> dict:
    """layer_census() of OpenVINO's compiled graph, its `operators` counted by number type."""
    counts = openvino_kernels(path)
    found = Counter()
    for kernel in OPENVINO_LAYERS & counts.keys():
        for kind, count in counts[kernel].items():
            found["integer" if kind in OPENVINO_INTEGERS else "float"] += count
    return {"integer": found["integer"], "float": found["float"], "operators": {
        f"{kernel} on {kind}": count for kernel, kinds in counts.items() for kind, count in kinds.items()}}


def count_packed(file: onnx.GraphProto, optimised: onnx.GraphProto) -> dict[str, int]:
    """What census() says of packed weights, by the look-ups that the file has and those that are left of them."""
    maker = {output: node for node in file.node for output in node.output}
    looked_up = [node for node in file.node if node.op_type == "Gather" and node.input[0].startswith(LOOK_UP)
                 and not node.name.startswith(LOOK_UP)]
    left = {node.output[0] for node in optimised.node}
    sources = [maker.get(maker[node.input[1]].input[0]) for node in looked_up]  # of the bytes that become indices
    rows = sum(source is not None and source.op_type == "Gather" for source in sources)
    return {"stored": len(looked_up), "rows": rows,
            "unpacked_at_load": sum(node.output[0] not in left for node in looked_up)}


def linear_bytes(path: Path) -> int:
    """Bytes that the file stores for the weights of its Linear layers, with their scales and zero points."""
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {node.output[0]: node.input for node in graph.node if node.op_type == "DequantizeLinear"}
    found = set()
    for node in graph.node:
        if node.op_type in {*INTEGER_PRODUCTS, *FLOAT_PRODUCTS, "MatMulNBits"}:
            for name in node.input[1:]:
                behind = dequantized.get(name, [name])
                found |= set(behind) & stored.keys() if behind[0] in stored else set()
    return sum(math.prod(stored[name].dims) * _bits(stored[name].data_type) // 8 for name in found)


def _bits(kind: int) -> int:
    half = kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    return 4 if half else 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def census_lines(result: dict) -> list[str]:
    """The census as a user reads it: one line a kind, then the reasons, each once with its count."""
    names = {"linear": "Linear layers", "attention": "attention products", "embedding": "embedding look-ups"}
    lines = [f"  {names[kind]}: {result[kind]['integer']} on integers, {result[kind]['float']} on floats"
             for kind in names]
    packed = result["packed"]
    if packed["stored"]:
        late = packed["stored"] - packed["unpacked_at_load"] - packed["rows"]
        lines.append(f"  {packed['stored']} packed weights and tables: {packed['unpacked_at_load']} unpacked when the "
                     f"session is made, {packed['rows']} a row at a time as it is looked up, {late} whole in every run")
    return lines + [f"    {count} stay float: {reason}" for reason, count in
                    Counter(result["float_nodes"].values()).items()]


def openvino_kernels(path: Path) -> dict[str, dict[str, int]]:
    """Kernel -> number type -> how many of OpenVINO's compiled graph compute on it: layers, attention.

    FullyConnected are products with a stored weight; an attention is one Subgraph of two products and a softmax.
    """
    import openvino

    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    counts = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        kernel, kind = (node.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision"))
        if kernel in OPENVINO_KERNELS:
            counts.setdefault(kernel, Counter())[kind] += 1
    return counts


def openvino_lines(kernels: dict[str, dict[str, int]]) -> list[str]:
    """openvino_kernels() as a user reads it."""
    return ["  OpenVINO runs " + "; ".join(
        f"{kernel}: " + ", ".join(f"{count} on {kind}" for kind, count in kinds.items())
        for kernel, kinds in kernels.items())]


def dtype_census(path: Path) -> dict:
    """What is stored in which type, and what the CPU provider makes of it.

    `stored` and `at_run_time` map a type's name to {"tensors": n, "bytes": n} of the weights in the file and in the
    optimised graph; `casts` counts the Cast operators that run, `operators` all of them.
    """
    def by_type(graph):
        counts = {}
        for tensor in graph.initializer:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type)
            held = counts.setdefault(kind, {"tensors": 0, "bytes": 0})
            held["tensors"] += 1
            held["bytes"] += math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        return dict(sorted(counts.items(), key=lambda item: -item[1]["bytes"]))

    graph = optimised_graph(path)
    operators = Counter(node.op_type for node in graph.node)
    return {"stored": by_type(onnx.load(path, load_external_data=False).graph), "at_run_time": by_type(graph),
            "casts": operators["Cast"], "operators": dict(operators.most_common())}


def dtype_lines(result: dict) -> list[str]:
    """The census by type as a user reads it."""
    def held(kind):
        return ", ".join(f"{kind} {count['tensors']} tensors {count['bytes'] / 1e6:.3g} MB"
                         for kind, count in result[kind].items())
    return [f"  stored: {held('stored')}",
            f"  as the CPU provider runs it: {held('at_run_time')}; {result['casts']} casts"]
