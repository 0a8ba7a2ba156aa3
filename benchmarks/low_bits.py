"""Benchmark: what training is worth at 4, 2 and 1.6 bits, beside rounding, GPTQ, MatMulNBits, an FP32 twin and INT8.

Reads   MODEL_NAME                          a fine-tuned model: start, teacher, and what is rounded without training
        DATA_DIR/{train,valid,test}.tsv
Writes  results/low_bits.json, .md and .png, and models/<PREFIX><format>-<seed>/, a run of the four stages each

A twin is trained in FP32 for the same steps at the same rate with the same teacher. A run that is finished is read, not
repeated: what a stopped benchmark has is told by --no-train-missing. NNCF's 4 bits are a row where it is installed
(requirements-benchmarks.txt).
"""
import importlib.util
import logging
import random
import statistics
import subprocess
import sys

import numpy as np
import onnx
from bert_base import time_files
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from onnxruntime.quantization import QuantType, quantize_dynamic

from lowbit.data.task import read_task
from lowbit.data.tokens import load_reader
from lowbit.data.tsv import read_split
from lowbit.graph.export import ONNX
from lowbit.int4.arithmetic import FP32
from lowbit.measure.score import compare, difference, quick_score
from lowbit.measure.session import Session
from lowbit.pipeline.files import ROOT, file_bytes, resolve, run_dir, shown, write_json, write_text
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import shipped, stages_of
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import run_stage
from lowbit.ptq.methods import quantize
from lowbit.ptq.per_channel import quantize_per_channel, second_moments

# ---- settings: edit here, or for one run: --seeds 1 ----------------------------------------------
MODEL_NAME = "models/bert-mini-id"  # folder of a fine-tuned model
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv
PREFIX = "bench-"               # start of the runs' names under models/
SEEDS = "1,2,3"                 # a training run of each format and of each twin for each
FORMATS = ""                    # some of w2t4, w4t4, w2t2, w1t2, with commas; "" = all
MORE = ""                       # flags of every training besides, such as "--num-epochs 6"
WITH_TWINS = False              # FP32 twins as well; they need --more "--label-weight 0.5": by itself none moves
TRAIN_MISSING = True            # train the runs that are not there; off: tell what there is
CALIBRATION_TEXTS = 512         # GPTQ: texts of train
ROUNDS = 5                      # turns that the files of the first seed take when their speed is measured
RUNS = 30                       # measured runs a turn and shape
THREADS = 0                     # of each session whose speed is measured; 0 = every core
# --------------------------------------------------------------------------------------------------

BITS = {"w2t4": (2.0, 4.0), "w4t4": (4.0, 4.0), "w2t2": (2.0, 2.0), "w1t2": (1.6, 2.0)}  # of weights, of tables
RATES = {"w2t4": 1e-4, "w4t4": 2e-5, "w2t2": 2e-4, "w1t2": 3e-4}  # LEARNING_RATE: fewer levels, larger steps
TWINS = {f"twin-{name}": rate for name, rate in RATES.items()}  # as long in FP32, at the rate of a format
NBITS = {f"MatMulNBits {name}": {"kind": "int4", "algorithm": name.lower(), "symmetric": False, "block_size": 32}
         for name in ("RTN", "HQQ")}
NNCF = "NNCF 4 bits, OpenVINO"
SHAPES = ((1, 32), (1, 128), (16, 64))
TRAIN, EXPORT, QUANTIZE = (f"int4_eager/{name}.py" for name in (
    "train_qat_int4", "export_to_onnx", "quantize_onnx_int4"))


def trained(name: str, seed: int):
    """Folder of a run that went through stages 1 to 3, a twin through two; None if it is not there nor to be made."""
    run = f"{PREFIX}{name}-{seed}"
    flags = ["--no-qat"] if name in TWINS else ["--bits", f"{BITS[name][0]:g}", "--table-bits", f"{BITS[name][1]:g}"]
    train = ["--model-name", MODEL_NAME, "--data-dir", DATA_DIR, "--seed", str(seed),
             "--learning-rate", str((TWINS | RATES)[name]), *MORE.split()]
    steps = {TRAIN: train + flags, EXPORT: []} | ({} if name in TWINS else {QUANTIZE: flags})
    for stage, given in steps.items():
        if stage not in stages_of(run_dir(run)):
            if not TRAIN_MISSING:
                return None
            subprocess.run([sys.executable, ROOT / stage, "--run", run, *given], check=True)
    return run_dir(run)


def rounded_files(fp32, formats: list[str], folder, rows) -> dict:
    """Name -> file of the FP32 model without training: INT8, MatMulNBits, and each format rounded and by GPTQ."""
    files = {"INT8": folder / "int8.onnx"}
    logging.getLogger().setLevel(logging.ERROR)
    quantize_dynamic(onnx.load(fp32), files["INT8"], weight_type=QuantType.QInt8,
                     op_types_to_quantize=["MatMul", "Gather"])
    for name, recipe in NBITS.items():
        files[name] = folder / f"{name.replace(' ', '-')}.onnx"
        quantize(fp32, files[name], recipe, folder, {"QUANTIZE_EMBEDDINGS": True})
    if importlib.util.find_spec("nncf"):
        files[NNCF] = folder / "nncf.xml"
        nncf_file(fp32, files[NNCF])
    moments = folder / "moments.npz"
    second_moments(fp32, moments, random.Random(0).sample(rows, CALIBRATION_TEXTS))
    for name in formats:
        for how, given in (("rounded", None), ("GPTQ", moments)):
            files[f"{name} {how}"] = folder / f"{name}-{how}.onnx"
            quantize_per_channel(fp32, files[f"{name} {how}"], *BITS[name], given)
    return files


def nncf_file(fp32, path) -> None:
    """NNCF's compression of all weights and tables to 4 bits, a scale and a zero point a block of 32."""
    import nncf
    import openvino

    compressed = nncf.compress_weights(openvino.Core().read_model(fp32), mode=nncf.CompressWeightsMode.INT4_ASYM,
                                       group_size=32, ratio=1.0, all_layers=True)
    openvino.save_model(compressed, path, compress_to_fp16=False)


def runtime_of(path) -> str:
    """What runs a file."""
    return "openvino" if path.suffix == ".xml" else "onnxruntime"


def outputs_of(path, rows: dict, pad_id: int) -> dict:
    """Split -> outputs, one text at a time."""
    with Session(path, "CPUExecutionProvider", 0, runtime_of(path)) as session:
        return {split: session.logits(some, pad_id) for split, some in rows.items()}


def said(name: str) -> str:
    """A file's name for people: w2t4 becomes its bits."""
    code, *how = name.split()
    if name.endswith(tuple(TWINS)):
        return f"FP32, as long at {TWINS[how[0]]:g}"
    return f"{BITS[code][0]:g} bits, tables {BITS[code][1]:g}, {' '.join(how)}" if code in BITS else name


def picture(files: dict, latency: dict, shape: str) -> Figure:
    """Size against time at `shape`, each file's loss of macro-F1 on valid as its colour."""
    mean = {name: 100 * statistics.mean(one["macro_f1"] for one in files[name]["valid"]) for name in latency}
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axis = figure.subplots()
    sizes, times = ([each[name] for name in latency] for each in (
        {name: files[name]["size_mb"] for name in latency}, {name: latency[name]["median_ms"] for name in latency}))
    drawn = axis.scatter(sizes, times, c=[mean["FP32"] - mean[name] for name in latency], cmap="RdYlGn_r", s=60,
                         edgecolors="#57606a", linewidths=0.6)
    for name, size, time in zip(latency, sizes, times, strict=True):
        steep = {"xytext": (4, 6), "rotation": 75}  # they are as fast as each other: their names would meet
        axis.annotate(said(name), (size, time), textcoords="offset points", fontsize=8, rotation_mode="anchor",
                      **(steep if name.endswith("QAT") else {"xytext": (6, 4)}))
    axis.set(xscale="log", xlabel="file, MB (logarithmic)", ylabel=f"median ms of {shape.replace('x', ' × ')} tokens")
    axis.set_ylim(0, 1.1 * max(times))
    axis.set_xlim(0.8 * min(sizes), 1.6 * max(sizes))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.xaxis.set_minor_locator(NullLocator())
    figure.colorbar(drawn, label="points of macro-F1 below FP32, valid")
    return figure


def records_of(files: dict, found: dict, data: dict, task) -> dict:
    """Name -> size, seeds, each seed's scores and distance from FP32; of trained files also test's labels."""
    records, truth = {}, data["test"][1]
    everything = {key: np.concatenate(list(outputs.values())) for key, outputs in found.items()}
    for name in dict.fromkeys(name for name, _ in files):
        each = [key for key in files if key[0] == name]
        path = files[each[0]]
        size = sum(file_bytes(one) for one in (path, path.with_suffix(".bin")) if one.exists())
        records[name] = {"size_mb": size / 1e6, "seeds": [seed for _, seed in each]} | {
            split: [quick_score(data[split][1], found[key][split], task) for key in each] for split in found[each[0]]}
        records[name]["all_against_start"] = [difference(everything[key], everything["FP32", 0], task) for key in each]
        if name.endswith("QAT"):
            twin = f"FP32 twin-{name.split()[0]}"
            others = {"start": dict.fromkeys(each, ("FP32", 0)),
                      "rounded": {key: (name.replace("QAT", "rounded"), 0) for key in each},
                      "twin": {key: (twin, key[1]) for key in each if (twin, key[1]) in found}}
            for other, pairs in others.items():
                records[name][f"against_{other}"] = [
                    compare(truth, found[key]["test"], found[theirs]["test"], task) for key, theirs in pairs.items()]
    return records


def lines_of(records: dict) -> list[str]:
    """The table, in Markdown."""
    lines = ["| file | MB | valid macro-F1 (each) | test macro-F1 (each) | test accuracy | labels changed (each) |",
             "|---|---|---|---|---|---|"]
    for name, record in records.items():
        cells = [", ".join(f"{100 * one['macro_f1']:.2f}" for one in record[split]) for split in ("valid", "test")]
        means = [f"{100 * statistics.mean(one[key] for one in record[split]):.2f}" for split, key in (
            ("valid", "macro_f1"), ("test", "macro_f1"), ("test", "accuracy"))]
        changed = ", ".join(str(one["flips"]) for one in record["all_against_start"])
        lines.append(f"| {said(name)} | {record['size_mb']:.2f} | {means[0]} ({cells[0]}) | {means[1]} ({cells[1]}) | "
                     f"{means[2]} | {changed} |")
    return lines


def main(settings):
    seeds, formats = [int(seed) for seed in SEEDS.split(",")], chosen(FORMATS, BITS, "FORMATS")
    runs = {}
    for seed in seeds:
        for name in dict.fromkeys(one for format in formats for one in (format, f"twin-{format}")[: 1 + WITH_TWINS]):
            if folder := trained(name, seed):
                runs[name, seed] = folder
    check(runs, f"PREFIX is {PREFIX!r}, and no such run is finished: leave out --no-train-missing")
    first = next(iter(runs.values()))
    reader, task, fp32 = load_reader(first), read_task(first), first / FP32
    data = {split: read_split(resolve(DATA_DIR), split, task) for split in ("train", "valid", "test")}
    rows = {split: reader.rows(texts) for split, (texts, _) in data.items()}
    train_rows = rows.pop("train")
    formats = [name for name in formats if any(name == made for made, _ in runs)]
    files = {("FP32", 0): fp32}
    files |= {(name, 0): path for name, path in rounded_files(fp32, formats, first, train_rows).items()}
    files |= {(f"FP32 {name}" if name in TWINS else f"{name} QAT", seed):
              folder / (ONNX if name in TWINS else shipped(folder)["file"]) for (name, seed), folder in runs.items()}
    records = records_of(files, {key: outputs_of(path, rows, reader.pad_id) for key, path in files.items()}, data, task)
    lines = lines_of(records)
    print(*lines, sep="\n", flush=True)
    timed = {name: next(files[key] for key in files if key[0] == name) for name in records
             if name in ("FP32", "INT8", *NBITS, NNCF) or name.endswith("QAT")}
    timed = time_files({name: (path, runtime_of(path)) for name, path in timed.items()}, "INT8", SHAPES,
                       len(reader.tokenizer), ROUNDS, RUNS, threads=THREADS)
    out = ROOT / "results" / "low_bits"
    write_json(out.with_suffix(".json"), {"machine": machine(), "versions": versions(), "settings": settings,
                                          "files": records, **timed})
    write_text(out.with_suffix(".md"), "\n".join(lines) + "\n")
    picture(records, timed["latency"]["1x128"], "1x128").savefig(out.with_suffix(".png"), dpi=110)
    print(f"wrote {shown(out)}.json, .md and .png")


if __name__ == "__main__":
    run_stage(main, globals())
