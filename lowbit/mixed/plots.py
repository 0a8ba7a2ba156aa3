"""Pictures of mixed precision: heat maps of the sensitivity, and size against what a file loses."""

from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lowbit.mixed.sensitivity import main_score

NAMES = {"kl_only": "KL divergence of the logits from FP32, this module alone at",
         "kl_all_but": "KL divergence that is saved by leaving this module in FP32, all others at",
         "fisher": "Fisher score of this module at"}
LEAST = 1e-12  # what a logarithmic colour shows a zero as


def heat_map(result: dict, bits: str, path: Path) -> None:
    """Layers down, kinds of module across, tables and head in a row of their own; colour is logarithmic."""
    score, modules = main_score(result), result["modules"]
    layers = sorted({module["layer"] for module in modules.values() if module["layer"] is not None})
    kinds = list(dict.fromkeys(module["kind"] for module in modules.values() if module["layer"] is not None))
    others = [module for module in modules.values() if module["layer"] is None]
    grid = np.full((len(layers), len(kinds)), np.nan)
    for module in modules.values():
        if module["layer"] is not None:
            grid[layers.index(module["layer"]), kinds.index(module["kind"])] = module["bits"][bits][score]
    row = np.array([[module["bits"][bits][score] for module in others]])
    values = np.concatenate([grid[np.isfinite(grid)], row.flatten()]).clip(LEAST)
    least, most = float(values.min()), float(values.max())
    norm = LogNorm(least, max(most, 1.01 * least))
    figure = Figure(figsize=(max(7.0, 1.05 * len(kinds) + 1), 2.2 + 0.42 * len(layers)), layout="constrained")
    axes = figure.subplots(2, 1, height_ratios=(1, max(len(layers), 1)))
    for axis, held, down, across in ((axes[0], row, [""], [module["kind"] for module in others]),
                                     (axes[1], grid, [f"layer {layer}" for layer in layers], kinds)):
        if not held.size:
            axis.axis("off")
            continue
        image = axis.imshow(np.clip(held, LEAST, None), norm=norm, cmap="magma_r", aspect="auto")
        axis.set_xticks(range(len(across)), [name.replace("_", "\n") for name in across], fontsize=7.5)
        axis.set_yticks(range(len(down)), down, fontsize=7.5)
        for i, j in np.ndindex(held.shape):
            if np.isfinite(held[i, j]):
                dark = held[i, j] > least * (most / least) ** 0.55
                axis.text(j, i, f"{held[i, j]:.1e}", ha="center", va="center", fontsize=7,
                          color="white" if dark else "black")
    figure.suptitle(f"{NAMES[score]} {bits} bits", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.9)
    figure.savefig(path, dpi=130)
