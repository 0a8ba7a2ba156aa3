"""Pictures of the matrix: each is a figure drawn from the measured rows of one experiment."""

import matplotlib
import numpy as np

from lowbit.data.tsv import LABELS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen before)

FAMILIES = (("fp32", "FP32", "#8a94a6"), ("fp16", "FP16", "#8957e5"), ("int8_dynamic", "INT8 dynamic", "#1f6feb"),
            ("int8_static", "INT8 static", "#2da44e"), ("int4", "INT4 weights", "#d97706"), ("qat", "QAT", "#cf222e"))
INK = {False: "#1f2328", True: "#e6edf3"}


def style(dark: bool = False) -> dict:
    """Settings of matplotlib for a light or a dark page; the ground is left out, the page's own shows."""
    ink = INK[dark]
    return {"text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink,
            "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
            "svg.fonttype": "none", "svg.hashsalt": "lowbit", "font.family": "DejaVu Sans"}


def family(method: str) -> tuple[str, str]:
    """(name, colour) of the kind of method."""
    return next((name, colour) for start, name, colour in FAMILIES if method.startswith(start))


def pareto_front(rows: dict[str, dict], cost: str) -> list[str]:
    """Methods, cheapest first, that no other beats in accuracy at the same or a lower cost."""
    front, best = [], -1.0
    for method in sorted(rows, key=lambda name: (rows[name][cost], -rows[name]["accuracy"])):
        if rows[method]["accuracy"] > best:
            front.append(method)
            best = rows[method]["accuracy"]
    return front


def _logarithmic(axis) -> None:
    """Ticks at 1, 2, 3, 5 of every decade, as plain numbers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def trade_off(rows: dict[str, dict], cost: str, label: str):
    """Accuracy against `cost`, the Pareto front drawn and named, the guard's limit as a line."""
    figure, axis = plt.subplots(figsize=(7.4, 4.4), constrained_layout=True)
    front = pareto_front(rows, cost)
    shown = set()
    for method, row in rows.items():
        name, colour = family(method)
        axis.scatter(row[cost], 100 * row["accuracy"], s=46, color=colour, label=None if name in shown else name,
                     marker="o" if row["within_max_drop"] else "x", zorder=3, linewidths=1.6 if not
                     row["within_max_drop"] else 0)
        shown.add(name)
    axis.step([rows[method][cost] for method in front], [100 * rows[method]["accuracy"] for method in front],
              where="post", color=plt.rcParams["text.color"], linewidth=1, alpha=0.6, label="Pareto front")
    for number, method in enumerate(front):
        axis.annotate(method, (rows[method][cost], 100 * rows[method]["accuracy"]), xytext=(6, 5 - 13 * (number % 2)),
                      textcoords="offset points", fontsize=7.5)
    base = rows["fp32"]
    points = f"{base['max_drop']:g} point{'s' * (base['max_drop'] != 1)}"
    axis.axhline(100 * base["accuracy"] - base["max_drop"], linestyle=":", linewidth=1,
                 color=plt.rcParams["text.color"], label=f"FP32 less {points}")
    axis.set(xlabel=f"{label} (logarithmic)", ylabel=f"test accuracy, % ({base['samples']} texts)")
    _logarithmic(axis)
    axis.margins(x=0.12, y=0.12)
    axis.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def accuracy_size(rows: dict[str, dict]):
    """Accuracy against the size of the file."""
    return trade_off(rows, "model_size", "file, MB")


def accuracy_latency(rows: dict[str, dict]):
    """Accuracy against the median latency of one batch."""
    protocol = rows["fp32"]["protocol"]
    return trade_off(rows, "median_ms", f"median latency of {protocol['BATCH_SIZE']} × {protocol['TOKENS']} tokens, ms")


def _method_axis(rows: dict[str, dict], width: float = 7.4):
    figure, axis = plt.subplots(figsize=(width, 1.1 + 0.24 * len(rows)), constrained_layout=True)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="x", linewidth=0.4, alpha=0.4)
    return figure, axis


def latency_distributions(rows: dict[str, dict]):
    """Every measured run of every method: box from quartile to quartile, whiskers from 5 to 95 %, each run a dot."""
    figure, axis = _method_axis(rows)
    for number, (method, row) in enumerate(rows.items()):
        runs = np.array(row["runs_ms"])
        colour = family(method)[1]
        spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(runs))
        axis.plot(runs, number + spread, ".", color=colour, alpha=0.25, markersize=3, rasterized=True)
        axis.boxplot(runs, positions=[number], orientation="horizontal", widths=0.55, whis=(5, 95), showfliers=False,
                     manage_ticks=False, medianprops={"color": plt.rcParams["text.color"]},
                     boxprops={"color": colour}, whiskerprops={"color": colour}, capprops={"color": colour})
    rounds, runs = rows["fp32"]["protocol"]["ROUNDS"], rows["fp32"]["protocol"]["RUNS"]
    axis.set_xlabel(f"ms (logarithmic), {rounds} turns of {runs} runs")
    _logarithmic(axis)
    return figure


def f1_per_class(rows: dict[str, dict]):
    """F1 of each label, one line of dots a method."""
    figure, axis = _method_axis(rows)
    for label, colour, marker in zip(LABELS, ("#2da44e", "#8a94a6", "#cf222e"), "osD", strict=True):
        values = [100 * row["f1_per_class"][label] for row in rows.values()]
        axis.plot(values, range(len(rows)), marker, color=colour, markersize=5, label=label)
        axis.axvline(values[0], color=colour, linewidth=0.6, linestyle=":")
    axis.set_xlabel("F1, % (dotted: FP32)")
    axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8)
    return figure


def confusion_matrices(rows: dict[str, dict]):
    """Counts of every method, shaded by the share of the true label."""
    columns = min(5, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(1.75 * columns, 1.95 * lines), constrained_layout=True,
                                squeeze=False)
    for axis in axes.flat[len(rows):]:
        axis.axis("off")
    for axis, (method, row) in zip(axes.flat, rows.items(), strict=False):
        counts = np.array(row["confusion_matrix"])
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(counts.shape):
            axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=7,
                      color="white" if share[i, j] > 0.55 else "black")
        axis.set_title(method.replace("int8_static_", "int8_static_\n").replace("_per_", "_\nper_"), fontsize=6.5)
        axis.set_xticks(range(len(LABELS)), [label[:3] for label in LABELS], fontsize=6)
        axis.set_yticks(range(len(LABELS)), [label[:3] for label in LABELS], fontsize=6)
    figure.supxlabel("predicted", fontsize=8)
    figure.supylabel("true", fontsize=8)
    return figure


PLOTS = {"accuracy_size": accuracy_size, "accuracy_latency": accuracy_latency,
         "latency_distributions": latency_distributions, "f1_per_class": f1_per_class,
         "confusion_matrices": confusion_matrices}


def draw(name: str, rows: dict[str, dict], target, kind: str, dark: bool = False) -> None:
    """Save one of PLOTS to a path or file object as `kind` (png or svg); svg leaves the ground to the page."""
    with plt.rc_context(style(dark)):
        figure = PLOTS[name](rows)
        figure.savefig(target, format=kind, dpi=130, transparent=kind == "svg",
                       metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)
