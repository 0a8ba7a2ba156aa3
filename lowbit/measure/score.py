"""Quality of a model's outputs on labelled texts, and the paired comparison of two models on the same texts."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax
from scipy.stats import norm, pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from statsmodels.stats.contingency_tables import mcnemar

from lowbit.data.task import LABEL_SCORES, NUMBER_SCORES, Task

HEADINGS = LABEL_SCORES | NUMBER_SCORES
ECE_BINS = 15
CONFIDENCE = 0.95  # of the interval that a loss is judged by
RESAMPLES = 1000  # bootstrap samples of the texts, where the answer is a number
CORRELATIONS = {"pearson": pearsonr, "spearman": spearmanr}


def _correlation(function, truth, outputs) -> float:
    """A correlation from -1 to 1; 0 where the outputs are all equal, which leaves it undefined."""
    return float(function(truth, outputs).statistic) if np.ptp(outputs) and np.ptp(truth) else 0.0


def quick_score(truth, outputs: np.ndarray, task: Task) -> dict[str, float]:
    """The scores that every epoch is judged by, and the task's own, from answers [n] and outputs [n, task.outputs].

    All from 0 to 1, correlations from -1. Macro-F1 is the mean over the labels that occur in `truth` or are predicted.
    """
    if task.labels is None:
        numbers = np.asarray(outputs, np.float64).reshape(-1)
        return {name: _correlation(function, truth, numbers) for name, function in CORRELATIONS.items()}
    truth, predicted = np.asarray(truth).astype(int), outputs.argmax(-1)
    found = {"accuracy": float(accuracy_score(truth, predicted)),
             "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0))}
    if len(task.labels) == 2:
        found["f1"] = float(f1_score(truth, predicted, pos_label=1, zero_division=0))
    if len(task.labels) == 2 or task.score == "matthews":
        found["matthews"] = float(matthews_corrcoef(truth, predicted))
    return found


def score(truth, outputs: np.ndarray, task: Task) -> dict:
    """Every measure of quality that a record holds (see record.py), from answers [n] and outputs [n, task.outputs]."""
    found = quick_score(truth, outputs, task)
    if task.labels is None:
        numbers = np.asarray(outputs, np.float64).reshape(-1)
        gap = numbers - np.asarray(truth)
        return found | {"eval_loss": float((gap**2).mean()), "mean_absolute_error": float(np.abs(gap).mean()),
                        "predictions": [[float(a), float(b)] for a, b in zip(truth, numbers, strict=True)]}
    ids, predicted = list(range(len(task.labels))), outputs.argmax(-1)
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
        found |= {f"{average}_precision": float(precision), f"{average}_recall": float(recall),
                  f"{average}_f1": float(f1)}
    probabilities = softmax(outputs.astype(np.float64), axis=-1)
    each = f1_score(truth, predicted, labels=ids, average=None, zero_division=0).tolist()
    return {"f1": found["macro_f1"], **found, "eval_loss": float(log_loss(truth, probabilities, labels=ids)),
            "ece": calibration_error(truth, probabilities),
            "f1_per_class": dict(zip(task.labels, each, strict=True)),
            "confusion_matrix": confusion_matrix(truth, predicted, labels=ids).tolist()}


def calibration_error(truth, probabilities: np.ndarray) -> float:
    """Expected calibration error, 0 to 1: mean gap between confidence and accuracy over ECE_BINS bins of equal width.

    From label ids [n] and probabilities [n, labels]; Guo et al. 2017, On Calibration of Modern Neural Networks, eq. 3.
    """
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == np.asarray(truth)
    bins = np.minimum(np.ceil(confidence * ECE_BINS).astype(int) - 1, ECE_BINS - 1)
    gaps = np.bincount(bins, right, ECE_BINS) - np.bincount(bins, confidence, ECE_BINS)
    return float(np.abs(gaps).sum() / len(right))


def report_text(truth, outputs: np.ndarray, task: Task) -> str:
    """scikit-learn's per-class table; for a number, its scores in a line each."""
    if task.labels is None:
        found = score(truth, outputs, task)
        return "".join(f"{name:20} {found[name]:.4f}\n" for name in (
            "pearson", "spearman", "mean_absolute_error", "eval_loss"))
    return classification_report(truth, outputs.argmax(-1), labels=range(len(task.labels)), target_names=task.labels,
                                 digits=4, zero_division=0)


def compare(truth, outputs: np.ndarray, reference: np.ndarray, task: Task) -> dict:
    """Paired comparison of two models on the same texts.

    For labels: `flips` counts those that changed, `lost` those that were right in the reference and are wrong now,
    `won` the reverse; McNemar (1947) tests whether lost and won differ by more than chance.
    """
    found = difference(outputs, reference, task)
    if task.labels is None:
        return found
    truth = np.asarray(truth)
    ours, theirs = outputs.argmax(-1), reference.argmax(-1)
    lost = int(((theirs == truth) & (ours != truth)).sum())
    won = int(((theirs != truth) & (ours == truth)).sum())
    both = int(((theirs == truth) & (ours == truth)).sum())
    p = float(mcnemar([[both, lost], [won, len(truth) - both - lost - won]], exact=True).pvalue)
    return {**found, "lost": lost, "won": won, "mcnemar_p": p}


def difference(outputs: np.ndarray, reference: np.ndarray, task: Task) -> dict[str, float]:
    """Median and largest difference of outputs; for labels also how many texts change theirs, and the share that don't.

    Keys `texts`, `median_logit_difference`, `max_logit_difference`, `divergence`, `flips`, `same_label`.
    """
    gap = np.abs(outputs - reference)
    found = {"texts": len(outputs), "median_logit_difference": float(np.median(gap)),
             "max_logit_difference": float(gap.max()), "divergence": divergence(outputs, reference)}
    if task.labels:
        equal = outputs.argmax(-1) == reference.argmax(-1)
        found |= {"flips": int((~equal).sum()), "same_label": float(equal.mean())}
    return found


def divergence(outputs: np.ndarray, reference: np.ndarray) -> float:
    """How far outputs [n, outputs] lie from the reference's, a mean over the texts.

    For labels KL(softmax(reference) || softmax(outputs)) in nats; of a number, half the squared difference.
    """
    return float(divergences(outputs, reference))


def divergences(outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same [...] of several outputs [..., n, outputs] beside one reference [n, outputs]."""
    ours, theirs = outputs.astype(np.float64), reference.astype(np.float64)
    if ours.shape[-1] == 1:
        return np.square(ours - theirs).mean((-2, -1)) / 2
    ours, theirs = log_softmax(ours, axis=-1), log_softmax(theirs, axis=-1)
    return (np.exp(theirs) * (theirs - ours)).sum(-1).mean(-1)


def points_lost(truth, outputs: np.ndarray, reference: np.ndarray, task: Task) -> float:
    """Points of accuracy below the reference; of a number, hundredths of the task's correlation."""
    def judged(values):
        if task.labels:
            return float(accuracy_score(truth, values.argmax(-1)))
        return _correlation(CORRELATIONS[task.score], truth, values.reshape(-1))

    return 100 * (judged(reference) - judged(outputs))


def loss_interval(truth, outputs: np.ndarray, reference: np.ndarray, task: Task) -> dict[str, float]:
    """points_lost() over all the texts with its interval at CONFIDENCE: `points`, `low`, `high`.

    For labels the paired score interval of Tango (1998, Statistics in Medicine 17:891), for a number the percentiles
    of a bootstrap over the texts.
    """
    if task.labels:
        paired = compare(truth, outputs, reference, task)
        low, high = (100 * edge for edge in tango_interval(paired["lost"], paired["won"], len(truth)))
    else:
        rng, truth = np.random.default_rng(0), np.asarray(truth)
        draws = [points_lost(truth[some], outputs[some], reference[some], task)
                 for some in rng.integers(0, len(truth), (RESAMPLES, len(truth)))]
        low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"points": points_lost(truth, outputs, reference, task), "low": float(low), "high": float(high)}


def tango_interval(lost: int, won: int, n: int) -> tuple[float, float]:
    """(lower, upper) of the paired difference of proportions (lost - won) / n, by inverting the score test."""
    z = norm.ppf((1 + CONFIDENCE) / 2)

    def statistic(delta):
        b = -lost - won + (2 * n - lost + won) * delta
        q = (np.sqrt(b * b + 8 * n * won * delta * (1 - delta)) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        return (lost - won - n * delta) / np.sqrt(max(variance, 1e-300))

    found, edge = (lost - won) / n, 1 - 1e-9
    low = -1.0 if statistic(-edge) < z else brentq(lambda delta: statistic(delta) - z, -edge, found)
    high = 1.0 if statistic(edge) > -z else brentq(lambda delta: statistic(delta) + z, found, edge)
    return low, high
