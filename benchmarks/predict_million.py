"""Benchmark: the packed predictor on a large file: memory over a million rows, throughput beside the bare session.

Reads   MODEL_DIR (deploy/pack.py), DATA_DIR/train.tsv: its texts, repeated
Writes  results/predict_million.json

The bare session is fed the batches that predict.py makes of the same rows, ready-made; the two take turns.
"""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lowbit.data.tsv import read_tsv
from lowbit.pipeline.files import ROOT, resolve, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --rows 100000 -------------------------------------------
MODEL_DIR = "dist/sample-learned"  # folder that pack.py made
DATA_DIR = "data"               # folder of train.tsv
ROWS = 1_000_000                # rows of the large file
SHORT = 60                      # characters of a text at most
SAMPLE = 100_000                # rows of a turn
ROUNDS = 3                      # turns that predictor and bare session take
# --------------------------------------------------------------------------------------------------

BARE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from predictor import Predictor
model = Predictor(sys.argv[1])
texts = open(sys.argv[2], encoding="utf-8").read().splitlines()
batches = [inputs for start in range(0, len(texts), 4096)
           for _, inputs in model.batches(model.token_ids(texts[start : start + 4096]))]
for inputs in batches[:5]:
    model.session.run(["logits"], inputs)
started = time.perf_counter()
for inputs in batches:
    model.session.run(["logits"], inputs)
print(time.perf_counter() - started)
"""


def memory_mb(pid: int, key: str) -> float:
    """VmRSS or VmHWM of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def predict(folder: Path, source: Path, target: Path) -> tuple[float, list[float]]:
    """(seconds, memory in MB every two seconds) of predict.py."""
    started, seen = time.perf_counter(), []
    process = subprocess.Popen([sys.executable, folder / "predict.py", "--input", source, "--output", target],
                               stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            seen.append((memory_mb(process.pid, "VmRSS"), memory_mb(process.pid, "VmHWM")))
    if process.returncode:
        raise RuntimeError(f"predict.py ended with status {process.returncode}")
    return time.perf_counter() - started, seen


def main(settings):
    folder = resolve(MODEL_DIR)
    texts = [text for text in read_tsv(resolve(DATA_DIR) / "train.tsv")[0] if len(text) <= SHORT]
    with tempfile.TemporaryDirectory() as scratch:
        sample, large, target = (Path(scratch) / name for name in ("sample.txt", "large.txt", "labels.jsonl"))
        for path, rows in ((sample, SAMPLE), (large, ROWS)):
            with open(path, "w", encoding="utf-8") as handle:
                handle.writelines(f"{texts[i % len(texts)]}\n" for i in range(rows))
        turns = []
        for _ in range(ROUNDS):
            ours, _ = predict(folder, sample, target)
            bare = float(subprocess.run([sys.executable, "-c", BARE, folder, sample], check=True, text=True,
                                        stdout=subprocess.PIPE).stdout)
            turns.append({"predictor_rows_per_second": SAMPLE / ours, "bare_rows_per_second": SAMPLE / bare,
                          "ratio": bare / ours})
            print(f"  {SAMPLE} rows: predictor {SAMPLE / ours:.0f}/s, bare session {SAMPLE / bare:.0f}/s, "
                  f"{bare / ours:.2f}x", flush=True)
        seconds, seen = predict(folder, large, target)
        with open(target, "rb") as lines:
            written = sum(1 for _ in lines)
    peak = max(high for _, high in seen)
    tenth = seen[len(seen) // 10][0]
    print(f"  {written} rows in {seconds:.0f} s, {written / seconds:.0f}/s; memory {tenth:.0f} MB after a tenth, "
          f"{seen[-1][0]:.0f} MB at the end, peak {peak:.0f} MB")
    out = ROOT / "results" / "predict_million.json"
    write_json(out, {"machine": machine(), "versions": versions(), "settings": settings, "turns": turns,
                     "model": json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["run"],
                     "rows": written, "seconds": seconds, "peak_memory_mb": peak, "memory_after_a_tenth_mb": tenth,
                     "memory_at_the_end_mb": seen[-1][0], "distinct_texts": len(texts)})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
