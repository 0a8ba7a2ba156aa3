"""Drift and faithfulness as tables and pictures: each is drawn from its results alone."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lowbit.xai.shown import NAMES

BEYOND = {True: "yes", False: "no", None: "no floor"}
HEADINGS = ("file", "method", "Spearman", "95 % interval", "10th percentile", "top 3", "top 5", "sign flips", "L1",
            "floor: seed", "floor: batch", "beyond the floor", "texts")
FLOORS = {"seed": "another seed of FP32", "batch": "the file's batch-mates"}


def _shown(value, form: str = "{:.3f}") -> str:
    return "-" if value is None else form.format(value)


def drift_rows(results: dict) -> list[list[str]]:
    """The cells of a table, a row a file and method, as HEADINGS name them."""
    rows = []
    for file, found in results["files"].items():
        for method, held in found["methods"].items():
            drift = held["drift"]
            ranks = [_shown(drift.get("spearman")),
                     "{:.3f} to {:.3f}".format(*drift["spearman_interval"]) if drift["texts"] else "-",
                     _shown(drift.get("spearman_p10"))]
            rest = [_shown(drift.get(key), "{:.2f}") for key in ("top3", "top5", "sign_flips", "l1")]
            floors = [_shown(held.get(kind, {}).get("spearman")) for kind in FLOORS]
            rows.append([file, method, *ranks, *rest, *floors, BEYOND[held["beyond"]], str(drift["texts"])])
    return rows


def notes(results: dict) -> list[str]:
    """A sentence a file: labels that changed, SHAP's sums, the gap of Integrated Gradients."""
    lines = []
    for file, found in results["files"].items():
        parts = [f"{found['labels_changed']} of {found['texts']} labels differ from FP32's"]
        changed = found["methods"].get("shap", {}).get("changed", {"texts": 0})
        if changed["texts"]:
            parts[0] += f" (SHAP of these {changed['texts']}: Spearman {changed['spearman']:.3f}, not in the table)"
        if found["refused"]:
            parts.append(f"{found['refused']} texts could not be explained")
        if "shap_sum_error" in found:
            parts.append(f"SHAP values miss f(text) - f(no word) by at most {found['shap_sum_error']:.1e}")
        if "ig_gap" in found:
            parts.append(f"gap of ig {100 * found['ig_gap']['median']:.2g} % in the median, FP32's "
                         f"{100 * found['ig_gap_fp32']['median']:.2g} %")
        lines.append(f"{file}: {'; '.join(parts)}")
    return lines


def drift_table(results: dict) -> tuple[list[str], list[list[str]], list[str]]:
    """(headings, cells, notes) of one run's page, whose files go by their own names."""
    own = {"files": {name.rpartition("/")[2]: found for name, found in results["files"].items()}}
    return list(HEADINGS), drift_rows(own), notes(own)


def drift_lines(results: dict) -> list[str]:
    """The table for the terminal, and what the figures do not say."""
    return [*aligned([list(HEADINGS), *drift_rows(results)]), *(f"  {note}" for note in notes(results))]


def drift_markdown(results: dict) -> str:
    """The table and the notes, to be put into a document."""
    return "\n".join([*markdown(list(HEADINGS), drift_rows(results)), "", *notes(results), ""])


def faithfulness_rows(results: dict) -> tuple[list[str], list[list[str]]]:
    """(headings, cells) of the table of faithfulness, a row a file and method."""
    heads = ["file", "method", "beats a random order", "95 % interval", "deletion", "insertion", "comprehensiveness",
             "sufficiency"]
    rows = []
    for file, found in results["files"].items():
        for method, held in found["methods"].items():
            beats = _shown(held.get("beats_random"), "{:.1%}").replace("%", " %")
            edges = [100 * edge for edge in held.get("beats_random_interval", ())]
            rows.append([file, method, beats, "{:.0f} to {:.0f} %".format(*edges) if edges else "-",
                         *(_shown(held[key]) for key in heads[4:])])
    return heads, rows


def markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|",
            *("| " + " | ".join(row) + " |" for row in rows)]


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of equal columns, the first two to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{cell:<{width}}" if place < 2 else f"{cell:>{width}}"
                             for place, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows]


def plot_drift(results: dict, path: Path) -> None:
    """Spearman of each file and method with its interval; marks show the floors."""
    files = results["files"]
    methods = [method for method in NAMES if any(method in found["methods"] for found in files.values())]
    figure = Figure(figsize=(7.5, 1.5 + 0.32 * len(files) * len(methods)), layout="constrained")
    axis = figure.subplots()
    row, places, labels = 0.0, [], []
    for method in methods:
        for file, found in files.items():
            held = found["methods"].get(method)
            if not held or not held["drift"]["texts"]:
                continue
            drift = held["drift"]
            low, high = drift["spearman_interval"]
            axis.plot((low, high), (row, row), color="#1f6feb", linewidth=2.2)
            axis.plot(drift["spearman"], row, "o", color="#1f6feb", markersize=5,
                      label=None if places else "low-bit file against FP32, 95 % interval")
            for kind, mark in (("seed", "|"), ("batch", "x")):
                if held.get(kind, {}).get("texts"):
                    axis.plot(held[kind]["spearman"], row, mark, color="black", markersize=9, markeredgewidth=1.6)
            places.append(row)
            labels.append(f"{NAMES[method]} · {file}")
            row += 1
        row += 0.6
    axis.plot([], [], "|", color="black", markersize=9, markeredgewidth=1.6, label="floor: another seed of FP32")
    axis.plot([], [], "x", color="black", markersize=9, markeredgewidth=1.6, label="floor: the file's own batch-mates")
    axis.set_yticks(places, labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("Spearman correlation of word values, mean over texts")
    axis.grid(axis="x", linewidth=0.4)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def plot_curves(results: dict, path: Path) -> None:
    """Deletion and insertion curves of each file: mean log-odds against the share of words taken away or put back."""
    files = results["files"]
    figure = Figure(figsize=(9.5, 3.4 * len(files)), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(files), 2, sharex=True))
    for row, (file, found) in zip(axes, files.items(), strict=True):
        for axis, kind in zip(row, ("deletion", "insertion"), strict=True):
            for method, curves in found["curves"].items():
                plain = method == "random"
                axis.plot(np.linspace(0, 100, len(curves[kind])), curves[kind], label=NAMES.get(method, method),
                          color="black" if plain else None, linestyle=":" if plain else None, linewidth=1.6)
            axis.set_title(f"{file}: {kind}", fontsize=10)
            axis.set_xlabel(f"% of the words {'taken away' if kind == 'deletion' else 'put back'}, largest value first")
            axis.set_ylabel("log-odds" if results["labels"] else "number")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
