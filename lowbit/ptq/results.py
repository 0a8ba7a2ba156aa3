"""results.json of an experiment: written whole, read only as it was recorded, shown as tables."""

import shutil
from pathlib import Path

from lowbit.measure.record import (
    MEASURED,
    RESULTS,
    UNSURE,
    WITHIN,
    Metric,
    judge,
    metrics,
    quality_metrics,
    read_results_file,
    task_of_results,
)
from lowbit.measure.report import csv_text
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, claim, sha256, shown, write_json
from lowbit.pipeline.manifest import MANIFEST, publish, record, stages_of

SAME = ("experiment", "task", "fp32_sha256", "circumstances")  # what rows of one table have in common


def write_results(folder: Path, stage: str, s: dict, found: dict, reads: list[Path], unfinished: str,
                  replaced: str | tuple[str, ...] = " ") -> dict:
    """results.json and results.csv of an experiment, `found` laid over what stands there; returns the whole.

    Rows beside another FP32 file, or of other data, protocol, versions or machine, are dropped, in words; so are those
    whose name starts with `replaced`. The folder `unfinished` in it is deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    old = {"files": {}}
    if (folder / RESULTS).exists():
        try:
            old = read_results(folder)
        except UserError as error:
            print(f"  {error}: its rows are dropped")
    stale = [name for name in old["files"] if name not in found["files"]
             and any(old[key] != found[key] for key in SAME)]
    if stale:
        print(f"  dropping {', '.join(stale)} from {shown(folder / RESULTS)}: measured beside another FP32 file, or "
              "with other data, protocol, MAX_DROP, versions or machine")
    kept = {name: row for name, row in old["files"].items() if name not in stale and not name.startswith(replaced)}
    whole = found | {"files": {**kept, **found["files"]}}
    with atomic_folder(folder) as scratch:
        write_json(scratch / RESULTS, whole)
        (scratch / "results.csv").write_text(csv_text(whole["files"], "method"), encoding="utf-8")
        names = publish(scratch)
    record(folder, stage, s, reads, names)
    shutil.rmtree(folder / unfinished, ignore_errors=True)
    print(f"wrote {', '.join(names)} in {shown(folder)}")
    return whole


def read_results(folder: Path) -> dict:
    """The results of an experiment; raises UserError unless they are what a stage recorded last."""
    path = folder / RESULTS
    makers = {made["writes"][RESULTS]["sha256"]: made for made in stages_of(folder).values()
              if RESULTS in made["writes"]}
    if not path.exists() or sha256(path) not in makers:
        state = "was changed since it was recorded in" if path.exists() else "is missing beside"
        again = next((made["command"] for made in makers.values()), f"python ptq/run_ptq.py {folder.name}")
        raise UserError(f"{shown(path)} {state} {shown(folder / MANIFEST)}: run `{again}`")
    return read_results_file(path)


def read_experiments(results: Path) -> list[dict]:
    """The results of every experiment in a folder, fine-tuned models first; raises UserError where there is none."""
    found = [read_results(path.parent) for path in results.glob(f"*/{RESULTS}")]
    if not found:
        raise UserError(f"{shown(results)} holds no <experiment>/{RESULTS}: run `python ptq/run_ptq.py` first")
    return sorted(found, key=lambda result: (not result["experiment"]["trained"], result["experiment"]["name"]))


def columns(results: dict) -> list[Metric]:
    """The figures of the overview, those that decide first."""
    splits = [key for key in ("points_lost.test", "points_lost.valid") if key.split(".")[1] in next(
        row for row in results["files"].values() if row["status"] == MEASURED)["points_lost"]]
    flips = ("against_fp32.flips", "against_fp32.mcnemar_p") if task_of_results(results).labels else ()
    return [*quality_metrics(task_of_results(results)),
            *metrics(*splits, "model_size", "median_ms", "speedup", "peak_memory_mb", "compression", *flips)]


def verdict(method: str, results: dict) -> str:
    """What the guard says of a file that ran, "" where it loses no more than MAX_DROP."""
    if method == next(iter(results["files"])):
        return ""  # FP32 itself
    found = judge(results["files"][method], results["max_drop"])
    return "" if found == WITHIN else found


def table_lines(results: dict) -> list[str]:
    """The matrix as a table for the terminal."""
    shown_columns, verdicts = [metric for metric in columns(results) if metric.key != "compression"], []
    width = max(map(len, results["files"]))
    room = {metric: max(len(metric.heading), 6) for metric in shown_columns}
    lines = [f"  {'method':{width}} " + " ".join(f"{metric.heading:>{room[metric]}}" for metric in shown_columns)]
    for method, row in results["files"].items():
        if row["status"] != MEASURED:
            lines.append(f"  {method:{width}} could not run: {row['reason']}")
            continue
        verdicts.append(verdict(method, results))
        cells = " ".join(f"{metric.show(row):>{room[metric]}}" for metric in shown_columns)
        lines.append(f"  {method:{width}} {cells}  {'?' if verdicts[-1] == UNSURE else verdicts[-1]}".rstrip())
    if UNSURE in verdicts:
        texts = next(iter(results["files"].values()))["loss"]["texts"]
        lines.append(f"  ? {UNSURE}: {texts} of them leave open whether the file loses more than "
                     f"{results['max_drop']:g} points (MAX_DROP)")
    return lines
