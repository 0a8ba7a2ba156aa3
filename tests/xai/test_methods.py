"""SHAP, LIME and occlusion against their definitions and against the packages; gradients against a linear model."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.xai import blackbox
from lowbit.xai.drift import compared, drift_of
from lowbit.xai.faithfulness import judged
from lowbit.xai.gradients import attention_rollout, integrated_gradients
from lowbit.xai.variants import values_of, variants
from lowbit.xai.words import Reading, Word


def game(words: int, seed: int):
    """A function of masks with products of words, and its 2**words values."""
    rng = np.random.default_rng(seed)
    single, double = rng.normal(size=words), np.triu(rng.normal(size=(words, words)), 1)
    return lambda masks: masks @ single + np.einsum("ni,ij,nj->n", masks.astype(float), double, masks.astype(float))


def exact_shapley(value, words: int) -> np.ndarray:
    """The definition: the weighted mean of what a word adds to every set of the others."""
    found = np.zeros(words)
    for word in range(words):
        others = [i for i in range(words) if i != word]
        for size in range(words):
            weight = math.factorial(size) * math.factorial(words - size - 1) / math.factorial(words)
            for subset in itertools.combinations(others, size):
                mask = np.zeros((2, words), bool)
                mask[:, list(subset)] = True
                mask[1, word] = True
                without, with_word = value(mask)
                found[word] += weight * (with_word - without)
    return found


def explained(value, words, method, **more):
    s = {"orders": 10, "samples": 200, "seed": (0, "teks")} | more
    return blackbox.explain(value, words, [method], **s)[method]


@given(st.integers(1, 30), st.integers(0, 99), st.integers(1, 12))
def test_shap_sums_to_the_difference(words, seed, orders):
    value = game(words, seed)
    whole, none = value(blackbox.whole_and_none(words))
    assert explained(value, words, "shap", orders=orders).sum() == pytest.approx(whole - none, abs=1e-9)


@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_shap_of_few_words_is_exact(words):
    """All orders are walked where they are no more than those that would be drawn."""
    value = game(words, 3)
    assert explained(value, words, "shap", orders=12) == pytest.approx(exact_shapley(value, words))


def test_shap_of_pairs_of_orders_is_exact_for_products_of_two():
    """An order and its reverse together see each pair of words from both sides."""
    value = game(9, 5)
    assert explained(value, 9, "shap", orders=1) == pytest.approx(exact_shapley(value, 9))


def test_occlusion_is_what_leaving_one_out_takes():
    value = game(5, 2)
    whole = value(np.ones((1, 5), bool))[0]
    for word, found in enumerate(explained(value, 5, "occlusion")):
        mask = np.ones((1, 5), bool)
        mask[0, word] = False
        assert found == pytest.approx(whole - value(mask)[0])


def test_lime_is_that_of_the_package():
    """The same texts and answers, its kernel and its regression."""
    lime_base = pytest.importorskip("lime.lime_base", reason="lime is not installed")
    words, value = 12, game(12, 4)
    masks = blackbox.neighbours(words, 300, np.random.default_rng(0))
    answers = value(masks)
    distances = 100 * (1 - np.array([mask.sum() / np.sqrt(mask.sum() * words) if mask.any() else 0 for mask in masks]))
    package = lime_base.LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / 25**2)), random_state=np.random.RandomState(0))
    pairs = package.explain_instance_with_data(masks.astype(float), answers[:, None], distances, 0, words, "none")[1]
    assert blackbox.lime(masks, answers) == pytest.approx([weight for _, weight in sorted(pairs)], abs=1e-6)


def test_lime_finds_a_linear_model():
    """But for the ridge, which draws values to zero."""
    weights = np.array([3.0, -2.0, 0.5, 0.0])
    assert explained(lambda masks: masks @ weights, 4, "lime", samples=5000) == pytest.approx(weights, abs=0.02)


@pytest.mark.parametrize("method", ["shap", "lime", "occlusion"])
def test_a_word_alone(method):
    assert np.isfinite(explained(lambda masks: 2.0 * masks[:, 0], 1, method)).all()


def test_questions_are_the_seeds_and_the_texts_alone():
    asked: dict = {}
    for key, seed in (("one", (1, "a")), ("same", (1, "a")), ("seed", (2, "a")), ("text", (1, "b"))):
        explained(lambda masks, key=key: asked.setdefault(key, masks)[:, 0] * 1.0, 9, "shap", seed=seed, orders=3)
    assert np.array_equal(asked["one"], asked["same"])
    assert not np.array_equal(asked["one"], asked["seed"])
    assert not np.array_equal(asked["one"], asked["text"])


READING = Reading(("satu dua tiga",), {"input_ids": [2, 10, 11, 12, 13, 3]},
                  [Word(0, 0, 4, (1,)), Word(0, 5, 8, (2, 3)), Word(0, 9, 13, (4,))], [])


def test_variants_keep_special_tokens():
    masks = np.array([[True, False, True], [False, False, False]])
    assert [row["input_ids"] for row in variants(READING, masks, "mask", 4)] == [
        [2, 10, 4, 4, 13, 3], [2, 4, 4, 4, 4, 3]]
    assert [row["input_ids"] for row in variants(READING, masks, "delete", None)] == [[2, 10, 13, 3], [2, 3]]


def test_values_are_log_odds():
    logits = np.array([[2.0, -1.0, 500.0]])
    p = 1 / (1 + np.exp(500.0 - 2.0))
    assert values_of(logits, 0) == pytest.approx([np.log(p) - np.log1p(-p)])
    assert values_of(np.array([[0.25]]), None) == pytest.approx([0.25])


class Linear(torch.nn.Module):
    """Logits of a bag of embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 2)

    def get_input_embeddings(self):
        return self.table

    def forward(self, inputs_embeds, **_):
        class Out:
            logits = self.head(inputs_embeds.sum(1))
        return Out


def test_gradients_of_a_linear_model_are_its_terms():
    model = Linear().requires_grad_(False)
    values, gap = integrated_gradients(model, READING, 4, 0, 1, 20)
    moved = model.table.weight[[10, 11, 12, 13]] - model.table.weight[4]
    terms = (moved @ (model.head.weight[1] - model.head.weight[0])).numpy()
    assert values == pytest.approx([terms[0], terms[1] + terms[2], terms[3]], abs=1e-5)
    assert gap < 1e-5


class Attends(torch.nn.Module):
    scaling, is_causal = 1.0, False

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self):
        return None, self.rows[None, None]


def test_rollout_by_hand():
    """Two layers over six tokens, the last of [CLS] alone: [CLS] looks at token 1, which looked at token 4."""
    first, last = np.eye(6, dtype=np.float32), np.zeros((1, 6), np.float32)
    first[1] = [0, 0, 0, 0, 1, 0]
    last[0, 1] = 1

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Attends(first.tolist()), Attends(last.tolist())

        def forward(self, **_):
            self.one()
            self.two()

    assert attention_rollout(Two(), READING, 0) == pytest.approx([0.25, 0, 0.25])


def test_drift_figures_by_hand():
    found = compared([3.0, -2.0, 1.0, 0.1], [3.0, 2.0, -1.0, 0.1], "shap")
    assert found == {"spearman": pytest.approx(0.2), "l1": pytest.approx(6 / 6.1), "top3": 1.0, "top5": 1.0,
                     "sign_flips": pytest.approx(2 / 3)}
    assert compared([1.0], [2.0], "shap") is None
    assert compared([1.0, 1.0], [2.0, 1.0], "shap") is None
    assert "sign_flips" not in compared([0.1, 0.2], [0.2, 0.1], "attention")


def text_record(base, low, again, outputs=(2.0, 0.0)):
    def held(values):
        return {"outputs": list(outputs), "value": 0.0, "reference": -sum(values), "methods": {"shap": values}}
    return {"label": 0, "files": {"fp32": held(base) | {"outputs": [2.0, 0.0]}, "int8": held(low)},
            "floors": {"seed": {"fp32": {"shap": again}}, "batch": {}}}


def test_the_verdict_is_beside_the_floor():
    """Values reversed by the file are beyond a floor of equal seeds, and not beyond one of reversed seeds."""
    up, down = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]
    beyond = drift_of([text_record(up, down, up)] * 10, "int8")["methods"]["shap"]
    assert (beyond["drift"]["spearman"], beyond["seed"]["spearman"], beyond["beyond"]) == (-1, 1, True)
    within = drift_of([text_record(up, up, down)] * 10, "int8")["methods"]["shap"]
    assert (within["drift"]["spearman"], within["seed"]["spearman"], within["beyond"]) == (1, -1, False)


def test_texts_whose_label_changed_stand_apart():
    up, down = [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]
    found = drift_of([text_record(up, up, up), text_record(up, down, up, (0.0, 2.0))], "int8")
    assert found["labels_changed"] == 1
    assert found["methods"]["shap"]["drift"]["spearman"] == pytest.approx(1)
    assert found["methods"]["shap"]["changed"]["spearman"] == pytest.approx(-1)


def test_faithfulness_by_hand():
    """Two words: taken away 2, 1, 0; put back 0, 1, 2."""
    found = judged(np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), None)
    assert (found["deletion"], found["insertion"]) == (1.0, 1.0)
    assert (found["comprehensiveness"], found["sufficiency"]) == (1.0, 1.0)
    assert found["curves"][0][::10] == pytest.approx([2, 1, 0])
