"""Pictures of a run's results: each is drawn from results.json alone."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lowbit.measure.record import metrics, quality_metrics, task_of_results

COLOURS = ("#8a94a6", "#1f6feb")  # FP32, low-bit


def plot_quality(results: dict, folder: Path) -> None:
    """confusion_matrix.png of labels, predictions.png of a number."""
    if task_of_results(results).labels:
        plot_confusion(results, folder / "confusion_matrix.png")
    else:
        plot_predictions(results, folder / "predictions.png")


def title(name: str, record: dict, results: dict) -> str:
    """A file's name and its quality."""
    shown = (f"{metric.heading.removesuffix(', %')} {metric.value(record):.1f} %"
             for metric in quality_metrics(task_of_results(results)))
    return f"{name}: {', '.join(shown)}"


def shade_counts(axis, counts: np.ndarray, form, size: float) -> None:
    """A confusion matrix, each cell shaded by its share of the true label; form(count, share) is written into it."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        axis.text(j, i, form(counts[i, j], share[i, j]), ha="center", va="center",
                  fontsize=size, color="white" if share[i, j] > 0.55 else "black")


def plot_confusion(results: dict, path: Path) -> None:
    """Confusion matrices of every file side by side: counts, shaded by the share of the true label."""
    files, labels = results["files"], task_of_results(results).labels
    side = max(4.2, 0.55 * len(labels) + 1.5)
    figure = Figure(figsize=(side * len(files), side), layout="constrained")
    for axis, (name, record) in zip(np.atleast_1d(figure.subplots(1, len(files))), files.items(), strict=True):
        shade_counts(axis, np.array(record["confusion_matrix"]), lambda count, share: f"{count}\n{100 * share:.0f} %",
                     min(10, 50 / len(labels)))
        axis.set(xlabel="predicted", ylabel="true")
        axis.set_title(title(name, record, results), fontsize=10)
        upright = len(labels) > 5 or max(map(len, labels)) > 12
        axis.set_xticks(range(len(labels)), labels, **({"rotation": 90} if upright else {}))
        axis.set_yticks(range(len(labels)), labels, **({} if upright else {"rotation": 90, "va": "center"}))
    figure.savefig(path, dpi=120)


def plot_predictions(results: dict, path: Path) -> None:
    """Each test text's true and predicted number, every file side by side."""
    files = results["files"]
    figure = Figure(figsize=(4.2 * len(files), 4.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(files), sharex=True, sharey=True))
    for axis, colour, (name, record) in zip(axes, COLOURS, files.items(), strict=True):
        truth, predicted = np.array(record["predictions"]).T
        axis.plot(truth, predicted, ".", color=colour, alpha=0.4, markersize=4)
        axis.axline((truth.mean(), truth.mean()), slope=1, color="black", linewidth=0.6)
        axis.set(xlabel="true", ylabel="predicted")
        axis.set_title(title(name, record, results), fontsize=10)
    figure.savefig(path, dpi=120)


def plot_speed(results: dict, path: Path) -> None:
    """Median latency (whisker to p95), texts a second and size: FP32 beside the low-bit file."""
    files = results["files"]
    shapes = results["protocol"]["SHAPES"]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    for i, (name, record) in enumerate(files.items()):
        x = np.arange(len(shapes)) + (i - 0.5) * 0.38
        median, p95 = ([record["timings"][shape][key] for shape in shapes] for key in ("median_ms", "p95_ms"))
        axes[0].bar(x, median, 0.36, color=COLOURS[i], label=name,
                    yerr=[np.zeros(len(shapes)), np.maximum(np.subtract(p95, median), 0)], capsize=4)
        for axis, metric in zip(axes[1:], metrics("texts_per_second", "model_size"), strict=True):
            axis.bar_label(axis.bar(name, metric.value(record), 0.6, color=COLOURS[i]), [metric.show(record)],
                           fontsize=9)
    before, after = (record["timings"] for record in files.values())
    axes[0].set_xticks(range(len(shapes)), [
        f"{shape.replace('x', ' × ')} tokens\n{before[shape]['median_ms']:.2f} → {after[shape]['median_ms']:.2f} ms"
        for shape in shapes])
    for axis, heading in zip(axes, ("latency, ms (bar median, whisker p95)", "texts per second", "file, MB"),
                             strict=True):
        axis.set_title(heading, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.15)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


def plot_ranges(ranges: dict, path: Path) -> None:
    """Range in the file of each activation tensor (bar) over the one it had on valid (line), layer by layer."""
    figure = Figure(figsize=(8, 1.2 + 0.2 * len(ranges)), layout="constrained")
    axis = figure.subplots()
    for row, held in enumerate(ranges.values()):
        low, high = held["learned"]
        axis.barh(row, high - low, 0.62, low, color=COLOURS[1], alpha=0.75, label=None if row else "in the file")
        axis.plot(held["observed"], (row, row), color="black", linewidth=1, marker="|", markersize=7,
                  label=None if row else "observed on valid")
        if held["clipped"]:
            axis.annotate(f"{100 * held['clipped']:.2g} % beyond", (1.005, row), xycoords=("axes fraction", "data"),
                          va="center", fontsize=6.5)
    names = [name.removeprefix("bert.").removeprefix("encoder.").replace(".quantizers.", " · ")
             .replace(".quantizer", " · input") for name in ranges]
    axis.set_yticks(range(len(ranges)), names, fontsize=7)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.axvline(0, color="grey", linewidth=0.6)
    axis.set_title("activation ranges", fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
