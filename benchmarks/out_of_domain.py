"""Benchmark: finished runs on other labelled sets than the one they were trained on, FP32 beside the low-bit file.

Reads   models/<run>/ for RUNS, models that went through the four stages of int8_eager/ or fp16_eager/
        SETS_DIR/*.tsv                      text<TAB>label, some with two of the three labels
Writes  results/out_of_domain.json and .md

A set without neutral texts is scored with the two labels it has: the larger of the two logits decides. Changed labels
are counted among all three.
"""
import random
from pathlib import Path

import numpy as np

from lowbit.data.task import SENTIMENT, read_task
from lowbit.data.tokens import load_reader
from lowbit.data.tsv import read_tsv
from lowbit.graph.export import ONNX
from lowbit.measure.score import compare, quick_score
from lowbit.measure.session import Session
from lowbit.pipeline.files import ROOT, resolve, run_dir, shown, write_json, write_text
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import recorded, shipped
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --texts 500 --------------------------------------------
RUNS = "indobert-qat-int8-smsa"  # folders under models/, separated by commas
SETS_DIR = "data/sentiment_id"  # folder of labelled sets, one a file
TEXTS = 2_000                   # texts of each set, drawn at random; 0 = all
THREADS = 0                     # threads of a session; 0 = every core
# --------------------------------------------------------------------------------------------------

STEM = "out_of_domain"


def read_sets() -> dict[str, tuple[list[str], list[int]]]:
    """Set -> (texts, label ids)."""
    paths = sorted(resolve(SETS_DIR).glob("*.tsv"))
    check(bool(paths), f"SETS_DIR {shown(resolve(SETS_DIR))} holds no .tsv file")
    sets = {}
    for path in paths:
        rows = list(zip(*read_tsv(path), strict=True))
        if TEXTS and len(rows) > TEXTS:
            rows = random.Random(0).sample(rows, TEXTS)
        sets[path.stem] = tuple(map(list, zip(*rows, strict=True)))
    return sets


def ask(path: Path, run: Path, sets: dict) -> dict[str, np.ndarray]:
    """Set -> logits [texts, labels] of an ONNX file, one text at a time."""
    reader = load_reader(run)
    with Session(path, "CPUExecutionProvider", THREADS) as session:
        return {name: session.logits(reader.rows(texts), reader.pad_id) for name, (texts, _) in sets.items()}


def scored(labels: list[int], logits: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-F1 over the labels that the set has."""
    absent = [i for i in range(logits.shape[1]) if i not in set(labels)]
    logits = logits.copy()
    logits[:, absent] = -np.inf
    return quick_score(labels, logits, SENTIMENT)


def main(settings):
    sets, found, low = read_sets(), {}, {}
    for name in RUNS.split(","):
        run = run_dir(name.strip(), "RUNS")
        ships = shipped(run)
        check(read_task(run) == SENTIMENT, f"RUNS names {run.name}, whose task is another: the sets hold sentiment")
        files = {"FP32": recorded(run, ships["stages"]["export"], ONNX)[0],
                 ships["precision"].upper(): recorded(run, ships["stages"]["quantize"], ships["file"])[0]}
        low[name] = list(files)[-1]
        logits = {file: ask(path, run, sets) for file, path in files.items()}
        found[name] = {part: {
            "texts": len(labels), **{file: scored(labels, logits[file][part]) for file in files},
            "against_fp32": compare(labels, logits[low[name]][part], logits["FP32"][part], SENTIMENT)}
            for part, (_, labels) in sets.items()}
    heads = ("set", "texts", "run", "FP32 accuracy", "FP32 macro-F1", "low-bit accuracy", "low-bit macro-F1",
             "labels changed")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for part in sets:
        for name, parts in found.items():
            cells = [f"{100 * parts[part][file][key]:.2f}" for file in ("FP32", low[name])
                     for key in ("accuracy", "macro_f1")]
            lines.append(f"| {part} | {parts[part]['texts']} | {name} | " + " | ".join(cells)
                         + f" | {parts[part]['against_fp32']['flips']} |")
    print(*lines, sep="\n")
    out = ROOT / "results" / STEM
    write_json(out.with_suffix(".json"),
               {"machine": machine(), "versions": versions(), "settings": settings, "runs": found})
    write_text(out.with_suffix(".md"), "\n".join(lines) + "\n")
    print(f"wrote {shown(out)}.json and .md")


if __name__ == "__main__":
    run_stage(main, globals())
