"""Results of several runs side by side, and runs of one recipe with other seeds as a mean and its range."""

import statistics

from lowbit.measure.record import read_results_file
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import run_dir, shown
from lowbit.pipeline.manifest import recorded, settings_of, stages_of
from lowbit.vision.evaluate import STAGE, columns_of, results_file
from lowbit.vision.run import CONTROL, FP32, ONNXRUNTIME, OPENVINO, TRAIN

SEED_BOUND = ("RUN", "SEED", "WEIGHTS", "DATA_DIR")  # settings that runs of one recipe may differ in

Runs = dict[tuple[str, str], dict]  # (run, runtime) -> its results


def read_runs(names: str) -> Runs:
    """The results of runs named with commas, in every runtime that they were measured in."""
    found = {}
    for name in dict.fromkeys(part.strip() for part in names.split(",") if part.strip()):
        folder = run_dir(name, "RUN_NAMES")
        if not folder.is_dir():
            raise UserError(f"RUN_NAMES names {name!r}, but there is no {shown(folder)}")
        written = stages_of(folder).get(STAGE, {}).get("writes", {})
        measured = [runtime for runtime in (OPENVINO, ONNXRUNTIME) if results_file(runtime) in written]
        if not measured:
            raise UserError(f"{shown(folder)} has not been measured: run `python {STAGE} --run {name}` first")
        for runtime in measured:
            found[name, runtime] = read_results_file(recorded(folder, STAGE, results_file(runtime))[0])
    if not found:
        raise UserError("RUN_NAMES is empty; name at least one run")
    return found


def _recipe(name: str) -> tuple:
    """What runs of one recipe have in common."""
    return tuple(sorted((key, value) for key, value in settings_of(run_dir(name), TRAIN).items()
                        if key not in SEED_BOUND))


def over_seeds(found: Runs) -> list[dict]:
    """One entry a file that at least two runs of one recipe hold, with accuracies and points lost of each.

    {"runs", "runtime", "file", "accuracy": [...], "lost": beside FP32 [...], "control": beside the control [...]}
    """
    groups: dict[tuple, list[str]] = {}
    for name, runtime in found:
        groups.setdefault((_recipe(name), runtime), []).append(name)
    entries = []
    for (_, runtime), names in groups.items():
        if len(names) < 2:
            continue
        rows = [found[name, runtime]["files"] for name in names]
        for file in (file for file in rows[0] if all(file in row for row in rows)):
            accuracy = [100 * row[file]["accuracy"] for row in rows]
            entries.append({
                "runs": names, "runtime": runtime, "file": file, "accuracy": accuracy,
                "lost": [row[file]["points_lost"]["test"] for row in rows],
                "control": [100 * row[CONTROL]["accuracy"] - value for row, value in zip(rows, accuracy, strict=True)]
                if all(CONTROL in row for row in rows) and file not in (FP32, CONTROL) else []})
    return entries


def spread(values: list[float], form: str) -> str:
    """Mean and range of some figures."""
    return f"{form.format(statistics.mean(values))} ({form.format(min(values))} to {form.format(max(values))})"


def seed_lines(entries: list[dict]) -> list[str]:
    """over_seeds() as a user reads it."""
    lines = []
    for entry in entries:
        said = (f"  {entry['file']} in {entry['runtime']}, {len(entry['runs'])} seeds: accuracy "
                f"{spread(entry['accuracy'], '{:.2f}')} %, {spread(entry['lost'], '{:+.2f}')} points below FP32")
        if entry["control"]:
            said += f", {spread(entry['control'], '{:+.2f}')} below the control"
        lines.append(said)
    return lines


def markdown(found: Runs, entries: list[dict]) -> str:
    """A table a run and runtime, and one over seeds."""
    lines = []
    for (name, runtime), results in found.items():
        columns, base = columns_of(results), results["files"][FP32]
        lines += [f"## {name}, {runtime}", "", f"{base['samples']} test pictures; a timed batch of "
                  f"{results['protocol']['SHAPES'][-1].split('x')[0]}, {results['machine']['cpu']}.", "",
                  "| " + " | ".join(["file", *(metric.heading for metric in columns)]) + " |",
                  "|---" * (len(columns) + 1) + "|"]
        lines += ["| " + " | ".join([file, *(metric.show(row) for metric in columns)]) + " |"
                  for file, row in results["files"].items()]
        lines.append("")
    if entries:
        lines += ["## over seeds", "", "| file | runtime | seeds | accuracy, % | below FP32 | below the control |",
                  "|---|---|---|---|---|---|"]
        lines += [f"| {entry['file']} | {entry['runtime']} | {len(entry['runs'])} | "
                  f"{spread(entry['accuracy'], '{:.2f}')} | {spread(entry['lost'], '{:+.2f}')} | "
                  f"{spread(entry['control'], '{:+.2f}') if entry['control'] else '-'} |" for entry in entries]
        lines.append("")
    return "\n".join(lines)
