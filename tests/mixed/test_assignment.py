"""Assignments, budgets and the integer program, against what can be counted by hand or tried out whole."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.measure.score import divergence
from lowbit.mixed.assignment import mean_bits, place_of, read_assignment, read_bits
from lowbit.mixed.budget import (
    bits_table,
    choices_of,
    hand_rules,
    limit_of,
    read_budget,
    refuse_out_of_reach,
    solve,
    time_table,
    total,
)
from lowbit.mixed.search import random_assignment
from lowbit.mixed.shifts import Shifts
from lowbit.pipeline.errors import UserError

PARTS = {"words": "tables", "a.layer.0.query": "weights", "a.layer.1.query": "weights", "classifier": "head"}
CHOICES = [32.0, 8.0, 4.0, 2.0]


@pytest.mark.parametrize(("text", "kind", "limit"), [
    ("size_mb=4.6", "size_mb", 4.6), ("max_kl=1e-3", "max_kl", 1e-3), (" speed = 1.5", "speed", 1.5)])
def test_budget_is_read(text, kind, limit):
    assert read_budget(text) == (kind, limit)


@pytest.mark.parametrize("text", ["", "4.6", "size_mb", "size_mb=", "size_mb=x", "size_mb=0", "size_mb=-1", "kl=1",
                                  "size_mb=nan", "size_mb=inf", "size_mb=4.6=5"])
def test_other_budgets_are_refused(text):
    with pytest.raises(UserError, match="such as size_mb=4.6"):
        read_budget(text)


def test_bits_are_read():
    """Most first, each once; other numbers of bits are named."""
    assert read_bits("2, 8,4,2", "BITS") == [8.0, 4.0, 2.0]
    assert read_bits("1.6", "BITS") == [1.6]
    for text in ("3", "8;4", "8.0", ""):
        with pytest.raises(UserError, match="BITS"):
            read_bits(text, "BITS")


@pytest.mark.parametrize(("name", "part", "place"), [
    ("bert.encoder.layer.3.attention.self.query", "weights", (3, "query")),
    ("bert.encoder.layer.0.attention.output.dense", "weights", (0, "attention output")),
    ("bert.encoder.layer.0.intermediate.dense", "weights", (0, "feed-forward in")),
    ("bert.encoder.layer.11.output.dense", "weights", (11, "feed-forward out")),
    ("bert.embeddings.word_embeddings", "tables", (None, "word_embeddings")),
    ("bert.pooler.dense", "head", (None, "pooler")), ("classifier", "head", (None, "classifier"))])
def test_place_of_a_module(name, part, place):
    assert place_of(name, part) == place


def test_hand_rule_is_one_step_higher_for_tables():
    """And it has no FP32, and no bits that are not among the choices."""
    assert hand_rules(PARTS, [32.0, 4.0]) == {}
    rules = hand_rules(PARTS, CHOICES)
    assert list(rules) == ["hand 4, tables 8", "hand 2, tables 4"]
    assert rules["hand 2, tables 4"] == {"words": 4.0, "a.layer.0.query": 2.0, "a.layer.1.query": 2.0,
                                         "classifier": 2.0}


def test_speed_is_kept_by_leaving_no_encoder_layer_in_fp32():
    kept, free = (choices_of(PARTS, CHOICES, keep) for keep in (True, False))
    assert kept["a.layer.0.query"] == [8.0, 4.0, 2.0]
    assert kept["words"] == kept["classifier"] == CHOICES
    assert set(map(tuple, free.values())) == {tuple(CHOICES)}


def test_mean_bits_weighs_by_weights():
    weights = {"words": 30, "a.layer.0.query": 10}
    assert mean_bits({"words": 4.0, "a.layer.0.query": 8.0}, weights) == pytest.approx(5)
    table = bits_table(weights, dict.fromkeys(weights, CHOICES))
    assert total(table, {"words": 4.0, "a.layer.0.query": 8.0}) == pytest.approx(5)


def test_time_is_saved_by_multiplications():
    """All layers at any number of bits take INT8's time; a layer that sees one token saves next to nothing."""
    weights = {"a": 100, "b": 100, "table": 1000}
    table = time_table(weights, {name: [32.0, 8.0, 2.0] for name in weights}, {"a": 128, "b": 1}, 4.0, 2.0)
    assert total(table, {"a": 8.0, "b": 2.0, "table": 2.0}) == pytest.approx(-2)
    assert total(table, {"a": 8.0, "b": 32.0, "table": 32.0}) == pytest.approx(-2 * 128 / 129)
    assert total(table, dict.fromkeys(weights, 32.0)) == 0


@given(seed=st.integers(0, 200), changes=st.integers(0, 3))
def test_integer_program_is_the_best_of_all(seed, changes):
    """Against every assignment of four modules, free and around a start."""
    draw = np.random.default_rng(seed)
    names, bits = list(PARTS), [8.0, 4.0, 2.0]
    loss, cost = ({name: dict(zip(bits, draw.random(3) * 1e-4, strict=True)) for name in names} for _ in range(2))
    every = [dict(zip(names, each, strict=True)) for each in itertools.product(bits, repeat=4)]
    limit = float(np.median([total(cost, one) for one in every]))
    best = min(total(loss, one) for one in every if total(cost, one) <= limit)
    found = solve(loss, cost, limit)
    assert total(cost, found) <= limit * (1 + 1e-6)
    assert total(loss, found) == pytest.approx(best, rel=1e-6)
    start = every[seed % len(every)]
    near = [total(loss, one) for one in every if total(cost, one) <= limit
            and sum(one[name] != start[name] for name in names) <= changes]
    around = solve(loss, cost, limit, start, changes)
    assert (around is None) == (not near)
    if near:
        assert total(loss, around) == pytest.approx(min(near), rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_shifts_add_up_and_are_read_as_written(outputs, tmp_path):
    """Opposite shifts cancel, equal ones join; a module in FP32 has none."""
    reference, one = np.zeros((2, outputs)), np.linspace(0, 1, 2 * outputs).reshape(2, outputs)
    shifts = Shifts(reference, {"a": {8.0: one, 1.6: -one}, "b c": {8.0: one, 1.6: one}})
    assert shifts.divergence({"a": 1.6, "b c": 8.0}) == 0
    assert shifts.divergence({"a": 8.0, "b c": 32.0}) == pytest.approx(divergence(one, reference))
    assert shifts.divergence({"a": 8.0, "b c": 1.6}) == pytest.approx(divergence(2 * one, reference))
    shifts.save(tmp_path / "shifts.npz")
    for mix in ({"a": 8.0, "b c": 8.0}, {"a": 1.6, "b c": 32.0}):
        np.testing.assert_array_equal(Shifts.load(tmp_path / "shifts.npz").logits(mix), shifts.logits(mix))


@given(seed=st.integers(0, 200), outputs=st.sampled_from([1, 3]))
def test_no_one_or_two_changes_lower_what_descend_found(seed, outputs):
    """Within the room, of all assignments of four modules that differ from it in at most two."""
    draw = np.random.default_rng(seed)
    names, bits = list(PARTS), [32.0, 8.0, 2.0]
    shifts = Shifts(draw.normal(size=(5, outputs)), {
        name: {each: draw.normal(size=(5, outputs)) for each in bits[1:]} for name in names})
    cost = {name: dict(zip(bits, draw.random(3), strict=True)) for name in names}
    start = dict(zip(names, draw.choice(bits, 4).tolist(), strict=True))
    found = shifts.descend(start, cost, 0.3)
    assert total(cost, found) <= total(cost, start) + 0.3 + 1e-9
    near = [one for each in itertools.product(bits, repeat=4) for one in [dict(zip(names, each, strict=True))]
            if total(cost, one) <= total(cost, start) + 0.3 and sum(one[name] != found[name] for name in names) <= 2]
    assert shifts.divergence(found) <= min(map(shifts.divergence, near), default=np.inf) * (1 + 1e-6)
    assert shifts.divergence(found) <= shifts.divergence(start)


def test_budget_out_of_reach_is_said_with_the_least_that_is():
    cost = {name: {8.0: -100.0, 2.0: -200.0} for name in PARTS}
    refuse_out_of_reach(read_budget("size_mb=0.0002"), cost, 1000.0)
    with pytest.raises(UserError, match="0.0002 MB, the limit is 0.0001"):
        refuse_out_of_reach(read_budget("size_mb=0.0001"), cost, 1000.0)
    assert limit_of(read_budget("speed=2"), 3.0) == 1.5


@given(seed=st.integers(0, 50))
def test_random_mix_fills_its_room(seed):
    """Never over it, and not one module of it could go up any more by the smallest step."""
    size = {f"m{i}": {8.0: -3.0 * i - 3, 4.0: -4.0 * i - 4, 2.0: -5.0 * i - 5} for i in range(6)}
    found = random_assignment(size, -85.0, seed)
    assert total(size, found) <= -85
    assert total(size, found) >= -92


def test_divergence_is_that_of_the_definition():
    """KL of two softmaxes in nats, by hand; half the squared difference of numbers; no cancellation at 1e-9."""
    ours, theirs = np.array([[1.0, 2.0, 0.5]]), np.array([[1.5, 1.0, 0.0]])
    p, q = (np.exp(x) / np.exp(x).sum() for x in (theirs[0], ours[0]))
    assert divergence(ours, theirs) == pytest.approx(float((p * np.log(p / q)).sum()))
    assert divergence(theirs, theirs) == 0
    assert divergence(np.array([[1.0], [3.0]]), np.array([[1.5], [1.0]])) == pytest.approx((0.25 + 4) / 4)
    assert divergence(theirs + [[1e-4, 0, 0]], theirs) == pytest.approx(
        float(p[0] * (1 - p[0]) * 1e-8 / 2), rel=1e-3)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bits": 3}', '{"bits": {"a": 3}}'])
def test_assignment_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "assignment.json").write_text(text)
    with pytest.raises(UserError, match="assignment"):
        read_assignment(tmp_path / "assignment.json")
    (tmp_path / "assignment.json").write_text(json.dumps({"bits": {"a": 4.0}}))
    assert read_assignment(tmp_path / "assignment.json")["bits"] == {"a": 4.0}
