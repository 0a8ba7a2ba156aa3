"""The FP16 simulation against NumPy's float16, module by module, and what it reports."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lowbit.fp16.simulation import fp16_attention, operators, range_lines, ranges, refuse_overflow, simulate
from lowbit.pipeline.errors import UserError

NONE = frozenset()
EVERYTHING = frozenset({"MatMul", "Gemm", "Add", "Sum", "Mul", "LayerNormalization", "Softmax", "Gather", "Tanh",
                        "Transpose"})


def half(x) -> np.ndarray:
    """Rounded to FP16 by NumPy, in FP32."""
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def prepared(module: torch.nn.Module, fp32_ops=NONE):
    """The module as simulate() leaves it inside a model; the Linear behind it is the head."""
    model = torch.nn.ModuleList([module, torch.nn.Linear(1, 1)])
    model.set_attn_implementation = lambda name: None
    return simulate(model, fp32_ops)[0]


@pytest.fixture
def random():
    """Function: FP32 tensor of this shape, the same at every call order."""
    generator = np.random.default_rng(3)
    return lambda *shape: torch.from_numpy(generator.normal(0, 2, shape).astype(np.float32))


@pytest.mark.parametrize("shape", [(5, 24), (3, 7, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_multiplies_fp16_values(random, shape, bias):
    """Operands and result are FP16 values; the sum is not rounded in between."""
    module, x = prepared(torch.nn.Linear(24, 16, bias=bias)), random(*shape)
    with torch.no_grad():
        module.weight.copy_(random(16, 24))
    weight = half(module.weight.detach())
    expected = half(half(x) @ weight.T + (half(module.bias.detach()) if bias else 0))
    got = module(x).detach().numpy()
    assert np.array_equal(got, half(got))
    step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32)
    assert (np.abs(got - expected) <= step).all()  # FP32 sums in another order may cross one rounding border
    assert (got == expected).mean() > 0.99


def test_layer_norm_takes_and_gives_fp16(random):
    """Mean and variance of the rounded input, in FP32."""
    module, x = prepared(torch.nn.LayerNorm(24)), random(3, 5, 24)
    with torch.no_grad():
        module.weight.copy_(random(24))
    rounded = half(x).astype(np.float64)
    normed = (rounded - rounded.mean(-1, keepdims=True)) / np.sqrt(rounded.var(-1, keepdims=True) + module.eps)
    expected = half(normed * half(module.weight.detach()) + half(module.bias.detach()))
    got = module(x).detach().numpy()
    assert np.array_equal(got, half(got))
    assert (got == expected).mean() > 0.99


def test_embedding_reads_an_fp16_table():
    """The rows looked up, rounded."""
    module = prepared(torch.nn.Embedding(9, 4))
    ids = torch.tensor([[1, 8], [0, 1]])
    assert np.array_equal(module(ids).detach().numpy(), half(module.weight.detach())[ids])


def test_gradients_pass_rounding_unchanged(random):
    """Those of the plain product at the rounded operands; parameters stay FP32 and are not FP16 values themselves."""
    module, x = prepared(torch.nn.Linear(24, 16)), random(5, 24).requires_grad_()
    before = module.weight.detach().clone()
    module(x).sum().backward()
    ones = np.ones((5, 16), np.float32)
    assert np.allclose(module.weight.grad, ones.T @ half(x.detach()), rtol=1e-5)
    assert np.allclose(x.grad, ones @ half(module.weight.detach()), rtol=1e-5)
    assert torch.equal(module.weight, before)
    assert not np.array_equal(before, half(before))


def test_attention_of_masked_positions(random):
    """Exactly zero where something else is attended to; a distribution, not NaN, for a row that is all padding."""
    query, key, value = (random(2, 1, 4, 8) for _ in range(3))
    mask = torch.zeros(2, 1, 1, 4)
    mask[0, ..., 1:3], mask[1] = torch.finfo(torch.float32).min, torch.finfo(torch.float32).min
    module = torch.nn.Module()
    module.fp32_ops, module.watch = NONE, None
    context, probabilities = fp16_attention(module, query, key, value, mask)
    assert (probabilities[0, ..., 1:3] == 0).all()
    assert (probabilities[0, ..., [0, 3]] > 0).any()
    assert torch.allclose(probabilities[1].sum(-1), torch.ones(1, 4), atol=2e-3)
    assert np.array_equal(context, half(context))
    scores = half(half(query[0, 0]) @ half(key[0, 0]).T) * np.float32(8**-0.5)
    kept = half(scores[:, [0, 3]])
    expected = half(np.exp(kept) / np.exp(kept).sum(-1, keepdims=True))
    assert np.allclose(probabilities[0, 0][:, [0, 3]], expected, rtol=2e-3)


@pytest.fixture
def model():
    """An untrained two-layer BERT."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32, num_labels=3, initializer_range=0.2)).eval()


ROWS = [{"input_ids": ids} for ids in ([2, 5, 9, 3], [2, 40, 3], list(range(2, 30)))]


def test_simulation_moves_logits_a_little_and_only_where_it_is_on(model):
    """With every operator in FP32 nothing moves; without, every kind of operator does its part."""
    ids = torch.tensor([ROWS[2]["input_ids"]])
    plain = model(ids).logits
    assert torch.allclose(simulate(model, EVERYTHING)(ids).logits, plain, atol=1e-5)
    simulated = simulate(model, NONE)(ids).logits
    assert 1e-4 < (simulated - plain).abs().max() < 0.02
    for name in ("MatMul", "LayerNormalization", "Gather", "Gemm"):
        assert not torch.equal(simulate(model, frozenset({name}))(ids).logits, simulated), name
    # softmax has no weights: what it takes and gives is FP16 as long as its neighbours are
    assert torch.equal(simulate(model, frozenset({"Softmax"}))(ids).logits, simulated)
    assert not torch.equal(simulate(model, frozenset({"Softmax", "Add"}))(ids).logits, simulated)
    assert torch.equal(simulate(model, NONE)(ids).logits, simulated)


def test_names_and_values_of_parameters_stay(model):
    """A prepared model's state dict is the FP32 model's."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = simulate(model, NONE).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_simulated_model_learns(model):
    """The loss of a few texts falls, gradients reach every parameter."""
    simulate(model, NONE).train()
    ids, labels = torch.arange(5, 85).reshape(4, 20), torch.tensor([0, 1, 2, 1])
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for _ in range(8):
        loss = model(ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_ranges_count_what_fp16_loses(model):
    """Magnitudes, overflow and underflow of a parameter and of what flows through; nothing is watched afterwards."""
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[:3] = torch.tensor([1e5, -7e4, 1e-9])
    seen = ranges(simulate(model, NONE), ROWS)
    bias = seen["bert.encoder.layer.1.output.dense.bias"]
    assert bias == {"largest": pytest.approx(1e5), "values": 32, "overflow": 2, "underflow": 1}
    probabilities = seen["bert.encoder.layer.0.attention.self.probabilities"]
    assert probabilities["values"] == 2 * (4**2 + 3**2 + 28**2)  # two heads, each text unpadded
    assert probabilities["largest"] <= 1
    assert sum(held["overflow"] for name, held in seen.items() if ".layer.0." in name) == 0
    assert all(module.watch is None for module in model.modules())
    with pytest.raises(UserError, match=r"layer\.1\.output\.dense\.bias reaches 1e\+05"):
        refuse_overflow(seen, "some/encoder")
    assert any("2 of" in line or "overflow" in line for line in range_lines(seen))


def test_ranges_hold_what_is_fp16_and_nothing_else(model):
    """Every parameter but the head's; preparing twice changes nothing; an operator in FP32 is not there."""
    names = {name for name, _ in model.named_parameters()} - {"classifier.weight", "classifier.bias"}
    for _ in range(2):
        seen = ranges(simulate(model, NONE), ROWS)
        assert {name for name in seen if name.endswith((".weight", ".bias"))} == names
        refuse_overflow(seen, "some/encoder")
    assert not any("LayerNorm.weight" in name for name in ranges(simulate(model, frozenset({"LayerNormalization"})),
                                                                  ROWS))


def test_operator_names():
    """Commas and spaces between; what is no operator is refused with the nearest."""
    assert operators("") == NONE
    assert operators("Softmax, LayerNormalization") == {"Softmax", "LayerNormalization"}
    with pytest.raises(UserError, match="'LayerNorm'.*LayerNormalization"):
        operators("MatMul,LayerNorm")
