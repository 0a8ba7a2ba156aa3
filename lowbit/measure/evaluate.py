"""Measuring files by one protocol: outputs at batch 1, dependence on batch-mates, speed in turns."""

import os
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lowbit.data.task import Task, task_of_run
from lowbit.data.tokens import Row, TextReader
from lowbit.data.tsv import describe, read_split
from lowbit.measure.record import FORMAT, MEASURED
from lowbit.measure.score import compare, difference, loss_interval, points_lost, report_text, score
from lowbit.measure.session import WARMUP, Session, full_batches, random_inputs, sorted_batches, take_turns
from lowbit.pipeline.files import file_bytes, resolve, sha256, shown
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import check

LATENCY_SHAPES = ((1, 32), (1, 128))  # batch, tokens
ORDERS = 3  # random orders in which the dependence on batch-mates is looked for
SORTED, PADDED = "sorted", "padded"  # the test texts in length-sorted batches, and padded to the longest input
MOST_THREADS = max(64, 2 * (os.cpu_count() or 1))  # more only cost memory: 100,000 took 8.9 GB


def check_settings(s: dict) -> None:
    """Refuse values that cannot measure, each with one sentence."""
    for name in ("BATCH_SIZE", "ROUNDS", "RUNS"):
        check(s[name] > 0, f"{name} is {s[name]}; it must be above 0")
    check(s["RUNS"] > 1, f"RUNS is {s['RUNS']}; a spread takes at least 2")
    check(0 <= s["THREADS"] <= MOST_THREADS, f"THREADS is {s['THREADS']}; 0 means every core, at most {MOST_THREADS}")


def batch_dependence(session: Session, rows: list[Row], alone: np.ndarray, pad_id: int, size: int, max_length: int,
                     task: Task) -> dict:
    """What batch-mates, order and padding change of the outputs `alone` [n, outputs] that each row has at batch 1.

    `arrangements` are batches of `size` in ORDERS random orders, then each row alone, padded to `max_length`;
    `flips` counts rows whose label changes in any of these, `max_logit_difference` is the largest of all.
    """
    orders = [np.random.default_rng(seed).permutation(len(rows)).tolist() for seed in range(ORDERS)]
    arranged = [session.logits(rows, pad_id, size, order) for order in orders]
    arranged.append(session.logits(rows, pad_id, length=max_length))
    parts = [difference(outputs, alone, task) for outputs in arranged]
    found = {"batch_size": size, "texts": len(rows),
             "max_logit_difference": max(part["max_logit_difference"] for part in parts), "arrangements": parts}
    if task.labels:
        changed = np.any([outputs.argmax(-1) != alone.argmax(-1) for outputs in arranged], axis=0)
        found["flips"] = int(changed.sum())
    return found


def timing(turns: list[list[float]], theirs: list[list[float]]) -> dict:
    """A record's figures of one timed batch, from the ms of each run by turn: this file's, and FP32's beside it."""
    runs = np.concatenate(turns)
    ratios = [statistics.median(other) / statistics.median(ours) for ours, other in zip(turns, theirs, strict=True)]
    return {"mean_ms": float(runs.mean()), "std_ms": float(runs.std(ddof=1)), "min_ms": float(runs.min()),
            "max_ms": float(runs.max()), "median_ms": float(np.median(runs)), "p95_ms": float(np.percentile(runs, 95)),
            "speedup": statistics.median(ratios), "round_speedups": ratios, "runs_ms": runs.tolist()}


def record_of(path: Path, outputs: dict[str, np.ndarray], reference: dict[str, np.ndarray], data: dict, task: Task,
              turns: list[dict], theirs: list[dict], shapes: list[str], fp32: Path) -> dict:
    """The record of one file (see record.py).

    `outputs` and FP32's `reference` map a split to [n, outputs], `data` to (texts, answers). `turns` and FP32's
    `theirs` are what take_turns() found, `shapes` the keys of its timed batches of random tokens.
    """
    quality = {split: score(data[split][1], values, task) for split, values in outputs.items()}
    truth = np.concatenate([data[split][1] for split in outputs])
    ours, base = (np.concatenate([values[split] for split in outputs]) for values in (outputs, reference))
    lost = {split: points_lost(data[split][1], outputs[split], reference[split], task) for split in outputs}
    size, base_size = file_bytes(path) / 1e6, file_bytes(fp32) / 1e6
    memory, base_memory = (statistics.median(turn["peak_memory_mb"] for turn in side) for side in (turns, theirs))
    timings = {shape: timing([turn["ms"][shape] for turn in turns], [turn["ms"][shape] for turn in theirs])
               for shape in shapes}
    found = {
        "status": MEASURED, "file": shown(path), "sha256": sha256(path), "samples": len(data["test"][1]),
        **quality["test"], "valid": quality.get("valid"),
        "against_fp32": compare(data["test"][1], outputs["test"], reference["test"], task),
        "all_against_fp32": difference(ours, base, task),
        "points_lost": lost, "loss": {**loss_interval(truth, ours, base, task), "texts": len(truth)},
        "model_size": size, "compression": base_size / size, **timings[shapes[-1]], "timings": timings,
        "peak_memory_mb": memory, "memory_saving": 1 - memory / base_memory,
        "load_ms": statistics.median(turn["load_ms"] for turn in turns)}
    for key, suffix in ((SORTED, ""), (PADDED, "_padded")):
        if key in turns[0]["ms"]:
            seconds, other = ([sum(turn["ms"][key]) / 1e3 for turn in side] for side in (turns, theirs))
            found[f"texts_per_second{suffix}"] = statistics.median(len(data["test"][1]) / spent for spent in seconds)
            found[f"throughput{suffix}"] = statistics.median(
                b / a for a, b in zip(seconds, other, strict=True))
    return found


def evaluate(settings: dict, files: dict[str, Path], run: Path, reader: TextReader,
             simulated: Callable[[list[Row]], np.ndarray] | None) -> tuple[dict, dict[str, str]]:
    """(results of stage 4 as record.py has them, each file's per-class report as text) of FP32 and a low-bit file.

    `run` is their folder. Quality is scored at batch 1, where no batch-mate matters. `simulated` gives the outputs of
    the model that training simulated, for token rows of valid and test.
    """
    s = settings
    check_settings(s)
    data_dir = resolve(s["DATA_DIR"])
    task = task_of_run(run, data_dir)
    data = {split: read_split(data_dir, split, task) for split in ("valid", "test")}
    print(f"  {describe('test', *data['test'], task)}")
    read = {split: reader.rows_and_empty(texts) for split, (texts, _) in data.items()}
    rows = {split: found for split, (found, _) in read.items()}
    outputs, dependence, runtime = {}, {}, s.get("RUNTIME", "onnxruntime")
    for name, path in files.items():
        with Session(path, s["PROVIDER"], s["THREADS"], runtime) as session:
            outputs[name] = {split: session.logits(rows[split], reader.pad_id) for split in rows}
            dependence[name] = batch_dependence(session, rows["test"], outputs[name]["test"], reader.pad_id,
                                                s["BATCH_SIZE"], reader.max_length, task)
    print(f"  {len(rows['test'])} test texts scored at batch 1; measuring speed over {s['ROUNDS']} rounds, in turns",
          flush=True)
    timed = {f"{batch}x{min(length, reader.max_length)}": random_inputs(
        len(reader.tokenizer), batch, min(length, reader.max_length), s["RUNS"], reader.inputs)
        for batch, length in LATENCY_SHAPES}
    shapes = list(timed)
    timed[SORTED] = sorted_batches(rows["test"], reader.pad_id, s["BATCH_SIZE"])
    timed[PADDED] = full_batches(rows["test"], reader.pad_id, s["BATCH_SIZE"], reader.max_length)
    runtimes = {name: (path, runtime) for name, path in files.items()}
    rounds = [take_turns(runtimes, timed, s["PROVIDER"], s["THREADS"]) for _ in range(s["ROUNDS"])]
    for turn in (turn for turns in rounds for turn in turns.values() if "error" in turn):
        raise RuntimeError(turn["error"])
    base = next(iter(files))
    turns = {name: [round_[name] for round_ in rounds] for name in files}
    records = {name: record_of(path, outputs[name], outputs[base], data, task, turns[name], turns[base], shapes,
                               files[base]) | {"batch_dependence": dependence[name]} for name, path in files.items()}
    low = list(files)[-1]
    if simulated is not None:
        both = np.concatenate([outputs[low][split] for split in ("valid", "test")])
        records[low]["all_against_simulation"] = difference(both, simulated(rows["valid"] + rows["test"]), task)
    protocol = {name: s[name] for name in ("PROVIDER", "THREADS", "BATCH_SIZE", "ROUNDS", "RUNS")}
    protocol |= {"RUNTIME": runtime, "WARMUP": WARMUP, "SHAPES": shapes}
    results = {"format": FORMAT, "task": task.as_json(), "protocol": protocol, "machine": machine(),
               "versions": versions(), "settings": s, "files": records,
               "empty_after_cleaning": {split: empty for split, (_, empty) in read.items()}}
    return results, {name: report_text(data["test"][1], outputs[name]["test"], task) for name in files}
