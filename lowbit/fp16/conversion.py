"""An FP32 ONNX graph to half precision, prepared so that the converter's result loads, stays finite and is exact.

The conversion itself is onnxruntime.transformers.float16's. Around it: shapes are inferred anew (one exporter leaves
stale ones), weights are rounded to nearest beforehand (the converter lifts what is nearly zero to 6e-8 and cuts what
is too large, silently), the attention mask's constant is brought inside FP16's range, and what the converter leaves
between two operators kept in FP32 is put in order.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model
from onnxconverter_common import float16 as common
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from lowbit.fp16.simulation import FP16_MAX, MASKED
from lowbit.graph.export import LARGEST_FILE, save_onnx
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import external_data, shown

FP16_MIN = 5.96e-8  # smallest positive value, rounded down
MASK_FILL = -1e6  # a lone constant below is what a mask adds: -3.4e38, -1e9 or -infinity, by exporter and attention
CONVERTERS = ("onnxruntime", "onnxconverter-common")
TO_FP16 = "_cast_to_fp16_node"  # how the converter names the Cast behind an operator kept in FP32


@dataclass
class Prepared:
    """An FP32 model ready for conversion, and what was noticed on the way."""

    model: onnx.ModelProto
    fp32_ops: frozenset[str]
    fp32_nodes: list[str] = field(default_factory=list)  # names of the nodes kept in FP32 beside fp32_ops
    too_large: list[tuple[str, float, str]] = field(default_factory=list)  # weight, its magnitude, its operator


def read_fp32(source: Path, fp32_ops: frozenset[str]) -> Prepared:
    """Read an FP32 graph and round its weights to FP16 values; operators `fp32_ops` keep theirs.

    Raises UserError for a file that holds FP16 already or lacks an operator of `fp32_ops`.
    """
    model = onnx.load(source, load_external_data=False)
    refuse_converted(model.graph, source)
    present = {node.op_type for node in model.graph.node}
    if fp32_ops - present:
        raise UserError(f"FP32_OPS names {', '.join(sorted(fp32_ops - present))}, which {shown(source)} does not have; "
                        f"its operators are {', '.join(sorted(present))}")
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    load_external_data_for_model(model, str(source.parent))
    result = Prepared(model, fp32_ops)
    _spell_out_constants(model.graph)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    # logits of 2 to 4 are rounded by up to 1e-3 in FP16: more than all the other roundings together move them
    outputs = {output.name for output in model.graph.output}
    result.fp32_nodes = [node.name for node in model.graph.node if outputs & set(node.output)]
    _bring_in_range(result)
    return result


def refuse_converted(graph: onnx.GraphProto, source: Path) -> None:
    """Raise UserError if any tensor of the graph is FP16 already."""
    halves = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    halves += [value.name for value in (*graph.input, *graph.output, *graph.value_info)
               if value.type.tensor_type.elem_type == TensorProto.FLOAT16]
    if halves:
        raise UserError(f"{shown(source)} is converted already: {len(halves)} of its tensors are FP16, the first is "
                        f"{halves[0]}; give the FP32 file that export_to_onnx.py wrote")


def _spell_out_constants(graph) -> None:
    """Constant nodes with a `value_float` become ones with a tensor: the converter overlooks the former."""
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name in ("value_float", "value_floats"):
                value = np.array(helper.get_attribute_value(attribute), np.float32)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))


def _bring_in_range(result: Prepared) -> None:
    """Round the stored tensors that will be FP16, note the ones that do not fit, move the mask's constant."""
    graph = result.model.graph
    users = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    stored = [(tensor.name, tensor) for tensor in graph.initializer]
    stored += [(node.output[0], attribute.t) for node in graph.node if node.op_type == "Constant"
               for attribute in node.attribute if attribute.name == "value"]
    for name, tensor in stored:
        halved = [node for node in users.get(name, ())
                  if node.op_type not in result.fp32_ops and node.name not in result.fp32_nodes]
        if tensor.data_type != TensorProto.FLOAT or not halved:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size == 1 and values.item() < MASK_FILL:
            values = np.full_like(values, MASKED)
        largest = max(values.max(), -values.min()) if values.size else 0.0
        if not largest <= FP16_MAX:
            result.too_large.append((f"{name} ({halved[0].name})", float(largest), halved[0].op_type))
            values = np.clip(values, -FP16_MAX, FP16_MAX)
        tensor.ClearField("float_data")
        tensor.raw_data = values.astype(np.float16).astype(np.float32).tobytes()


def convert(prepared: Prepared, target: Path, keep_io_types: bool, converter: str = CONVERTERS[0]) -> None:
    """Write the FP16 file by one of CONVERTERS; `prepared` is used up. Weights too large are at FP16's limit in it.

    Raises UserError where onnxconverter-common cannot do it.
    """
    options = {"min_positive_val": FP16_MIN, "max_finite_val": FP16_MAX, "keep_io_types": keep_io_types,
               "disable_shape_infer": True, "node_block_list": prepared.fp32_nodes}
    if converter == CONVERTERS[0]:
        model = convert_float_to_float16(
            prepared.model, **options, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *prepared.fp32_ops])
    else:
        model = _convert_by_common(prepared, options)
    _tidy(model.graph)
    save_onnx(model, target)
    onnx.checker.check_model(str(target), full_check=True)


def _convert_by_common(prepared: Prepared, options: dict) -> onnx.ModelProto:
    """onnxconverter-common's result; raises UserError for what it cannot do."""
    if prepared.fp32_ops:
        raise UserError(f"FP32_OPS keeps {', '.join(sorted(prepared.fp32_ops))} in FP32, but onnxconverter-common "
                        "casts to FP16 and back between them: set CONVERTER to onnxruntime")
    weights = sum(len(tensor.raw_data) for tensor in prepared.model.graph.initializer)
    if weights > LARGEST_FILE:
        raise UserError(f"the graph holds {weights / 1e9:.1f} GB of weights, and onnxconverter-common takes no model "
                        "beyond 2 GB: set CONVERTER to onnxruntime")
    return common.convert_float_to_float16(prepared.model, **options, check_fp16_ready=False)


def _tidy(graph: onnx.GraphProto) -> None:
    """Between two operators kept in FP32 the value stays FP32; each Cast stands once; nodes are in order.

    The converter casts to FP16 behind every operator kept in FP32 and back before the next: that would round, and
    overflow, just where FP32 was asked for. It also repeats a Cast for every operator that takes the same tensor.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    outputs = {output.name for output in graph.output}
    renamed = {}
    for name, cast in casts.items():
        before = casts.get(cast.input[0])
        if before is not None and before.name.endswith(TO_FP16):
            renamed |= {before.input[0]: name} if name in outputs else {name: before.input[0]}
    nodes = {}
    for node in graph.node:
        if node.op_type == "Cast" and (node.output[0] in renamed or node.output[0] in renamed.values()):
            continue  # back to FP32: the value it was cast from is there
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
        nodes[node.output[0]] = node
    del graph.node[:]
    graph.node.extend(nodes.values())
    used = {name for node in graph.node for name in node.input} | outputs
    for node in [node for node in graph.node if node.name.endswith(TO_FP16) and node.output[0] not in used]:
        graph.node.remove(node)
    OnnxModel.graph_topological_sort(graph)
    del graph.value_info[:]  # of the tensors that are gone, and of the types before


def parameters_as_stored(model: torch.nn.Module, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """State-dict name -> parameter in the type that the file stores it in: FP16 is the nearest value to FP32's."""
    found = {}
    for name, parameter in model.named_parameters():
        half = name in stored and stored[name].dtype == np.float16
        tensor = parameter.detach()
        found[name] = (tensor.clamp(-FP16_MAX, FP16_MAX).half() if half else tensor).numpy()
    return found


def tensor_types(path: Path) -> dict[str, int]:
    """Tensor name -> ONNX element type of everything that flows between the operators of a file."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True)
    return {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}


def largest_magnitudes(prepared: Prepared, path: Path, inputs: list[dict]) -> dict[str, tuple[float, str]]:
    """FP32 tensor between operators -> (largest magnitude over `inputs`, the operator that makes it).

    Writes the graph with a maximum on every tensor to `path`, for ONNX Runtime to run; the caller deletes it.
    """
    graph = prepared.model.graph
    maker = {name: node.op_type for node in graph.node for name in node.output}
    watched = [value.name for value in graph.value_info
               if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name in maker]
    nodes, outputs = len(graph.node), len(graph.output)
    for name in watched:
        graph.node.add().CopyFrom(helper.make_node("Abs", [name], [f"{name}:abs"]))
        graph.node.add().CopyFrom(helper.make_node("ReduceMax", [f"{name}:abs"], [f"{name}:max"], keepdims=0))
        graph.output.add().CopyFrom(helper.make_tensor_value_info(f"{name}:max", TensorProto.FLOAT, []))
    save_onnx(prepared.model, path)
    if external_data(path).exists():
        load_external_data_for_model(prepared.model, str(path.parent))  # the weights went there
    del graph.node[nodes:], graph.output[outputs:]
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [f"{name}:max" for name in watched]
    # NaN, of infinities subtracted, is worse than any number
    found = np.nan_to_num([session.run(names, given) for given in inputs], nan=np.inf).max(0)
    return {name: (float(largest), maker[name]) for name, largest in zip(watched, found, strict=True)}


def refuse_too_large(prepared: Prepared, clip: bool) -> None:
    """List the weights that pass FP16's range; raise UserError unless `clip` allows them to be cut to its limit."""
    listed = ", ".join(f"{name} {magnitude:.3g}" for name, magnitude, _ in prepared.too_large)
    if any(not np.isfinite(magnitude) for _, magnitude, _ in prepared.too_large):
        raise UserError(f"weights are infinite or no numbers: {listed}; train again")
    if listed and not clip:
        kept = ",".join(sorted({operator for *_, operator in prepared.too_large} | prepared.fp32_ops))
        raise UserError(f"{len(prepared.too_large)} weights pass FP16's largest value, 65504: {listed}; keep their "
                        f"operators in FP32 (--fp32-ops {kept}), or ship them at 65504 (--clip-weights)")
    if listed:
        print(f"  cut to FP16's largest value, 65504: {listed}")


def refuse_overflow(magnitudes: dict[str, tuple[float, str]], path: Path) -> None:
    """Raise UserError, naming tensors, if one that the file holds in FP16 was seen to pass FP16's range."""
    graph = onnx.load(path, load_external_data=False).graph
    types = tensor_types(path)
    passing = [name for name, (largest, _) in magnitudes.items()
               if types.get(name) == TensorProto.FLOAT16 and not largest <= FP16_MAX]
    if passing:
        around = {magnitudes[name][1] for name in passing}
        around |= {node.op_type for node in graph.node if set(node.input) & set(passing)} - {"Cast"}
        listed = ", ".join(f"{name} {magnitudes[name][0]:.3g}" for name in passing[:5]) + " …" * (len(passing) > 5)
        raise UserError(f"{len(passing)} of {len(magnitudes)} tensors pass FP16's largest value, 65504, and would be "
                        f"infinite: {listed}; keep the operators around them in FP32 "
                        f"(--fp32-ops {','.join(sorted(around))}), or choose INT8")


def compare_files(fp32: Path, fp16: Path, inputs: list[dict], hostile: list[dict]) -> float:
    """Largest logit difference over `inputs`; raises RuntimeError for logits that are not finite in either list."""
    reference, ours = (ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (fp32, fp16))
    worst = 0.0
    for given in [*inputs, *hostile]:
        logits = ours.run(["logits"], given)[0]
        if not np.isfinite(logits).all():
            raise RuntimeError(f"logits are not finite for a batch of {given['input_ids'].shape}")
        if any(given is batch for batch in inputs):
            worst = max(worst, float(np.abs(logits - reference.run(["logits"], given)[0]).max()))
    return worst
