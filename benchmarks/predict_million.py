"""Benchmark: the packed predictor on large files: rows a second from file to file, where they go, memory.

Reads   MODEL_DIRS (deploy/pack.py), DATA_DIR/train.tsv: its texts, repeated
Writes  results/predict_million.json

Each predictor takes turns with the bare session, which is fed the batches that predict.py makes of the same rows,
ready-made. The first one then labels ROWS rows.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

from packed_process import predict

from lowbit.data.tsv import read_tsv
from lowbit.pipeline.files import ROOT, resolve, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --rows 100000 -------------------------------------------
MODEL_DIRS = "dist/sample-learned,dist/sample-int8"  # folders that pack.py made, with commas
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
batches = []
for start in range(0, len(texts), 4096):
    rows = model.encodings([model.clean(text) for text in texts[start : start + 4096]])
    batches += [model.batch([rows[i] for i in group]) for group in model.groups([len(row.ids) for row in rows])]
for inputs in batches[:5]:
    model.session.run(["logits"], inputs)
started = time.perf_counter()
for inputs in batches:
    model.session.run(["logits"], inputs)
print(time.perf_counter() - started)
"""


def take_turns(folder: Path, sample: Path, target: Path) -> list[dict]:
    """ROUNDS turns of the predictor and of the bare session, on the same rows."""
    turns = []
    for _ in range(ROUNDS):
        turn, _ = predict(folder, sample, target)
        bare = float(subprocess.run([sys.executable, "-c", BARE, folder, sample], check=True, text=True,
                                    stdout=subprocess.PIPE).stdout)
        turns.append(turn | {"bare_rows_per_second": SAMPLE / bare,
                             "ratio": turn["rows_per_second_loaded"] * bare / SAMPLE})
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in turn["shares"].items())
        print(f"  {SAMPLE} rows: {turn['rows_per_second']:.0f}/s from file to file ({shares}); bare session "
              f"{SAMPLE / bare:.0f}/s, {turns[-1]['ratio']:.2f}x", flush=True)
    return turns


def main(settings):
    texts = [text for text in read_tsv(resolve(DATA_DIR) / "train.tsv")[0] if len(text) <= SHORT]
    folders, result = [resolve(name.strip()) for name in MODEL_DIRS.split(",")], {"turns": {}}
    with tempfile.TemporaryDirectory() as scratch:
        sample, large, target = (Path(scratch) / name for name in ("sample.txt", "large.txt", "labels.jsonl"))
        for path, rows in ((sample, SAMPLE), (large, ROWS)):
            with open(path, "w", encoding="utf-8") as handle:
                handle.writelines(f"{texts[i % len(texts)]}\n" for i in range(rows))
        for folder in folders:
            print(f"  {folder.name}")
            result["turns"][folder.name] = take_turns(folder, sample, target)
        found, seen = predict(folders[0], large, target)
        with open(target, "rb") as lines:
            written = sum(1 for _ in lines)
    memory = {"peak": max(high for _, high in seen), "after a tenth": seen[len(seen) // 10][0],
              "at the end": seen[-1][0]}
    print(f"  {written} rows by {folders[0].name}: {found['rows_per_second']:.0f}/s; memory "
          + ", ".join(f"{value:.0f} MB {name}" for name, value in memory.items()))
    out = ROOT / "results" / "predict_million.json"
    write_json(out, {"machine": machine(), "versions": versions(), "settings": settings, **result, "large": found,
                     "rows": written, "memory_mb": memory, "distinct_texts": len(texts)})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
