"""Pictures of the matrix: each is a figure drawn from the results of one experiment."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from lowbit.measure.plots import shade_counts
from lowbit.measure.record import measured_files, metrics, quality_metrics, task_of_results
from lowbit.ptq.results import verdict

# how a method's name starts, what its kind is called, its colour
KINDS = (("fp32", "FP32", "#8a94a6"), ("fp16", "FP16", "#8957e5"), ("int8_dynamic", "INT8 dynamic", "#1f6feb"),
         ("int8_static", "INT8 static", "#2da44e"), ("int4_per_channel", "4 and 2 bits, per channel", "#bf3989"),
         ("int2_per_channel", "4 and 2 bits, per channel", "#bf3989"), ("int4", "INT4 weights", "#d97706"),
         ("qat", "QAT", "#cf222e"), ("mixed", "mixed precision", "#9a6700"), ("ts_teacher", "teacher", "#8a94a6"),
         ("ts_student", "students", "#1f6feb"))
OTHER = ("other", "#0f766e")
LABEL_COLOURS = ("#2da44e", "#8a94a6", "#cf222e", "#8957e5", "#d97706", "#1f6feb", "#0f766e")
INK = {False: "#1f2328", True: "#e6edf3"}


def style(dark: bool = False) -> dict:
    """Settings of matplotlib for a light or a dark page; the ground is left out, the page's own shows."""
    ink = INK[dark]
    return {"text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink,
            "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
            "svg.fonttype": "none", "svg.hashsalt": "lowbit", "font.family": "DejaVu Sans"}


def kind_of(method: str) -> tuple[str, str]:
    """(name, colour) of the kind of method; OTHER for one that is not known here."""
    return next(((name, colour) for start, name, colour in KINDS if method.startswith(start)), OTHER)


def pareto_front(rows: dict[str, dict], cost: str, score: str = "accuracy") -> list[str]:
    """Methods, cheapest first, that no other beats in `score` at the same or a lower cost."""
    front, best = [], -np.inf
    for method in sorted(rows, key=lambda name: (rows[name][cost], -rows[name][score])):
        if rows[method][score] > best:
            front.append(method)
            best = rows[method][score]
    return front


def _logarithmic(axis) -> None:
    """Ticks at 1, 2, 3, 5 of every decade, as plain numbers."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.xaxis.set_minor_locator(NullLocator())


def trade_off(results: dict, cost: str, label: str) -> Figure:
    """Quality against `cost`, the Pareto front drawn and named; a cross is seen to lose more than the guard allows."""
    rows, ink = measured_files(results), matplotlib.rcParams["text.color"]
    task = task_of_results(results)
    (metric,) = metrics("accuracy") if task.labels else quality_metrics(task)[:1]
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    axis = figure.subplots()
    front, named = pareto_front(rows, cost, metric.key), set()
    for method, row in rows.items():
        name, colour = kind_of(method)
        marker = "x" if verdict(method, results).startswith("loses") else "o"
        axis.scatter(row[cost], metric.value(row), s=46, color=colour, label=None if name in named else name,
                     marker=marker, zorder=3, linewidths=1.6 if marker == "x" else 0)
        named.add(name)
    axis.step([rows[method][cost] for method in front], [metric.value(rows[method]) for method in front],
              where="post", color=ink, linewidth=1, alpha=0.6, label="Pareto front")
    for number, method in enumerate(front):
        axis.annotate(method, (rows[method][cost], metric.value(rows[method])), xytext=(6, 5 - 13 * (number % 2)),
                      textcoords="offset points", fontsize=7.5)
    base, points = next(iter(rows.values())), results["max_drop"]
    axis.axhline(metric.value(base) - points, linestyle=":", linewidth=1, color=ink,
                 label=f"FP32 less {points:g} point{'s' * (points != 1)}")
    axis.set(xlabel=f"{label} (logarithmic)", ylabel=f"test {metric.heading} ({base['samples']} texts)")
    _logarithmic(axis)
    axis.margins(x=0.12, y=0.12)
    axis.legend(frameon=False, fontsize=7.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def accuracy_size(results: dict) -> Figure:
    """Quality against the size of the file."""
    return trade_off(results, "model_size", "file, MB")


def accuracy_latency(results: dict) -> Figure:
    """Quality against the median latency of one batch."""
    shape = results["protocol"]["SHAPES"][-1].replace("x", " × ")
    return trade_off(results, "median_ms", f"median latency of {shape} tokens, ms")


def _method_axis(rows: dict[str, dict]):
    figure = Figure(figsize=(7.4, 1.1 + 0.24 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="x", linewidth=0.4, alpha=0.4)
    return figure, axis


def latency_distributions(results: dict) -> Figure:
    """Every measured run of every method: box from quartile to quartile, whiskers from 5 to 95 %, each run a dot."""
    rows = measured_files(results)
    figure, axis = _method_axis(rows)
    for number, (method, row) in enumerate(rows.items()):
        runs = np.array(row["runs_ms"])
        colour = kind_of(method)[1]
        spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(runs))
        axis.plot(runs, number + spread, ".", color=colour, alpha=0.25, markersize=3, rasterized=True)
        axis.boxplot(runs, positions=[number], orientation="horizontal", widths=0.55, whis=(5, 95), showfliers=False,
                     manage_ticks=False, medianprops={"color": matplotlib.rcParams["text.color"]},
                     boxprops={"color": colour}, whiskerprops={"color": colour}, capprops={"color": colour})
    rounds, runs = (results["protocol"][name] for name in ("ROUNDS", "RUNS"))
    axis.set_xlabel(f"ms (logarithmic), {rounds} turns of {runs} runs")
    _logarithmic(axis)
    return figure


def f1_per_class(results: dict) -> Figure:
    """F1 of each label, one line of dots a method."""
    rows, labels = measured_files(results), task_of_results(results).labels
    figure, axis = _method_axis(rows)
    for number, label in enumerate(labels):
        values = [100 * row["f1_per_class"][label] for row in rows.values()]
        colour, marker = LABEL_COLOURS[number % len(LABEL_COLOURS)], "osD^vPX"[number % 7]
        axis.plot(values, range(len(rows)), marker, color=colour, markersize=5, label=label)
        axis.axvline(values[0], color=colour, linewidth=0.6, linestyle=":")
    axis.set_xlabel("F1, % (dotted: FP32)")
    axis.legend(frameon=False, ncols=min(len(labels), 5), loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8)
    return figure


def _small_multiples(rows: dict[str, dict], side: float) -> tuple[Figure, list]:
    """A figure with a small square for each method, named."""
    columns = min(5, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(side * columns, (side + 0.2) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(rows):]:
        axis.axis("off")
    for axis, method in zip(axes.flat, rows, strict=False):
        axis.set_title(method.replace("int8_static_", "int8_static_\n").replace("_per_", "_\nper_"), fontsize=6.5)
        axis.tick_params(labelsize=6)
    figure.supxlabel("predicted", fontsize=8)
    figure.supylabel("true", fontsize=8)
    return figure, list(axes.flat)[: len(rows)]


def confusion_matrices(results: dict) -> Figure:
    """Counts of every method, shaded by the share of the true label."""
    rows, labels = measured_files(results), task_of_results(results).labels
    figure, axes = _small_multiples(rows, max(1.75, 0.4 * len(labels)))
    names = [label[:3] for label in labels]
    for axis, row in zip(axes, rows.values(), strict=True):
        shade_counts(axis, np.array(row["confusion_matrix"]), lambda count, _: str(count), 7)
        axis.set_xticks(range(len(labels)), names, fontsize=6)
        axis.set_yticks(range(len(labels)), names, fontsize=6)
    return figure


def predictions(results: dict) -> Figure:
    """True and predicted number of each test text, a square a method."""
    rows = measured_files(results)
    figure, axes = _small_multiples(rows, 1.75)
    for axis, (method, row) in zip(axes, rows.items(), strict=True):
        truth, predicted = np.array(row["predictions"]).T
        axis.plot(predicted, truth, ".", color=kind_of(method)[1], markersize=2, alpha=0.4, rasterized=True)
    return figure


def plots_of(results: dict) -> dict:
    """Name -> function of the pictures that this task has."""
    shared = {"accuracy_size": accuracy_size, "accuracy_latency": accuracy_latency,
              "latency_distributions": latency_distributions}
    if task_of_results(results).labels is None:
        return shared | {"predictions": predictions}
    return shared | {"f1_per_class": f1_per_class, "confusion_matrices": confusion_matrices}


def draw(name: str, results: dict, target, kind: str, dark: bool = False) -> None:
    """Save a picture of plots_of() to a path or file object as `kind` (png or svg); svg leaves the ground to the page.
    """
    with matplotlib.rc_context(style(dark)):
        figure = plots_of(results)[name](results)
        figure.savefig(target, format=kind, dpi=130, transparent=kind == "svg",
                       metadata={"Date": None} if kind == "svg" else None)
