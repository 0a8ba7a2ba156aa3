"""What the report says of a run in one runtime: targets beside what was measured, and a picture of the trade."""

from matplotlib.figure import Figure

from lowbit.measure.html import inlined
from lowbit.vision.evaluate import columns_of
from lowbit.vision.run import CONTROL, FP32

TARGETS = (  # promise, what a record holds of it, whether that keeps it, how it reads
    ("accuracy: less than 1 point lost (test)", lambda row: row["points_lost"]["test"], lambda value: value < 1,
     "{:+.2f} points"),
    ("size: 3 to 4 times smaller", lambda row: row["compression"], lambda value: value >= 3, "{:.2f}x"),
    ("speed: 2 to 4 times faster, one picture", lambda row: row["speedup"], lambda value: value >= 2, "{:.2f}x"),
    ("memory: 70 to 75 % less", lambda row: -100 * row["memory_saving"], lambda value: value <= -70, "{:+.0f} %"),
)
TURN = ("#1f6feb", "#bf6a02", "#1a7f37", "#8250df", "#b3261e", "#59636e", "#0f766e", "#a04a7d")


def target_table(results: dict) -> dict:
    """{"files": names, "rows": [(promise, [(figure, kept) of each file])]} of the low-bit files."""
    low = {name: row for name, row in results["files"].items() if name not in (FP32, CONTROL)}
    rows = [(promise, [(form.format(value(row)), bool(kept(value(row)))) for row in low.values()])
            for promise, value, kept, form in TARGETS]
    return {"files": list(low), "rows": rows}


def layers_said(results: dict) -> str:
    """A sentence on what runs on integers."""
    counts = {name: row["census"] for name, row in results["files"].items() if name not in (FP32, CONTROL)}
    if not counts:
        return "No low-bit file was measured in this runtime."
    return "; ".join(f"{name}: {count['integer']} of {count['integer'] + count['float']} layers on integers"
                     for name, count in counts.items()) + "."


def trade_picture(results: dict) -> str:
    """Test accuracy against one picture's median time, each file a point, as the address of an inlined SVG."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axis = figure.subplots()
    for place, (name, row) in enumerate(results["files"].items()):
        colour = TURN[place % len(TURN)]
        axis.plot(row["median_ms"], 100 * row["accuracy"], "o", color=colour, markersize=8, label=name)
    axis.set(xlabel="one picture, median ms", ylabel="test accuracy, %")
    axis.set_xlim(left=0)
    axis.margins(y=0.2)
    axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return inlined(lambda drawn: figure.savefig(drawn, format="svg"))


def section(name: str, runtime: str, results: dict) -> dict:
    """What the template shows of a run in one runtime."""
    task = results["task"]["labels"]
    classes = [(label, [f"{100 * row['f1_per_class'][label]:.1f}" for row in results["files"].values()])
               for label in task]
    return {"name": name, "runtime": runtime, "columns": columns_of(results), "files": results["files"],
            "protocol": results["protocol"],
            "batches": [shape.split("x")[0] for shape in results["protocol"]["SHAPES"]],
            "samples": results["files"][FP32]["samples"],
            "targets": target_table(results), "layers": layers_said(results), "picture": trade_picture(results),
            "classes": classes}
