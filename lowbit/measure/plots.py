"""Pictures of a result: each is drawn from results.json alone."""

from pathlib import Path

import matplotlib
import numpy as np

from lowbit.data.tsv import LABELS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen before)

COLOURS = ("#8a94a6", "#1f6feb")  # FP32, low-bit


def plot_confusion(result: dict, path: Path) -> None:
    """Confusion matrices of every file side by side: counts, shaded by the share of the true label."""
    files = result["files"]
    figure, axes = plt.subplots(1, len(files), figsize=(4.4 * len(files), 4.2), constrained_layout=True)
    for axis, (name, values) in zip(np.atleast_1d(axes), files.items(), strict=True):
        counts = np.array(values["confusion_matrix"])
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(counts.shape):
            axis.text(j, i, f"{counts[i, j]}\n{100 * share[i, j]:.0f} %", ha="center", va="center",
                      color="white" if share[i, j] > 0.55 else "black")
        axis.set(title=f"{name}: accuracy {100 * values['accuracy']:.1f} %, macro-F1 {100 * values['macro_f1']:.1f} %",
                 xlabel="predicted", ylabel="true")
        axis.title.set_fontsize(10)
        axis.set_xticks(range(len(LABELS)), LABELS)
        axis.set_yticks(range(len(LABELS)), LABELS, rotation=90, va="center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_speed(result: dict, low: str, path: Path) -> None:
    """Latency (p50, whisker to p95), texts a second and size: FP32 beside the low-bit file."""
    base, ours = result["files"]["FP32"], result["files"][low]
    shapes = [key for key in base if key.startswith("latency")]
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), width_ratios=(2, 1, 1), constrained_layout=True)
    for i, (name, values) in enumerate((("FP32", base), (low, ours))):
        x = np.arange(len(shapes)) + (i - 0.5) * 0.38
        p50 = [values[key]["p50_ms"] for key in shapes]
        p95 = [values[key]["p95_ms"] for key in shapes]
        axes[0].bar(x, p50, 0.36, color=COLOURS[i], label=name,
                    yerr=[np.zeros(len(shapes)), np.subtract(p95, p50)], capsize=4)
        for axis, key, form in ((axes[1], "texts_per_second", "{:.0f}"), (axes[2], "size_mb", "{:.1f}")):
            bar = axis.bar(name, values[key], 0.6, color=COLOURS[i])
            axis.bar_label(bar, [form.format(values[key])], fontsize=9)
    axes[0].set_xticks(range(len(shapes)), [
        f"{key[8:].replace('x', ' × ')} tokens\n{base[key]['p50_ms']:.2f} → {ours[key]['p50_ms']:.2f} ms"
        for key in shapes])
    axes[0].set(title="latency, ms (bar p50, whisker p95)")
    axes[1].set(title="texts per second")
    axes[2].set(title="file, MB")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
        axis.margins(y=0.15)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_ranges(ranges: dict, path: Path) -> None:
    """Learned range of each activation tensor (bar) over the one it had on valid (line), layer by layer."""
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.2 * len(ranges)), constrained_layout=True)
    for row, held in enumerate(ranges.values()):
        low, high = held["learned"]
        axis.barh(row, high - low, 0.62, low, color=COLOURS[1], alpha=0.75, label=None if row else "learned")
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
    plt.close(figure)
