"""Benchmark: ResNet50, VGG16, EfficientNet-B0 to INT8: TensorRT's rules, layers on integers, size, speed, profile.

Reads   DATA_DIR/train/<class>/*.jpg        for BatchNorm's statistics and the scales; the weights are random
Writes  models/<RUN>/<network>_{fp32,int8,u8}.onnx, results/<RUN>.json

int8 is the file that keeps TensorRT's rules; u8 its twin for ONNX Runtime. No accuracy is measured here.
"""
import statistics
from collections import Counter

import numpy as np
import torch
from profiler import in_onnxruntime

from lowbit.graph.census import layer_census, openvino_layer_census
from lowbit.measure.session import WARMUP, take_turns
from lowbit.pipeline.files import ROOT, atomic_folder, claim, file_bytes, move_up, resolve, run_dir, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import run_stage
from lowbit.vision.calibrate import batches_of, calibrate
from lowbit.vision.export import INPUT, export
from lowbit.vision.networks import LITE, TORCHVISION, build, load_published, settle_statistics
from lowbit.vision.pictures import classes_of, decode, pictures_of
from lowbit.vision.placement import fold, place_pairs
from lowbit.vision.preprocessing import Preprocessing
from lowbit.vision.trt_rules import check as check_rules
from lowbit.vision.trt_rules import finding_lines

# ---- settings: edit here, or for one run: --networks resnet50 --rounds 0 --------------------------
RUN = "vision-networks"         # folder under models/, and name of the results file
NETWORKS = "resnet50,vgg16,efficientnet_b0"  # with commas; efficientnet_lite0 has its published weights
DATA_DIR = "data/pictures"      # folder of pictures
PICTURES = 4                    # pictures of train that statistics and scales are of
SIZE = 224                      # side of a network's input, pixels
BATCH = 1                       # pictures of a timed batch
ROUNDS = 5                      # turns that the files take; 0: no speed is measured
RUNS = 10                       # measured runs a turn
THREADS = 0                     # threads of a session; 0 = every core
SEED = 0                        # of the random weights
# --------------------------------------------------------------------------------------------------

FILES = {"fp32": "", "int8": "tensorrt", "u8": "onnxruntime"}
TIMED = (("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "u8"),
         ("onnxruntime", "int8"))


def crops_of_train():
    """PICTURES crops, of every class."""
    data_dir = resolve(DATA_DIR)
    pictures = pictures_of(data_dir, "train", classes_of(data_dir))
    crop = Preprocessing(SIZE, SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    chosen_ones = pictures[:: max(1, len(pictures) // PICTURES)][:PICTURES]
    return np.stack([crop.crop(decode(picture.path)) for picture in chosen_ones]), crop


def make(name, scratch):
    """Write the three files of a network; returns its findings by file."""
    torch.manual_seed(SEED)
    crops, preprocessing = crops_of_train()
    model, batches = build(name, 1000), batches_of(crops, preprocessing, 4)
    load_published(model, name, "default" if name == LITE else "none")
    if name != LITE:
        settle_statistics(model, batches())
    folded = fold(model)
    for end, target in FILES.items():
        network = folded
        if target:
            network = place_pairs(folded, target, 8)
            calibrate(network, batches, "minmax")
        export(network, scratch / f"{name}_{end}.onnx", SIZE)


def counted(name, folder):
    """Rules, layers on integers and sizes of a network's files."""
    paths = {end: folder / f"{name}_{end}.onnx" for end in FILES}
    findings, mb = check_rules(paths["int8"]), {end: file_bytes(path) / 1e6 for end, path in paths.items()}
    found = {"findings": [str(finding) for finding in findings], "mb": mb,
             "smaller": {end: mb["fp32"] / size for end, size in mb.items()},
             "integer_layers": {"openvino int8": openvino_layer_census(paths["int8"]),
                                "onnxruntime u8": layer_census(paths["u8"]),
                                "onnxruntime int8": layer_census(paths["int8"])}}
    print(f"  {name}: " + ", ".join(f"{end} {size:.1f} MB ({found['smaller'][end]:.2f}x smaller)"
                                    for end, size in mb.items()))
    print(*finding_lines(findings), sep="\n")
    for where, count in found["integer_layers"].items():
        print(f"  {where}: {count['integer']} of {count['integer'] + count['float']} layers on integers")
    return found


def timed(name, folder):
    """Milliseconds of each file in its runtime, and the speed-up over FP32 in that runtime, by turn."""
    files = {f"{runtime} {end}": (folder / f"{name}_{end}.onnx", runtime) for runtime, end in TIMED}
    pixels = np.random.default_rng(0).standard_normal((BATCH, 3, SIZE, SIZE), np.float32)
    rounds = [take_turns(files, {"batch": [{INPUT: pixels}] * RUNS}, "CPUExecutionProvider", THREADS)
              for _ in range(ROUNDS)]
    found = {}
    for key in files:
        medians = [statistics.median(turn[key]["ms"]["batch"]) for turn in rounds]
        base = [statistics.median(turn[f"{key.split()[0]} fp32"]["ms"]["batch"]) for turn in rounds]
        ratios = [b / a for a, b in zip(medians, base, strict=True)]
        found[key] = {"median_ms": statistics.median(medians), "speedup": statistics.median(ratios), "ratios": ratios,
                      "peak_memory_mb": statistics.median(turn[key]["peak_memory_mb"] for turn in rounds)}
        print(f"  {name} {key}: {found[key]['median_ms']:.1f} ms, {found[key]['speedup']:.2f}x "
              f"({min(ratios):.2f} to {max(ratios):.2f}), peak {found[key]['peak_memory_mb']:.0f} MB", flush=True)
    return found


def profiled(name, folder):
    """Runtime and file -> milliseconds by kind of operator, the slowest first."""
    pixels = np.random.default_rng(0).standard_normal((BATCH, 3, SIZE, SIZE), np.float32)
    found = {f"openvino {end}": in_openvino(folder / f"{name}_{end}.onnx", pixels) for end in ("fp32", "int8")}
    for end in ("fp32", "u8"):
        spent = in_onnxruntime(folder / f"{name}_{end}.onnx", [{INPUT: pixels}] * (RUNS + WARMUP), THREADS)
        found[f"onnxruntime {end}"] = Counter({kind: us / 1e3 for kind, us in spent.items()})
    return {where: {kind: ms for kind, ms in spent.most_common(12) if ms > 0.005} for where, spent in found.items()}


def in_openvino(path, pixels):
    """Milliseconds of OpenVINO's operators by kind and number type, mean of RUNS."""
    import openvino  # here: --help needs none

    request = openvino.compile_model(path, "CPU", {"PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY",
                                                   "INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    spent = Counter()
    for run in range(RUNS + WARMUP):
        request.infer([pixels])
        for node in request.profiling_info if run >= WARMUP else ():
            spent[f"{node.node_type} {node.exec_type}"] += node.real_time.total_seconds() * 1e3 / RUNS
    return spent


def main(settings):
    names = chosen(NETWORKS, (*TORCHVISION, LITE), "NETWORKS")
    check(ROUNDS >= 0 and RUNS > 0 and PICTURES > 0, "ROUNDS must not be below 0; RUNS and PICTURES must be above 0")
    folder, found = run_dir(RUN), {}
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    for name in names:
        if not all((folder / f"{name}_{end}.onnx").exists() for end in FILES):
            with atomic_folder(folder) as scratch:
                make(name, scratch)
                move_up(scratch)
        found[name] = counted(name, folder)
        if ROUNDS:
            found[name]["speed"] = timed(name, folder)
            found[name]["profile"] = profiled(name, folder)
        for where, spent in found[name].get("profile", {}).items():
            print(f"  {name} {where}, ms: " + ", ".join(f"{kind} {ms:.2f}" for kind, ms in spent.items()))
    out = ROOT / "results" / f"{RUN}.json"
    write_json(out, {"machine": machine(), "versions": versions(), "settings": settings, "networks": found})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
