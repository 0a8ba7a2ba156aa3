"""Teacher and students of one task in one table: every file beside the teacher's FP32, and beside its own model's FP32.

A file is called <model>/<file>, such as ts_student_4x312/model_quant_2.onnx: so it lies in the results folder.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from lowbit.distill.places import ONNX, STUDENT, TEACHER, trainer_of
from lowbit.measure.record import MEASURED, Metric, metrics, quality_metrics, task_of_results
from lowbit.measure.score import compare, loss_interval, points_lost
from lowbit.pipeline.files import atomic_folder, sha256, shown
from lowbit.pipeline.manifest import publish, settings_of, stages_of
from lowbit.pipeline.settings import check

QUANTIZE = "tinybert/quantize.py"
QAT = "model_qat_"  # start of the name of a file that a student was trained as
OWN = "against_own_fp32"  # of a record: which file its own FP32 is, points lost and times smaller and faster


def qat_file(kind: str) -> str:
    """The file that a student trained with this QAT becomes."""
    return f"{QAT}{kind}.onnx"


def results_name(model: str) -> str:
    """teacher -> ts_teacher_bert, student_4x312 -> ts_student_4x312."""
    return "ts_teacher_bert" if model == TEACHER else f"ts_{model}"


def files_of(folder: Path) -> list[str]:
    """Names of a model's ONNX files: FP32 first, then those that quantize.py recorded.

    Of a student that was trained as a file, that file; of another one, those made after training.
    """
    kind = settings_of(folder, trainer_of(folder)).get("QAT", "")
    written = {name for stage, made in stages_of(folder).items() if stage.startswith(QUANTIZE)
               for name in made["writes"] if name.endswith(".onnx")}
    return [ONNX, *sorted(name for name in written if (name == qat_file(kind) if kind else not name.startswith(QAT)))]


def copy_file(source: Path, target: Path) -> None:
    """Copy whole or not at all; a copy that is there already stays."""
    if target.is_file() and sha256(target) == sha256(source):
        return
    with atomic_folder(target.parent) as scratch:
        shutil.copyfile(source, scratch / target.name)
        publish(scratch)


def refuse_other_run(folder: Path, stage: str, run: str) -> None:
    """Raises UserError for a results folder that holds what another RUN measured."""
    measured = stages_of(folder).get(stage, {"settings": {"RUN": run}})["settings"]["RUN"]
    check(measured == run, f"{shown(folder)} holds what RUN {measured} measured: name another folder with --results, "
                           f"or --run {measured}")


def outputs_of(unfinished: Path, name: str, splits: tuple[str, ...]) -> np.ndarray:
    """What measure() noted of a file's outputs, the splits behind each other."""
    held = json.loads((unfinished / f"{name}.json").read_text(encoding="utf-8"))["value"]["outputs"]
    return np.concatenate([np.array(held[split], np.float32) for split in splits])


def add_own(results: dict, data: dict, unfinished: Path) -> None:
    """Put into each record how it compares with the FP32 file of its own model, and the key `accuracy` of a number.

    `points_lost` on test, `loss` with its interval over valid and test, `against_fp32` paired on test. `data` maps
    split to (texts, answers); measure() has noted the outputs in the folder `unfinished`.
    """
    task, (valid, test) = task_of_results(results), (("valid", "test"), ("test",))
    truth = np.concatenate([data[split][1] for split in valid])
    for name, record in results["files"].items():
        own = f"{name.split('/')[0]}/{ONNX}"
        base = results["files"][own]
        if record["status"] != MEASURED or base["status"] != MEASURED:
            continue
        (all_ours, all_base), (ours, theirs) = ([outputs_of(unfinished, file, splits) for file in (name, own)]
                                                for splits in (valid, test))
        record[OWN] = {
            "file": own, "points_lost": points_lost(data["test"][1], ours, theirs, task),
            "loss": {**loss_interval(truth, all_ours, all_base, task), "texts": len(truth)},
            "against_fp32": compare(data["test"][1], ours, theirs, task),
            "compression": base["model_size"] / record["model_size"],
            "speedup": base["median_ms"] / record["median_ms"]}
        record.setdefault("accuracy", None)


def columns(results: dict) -> list[Metric]:
    """What is shown of each file, the score first."""
    return [*quality_metrics(task_of_results(results)), *metrics(
        f"{OWN}.points_lost", "model_size", "compression", f"{OWN}.compression", "median_ms", "std_ms", "speedup")]


def table_lines(results: dict) -> list[str]:
    """The comparison as a table for the terminal; smaller and speed-up count from the teacher's FP32 file."""
    shown_columns = columns(results)
    width = max(map(len, results["files"]))
    room = [max(len(metric.heading), 6) for metric in shown_columns]
    lines = [f"  {'file':{width}} " + " ".join(
        f"{metric.heading:>{size}}" for metric, size in zip(shown_columns, room, strict=True))]
    for name, record in results["files"].items():
        if record["status"] != MEASURED:
            lines.append(f"  {name:{width}} could not run: {record['reason']}")
            continue
        lines.append(f"  {name:{width}} " + " ".join(
            f"{metric.show(record):>{size}}" for metric, size in zip(shown_columns, room, strict=True)))
    return lines


def students_in(results: dict) -> list[str]:
    """Names of the students that were measured, without their ts_student_."""
    heads = [name.split("/")[0].removeprefix("ts_") for name in results["files"]]
    return [name.removeprefix(STUDENT) for name in dict.fromkeys(heads) if name.startswith(STUDENT)]
