"""Benchmark: where the time of one ONNX file goes, by kind of operator, as the runtime itself counts it.

Reads   FILE
Writes  results/profile_file.json

Counting costs time of its own, most where operators are small: shares are to be read, not sums.
"""
from collections import Counter
from pathlib import Path

from bert_base import read_shapes
from profiler import in_onnxruntime

from lowbit.measure.session import WARMUP, random_inputs, require_runtime
from lowbit.pipeline.files import ROOT, resolve, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: models/sample-int8/model_qat_int8.onnx ------------------
FILE = ""                       # an ONNX file
RUNTIME = "onnxruntime"         # onnxruntime, or openvino (CPU; pip install -r requirements-openvino.txt)
SHAPES = "1x32,16x64"           # texts x tokens of a batch
RUNS = 50                       # counted batches of each shape
THREADS = 0                     # threads of the session; 0 = every core
LARGEST_ID = 5_000              # token ids are drawn below it
# --------------------------------------------------------------------------------------------------


def in_openvino(path: Path, batches: list[dict], threads: int) -> Counter:
    """Kernel -> microseconds a batch."""
    import openvino

    request = openvino.compile_model(path, "CPU", {
        "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True, "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    spent = Counter()
    for number, batch in enumerate(batches):
        request.infer(batch)
        for node in request.get_profiling_info() if number >= WARMUP else ():
            spent[node.node_type] += 1e6 * node.real_time.total_seconds() / (len(batches) - WARMUP)
    return spent


def main(settings):
    path = resolve(FILE)
    check(path.is_file(), f"FILE is {FILE!r}, which is not there")
    require_runtime(RUNTIME)
    found = {}
    ask = in_openvino if RUNTIME == "openvino" else in_onnxruntime
    for batch, length in read_shapes(SHAPES):
        spent = ask(path, random_inputs(LARGEST_ID, batch, length, RUNS + WARMUP), THREADS)
        total = sum(spent.values())
        found[f"{batch}x{length}"] = dict(spent.most_common())
        print(f"  {batch} x {length} tokens: " + ", ".join(
            f"{name} {100 * time / total:.0f} %" for name, time in spent.most_common(10)))
    out = ROOT / "results" / "profile_file.json"
    write_json(out, {"machine": machine(), "versions": versions(), "settings": settings, "microseconds": found})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals(), bare="FILE")
