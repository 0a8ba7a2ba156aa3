"""Measures against their definitions: what changed between two models, and whether by more than chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lowbit.data.task import SENTIMENT
from lowbit.measure.score import compare, difference, quick_score, report_text, score

labels = st.integers(0, 2)
triples = st.lists(st.tuples(labels, labels, labels), min_size=1, max_size=40)


def logits_for(predicted) -> np.ndarray:
    """Logits whose largest entry is the predicted label."""
    return np.eye(3, dtype=np.float32)[list(predicted)]


@given(triples)
def test_two_models_are_compared_text_by_text(rows):
    """Flips, losses and gains are counted; p is the exact two-sided binomial test of McNemar."""
    truth, ours, theirs = map(list, zip(*rows, strict=True))
    found = compare(truth, logits_for(ours), logits_for(theirs), SENTIMENT)
    lost = sum(b == t != a for t, a, b in rows)
    won = sum(a == t != b for t, a, b in rows)
    assert (found["texts"], found["lost"], found["won"]) == (len(rows), lost, won)
    assert found["flips"] == sum(a != b for _, a, b in rows)
    assert found["same_label"] == pytest.approx(1 - found["flips"] / len(rows))
    assert found["mcnemar_p"] == pytest.approx(binomtest(lost, lost + won).pvalue if lost + won else 1)


@given(triples)
def test_accuracy_and_macro_f1_follow_their_definitions(rows):
    """Over the labels that somebody wrote or predicted: one that does not occur says nothing of the model."""
    truth, predicted, _ = map(list, zip(*rows, strict=True))
    f1 = []
    for label in {*truth, *predicted}:
        hits = sum(t == p == label for t, p, _ in rows)
        f1.append(2 * hits / (truth.count(label) + predicted.count(label)))
    found = quick_score(truth, logits_for(predicted), SENTIMENT)
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(truth, predicted)))
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    everything = score(truth, logits_for(predicted), SENTIMENT)
    assert everything.items() >= found.items()
    assert np.sum(everything["confusion_matrix"]) == len(rows)
    assert all(everything["confusion_matrix"][t][p] > 0 for t, p, _ in rows)


def test_difference_of_logits_is_absolute():
    """Median and largest over all entries; labels are counted beside them."""
    found = difference(np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), np.array([[0.5, 1.0, 4.0], [0.0, 1.0, 0.0]]),
                       SENTIMENT)
    assert found.pop("divergence") > 0  # tests/mixed/test_assignment.py has its formula
    assert found == {"texts": 2, "flips": 1, "same_label": 0.5, "median_logit_difference": 0.25,
                     "max_logit_difference": 2.0}


def test_report_names_every_label_even_unseen():
    """A label without a prediction is a row of zeros, not an error."""
    report = report_text([0, 0, 2], logits_for([0, 0, 0]), SENTIMENT)
    assert all(word in report for word in ("positive", "neutral", "negative"))


@given(st.lists(st.tuples(labels, st.tuples(*[st.floats(-8, 8)] * 3)), min_size=1, max_size=60))
def test_loss_and_calibration_error_follow_their_definitions(rows):
    """Mean cross-entropy; gaps between confidence and accuracy in 15 bins of equal width, weighted by their texts."""
    truth = [label for label, _ in rows]
    logits = np.array([values for _, values in rows], np.float64)
    found = score(truth, logits, SENTIMENT)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = np.mean([-np.log(row[label]) for row, label in zip(probabilities, truth, strict=True)])
    assert found["eval_loss"] == pytest.approx(loss, abs=1e-6)
    error = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [(row.max(), row.argmax() == label) for row, label in zip(probabilities, truth, strict=True)
                  if low < row.max() <= high]
        if inside:
            confidence, right = map(np.mean, zip(*inside, strict=True))
            error += len(inside) / len(rows) * abs(confidence - right)
    assert found["ece"] == pytest.approx(error, abs=1e-9)
    assert list(found["f1_per_class"]) == ["positive", "neutral", "negative"]
    occurring = {*truth, *logits.argmax(-1).tolist()}
    each = [value for label, value in enumerate(found["f1_per_class"].values()) if label in occurring]
    assert np.mean(each) == pytest.approx(found["macro_f1"])
