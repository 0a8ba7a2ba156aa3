"""Quality of predictions: accuracy, precision, recall, F1, and paired comparison of two models."""

import numpy as np
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)
from statsmodels.stats.contingency_tables import mcnemar

from lowbit.data.tsv import LABELS

IDS = list(range(len(LABELS)))
ECE_BINS = 15


def accuracy_and_f1(truth, predicted) -> dict[str, float]:
    """Accuracy and macro-F1 over the three labels, both from 0 to 1."""
    return {"accuracy": float(accuracy_score(truth, predicted)),
            "macro_f1": float(f1_score(truth, predicted, labels=IDS, average="macro", zero_division=0))}


def score(truth: list[int], logits: np.ndarray) -> dict:
    """Every measure the report prints, from label ids [n] and logits [n, labels].

    All from 0 to 1 but eval_loss, the mean cross-entropy in nats, and the confusion matrix, in texts.
    """
    predicted = logits.argmax(-1)
    result = accuracy_and_f1(truth, predicted)
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, predicted, labels=IDS, average=average, zero_division=0)
        result |= {f"{average}_precision": float(precision), f"{average}_recall": float(recall),
                   f"{average}_f1": float(f1)}
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    result |= {"eval_loss": float(log_loss(truth, probabilities, labels=IDS)),
               "ece": calibration_error(truth, probabilities),
               "f1_per_class": dict(zip(LABELS, f1_score(truth, predicted, labels=IDS, average=None,
                                                         zero_division=0).tolist(), strict=True))}
    result["confusion_matrix"] = confusion_matrix(truth, predicted, labels=IDS).tolist()
    return result


def calibration_error(truth, probabilities: np.ndarray) -> float:
    """Expected calibration error, 0 to 1: mean gap between confidence and accuracy over ECE_BINS bins of equal width.

    From label ids [n] and probabilities [n, labels]; Guo et al. 2017, On Calibration of Modern Neural Networks, eq. 3.
    """
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == np.asarray(truth)
    bins = np.minimum(np.ceil(confidence * ECE_BINS).astype(int) - 1, ECE_BINS - 1)
    gaps = np.bincount(bins, right, ECE_BINS) - np.bincount(bins, confidence, ECE_BINS)
    return float(np.abs(gaps).sum() / len(right))


def report_text(truth: list[int], logits: np.ndarray) -> str:
    """scikit-learn's per-class table."""
    return classification_report(truth, logits.argmax(-1), labels=IDS, target_names=LABELS, digits=4, zero_division=0)


def compare(truth: list[int], logits: np.ndarray, reference: np.ndarray) -> dict:
    """Paired comparison of two models on the same texts: flips, McNemar's exact p, logit differences.

    `flips` counts changed labels; `lost` those that were right in the reference and are wrong now, `won` the
    reverse. McNemar (1947) tests whether won and lost differ by more than chance.
    """
    truth = np.asarray(truth)
    ours, theirs = logits.argmax(-1), reference.argmax(-1)
    lost = int(((theirs == truth) & (ours != truth)).sum())
    won = int(((theirs != truth) & (ours == truth)).sum())
    both = int(((theirs == truth) & (ours == truth)).sum())
    p = float(mcnemar([[both, lost], [won, len(truth) - both - lost - won]], exact=True).pvalue)
    return {**difference(logits, reference), "lost": lost, "won": won, "mcnemar_p": p}


def difference(logits: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How many of the texts change their label, the share that does not, median and largest logit difference."""
    gap, equal = np.abs(logits - reference), logits.argmax(-1) == reference.argmax(-1)
    return {"texts": len(equal), "flips": int((~equal).sum()), "same_label": float(equal.mean()),
            "median_logit_difference": float(np.median(gap)), "max_logit_difference": float(gap.max())}
