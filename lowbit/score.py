"""Quality of predictions: accuracy, precision, recall, F1, and paired comparison of two models."""

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)
from statsmodels.stats.contingency_tables import mcnemar

from lowbit.data import LABELS

IDS = list(range(len(LABELS)))


def accuracy_and_f1(truth, predicted) -> dict[str, float]:
    """Accuracy and macro-F1 over the three labels, both from 0 to 1."""
    return {"accuracy": float(accuracy_score(truth, predicted)),
            "macro_f1": float(f1_score(truth, predicted, labels=IDS, average="macro", zero_division=0))}


def score(truth: list[int], logits: np.ndarray) -> dict:
    """Every measure the report prints, from label ids [n] and logits [n, labels]; all from 0 to 1 but the matrix."""
    predicted = logits.argmax(-1)
    result = accuracy_and_f1(truth, predicted)
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, predicted, labels=IDS, average=average, zero_division=0)
        result |= {f"{average}_precision": float(precision), f"{average}_recall": float(recall),
                   f"{average}_f1": float(f1)}
    result["confusion_matrix"] = confusion_matrix(truth, predicted, labels=IDS).tolist()
    return result


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
