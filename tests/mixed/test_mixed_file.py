"""Files of any assignment on a two-layer model: what they hold, what runs, and what their divergences are worth."""

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from lowbit.data.tokens import pad
from lowbit.graph.agreement import differing, simulated_tensors, stored_tensors
from lowbit.graph.census import census
from lowbit.graph.export import export
from lowbit.mixed.file import float_weights, write_file
from lowbit.mixed.files import SOURCE, Files, halves, refuse_layers_used_twice, simulated
from lowbit.mixed.memory import Memory
from lowbit.mixed.sensitivity import analyse, fisher, signed, steps_of
from lowbit.pipeline.errors import UserError

BITS = [32.0, 8.0, 4.0, 2.0, 1.6]
MODULES = 17


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    """Files of an untrained two-layer classifier of three labels, asked about 24 rows of random tokens."""
    folder = tmp_path_factory.mktemp("mixed")
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(tiny_model, num_labels=3, attn_implementation="eager")
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    export(model, folder / SOURCE, 17)
    draw = np.random.default_rng(0)
    rows = [{"input_ids": draw.integers(5, 400, draw.integers(4, 30)).tolist()} for _ in range(24)]
    return Files(folder, rows, 0)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_any_assignment_is_stored_as_simulated(files, seed):
    """Integers, scales and kept weights of a random mix, bit for bit, and logits that follow the simulation's."""
    draw = np.random.default_rng(seed)
    mix = {name: float(draw.choice(BITS)) for name in files.parts}
    graph, model = files.graph(mix), simulated(files.model, mix)
    path = files.folder / "mix.onnx"
    onnx.save(graph, path)
    assert differing(stored_tensors(path), simulated_tensors(model)) == []
    kept = float_weights(path)
    for name, bits in mix.items():
        assert (name in kept) == (bits == 32)
        if bits == 32:
            np.testing.assert_array_equal(kept[name], files.model.get_submodule(name).weight.detach().numpy())
    with torch.inference_mode():
        expected = np.concatenate([model(**{k: torch.from_numpy(v) for k, v in row.items()}).logits.numpy()
                                   for row in files.rows[:6]])
    assert np.median(np.abs(files.outputs(graph)[:6] - expected)) < 1e-4
    assert path.stat().st_size == graph.ByteSize()


def test_written_file_is_checked(files, tmp_path, capsys):
    """write_file() says what it compared; a simulation of other weights is seen."""
    mix = dict(zip(files.parts, (BITS * 4)[:MODULES], strict=True))
    counted = write_file(files.folder / SOURCE, simulated(files.model, mix), mix, tmp_path / "mix.onnx")
    assert "weights left in FP32, bit for bit" in capsys.readouterr().out
    linear = sum(bits != 32 for name, bits in mix.items() if files.parts[name] != "tables")
    assert counted["linear"] == {"integer": linear, "float": 14 - linear}
    other = copy.deepcopy(files.model)
    name = next(name for name, bits in mix.items() if bits == 32)
    with torch.no_grad():
        other.get_submodule(name).weight[0, 0] += 1
    with pytest.raises(RuntimeError, match="another weight"):
        write_file(files.folder / SOURCE, simulated(other, mix), mix, tmp_path / "other.onnx")


def test_fewer_bits_are_fewer_bytes_and_the_same_kernels(files, tmp_path):
    sizes = []
    for bits in (8.0, 4.0, 2.0):
        onnx.save(files.graph(files.uniform(bits)), tmp_path / "uniform.onnx")
        assert census(tmp_path / "uniform.onnx")["linear"] == {"integer": 14, "float": 0}
        sizes.append((tmp_path / "uniform.onnx").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)


def test_nothing_changed_diverges_nothing(files):
    assert files.measured(files.uniform(32.0))["divergence"] == 0
    assert files.measured(files.uniform(8.0))["divergence"] < files.measured(files.uniform(2.0))["divergence"]


def test_answers_are_those_of_an_ordinary_session(files):
    """One text at a time, logits in the rows' order."""
    graph = files.graph(files.uniform(4.0))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = files.outputs(graph)
    for i in (0, 7, 23):
        np.testing.assert_allclose(ours[i], session.run(["logits"], files.rows[i])[0][0], rtol=1e-5, atol=1e-6)


def test_signs_give_the_fisher_matrix():
    """The mean of v v' over all signs is diag(p) - p p', so v . z has the variance of the score."""
    p = torch.tensor([0.7, 0.2, 0.1])
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])
    v = signed(p, signs)
    torch.testing.assert_close(v.T @ v / len(v), torch.diag(p) - torch.outer(p, p))


def test_fisher_foretells_a_small_step(files):
    """For steps so small that the second order is all, the score is the divergence of the changed FP32 model."""
    name, small = "bert.encoder.layer.1.output.dense", 0.02
    step = steps_of(files, [4.0])[4.0][name] * small
    changed = copy.deepcopy(files.model)
    with torch.no_grad():
        changed.get_submodule(name).weight += step
        logits = [[model(**{k: torch.from_numpy(v).clone() for k, v in row.items()}).logits.double()
                   for row in files.rows] for model in (files.model, changed)]
    before, after = (torch.cat(part).log_softmax(-1) for part in logits)
    true = float((before.exp() * (before - after)).sum(-1).mean())
    foretold = np.mean([fisher(files, [4.0], seed)[4.0][name] for seed in range(8)]) * small**2
    assert foretold == pytest.approx(true, rel=0.25)


def test_analysis_goes_on_and_says_what_it_measured(files, tmp_path):
    """Every module at every number of bits; a second run measures nothing anew; other circumstances start anew."""
    path, asked = tmp_path / "unfinished.json", []
    original = files.measured
    files.measured = lambda mix, **shift: asked.append(mix) or original(mix, **shift)
    try:
        result = analyse(files, [4.0, 2.0], ["kl", "fisher"], ["only", "all_but"], 0, Memory(path, "a"))
        count = len(asked)
        assert count == 2 * (2 * MODULES + 1)
        memory = Memory(path, "a")
        assert memory.known == count + 3
        again = analyse(files, [4.0, 2.0], ["kl", "fisher"], ["only", "all_but"], 0, memory)
        assert len(asked) == count
        assert again["modules"] == result["modules"]
        assert again["shifts"].divergence(files.uniform(2.0)) == result["shifts"].divergence(files.uniform(2.0))
        assert Memory(path, "b").known == 0
    finally:
        del files.measured
    held = result["modules"]["bert.encoder.layer.0.attention.self.value"]
    assert (held["layer"], held["kind"], held["weights"]) == (0, "value", 1024)
    alone = files.uniform(32.0) | {"bert.encoder.layer.0.attention.self.value": 2.0}
    assert held["bits"]["2"]["kl_only"] == files.measured(alone)["divergence"]
    assert result["shifts"].divergence(alone) == pytest.approx(held["bits"]["2"]["kl_only"], rel=1e-3)
    np.testing.assert_allclose(result["shifts"].logits(alone), files.outputs(files.graph(alone)), atol=1e-5)
    assert held["bits"]["2"]["sqnr_db"] < held["bits"]["4"]["sqnr_db"]
    assert held["bits"]["2"]["bytes"] < held["bits"]["4"]["bytes"] < 0
    whole = files.graph(files.uniform(2.0)).ByteSize()
    foretold = files.graph(files.uniform(32.0)).ByteSize() + sum(
        module["bits"]["2"]["bytes"] for module in result["modules"].values())
    assert foretold == pytest.approx(whole, rel=0.05)
    all_but = files.uniform(2.0) | {"bert.encoder.layer.0.attention.self.value": 32.0}
    assert held["bits"]["2"]["kl_all_but"] == pytest.approx(
        files.measured(files.uniform(2.0))["divergence"] - files.measured(all_but)["divergence"])


def test_an_interrupted_file_of_figures_is_none(tmp_path):
    (tmp_path / "unfinished.json").write_text('{"fingerprint": "a", "val')
    memory = Memory(tmp_path / "unfinished.json", "a")
    assert memory.get("x", lambda: 1) == 1
    assert Memory(tmp_path / "unfinished.json", "a").get("x", lambda: 2) == 1


def test_halves_share_no_text():
    for count in (0, 1, 2, 7):
        first, second = halves(count)
        assert sorted(first + second) == list(range(count))


def test_layers_used_twice_are_refused(files):
    """As ALBERT's are: the file would leave the second use on floats, which no stored integer shows."""
    graph = copy.deepcopy(files.exported.graph)
    refuse_layers_used_twice(graph, files.parts)
    product = next(node for node in graph.node if node.name.endswith("query/MatMul"))
    graph.node.append(copy.deepcopy(product))
    with pytest.raises(UserError, match="uses its 14 Linear layers 15 times"):
        refuse_layers_used_twice(graph, files.parts)


def test_pads_nothing(files):
    """Each row is asked alone: no padding widens a range."""
    assert all(row["attention_mask"].all() for row in files.rows)
    assert files.rows[0].keys() == pad([{"input_ids": [1]}], 0).keys()
