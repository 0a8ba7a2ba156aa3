"""What stage 4 says of a run: the low-bit file beside FP32, as lines for the terminal and as files."""

import csv
import io
from pathlib import Path

from lowbit.measure.evaluate import ORDERS
from lowbit.measure.plots import plot_quality, plot_ranges, plot_speed
from lowbit.measure.record import RESULTS, Metric, csv_metrics, metrics, quality_metrics, task_of_results
from lowbit.pipeline.files import atomic_folder, shown, write_json
from lowbit.pipeline.manifest import publish


def table_lines(results: dict) -> list[str]:
    """FP32 beside the low-bit file, as a table for the terminal: a line a figure."""
    (_, base), (low, ours) = results["files"].items()
    lines = [f"  {'':24} {'FP32':>10} {low:>10}"]

    def line(metric: Metric, before: dict, after: dict, note: str, heading: str = "") -> None:
        lines.append(f"  {heading or metric.heading:24} {metric.show(before):>10} {metric.show(after):>10}  {note}")

    for metric in quality_metrics(task_of_results(results)):
        line(metric, base, ours, f"{metric.value(ours) - metric.value(base):+.2f} points")
    (size,) = metrics("model_size")
    line(size, base, ours, f"{100 / ours['compression']:.1f} %")
    for shape, after in ours["timings"].items():
        for metric in metrics("median_ms", "p95_ms"):
            note = (f"{after['speedup']:.2f}x the speed ({min(after['round_speedups']):.2f} to "
                    f"{max(after['round_speedups']):.2f})" if metric.key == "median_ms" else "")
            line(metric, base["timings"][shape], after, note, f"{metric.heading}, {shape}")
    for key in ("texts_per_second", "texts_per_second_padded"):
        (metric,) = metrics(key)
        line(metric, base, ours, f"{ours[key.replace('texts_per_second', 'throughput')]:.2f}x")
    memory, load = metrics("peak_memory_mb", "load_ms")
    line(memory, base, ours, f"{100 * (1 - ours['memory_saving']):.1f} %")
    line(load, base, ours, f"{ours['load_ms'] / base['load_ms']:.2f}x")
    return lines


def agreement_lines(results: dict) -> list[str]:
    """Flips, significance, agreement with training and dependence on batch-mates, one sentence each."""
    (_, ours) = results["files"].values()
    paired, batch, fp32 = ours["against_fp32"], ours["batch_dependence"], ours["all_against_fp32"]
    simulation, lines = ours.get("all_against_simulation"), []
    if "flips" in paired:
        lines.append(f"  {paired['flips']} of {paired['texts']} test labels differ from FP32 ({paired['lost']} lost, "
                     f"{paired['won']} won, McNemar p = {paired['mcnemar_p']:.2f})")
    if simulation and "flips" in simulation:
        lines.append(f"  {simulation['flips']} of {simulation['texts']} valid + test labels differ from the simulation "
                     f"in training, {fp32['flips']} from FP32")
    for which, key in (("median", "median_logit_difference"), ("largest", "max_logit_difference")):
        to_simulation = f"{simulation[key]:.1e} to the simulation, " if simulation else ""
        lines.append(f"  {which} logit difference {to_simulation}{fp32[key]:.1e} to FP32")
    arranged = f"between batch 1 and batches of {batch['batch_size']} in {ORDERS} random orders or full padding"
    moved = f"largest logit change {batch['max_logit_difference']:.1e}"
    if "flips" in batch:
        return [*lines, f"  {batch['flips']} of {batch['texts']} test labels change {arranged} ({moved})"]
    return [*lines, f"  {moved} {arranged}"]


def csv_text(files: dict, *heads: str) -> str:
    """One line a file, one column a figure; `heads` name the parts of each key, "file" alone if there are none."""
    out, columns = io.StringIO(), csv_metrics(files)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(heads or ["file"]), "status", *(metric.key for metric in columns), "samples", "reason"])
    for name, record in files.items():
        writer.writerow([*([name] if isinstance(name, str) else name), record["status"],
                         *(metric._replace(scale=1).value(record) for metric in columns),
                         record.get("samples"), record.get("reason", "")])
    return out.getvalue()


def write_report(folder: Path, results: dict, reports: dict[str, str], ranges: dict | None = None,
                 draw_more=None) -> list[str]:
    """results.json, results.csv, classification_report.txt and pictures of stage 4; returns their names.

    The pictures show the first file, FP32, and the last. With learned activation `ranges`
    (training.calibration.observed_ranges) also activation_ranges.png. `draw_more(results, folder)` adds others.
    """
    (base, first), *_, (low, last) = results["files"].items()
    two = results | {"files": {base: first, low: last}}
    with atomic_folder(folder) as scratch:
        write_json(scratch / RESULTS, results)
        (scratch / "results.csv").write_text(csv_text(results["files"]), encoding="utf-8")
        (scratch / "classification_report.txt").write_text(
            "\n".join(f"{name}\n{text}" for name, text in reports.items()), encoding="utf-8")
        plot_quality(two, scratch)
        plot_speed(two, scratch / "speed.png")
        if ranges:
            plot_ranges(ranges, scratch / "activation_ranges.png")
        if draw_more:
            draw_more(results, scratch)
        names = publish(scratch)
    print(f"wrote {', '.join(names)} in {shown(folder)}")
    return names
