"""From a trained run to a clean FP32 ONNX graph that is shown to agree with PyTorch."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from lowbit.data.tokens import INPUT_NAMES, PAIR_INPUT, load_reader
from lowbit.graph.inputs import CHECKED_SHAPES, sample_inputs
from lowbit.graph.simplify import simplify
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, claim, external_data, file_bytes, run_dir, shown
from lowbit.pipeline.manifest import publish, record, recorded, stages_of
from lowbit.training.encoder import RUN_FILES, load_run, longest_input
from lowbit.training.weights import WEIGHTS, load_weights

ONNX = "model_qat.onnx"
OPSETS = (17, 20)
LARGEST_FILE = 2**31 - 2**24  # bytes of weights in one ONNX file: protobuf ends at 2 GiB, the graph takes some MB
LONG_TEXT = 1024  # tokens: attention that looks only so far around itself looks like any other on short texts
TOLERANCE = 1e-4  # largest logit difference to PyTorch that is accepted
TRACED = 16  # tokens of the batch that is traced
TRAINING_OPS = {"Dropout", "QuantizeLinear", "DequantizeLinear", "FakeQuantize"}


class _Logits(torch.nn.Module):
    """Inputs [batch, seq] in the order of `names` -> logits [batch, outputs]."""

    def __init__(self, model, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


class _LeanLogits(_Logits):
    """The same of BERT's kind, whose mask and token types Transformers would make larger by some 50 operators.

    The mask becomes what is added to a score, [batch, 1, 1, seq], and a lone text's type one row of the table.
    """

    def forward(self, *inputs):
        given = dict(zip(self.names, inputs, strict=True))
        attended = given["attention_mask"][:, None, None, :] != 0
        given["attention_mask"] = torch.where(attended, 0.0, torch.finfo(torch.float32).min)
        if PAIR_INPUT not in given and hasattr(self.model.config, "type_vocab_size"):
            given[PAIR_INPUT] = torch.zeros((1, 1), dtype=torch.long)
        return self.model(**given).logits


@torch.no_grad()
def wrapper_of(model: torch.nn.Module, names: tuple[str, ...]) -> torch.nn.Module:
    """What is traced: _LeanLogits, if it gives the model's own logits for two long texts, one padded, else _Logits."""
    length = min(longest_input(model), LONG_TEXT)
    inputs = [torch.from_numpy(value)
              for value in sample_inputs(model.config.vocab_size, 2, length, length // 2, 0, names).values()]
    plain, lean = (kind(model, names).eval() for kind in (_Logits, _LeanLogits))
    try:
        same = torch.allclose(lean(*inputs), plain(*inputs), rtol=0, atol=TOLERANCE)
    except (RuntimeError, ValueError, IndexError):  # the model takes no mask of four dimensions
        same = False
    return lean if same else plain


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; from LARGEST_FILE bytes of weights on, they go to a second file, `<name>.data`.

    The tensors of `model` are emptied then: load the file to go on.
    """
    tensors = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=tensors > LARGEST_FILE, location=external_data(path).name)


def largest_difference(model: torch.nn.Module, path: Path) -> float:
    """Largest absolute logit difference between PyTorch and the ONNX file over CHECKED_SHAPES."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = tuple(given.name for given in session.get_inputs())
    worst = 0.0
    for seed, (batch, length, padding) in enumerate(CHECKED_SHAPES):
        length = min(length, longest_input(model))
        inputs = sample_inputs(model.config.vocab_size, batch, length, min(padding, length - 1), seed, names)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
        worst = np.maximum(worst, np.abs(session.run(["logits"], inputs)[0] - expected).max())  # a NaN stays one
    return float(worst)


def join_shared_weights(graph: onnx.GraphProto) -> None:
    """Let every user of a weight name the weight itself, in place.

    Of a layer that is used twice the exporter gives the second use a copy by an Identity, behind which no quantizer
    finds the weight.
    """
    stored = {tensor.name for tensor in graph.initializer}
    copies = {node.output[0]: node for node in graph.node if node.op_type == "Identity" and node.input[0] in stored}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in copies:
                node.input[place] = copies[name].input[0]
    for node in copies.values():
        graph.node.remove(node)


def trace(module: torch.nn.Module, path: Path, opset: int, names: tuple[str, ...], vocab_size: int,
          length: int = TRACED) -> None:
    """Write what torch's exporter makes of `module`, which takes inputs in the order of `names` and gives logits.

    It is traced on two texts of `length` tokens; batch and sequence are dynamic. Beyond 2 GB it writes every weight to
    a file of its own.
    """
    inputs = [torch.from_numpy(value) for value in sample_inputs(vocab_size, 2, length, length // 4, 0, names).values()]
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarnings on shapes that largest_difference proves dynamic
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # the TorchScript exporter: the other one leaves Dropout nodes and stale shapes that stop the quantizer
        torch.onnx.export(module, tuple(inputs), str(path), dynamo=False, opset_version=opset,
                          input_names=list(names), output_names=["logits"],
                          dynamic_axes={**dict.fromkeys(names, axes), "logits": {0: "batch"}})


def export(model: torch.nn.Module, path: Path, opset: int, names: tuple[str, ...] = INPUT_NAMES,
           length: int = TRACED) -> None:
    """Trace `model` (in eval mode) to `path` with dynamic batch and sequence; raises on leftover training nodes."""
    with atomic_folder(path.parent) as aside:
        trace(wrapper_of(model, names), aside / path.name, opset, names, model.config.vocab_size, length)
        exported = onnx.load(aside / path.name)
    join_shared_weights(exported.graph)
    simplify(exported)
    save_onnx(exported, path)
    model.eval()  # torch.onnx.export restores the wrapper's own flag on the way out
    graph = onnx.load(path, load_external_data=False).graph
    left = sorted({node.op_type for node in graph.node} & TRAINING_OPS)
    if left:
        raise RuntimeError(f"the exported graph holds training nodes: {', '.join(left)}")


def check_opset(opset: int) -> None:
    """Raises UserError for an operator set that is not exported here."""
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise UserError(f"OPSET is {opset}; {OPSETS[0]} is the lowest (LayerNormalization as one operator), "
                        f"{OPSETS[1]} the highest that torch's exporter writes")


def export_checked(run: Path, weights: str, path: Path, opset: int, length: int = TRACED) -> None:
    """Export the model in folder `run` to `path`; raises RuntimeError unless it agrees with PyTorch."""
    model = load_run(run)
    load_weights(model, run / weights)
    export(model, path, opset, load_reader(run).inputs, length)
    worst = largest_difference(model, path)
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the exported graph differs from PyTorch by {worst:.2e}, more than {TOLERANCE:.0e}")
    onnx.checker.check_model(str(path))
    print(f"  logits agree with PyTorch within {worst:.1e} on {len(CHECKED_SHAPES)} shapes "
          f"(batch {min(s[0] for s in CHECKED_SHAPES)} to {max(s[0] for s in CHECKED_SHAPES)}, "
          f"length {min(s[1] for s in CHECKED_SHAPES)} to {max(s[1] for s in CHECKED_SHAPES)}, with padding)")


def export_run(settings: dict, stage: str, train_stage: str, more: dict[str, str] | None = None) -> Path:
    """Stage 2 for every precision: model_qat.pth -> model_qat.onnx, checked against PyTorch; returns the folder.

    `more` maps the names of other weights that the training may have written to those of their graphs.
    """
    folder = run_dir(settings["RUN"])
    claim(folder)
    read = recorded(folder, train_stage, WEIGHTS, *RUN_FILES)
    written = stages_of(folder)[train_stage]["writes"]
    graphs = {WEIGHTS: ONNX} | {name: graph for name, graph in (more or {}).items() if name in written}
    read += recorded(folder, train_stage, *(name for name in graphs if name != WEIGHTS))
    check_opset(settings["OPSET"])
    with atomic_folder(folder) as scratch:
        for weights, graph in graphs.items():
            export_checked(folder, weights, scratch / graph, settings["OPSET"])
        names = publish(scratch)
    record(folder, stage, settings, read, names)
    for graph in graphs.values():
        print(f"wrote {shown(folder / graph)} ({file_bytes(folder / graph) / 1e6:.1f} MB)")
    return folder
