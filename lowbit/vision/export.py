"""From a folded network, with pairs or without, to an ONNX file that holds what the simulation says it stores."""

import copy
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import fx

from lowbit.vision.placement import layers_of, pairs_of
from lowbit.vision.simulation import FoldedLayer, Pair

INPUT, OUTPUT = "pixels", "logits"
OPSET = 17
TOLERANCE = 1e-3  # largest difference of an FP32 file's logits to PyTorch's, as a share of the largest logit
STORED = ".stored_"  # between a layer's name and the part of it that the file stores (FoldedLayer.freeze)
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def export(model: fx.GraphModule, path: Path, size: int) -> None:
    """Write a network as it computes in eval mode, its batch dynamic.

    Raises RuntimeError unless what the file stores equals stored() of every layer and pair, bit for bit.
    """
    traced = copy.deepcopy(model).eval()
    for layer in layers_of(traced).values():
        layer.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one: the other knows no QuantizeLinear
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(traced, (torch.zeros(2, 3, size, size),), str(path), dynamo=False, opset_version=OPSET,
                          do_constant_folding=False, input_names=[INPUT], output_names=[OUTPUT],
                          dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}})
    exported = onnx.load(path)
    settle_constants(exported.graph)
    name_layers(exported.graph)
    shorten_names(exported.graph)
    onnx.checker.check_model(exported)
    onnx.save(exported, path)
    check_stored(model, path)


def settle_constants(graph: onnx.GraphProto) -> None:
    """Make an initializer of everything that depends on no picture, in place, and drop what then does nothing.

    The exporter lets equal scales share one tensor by Identities: each pair gets its own again. What a
    DequantizeLinear makes of stored integers stays as it is.
    """
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type in QUANTIZERS or not all(name in values for name in node.input if name):
            kept.append(node)
            continue
        given = {name: values[name] for name in node.input if name}
        made = ReferenceEvaluator(node).run(None, given)
        values.update(zip(node.output, made, strict=True))
    used = {name for node in kept for name in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
                             for name, value in values.items() if name in used)


def name_layers(graph: onnx.GraphProto) -> None:
    """Name layers, in place, by the module that they come from, as the exporter names a traced graph's by chance."""
    weight_of = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        operands = [weight_of.get(name, name) for name in node.input]
        layer = next((name.split(STORED)[0] for name in operands if STORED in name), None)
        if layer is None or node.op_type == "QuantizeLinear":
            continue
        if node.op_type == "DequantizeLinear":
            what = "bias" if f"{STORED}bias" in node.input[0] else "weight"
            node.name = f"/{layer}/{what}/{node.op_type}"
        else:
            node.name = f"/{layer}/{node.op_type}"


def shorten_names(graph: onnx.GraphProto) -> None:
    """Give what flows between operators names of a few letters, in place: the exporter's are 2 % of a small file."""
    kept = {held.name for held in (*graph.input, *graph.output, *graph.initializer)} | {""}
    known: dict[str, str] = {}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in kept else known.setdefault(name, f"t{len(known):x}") for name in names]
    del graph.value_info[:]


def stored_tensors(path: Path) -> dict[str, np.ndarray]:
    """`<layer or pair>.<part>` -> array of all that a file stores, by the parts of Pair.stored and FoldedLayer.stored.
    """
    found = {}
    for tensor in onnx.load(path).graph.initializer:
        name = tensor.name
        for kind in ("weight", "bias"):
            for part in ("integers", "scale", "zero_point"):
                name = name.replace(f"stored_{kind}_{part}", f"{kind}.{part}")
            name = name.replace(f"stored_{kind}", kind)
        found[name] = numpy_helper.to_array(tensor)
    return found


def simulated_tensors(model: fx.GraphModule) -> dict[str, np.ndarray]:
    """The same of the simulation."""
    modules: dict[str, FoldedLayer | Pair] = dict(layers_of(model))
    modules |= {f"pairs.{name}": pair for name, pair in pairs_of(model).items()}
    return {f"{name}.{part}": tensor.numpy() for name, module in modules.items()
            for part, tensor in module.stored().items()}


def check_stored(model: fx.GraphModule, path: Path) -> int:
    """How many tensors were compared; raises RuntimeError, naming the first, unless all are equal bit for bit."""
    simulated, stored = simulated_tensors(model), stored_tensors(path)
    wrong = [name for name, tensor in simulated.items() if name not in stored or stored[name].dtype != tensor.dtype
             or not np.array_equal(stored[name], tensor)]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(simulated)} tensors of {path.name} differ from those that are "
                           "simulated: " + ", ".join(wrong[:5]))
    return len(simulated)


@torch.no_grad()
def check_fp32(model: fx.GraphModule, path: Path, size: int) -> float:
    """Largest difference of an FP32 file's logits to PyTorch's as a share of the largest; RuntimeError if too large."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (1, 3):
        pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        expected = model(pixels).numpy()
        gap = np.abs(session.run([OUTPUT], {INPUT: pixels.numpy()})[0] - expected).max()
        worst = max(worst, float(gap / max(np.abs(expected).max(), 1e-9)))
    if not worst <= TOLERANCE:
        raise RuntimeError(f"{path.name} differs from PyTorch by {worst:.1e} of its largest logit")
    return worst
