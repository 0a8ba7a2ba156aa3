"""Benchmark: any ONNX files beside each other, a process each, taking turns: times, ratios, memory, load.

Reads   the files of FILES
Writes  results/<NAME>.json

A ratio is the median over rounds of what the first file took over what this one took; its range stands beside it.
"""
from bert_base import read_shapes, time_files

from lowbit.measure.session import require_runtime
from lowbit.pipeline.files import ROOT, resolve, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: fp32=a.onnx,int8=b.onnx --rounds 3 ----------------------
FILES = ""                      # name=path or name=path=openvino, separated by commas; the first is compared with
NAME = "compare_files"          # of the results file
SHAPES = "1x32,1x128,16x64,16x128"  # texts x tokens of a batch
ROUNDS = 5                      # turns that the processes take
RUNS = 30                       # measured batches a turn and shape
THREADS = 0                     # threads of a session; 0 = every core
LARGEST_ID = 5_000              # token ids are drawn below it
# --------------------------------------------------------------------------------------------------


def read_files() -> dict:
    """Name -> (path, runtime)."""
    files = {}
    for entry in FILES.split(","):
        name, *rest = entry.split("=")
        check(1 <= len(rest) <= 2, f"FILES has {entry!r}; write name=path or name=path=openvino")
        path, runtime = resolve(rest[0]), rest[1] if len(rest) > 1 else "onnxruntime"
        check(path.is_file(), f"FILES names {shown(path)}, which is not there")
        check(name not in files, f"FILES has {name!r} twice")
        require_runtime(runtime)
        files[name] = path, runtime
    return files


def main(settings):
    files = read_files()
    found = time_files(files, next(iter(files)), read_shapes(SHAPES), LARGEST_ID, ROUNDS, RUNS, threads=THREADS)
    out = ROOT / "results" / f"{NAME}.json"
    write_json(out, {"machine": machine(), "versions": versions(), "settings": settings,
                     "size_mb": {name: path.stat().st_size / 1e6 for name, (path, _) in files.items()}, **found})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals(), bare="FILES")
