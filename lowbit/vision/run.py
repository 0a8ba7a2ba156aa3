"""What the stages of vision/ hand over in models/<RUN>/: networks, their simulations and files, by one naming."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import fx, nn

from lowbit.data.task import read_task
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown
from lowbit.pipeline.manifest import recorded, settings_of, stages_of
from lowbit.training.lsq import TARGETS
from lowbit.vision.calibration_set import CALIBRATION
from lowbit.vision.calibration_set import STAGE as CALIBRATE
from lowbit.vision.networks import build
from lowbit.vision.placement import fold, place_pairs
from lowbit.vision.preprocessing import PREPROCESSING

TRAIN, PTQ, MIX = "vision/qat_pytorch.py", "vision/ptq_tensorrt.py", "vision/mixed_precision.py"
FP32, CONTROL, QAT = "fp32", "control", "qat"
OPENVINO, ONNXRUNTIME = "openvino", "onnxruntime"


class Variant(NamedTuple):
    """A network of a run: how its files are named, which stage made it, and the arithmetic it is of ("" for FP32)."""

    name: str
    stage: str
    target: str
    bits: int
    floats: tuple[str, ...]

    @property
    def weights(self) -> str:
        """File of its state dict."""
        return f"model_{self.name}.pth"

    @property
    def file(self) -> str:
        """Its ONNX file."""
        return f"model_{self.name}.onnx"

    @property
    def description(self) -> str:
        """The file that says what it is."""
        return f"model_{self.name}.json"

    @property
    def runtime(self) -> str:
        """The runtime that runs its file on integers, "" for any."""
        return "" if not self.target else ONNXRUNTIME if TARGETS[self.target] == torch.uint8 else OPENVINO


def low_bit_name(method: str, target: str, bits: int) -> str:
    """qat_int8, ptq_minmax_u8, qat_w4: method, and what is stored of activations (of weights, where it is fewer)."""
    end = "u8" if TARGETS[target] == torch.uint8 else "int8"
    return f"{method}_{end}" if bits == 8 else f"{method}_w{bits}{'' if end == 'int8' else '_u8'}"


def float_network(run: Path) -> nn.Module:
    """The network of a run with new weights."""
    trained = settings_of(run, TRAIN)
    return build(trained["MODEL"], len(read_task(run).labels))


def folded_network(run: Path, weights: Path) -> fx.GraphModule:
    """The folded network of a run with the weights of FP32."""
    model = float_network(run)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return fold(model)


def load(run: Path, variant: Variant) -> fx.GraphModule:
    """The network of a variant, the simulation of its file, with its weights and scales."""
    path = recorded(run, variant.stage, variant.weights)[0]
    if variant.name == FP32:
        return folded_network(run, path)
    model = fold(float_network(run))
    if variant.target:
        model = place_pairs(model, variant.target, variant.bits, variant.floats)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def variants(run: Path) -> list[Variant]:
    """All that the stages have made, FP32 first; raises UserError for a run without FP32."""
    found = []
    for stage, made in stages_of(run).items():
        for file in made["writes"]:
            if file.startswith("model_") and file.endswith(".json"):
                held = json.loads(recorded(run, stage, file)[0].read_text(encoding="utf-8"))
                found.append(Variant(held["name"], stage, held["target"], held["bits"], tuple(held["floats"])))
    if not any(variant.name == FP32 for variant in found):
        raise UserError(f"{shown(run)} holds no network: run `python {TRAIN} --run {run.name}` first")
    return sorted(found, key=lambda variant: variant.name != FP32)


def write_variant(folder: Path, model: nn.Module, variant: Variant, **more) -> None:
    """Write a variant's state dict, and what it is, into a folder; its ONNX file is export's."""
    torch.save({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, folder / variant.weights)
    (folder / variant.description).write_text(json.dumps({
        "name": variant.name, "target": variant.target, "bits": variant.bits, "floats": list(variant.floats), **more},
        indent=2) + "\n", encoding="utf-8")


def data_files(run: Path) -> list[Path]:
    """What calibration_dataset.py left of a run, checked."""
    return recorded(run, CALIBRATE, CALIBRATION, PREPROCESSING, "task.json")
