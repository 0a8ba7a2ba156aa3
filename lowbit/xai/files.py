"""The files of a run that can be explained: FP32, what ships, post-training files, each with its PyTorch model."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
from torch import nn

from lowbit.fp16 import simulation as fp16
from lowbit.graph.export import ONNX
from lowbit.int4 import arithmetic as int4
from lowbit.int8 import arithmetic as int8
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown
from lowbit.pipeline.manifest import read_manifest, recorded, settings_of, stages_of
from lowbit.ptq.files import SOURCE
from lowbit.training.encoder import RUN_FILES, load_run
from lowbit.training.weights import WEIGHTS, load_weights

FP32 = "fp32"  # the name of the file that all others are explained beside
FINETUNE, MATRIX = "ptq/finetune_fp32.py", "ptq/run_ptq.py --methods "
FINETUNED = "model.safetensors"


class Explained(NamedTuple):
    """A file: whether a text's logits depend on its batch-mates, and how its PyTorch model is loaded, if it has one."""

    name: str
    path: Path
    alone: bool
    load: Callable[[], nn.Module] | None


def measures_at_run_time(path: Path) -> bool:
    """Whether a file's ranges are those of the whole batch: then a text's logits depend on its batch-mates."""
    graph = onnx.load(path, load_external_data=False).graph
    return any(node.op_type.startswith("Dynamic") for node in graph.node)


def _loaded(folder: Path, weights: str) -> nn.Module:
    model = load_run(folder)
    load_weights(model, folder / weights)
    return model


def _simulated(folder: Path, ships: dict) -> nn.Module:
    """The PyTorch model that computes as the file that ships."""
    quantized, trained = (settings_of(folder, ships["stages"][stage]) for stage in ("quantize", "train"))
    if ships["precision"] in int4.PRECISIONS.values():
        return int4.load_simulation(folder, quantized, trained)
    model = load_run(folder)
    if ships["precision"] == "int8":
        int8.simulate(model, quantized)
        load_weights(model, folder / WEIGHTS)
        return model
    load_weights(model, folder / WEIGHTS)
    return fp16.simulate(model, fp16.operators(quantized["FP32_OPS"]))


def _known(folder: Path) -> dict[str, tuple[str, str, Callable[[], nn.Module] | None]]:
    """Name -> (stage, file, loader) of all that a run's manifest says can be explained."""
    stages, ships = stages_of(folder), read_manifest(folder).get("ships")
    if ships:
        export = ships["stages"]["export"]
        teacher = int4.FP32 in stages.get(export, {}).get("writes", ())
        weights = int4.TEACHER if teacher else WEIGHTS
        return {FP32: (export, int4.FP32 if teacher else ONNX, lambda: _loaded(folder, weights)),
                ships["precision"]: (ships["stages"]["quantize"], ships["file"], lambda: _simulated(folder, ships))}
    if FINETUNE in stages:
        return {FP32: (FINETUNE, SOURCE, lambda: _loaded(folder, FINETUNED))} | {
            stage.removeprefix(MATRIX): (stage, f"model_{stage.removeprefix(MATRIX)}.onnx", None)
            for stage in stages if stage.startswith(MATRIX)}
    raise UserError(f"{shown(folder)} holds nothing to explain: run the four stages of int8_eager/, int4_eager/ or "
                    f"fp16_eager/, or ptq/finetune_fp32.py, with --run {folder.name} first")


def files_of(folder: Path, wanted: str) -> dict[str, Explained]:
    """Name -> file of those that `wanted` names, FP32 first; for "" FP32 and what ships.

    Raises UserError for a name that the run does not have, or a file that its manifest did not record.
    """
    known = _known(folder)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UserError(f"FILES names {name!r}; {folder.name} has {', '.join(known)}")
    if not names:
        names = [name for name, (_, _, load) in known.items() if load]
    names = [FP32, *(name for name in names if name != FP32)]  # its label is what every file is asked about
    train = read_manifest(folder).get("ships", {}).get("stages", {}).get("train", FINETUNE)
    recorded(folder, train, *RUN_FILES)
    found = {}
    for name in dict.fromkeys(names):
        stage, file, load = known[name]
        (path, *_) = recorded(folder, stage, file)
        found[name] = Explained(name, path, measures_at_run_time(path), load)
    return found
