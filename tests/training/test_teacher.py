"""Following a teacher: the losses against their formulas, and a model that drops nothing in training."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification

from lowbit.data.unlabelled import NO_LABEL, NO_NUMBER
from lowbit.training.distillation import drop_nothing, label_loss, soft_loss


def test_loss_is_the_divergence_at_temperature_two():
    """T**2 * KL(teacher || model), the mean over texts, by scipy; the squared error where the answer is a number."""
    ours, theirs = np.random.default_rng(0).normal(size=(2, 5, 3))
    teacher, model = softmax(theirs / 2, axis=1), softmax(ours / 2, axis=1)
    wanted = 4 * (teacher * np.log(teacher / model)).sum(1).mean()
    assert float(soft_loss(torch.tensor(ours), torch.tensor(theirs), 2.0)) == pytest.approx(wanted, rel=1e-6)
    assert float(soft_loss(torch.tensor(ours), torch.tensor(ours), 2.0)) == pytest.approx(0, abs=1e-9)
    numbers = ours[:, :1], theirs[:, :1]
    assert float(soft_loss(*map(torch.tensor, numbers), 2.0)) == pytest.approx(((numbers[0] - numbers[1]) ** 2).mean())


def test_texts_without_an_answer_have_no_label_loss():
    """The mean over all texts of a step, theirs 0, by scipy; a step of such texts alone has 0, and no gradient."""
    logits = np.random.default_rng(0).normal(size=(4, 3))
    known = -np.log(softmax(logits, axis=1)[[0, 3], [2, 1]])
    some = torch.tensor([2, NO_LABEL, NO_LABEL, 1])
    assert float(label_loss(torch.tensor(logits), some)) == pytest.approx(known.sum() / 4)
    numbers = torch.tensor([0.5, NO_NUMBER, NO_NUMBER, -1.0], dtype=torch.float64)
    wanted = ((logits[0, 0] - 0.5) ** 2 + (logits[3, 0] + 1) ** 2) / 4
    assert float(label_loss(torch.tensor(logits[:, :1]), numbers)) == pytest.approx(wanted)
    for answers in (torch.tensor([NO_LABEL] * 4), torch.tensor([NO_NUMBER] * 4, dtype=torch.float64)):
        given = torch.tensor(logits[:, : 1 if answers.is_floating_point() else 3], requires_grad=True)
        loss = label_loss(given, answers)
        loss.backward()
        assert float(loss.detach()) == 0
        assert not given.grad.any()


def test_nothing_is_dropped_in_training(tiny_model):
    """Two passes in training mode give the same logits, and the configuration that is saved keeps its rates."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model).train()
    rates = model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob
    ids = torch.arange(4, 20).view(2, 8)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    drop_nothing(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == rates
