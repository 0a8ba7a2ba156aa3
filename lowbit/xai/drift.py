"""Whether a file still decides for the same reasons: how far word values move, beside how far they move anyway.

They move between two seeds of one file, and with a file's batch-mates: these are the floors.

    Spearman       rank correlation of a text's word values
    top 3, top 5   share of the words of largest magnitude that are also the other's
    sign flips     share of the words that matter (a tenth of the text's magnitude or more) whose sign changes
    L1             sum of |a - b| over the sum of |a|
"""

import numpy as np
from scipy.stats import spearmanr

from lowbit.xai.explain import METHODS, UNSIGNED
from lowbit.xai.files import FP32

MATTERS = 0.1  # share of the sum of magnitudes from which a word matters
RESAMPLES = 2000  # of the bootstrap over texts
CONFIDENCE = 0.95
KEYS = ("spearman", "top3", "top5", "sign_flips", "l1")


def compared(a: list[float], b: list[float], method: str) -> dict[str, float] | None:
    """The figures of one text, a's values beside b's; None where ranks say nothing: one word, or all values equal."""
    ours, theirs = np.array(a), np.array(b)
    if len(ours) < 2 or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return None
    found = {"spearman": float(spearmanr(ours, theirs).statistic), "l1": float(
        np.abs(ours - theirs).sum() / np.abs(ours).sum())}
    for count in (3, 5):
        top = [set(np.argsort(-np.abs(values), kind="stable")[:count].tolist()) for values in (ours, theirs)]
        found[f"top{count}"] = len(top[0] & top[1]) / len(top[0])
    if method not in UNSIGNED:
        matters = np.abs(ours) >= MATTERS * np.abs(ours).sum()
        found["sign_flips"] = float((np.sign(ours) != np.sign(theirs))[matters].mean()) if matters.any() else 0.0
    return found


def interval(values: np.ndarray) -> list[float]:
    """95 % interval of the mean, by a bootstrap over texts."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return [float(edge) for edge in np.quantile(values[draws].mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])]


def summary(found: list[dict]) -> dict:
    """Means over texts, Spearman also with its 10th percentile and interval; {"texts": 0} of none."""
    if not found:
        return {"texts": 0}
    ranks = np.array([one["spearman"] for one in found])
    means = {key: float(np.mean([one[key] for one in found])) for key in KEYS if key in found[0]}
    return {"texts": len(found), **means, "spearman_p10": float(np.quantile(ranks, 0.1)),
            "spearman_interval": interval(ranks)}


def pairs_of(records: list[dict], method: str, file: str) -> dict[str, list[dict | None]]:
    """"drift", "seed", "batch" -> the figures of each text, of those that were measured for a method and a file."""
    found: dict = {"drift": [], "seed": [], "batch": []}
    for record in records:
        base, own = (record["files"][name]["methods"].get(method) for name in (FP32, file))
        if base is not None and own is not None:
            found["drift"].append(compared(base, own, method))
        floors = record.get("floors", {"seed": {}, "batch": {}})
        again = floors["seed"].get(FP32, {}).get(method)
        if again is not None:
            found["seed"].append(compared(base, again, method))
        together = floors["batch"].get(file, {}).get(method)
        if together is not None:
            found["batch"].append(compared(own, together, method))
    return {kind: figures for kind, figures in found.items() if figures}


def verdict(pairs: dict[str, list[dict | None]]) -> dict:
    """Which floor is the lower one, and whether the drift lies below it: the interval of the paired difference says so.

    `beyond` is None where no floor was measured: the method draws nothing, and the file does not depend on its batch.
    """
    floors = {}
    for kind in ("seed", "batch"):
        both = [(one["spearman"], other["spearman"])
                for one, other in zip(pairs["drift"], pairs.get(kind, ()), strict=False) if one and other]
        if both:
            floors[kind] = np.array(both)
    if not floors:
        return {"floor": None, "beyond": None}
    kind = min(floors, key=lambda name: floors[name][:, 1].mean())
    low, high = interval(floors[kind][:, 1] - floors[kind][:, 0])
    return {"floor": kind, "beyond": low > 0, "floor_minus_drift": [low, high]}


def same_label(record: dict, file: str) -> bool:
    """Whether a file gives a text FP32's label; of a number always."""
    return record["label"] is None or int(np.argmax(record["files"][file]["outputs"])) == record["label"]


def drift_of(records: list[dict], file: str) -> dict:
    """What became of a file's reasons: texts, labels that changed, and for each method drift, floors and verdict.

    Texts whose label changed stand apart, under "changed".
    """
    explained = [record for record in records if "refused" not in record]
    kept = [record for record in explained if same_label(record, file)]
    changed = [record for record in explained if not same_label(record, file)]
    found: dict = {"texts": len(explained), "refused": len(records) - len(explained), "labels_changed": len(changed),
                   "methods": {}}
    for method in METHODS:
        pairs = pairs_of(kept, method, file)
        if "drift" in pairs:
            said = {kind: summary([one for one in figures if one]) for kind, figures in pairs.items()}
            apart = pairs_of(changed, method, file).get("drift", [])
            found["methods"][method] = {**said, "changed": summary([one for one in apart if one]), **verdict(pairs)}
    for key, name in (("ig_gap", file), ("ig_gap_fp32", FP32)):
        gaps = [record["files"][name]["gap"] for record in explained if "gap" in record["files"][name]]
        if gaps:
            found[key] = {"median": float(np.median(gaps)), "p90": float(np.quantile(gaps, 0.9))}
    sums = [abs(sum(record["files"][file]["methods"]["shap"])
                - record["files"][file]["value"] + record["files"][file]["reference"])
            for record in explained if "shap" in record["files"][file]["methods"]]
    if sums:
        found["shap_sum_error"] = max(sums)
    return found
