"""Measuring the files of a run in one runtime: quality on valid and test, agreement with PyTorch, speed in turns."""

from pathlib import Path

import numpy as np
import torch

from lowbit.data.task import Task, read_task
from lowbit.graph.census import layer_census, openvino_layer_census
from lowbit.measure.evaluate import check_settings, record_of
from lowbit.measure.record import FORMAT, METRICS, Metric, metrics
from lowbit.measure.score import compare, difference
from lowbit.measure.session import WARMUP, Session, take_turns
from lowbit.pipeline.machine import machine, versions
from lowbit.vision.data import Split
from lowbit.vision.export import INPUT
from lowbit.vision.preprocessing import Preprocessing, read_preprocessing
from lowbit.vision.run import CONTROL, FP32, OPENVINO, Variant, load
from lowbit.vision.train import outputs_of

STAGE = "vision/accuracy_evaluation.py"
ASKED = 50  # pictures of one request to a session
TOP = 5
PROVIDER = "CPUExecutionProvider"
COLUMNS = ("accuracy", "top5", "points_lost.test", "points_lost.valid", "against_fp32.flips", "against_fp32.mcnemar_p",
           "model_size", "compression", "median_ms", "speedup", "peak_memory_mb", "memory_saving")
AGREEMENT = Metric("all_against_simulation.same_label", "as simulated, %", "{:.2f}", "higher", 100)
INTEGER = Metric("census.integer", "integer layers", "{:d}")


def results_file(runtime: str) -> str:
    """Name of a run's results of one runtime."""
    return f"results_{runtime}.json"


def file_outputs(session: Session, crops: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Logits [n, classes] of a file, a few pictures at a time."""
    return np.concatenate([session.outputs([{INPUT: preprocessing.inputs(crops[start : start + ASKED])}])
                           for start in range(0, len(crops), ASKED)])


def top_share(truth: np.ndarray, outputs: np.ndarray) -> float:
    """Share of pictures whose class is among the TOP of largest logits."""
    best = np.argsort(-outputs, axis=-1, kind="stable")[:, :TOP]
    return float((best == np.asarray(truth)[:, None]).any(-1).mean())


def measured_speed(files: dict[str, Path], runtime: str, preprocessing: Preprocessing, s: dict):
    """(name -> what each turn measured, keys of the timed batches): a new process for every file and turn."""
    rng, size = np.random.default_rng(0), preprocessing.size
    timed = {f"{batch}x{size}": [{INPUT: rng.standard_normal((batch, 3, size, size), np.float32)}] * s["RUNS"]
             for batch in (s["BATCH_SIZE"], 1)}
    rounds = [take_turns({name: (path, runtime) for name, path in files.items()}, timed, PROVIDER, s["THREADS"])
              for _ in range(s["ROUNDS"])]
    for turn in (turn for turns in rounds for turn in turns.values() if "error" in turn):
        raise RuntimeError(turn["error"])
    return {name: [turns[name] for turns in rounds] for name in files}, list(timed)


def evaluate(run: Path, runtime: str, chosen: list[Variant], data: dict[str, Split], s: dict) -> tuple[dict, dict]:
    """(results as measure/record.py has them, name -> logits of valid and test) of the variants, FP32 first."""
    check_settings(s)
    task, preprocessing = read_task(run), read_preprocessing(run)
    files, outputs = {variant.name: run / variant.file for variant in chosen}, {}
    for name, path in files.items():
        with Session(path, PROVIDER, s["THREADS"], runtime) as session:
            outputs[name] = {split: file_outputs(session, crops, preprocessing) for split, (crops, _) in data.items()}
    print(f"  {runtime}: {len(data['test'][1])} test pictures scored; measuring speed over {s['ROUNDS']} rounds, in "
          "turns", flush=True)
    turns, shapes = measured_speed(files, runtime, preprocessing, s)
    answers = {split: (None, labels) for split, (_, labels) in data.items()}
    records = {}
    for variant in chosen:
        name = variant.name
        records[name] = record_of(files[name], outputs[name], outputs[FP32], answers, task, turns[name], turns[FP32],
                                  shapes, files[FP32])
        records[name] |= of_pictures(run, variant, outputs, data, task, runtime, preprocessing)
    protocol = {name: s[name] for name in ("THREADS", "BATCH_SIZE", "ROUNDS", "RUNS")}
    protocol |= {"PROVIDER": PROVIDER, "RUNTIME": runtime, "WARMUP": WARMUP, "SHAPES": shapes}
    return {"format": FORMAT, "task": task.as_json(), "protocol": protocol, "machine": machine(),
            "versions": versions(), "settings": s, "files": records, "empty_after_cleaning": {}}, outputs


def of_pictures(run: Path, variant: Variant, outputs: dict, data: dict[str, Split], task: Task, runtime: str,
                preprocessing: Preprocessing) -> dict:
    """What a record of pictures holds beside the others: top5, census, agreement, comparison with the FP32 control.

    Agreement has a floor: the simulation once more, channels last. A sum in another order, rounded to the next integer,
    is multiplied by every layer behind it, so two computations of one arithmetic differ in some labels.
    """
    path, ours, truth = run / variant.file, outputs[variant.name], data["test"][1]
    simulation = load(run, variant)

    def by_pytorch() -> np.ndarray:
        return np.concatenate([outputs_of(simulation, data[split][0], preprocessing) for split in ours])

    simulated = by_pytorch()
    found: dict = {"census": openvino_layer_census(path) if runtime == OPENVINO else layer_census(path),
             "all_against_simulation": difference(np.concatenate(list(ours.values())), simulated, task)}
    if variant.target:
        simulation.to(memory_format=torch.channels_last)
        found["simulation_by_other_kernels"] = difference(by_pytorch(), simulated, task)
    if len(task.labels) > TOP:
        found["top5"] = top_share(truth, ours["test"])
    if CONTROL in outputs and variant.name.startswith("qat"):
        found["against_control"] = compare(truth, ours["test"], outputs[CONTROL]["test"], task)
    return found


def columns_of(results: dict) -> list[Metric]:
    """The figures of the table that at least one record holds."""
    rows = results["files"].values()
    wanted = [*metrics(*(key for key in COLUMNS if key in METRICS)), INTEGER, AGREEMENT]
    return [metric for metric in wanted if any(metric.value(row) is not None for row in rows)]


def table_lines(results: dict) -> list[str]:
    """A runtime's files as a table for the terminal."""
    shown, rows = columns_of(results), results["files"]
    width, room = max(map(len, rows)), {metric: max(len(metric.heading), 7) for metric in shown}
    lines = [f"  {'file':{width}} " + " ".join(f"{metric.heading:>{room[metric]}}" for metric in shown)]
    lines += [f"  {name:{width}} " + " ".join(f"{metric.show(row):>{room[metric]}}" for metric in shown)
              for name, row in rows.items()]
    return lines
