"""Which low-bit file of a student is deployed, and its results as deploy/pack.py reads them: beside its own FP32."""

from pathlib import Path

from lowbit.data.task import Task
from lowbit.distill.comparison import OWN, qat_file, results_name
from lowbit.distill.places import DISTIL, EXPORT, ONNX
from lowbit.measure.record import MEASURED, RESULTS, TOO_MUCH, judge
from lowbit.pipeline.files import atomic_folder, claim, write_json
from lowbit.pipeline.manifest import publish, record, stages_of, withdraw


def precision_of(file: str) -> str:
    """What a file's name means: int4 for one that was trained so, int8 for the others."""
    return "int4" if file == qat_file("int4") else "int8"


def best_file(name: str, results: dict) -> str | None:
    """The fastest of a student's low-bit files that is not seen to lose more than MAX_DROP to its own FP32."""
    head = f"{results_name(name)}/"
    held = {method.removeprefix(head): found for method, found in results["files"].items()
            if method.startswith(head) and not method.endswith(f"/{ONNX}") and found["status"] == MEASURED
            and judge(found[OWN], results["max_drop"]) != TOO_MUCH}
    return min(held, key=lambda file: held[file]["median_ms"]) if held else None


def ship(name: str, folder: Path, results: dict, stage: str, task: Task) -> str | None:
    """Record in a student's folder which file ships, with results.json of it and FP32; returns the file, or None.

    None where no file may: then what was recorded before is taken back.
    """
    file = best_file(name, results)
    claim(folder)
    if file is None:
        withdraw(folder)
        return None
    maker = next(key for key, made in stages_of(folder).items() if file in made["writes"])
    head, precision = results_name(name), precision_of(file)
    files = {"FP32": results["files"][f"{head}/{ONNX}"], precision.upper(): results["files"][f"{head}/{file}"]}
    files = {key: found | {part: found[OWN][part] for part in ("loss", "against_fp32", "compression", "speedup")}
             for key, found in files.items()}
    with atomic_folder(folder) as scratch:
        write_json(scratch / RESULTS, results | {"files": files, "protocol": results["protocol"] | {
            "RUNTIME": "onnxruntime"}})
        publish(scratch)
    record(folder, stage, results["protocol"], [folder / ONNX, folder / file], [RESULTS], {
        "precision": precision, "file": file, "runtime": "onnxruntime", "task": task.as_json(),
        "stages": {"train": DISTIL, "export": EXPORT, "quantize": maker, "evaluate": stage}})
    return file
