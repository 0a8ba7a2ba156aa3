"""From a trained run to a clean FP32 ONNX graph that is shown to agree with PyTorch."""

import logging
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from safetensors.torch import load_file

from lowbit.artifacts import (
    atomic_folder,
    external_data,
    file_bytes,
    publish,
    record,
    remove_leftovers,
    require,
    run_dir,
    shown,
)
from lowbit.encode import INPUT_NAMES
from lowbit.errors import UserError
from lowbit.model import PREPROCESSING, TOKENIZER_FILES, load_run
from lowbit.train import WEIGHTS

ONNX = "model_qat.onnx"
OPSETS = (17, 20)
LARGEST_FILE = 2**31 - 2**24  # bytes of weights in one ONNX file: protobuf ends at 2 GiB, the graph takes some MB
TOLERANCE = 1e-4  # largest logit difference to PyTorch that is accepted
# batch, length, padding at the end of every second row: other shapes than the traced one
CHECKED_SHAPES = ((1, 3, 0), (1, 32, 0), (2, 17, 5), (4, 64, 40), (3, 128, 100), (16, 24, 8))
# state that fake-quantization modules (ours and torch.ao's) leave in a state dict; the FP32 graph has no use for it
FAKE_QUANT_STATE = ("activation_post_process.", "weight_fake_quant.", "fake_quant_enabled", "observer_enabled",
                    ".quantizer.", ".quantizers.")
TRAINING_OPS = {"Dropout", "QuantizeLinear", "DequantizeLinear", "FakeQuantize"}


class _Logits(torch.nn.Module):
    """input_ids, attention_mask [batch, seq] -> logits [batch, labels]."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a plain state dict (.pth or .safetensors) strictly.

    Fake-quant state is named and left out, any other mismatch is refused.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(
            path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{shown(path)} is not a plain state dict ({reason}): train again") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{shown(path)} holds something else than a plain state dict (name -> tensor): train again")
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    fake = [name for name in state if name not in wanted and any(part in name for part in FAKE_QUANT_STATE)]
    if fake:
        print(f"  {len(fake)} fake-quantization tensors left out: {', '.join(fake[:3])}{' …' * (len(fake) > 3)}")
    state = {name: tensor for name, tensor in state.items() if name not in fake}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(f"{shown(path)} does not fit config.json in {len(wrong)} tensors; the first is {name}: "
                        f"{given.get(name, 'absent')} in the file, {wanted.get(name, 'absent')} in the model")
    model.load_state_dict(state, strict=True)


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; from LARGEST_FILE bytes of weights on, they go to a second file, `<name>.data`.

    The tensors of `model` are emptied then: load the file to go on.
    """
    tensors = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=tensors > LARGEST_FILE, location=external_data(path).name)


def sample_inputs(vocab_size: int, batch: int, length: int, padding: int, seed: int) -> dict[str, np.ndarray]:
    """Random int64 inputs [batch, length]; every second row ends in `padding` masked positions."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (batch, length))
    mask = np.ones_like(ids)
    mask[1::2, length - padding:] = 0
    return dict(zip(INPUT_NAMES, (ids, mask), strict=True))


def hostile_inputs(vocab_size: int, longest: int) -> list[dict[str, np.ndarray]]:
    """Batches as a server meets them at worst: one token, the longest text, 64 texts, a padded row, a mask with holes.

    The padded row, which no position of attends to anything, is the second of its batch.
    """
    inputs = [sample_inputs(vocab_size, batch, length, 0, batch)
              for batch, length in ((1, 1), (64, min(8, longest)), (1, longest))]
    padded, holes = (sample_inputs(vocab_size, 4, min(24, longest), 0, seed) for seed in (1, 2))
    padded["attention_mask"][1] = 0
    holes["attention_mask"][:, 1:] = np.random.default_rng(0).integers(0, 2, holes["attention_mask"][:, 1:].shape)
    return [*inputs, padded, holes]


def largest_difference(model: torch.nn.Module, path: Path) -> float:
    """Largest absolute logit difference between PyTorch and the ONNX file over CHECKED_SHAPES."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for seed, (batch, length, padding) in enumerate(CHECKED_SHAPES):
        length = min(length, model.config.max_position_embeddings)
        inputs = sample_inputs(model.config.vocab_size, batch, length, min(padding, length - 1), seed)
        with torch.inference_mode():
            expected = _Logits(model)(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()
        worst = np.maximum(worst, np.abs(session.run(["logits"], inputs)[0] - expected).max())  # a NaN stays one
    return float(worst)


def export(model: torch.nn.Module, path: Path, opset: int) -> None:
    """Trace `model` (in eval mode) to `path` with dynamic batch and sequence; raises on leftover training nodes."""
    wrapper = _Logits(model).eval()
    inputs = {name: torch.from_numpy(value)
              for name, value in sample_inputs(model.config.vocab_size, 2, 16, 4, 0).items()}
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings(), atomic_folder(path.parent) as aside:
        warnings.simplefilter("ignore")  # TracerWarnings on shapes that largest_difference proves dynamic
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # the TorchScript exporter: the other one leaves Dropout nodes and stale shapes that stop the quantizer
        torch.onnx.export(wrapper, tuple(inputs.values()), str(aside / path.name), dynamo=False, opset_version=opset,
                          input_names=list(INPUT_NAMES), output_names=["logits"],
                          dynamic_axes={**dict.fromkeys(INPUT_NAMES, axes), "logits": {0: "batch"}})
        if len(list(aside.iterdir())) == 1:
            os.replace(aside / path.name, path)
        else:  # beyond 2 GB it writes every weight to a file of its own
            save_onnx(onnx.load(aside / path.name), path)
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


def export_checked(run: Path, weights: str, path: Path, opset: int) -> None:
    """Export the model in folder `run` to `path`; raises RuntimeError unless it agrees with PyTorch."""
    model, _, _ = load_run(run)
    load_weights(model, run / weights)
    export(model, path, opset)
    worst = largest_difference(model, path)
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the exported graph differs from PyTorch by {worst:.2e}, more than {TOLERANCE:.0e}")
    onnx.checker.check_model(str(path))
    print(f"  logits agree with PyTorch within {worst:.1e} on {len(CHECKED_SHAPES)} shapes "
          f"(batch {min(s[0] for s in CHECKED_SHAPES)} to {max(s[0] for s in CHECKED_SHAPES)}, "
          f"length {min(s[1] for s in CHECKED_SHAPES)} to {max(s[1] for s in CHECKED_SHAPES)}, with padding)")


def export_run(settings: dict, stage: str, train_stage: str) -> Path:
    """Stage 2 for every precision: model_qat.pth -> model_qat.onnx, checked against PyTorch; returns the folder."""
    folder = run_dir(settings["RUN"])
    read = require(folder, train_stage, WEIGHTS, "config.json", PREPROCESSING, *TOKENIZER_FILES)
    check_opset(settings["OPSET"])
    remove_leftovers(folder)
    with atomic_folder(folder) as scratch:
        export_checked(folder, WEIGHTS, scratch / ONNX, settings["OPSET"])
        names = publish(scratch)
    record(folder, stage, settings, read, names)
    print(f"wrote {shown(folder / ONNX)} ({file_bytes(folder / ONNX) / 1e6:.1f} MB)")
    return folder
