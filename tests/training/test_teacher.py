"""Following a teacher: the loss against its formula, and a model that drops nothing in training."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification

from lowbit.training.distillation import drop_nothing, soft_loss


def test_loss_is_the_divergence_at_temperature_two():
    """T**2 * KL(teacher || model), the mean over texts, by scipy; the squared error where the answer is a number."""
    ours, theirs = np.random.default_rng(0).normal(size=(2, 5, 3))
    teacher, model = softmax(theirs / 2, axis=1), softmax(ours / 2, axis=1)
    wanted = 4 * (teacher * np.log(teacher / model)).sum(1).mean()
    assert float(soft_loss(torch.tensor(ours), torch.tensor(theirs), 2.0)) == pytest.approx(wanted, rel=1e-6)
    assert float(soft_loss(torch.tensor(ours), torch.tensor(ours), 2.0)) == pytest.approx(0, abs=1e-9)
    numbers = ours[:, :1], theirs[:, :1]
    assert float(soft_loss(*map(torch.tensor, numbers), 2.0)) == pytest.approx(((numbers[0] - numbers[1]) ** 2).mean())


def test_nothing_is_dropped_in_training(tiny_model):
    """Two passes in training mode give the same logits, and the configuration that is saved keeps its rates."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model).train()
    rates = model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob
    ids = torch.arange(4, 20).view(2, 8)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    drop_nothing(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == rates
