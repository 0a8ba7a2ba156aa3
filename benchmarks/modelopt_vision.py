"""Benchmark: our post-training files of a network of pictures beside ModelOpt's INT8 of it: the same 1,000 pictures.

Reads   models/<RUN>/                       evaluated in OpenVINO (vision/accuracy_evaluation.py), MODEL resnet20
        DATA_DIR/                           its pictures
Writes  results/modelopt_vision.json, and results/modelopt-env/, an environment of ModelOpt's own, made once

ModelOpt (torch part) puts its quantizers on the inputs and weights of convolutions, and leaves a residual's shortcut in
floats. Its network is exported by its own quantizers, and both files run in OpenVINO, under the same rules checker.
"""
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from own_environment import MODELOPT, environment

from lowbit.graph.census import openvino_layer_census
from lowbit.measure.session import Session
from lowbit.pipeline.files import ROOT, resolve, run_dir, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import recorded, settings_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.vision.data import calibration_crops, read_splits
from lowbit.vision.evaluate import PROVIDER, file_outputs, measured_speed
from lowbit.vision.preprocessing import read_preprocessing
from lowbit.vision.run import FP32, OPENVINO, PTQ, TRAIN, float_network
from lowbit.vision.trt_rules import check as check_rules

# ---- settings: edit here, or for one run: --run cifar10-2 ------------------------------------------
RUN = "cifar10-1"               # folder under models/ of benchmarks/vision_seeds.py
DATA_DIR = "data/cifar10_small"  # folder of train/, valid/, test/
METHODS = "minmax,entropy,percentile"  # calibrations of ours that are set beside it
ROUNDS = 5                      # turns of the speed measurement
RUNS = 30                       # measured runs a turn
BATCH_SIZE = 16                 # pictures of a timed batch, beside one
THREADS = 0                     # threads of each session; 0 = every core
# --------------------------------------------------------------------------------------------------

THEIRS = "ModelOpt, INT8_DEFAULT_CFG"
CHILD = """
import sys
import modelopt.torch.quantization as mtq
import numpy as np
import torch
folder = sys.argv[1]
model = torch.load(folder + "/network.pt", weights_only=False).eval()
calibration, test = (torch.from_numpy(np.load(f"{folder}/{part}.npy")) for part in ("calibration", "test"))
with torch.inference_mode():
    model = mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda given: [given(part) for part in calibration.split(50)])
    np.save(folder + "/simulated.npy", torch.cat([model(part) for part in test.split(50)]).numpy())
for module in model.modules():
    if "_amax" in module._buffers:  # its exporter wants constants, and a buffer is traced as a parameter
        module.__dict__["_amax"] = module._buffers.pop("_amax")
from modelopt.torch.quantization.utils import export_torch_mode
with torch.no_grad(), export_torch_mode():
    torch.onnx.export(model, (test[:2],), folder + "/model.onnx", opset_version=17, dynamo=False,
                      input_names=["pixels"], output_names=["logits"],
                      dynamic_axes={"pixels": {0: "batch"}, "logits": {0: "batch"}})
"""


def share(found, wanted) -> float:
    """Share of equal labels, in percent."""
    return 100 * float((found == wanted).mean())


def main(settings):
    run, data_dir = run_dir(RUN), resolve(DATA_DIR)
    weights, reference = recorded(run, TRAIN, f"model_{FP32}.pth", f"model_{FP32}.onnx")
    model_name = settings_of(run, TRAIN)["MODEL"]
    check(model_name == "resnet20", f"{shown(run)} holds {model_name}; this benchmark reads a resnet20")
    files = {FP32: reference}
    for method in (name.strip() for name in METHODS.split(",")):
        name = f"model_ptq_{method}_int8.onnx"
        files[f"ours, {method}"] = recorded(run, f"{PTQ} --method {method} --target tensorrt --weight-bits 8", name)[0]
    preprocessing = read_preprocessing(run)
    crops, truth = read_splits(run, data_dir, ["test"], False)["test"]
    network = float_network(run)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.save(network, folder / "network.pt")
        np.save(folder / "calibration.npy", preprocessing.inputs(calibration_crops(run, data_dir, 0)))
        np.save(folder / "test.npy", preprocessing.inputs(crops))
        done = subprocess.run([environment("modelopt", MODELOPT), "-c", CHILD, folder], capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
        check(done.returncode == 0, f"ModelOpt ended with: {done.stderr[-800:]}")
        files[THEIRS] = folder / "model.onnx"
        simulated = np.load(folder / "simulated.npy")
        labels, results = {}, {}
        for name, path in files.items():
            with Session(path, PROVIDER, THREADS, OPENVINO) as session:
                labels[name] = file_outputs(session, crops, preprocessing).argmax(-1)
            results[name] = {"accuracy": share(labels[name], truth), "bytes": path.stat().st_size,
                             "census": openvino_layer_census(path)}
            if name != FP32:
                results[name] |= {"labels_as_fp32": share(labels[name], labels[FP32]),
                                  "rules": dict(Counter(finding.kind for finding in check_rules(path)))}
        results[THEIRS] |= {"accuracy_simulated": share(simulated.argmax(-1), truth),
                            "labels_as_simulated": share(labels[THEIRS], simulated.argmax(-1))}
        turns, shapes = measured_speed(files, OPENVINO, preprocessing, settings)
    for name, rounds in turns.items():
        results[name]["speedup"] = {shape: sorted(
            float(np.median(base["ms"][shape]) / np.median(turn["ms"][shape]))
            for base, turn in zip(turns[FP32], rounds, strict=True)) for shape in shapes}
    for name, found in results.items():
        speed = ", ".join(f"{np.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}) at {shape}"
                          for shape, ratios in found["speedup"].items())
        print(f"  {name}: {found['accuracy']:.2f} %, {found.get('labels_as_fp32', 100):.2f} % of labels as FP32, "
              f"{found['bytes'] / 1e6:.2f} MB, {found['census']['integer']} layers on integers, "
              f"{sum(found.get('rules', {}).values())} findings of the rules checker, {speed}")
    print(f"  ModelOpt's file and its simulation: {results[THEIRS]['labels_as_simulated']:.2f} % equal labels")
    out = ROOT / "results" / "modelopt_vision.json"
    write_json(out, {"machine": machine(), "versions": versions() | {"modelopt": list(MODELOPT)}, "settings": settings,
                     "pictures": len(crops), "results": results})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
