"""What stage 4 says of a mix: its file beside the others of its size, as a table, a picture, and files."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from lowbit.measure.record import metrics, quality_metrics, task_of_results

INT8 = "uniform 8"
# how a file's name starts, what its kind is called, its colour, its marker
KINDS = (("FP32", "FP32", "#8a94a6", "s"), ("uniform", "uniform", "#1f6feb", "o"),
         ("hand", "hand rule", "#d97706", "^"), ("milp", "integer program", "#2da44e", "D"),
         ("random", "random, of the same size", "#9aa0a6", "."), ("rounded", "mix, rounded", "#8957e5", "P"),
         ("MIXED", "this run", "#cf222e", "*"))


def speed_against(record: dict, other: dict, shape: str) -> list[float]:
    """Turn by turn, how many times as fast a file is as another."""
    ours, theirs = (one["timings"][shape]["round_speedups"] for one in (record, other))
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def comparison_lines(results: dict) -> list[str]:
    """Every file in a line: size, divergence from FP32 on test, quality, labels that changed, speed."""
    files, shape = results["files"], results["protocol"]["SHAPES"][-1]
    size, divergence, *changed = metrics("model_size", "against_fp32.divergence", "against_fp32.flips",
                                         "against_fp32.mcnemar_p")
    task, width = task_of_results(results), max(map(len, files))
    room = {metric: max(7, len(metric.heading)) for metric in (
        size._replace(form="{:.2f}"), divergence, *quality_metrics(task), *(changed if task.labels else ()))}
    heads = " ".join(f"{metric.heading:>{wide}}" for metric, wide in room.items())
    lines = [f"  {'':{width}} {heads} {'x FP32':>7} {'x ' + INT8:>12}"]
    for name, record in files.items():
        cells = " ".join(f"{metric.show(record):>{wide}}" for metric, wide in room.items())
        ratios = speed_against(record, files[INT8], shape)
        lines.append(f"  {name:{width}} {cells} {record['speedup']:6.2f}x {statistics.median(ratios):11.2f}x")
    ratios = speed_against(list(files.values())[-1], files[INT8], shape)
    return [*lines, f"  {shape.replace('x', ' × ')} tokens: {statistics.median(ratios):.2f}x the speed of {INT8} "
                    f"({min(ratios):.2f} to {max(ratios):.2f} by turn)"]


def pareto(results: dict, folder: Path) -> None:
    """Size against divergence from FP32 and against quality, on test."""
    files, task = results["files"], task_of_results(results)
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, (metrics("against_fp32.divergence")[0], quality_metrics(task)[0]), strict=True):
        named = set()
        for name, record in files.items():
            start, kind, colour, marker = next(one for one in KINDS if name.startswith(one[0]))
            if metric.key.endswith("divergence") and start == "FP32":
                continue  # 0, which a logarithm has no place for
            axis.plot(record["model_size"], metric.value(record), marker, color=colour, linestyle="none",
                      markersize=13 if marker == "*" else 8 if marker == "." else 7,
                      label=None if kind in named else kind, zorder=3 if marker == "*" else 2)
            named.add(kind)
            if start in ("uniform", "hand") and axis is axes[0]:
                axis.annotate(name, (record["model_size"], metric.value(record)), xytext=(6, 4),
                              textcoords="offset points", fontsize=7.5)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("file, MB (logarithmic)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.1, y=0.1)
    texts = next(iter(files.values()))["samples"]
    axes[0].set_yscale("log")
    axes[0].set_title(f"{'KL' if task.labels else 'half the squared difference'} from FP32 on {texts} test texts",
                      fontsize=10)
    axes[1].set_title(f"test {quality_metrics(task)[0].heading}", fontsize=10)
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(folder / "pareto.png", dpi=130)
