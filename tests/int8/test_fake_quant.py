"""Fake-quantization against the ONNX operator specification in NumPy, and against ONNX Runtime itself."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from lowbit.int8.dynamic import simulate
from lowbit.training.integer_linear import dynamic_range

ARITHMETIC = [pytest.param(False, False, id="per-tensor"), pytest.param(True, False, id="per-channel"),
              pytest.param(False, True, id="7-bit"), pytest.param(True, True, id="7-bit-per-channel")]
arithmetic = pytest.mark.parametrize(("per_channel", "reduce_range"), ARITHMETIC)


def dynamic_quantize_linear(x: np.ndarray):
    """uint8 integers, scale, zero point: the formulas of DynamicQuantizeLinear-11, in float32.

    The specification divides by zero for an all-zero tensor; ONNX Runtime takes scale 1 there.
    """
    high, low = np.maximum(x.max(), np.float32(0)), np.minimum(x.min(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero_point = np.clip(np.rint(np.float32(0) - low / scale), 0, 255)
    return np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.uint8), scale, np.uint8(zero_point)


def int8_weight(weight: np.ndarray, per_channel: bool, reduce_range: bool):
    """int8 integers [out, in] and scale of the quantizer that writes the file: symmetric, max|w| at the end."""
    top = np.abs(weight.astype(np.float64)).max(axis=1 if per_channel else None, keepdims=per_channel)
    scale = (top / (64 if reduce_range else 127)).astype(np.float32)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    return np.rint(weight / scale).astype(np.int8), scale


def integer_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, per_channel=False, reduce_range=False):
    """MatMulInteger of the quantized operands, scaled to float32 once, plus bias."""
    x_int, x_scale, zero_point = dynamic_quantize_linear(x)
    w_int, w_scale = int8_weight(weight, per_channel, reduce_range)
    product = (x_int.astype(np.int32) - np.int32(zero_point)) @ w_int.astype(np.int32).T
    return product.astype(np.float32) * (x_scale * w_scale.reshape(-1)) + bias


def linear(weight: np.ndarray, bias: np.ndarray | None, per_channel=False, reduce_range=False) -> torch.nn.Linear:
    """A prepared nn.Linear with these parameters."""
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight))
        if bias is not None:
            module.bias.copy_(torch.from_numpy(bias))
    return simulate(torch.nn.Sequential(module), per_channel, True, reduce_range)[0]


def make_inputs() -> dict[str, np.ndarray]:
    """Activations [batch, seq, 24] of every sign and shape of range."""
    normal = np.random.default_rng(0).standard_normal((3, 7, 24), dtype=np.float32)
    outlier = normal.copy()
    outlier[1, 2, 3] = 300
    # halves of a scale without an exact inverse: x / scale is a tie, x * (1 / scale) is not
    halves = np.float32(0.3) * np.resize(np.arange(254, dtype=np.float32) + np.float32(0.5), normal.shape)
    halves[0, 0, :2] = 0, np.float32(0.3) * np.float32(255)
    return {"halves": halves, "normal": normal, "positive": np.abs(normal) + 5, "negative": -np.abs(normal) - 5,
            "zero": np.zeros_like(normal), "constant": np.full_like(normal, 0.3),
            "negative constant": np.full_like(normal, -0.3), "outlier": outlier, "tiny": normal * 1e-30,
            "huge": normal * 1e30, "ties": np.linspace(-63.75, 63.75, normal.size, dtype=np.float32).reshape(3, 7, 24),
            "one hot": np.eye(21, 24, dtype=np.float32).reshape(3, 7, 24)}


def make_weights() -> dict[str, np.ndarray]:
    """Weights [16, 24], among them rows and whole tensors of zeros and of one value."""
    normal = np.random.default_rng(1).standard_normal((16, 24), dtype=np.float32)
    gaps = normal.copy()
    gaps[::3] = 0
    return {"normal": normal, "positive": np.abs(normal), "zero rows": gaps, "zero": np.zeros_like(normal),
            "constant": np.full_like(normal, -0.7), "ties": np.rint(normal * 254) / np.float32(254),
            "uneven rows": normal * np.logspace(-4, 2, 16, dtype=np.float32)[:, None]}


INPUTS, WEIGHTS = make_inputs(), make_weights()
inputs = pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
weights = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
# smaller ranges have no scale in float32: there ONNX Runtime divides by zero, and no model computes
numbers = st.floats(-1e6, 1e6, width=32).map(lambda number: number if abs(number) > 1e-30 else 0.0)
tensors = st.lists(numbers, min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))


@pytest.fixture(scope="module")
def runtime_node():
    """ONNX Runtime's own DynamicQuantizeLinear, as a session."""
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero_point"])
    graph = helper.make_graph([node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
                              [helper.make_tensor_value_info("y", TensorProto.UINT8, [None]),
                               helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
                               helper.make_tensor_value_info("zero_point", TensorProto.UINT8, [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class Products(TorchDispatchMode):
    """Collects the two operands of every matrix product that torch executes, however it was written."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        first = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}.get(operator)
        if first is not None:
            self.seen.append((args[first].clone(), args[first + 1].clone()))
        return operator(*args, **(kwargs or {}))


def simulated_input(x: np.ndarray) -> tuple[np.ndarray, np.float32, int]:
    """What a prepared layer multiplies: the integers of its input, with scale and zero point as it takes them."""
    layer = linear(np.eye(x.shape[-1], dtype=np.float32), None)
    with Products() as products:
        layer(torch.from_numpy(x))
    (integers, _), = products.seen
    scale, zero_point = dynamic_range(torch.from_numpy(x))
    return integers.double().numpy() + float(zero_point), np.float32(scale), int(zero_point)


@inputs
def test_input_integers_equal_onnx_runtimes(x, runtime_node):
    """Scale, zero point and every integer are those of the operator that the file executes, bit for bit."""
    integers, scale, zero_point = simulated_input(x)
    expected, its_scale, its_zero_point = runtime_node.run(None, {"x": x.ravel()})
    assert (scale, zero_point) == (its_scale, its_zero_point)
    np.testing.assert_array_equal(integers.ravel(), expected)


@given(x=tensors)
def test_any_tensor_has_onnx_runtimes_integers(x, runtime_node):
    """The same on whatever hypothesis finds, with the NumPy reading of the specification as the third."""
    integers, scale, zero_point = simulated_input(x)
    expected, its_scale, its_zero_point = runtime_node.run(None, {"x": x})
    assert (scale, zero_point) == (its_scale, its_zero_point)
    np.testing.assert_array_equal(integers.ravel(), expected)
    ours, our_scale, our_zero_point = dynamic_quantize_linear(x)
    assert (our_scale, our_zero_point) == (its_scale, its_zero_point)
    np.testing.assert_array_equal(ours, expected)


@arithmetic
@weights
@inputs
def test_linear_is_matmulinteger_of_the_specification(x, weight, per_channel, reduce_range):
    """Every output equals the NumPy product of integers, scaled once, to the last bits of float32."""
    bias = np.random.default_rng(2).standard_normal(weight.shape[0], dtype=np.float32)
    y = linear(weight, bias, per_channel, reduce_range)(torch.from_numpy(x))
    expected = integer_linear(x, weight, bias, per_channel, reduce_range)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("columns", [24, 1], ids=["matrix", "column"])
@arithmetic
@weights
def test_weight_integers_equal_the_quantizers(weight, columns, per_channel, reduce_range, tmp_path):
    """What training simulates is what onnxruntime.quantization stores, bit for bit, in bounds, zero at zero."""
    weight = np.ascontiguousarray(weight[:, :columns])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", len(weight)])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx", weight_type=QuantType.QInt8, per_channel=per_channel,
                     reduce_range=reduce_range)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer}
    integers = linear(weight, None, per_channel, reduce_range).stored()["weight.integers"].numpy()
    np.testing.assert_array_equal(integers, stored["w_quantized"].T)
    np.testing.assert_array_equal(integers, int8_weight(weight, per_channel, reduce_range)[0])
    assert np.abs(integers.astype(int)).max() <= (64 if reduce_range else 127)
    assert not integers[weight == 0].any()


@arithmetic
@inputs
def test_gradients_are_those_of_the_dequantized_product(x, per_channel, reduce_range):
    """Straight through: rounding aside, backward is that of an ordinary layer on the rounded values."""
    weight, bias = WEIGHTS["uneven rows"], WEIGHTS["normal"][:, 0].copy()
    layer = linear(weight, bias, per_channel, reduce_range)
    given = torch.from_numpy(x).requires_grad_()
    x_int, x_scale, zero_point = dynamic_quantize_linear(x)
    w_int, w_scale = int8_weight(weight, per_channel, reduce_range)
    x_plain = torch.from_numpy((x_int.astype(np.float32) - zero_point) * x_scale).requires_grad_()
    w_plain = torch.from_numpy(w_int.astype(np.float32) * w_scale).requires_grad_()
    b_plain = torch.from_numpy(bias).requires_grad_()
    upstream = torch.from_numpy(np.random.default_rng(3).standard_normal((*x.shape[:-1], len(weight)), np.float32))
    layer(given).backward(upstream)
    torch.nn.functional.linear(x_plain, w_plain, b_plain).backward(upstream)
    pairs = zip((given, layer.weight, layer.bias), (x_plain, w_plain, b_plain), strict=True)
    for ours, theirs in ((one.grad, other.grad) for one, other in pairs):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_layer_without_bias_has_gradients_too():
    """No bias, no bias gradient, no crash."""
    layer = linear(WEIGHTS["normal"], None)
    x = torch.from_numpy(INPUTS["normal"]).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("x", [INPUTS[name] for name in ("normal", "positive", "negative", "outlier", "ties")],
                         ids=["normal", "positive", "negative", "outlier", "ties"])
def test_bf16_autocast_multiplies_the_same_integers(x):
    """Operands of 8 bits are exact in BF16: autocast changes the accumulation, never what is multiplied."""
    layer = linear(WEIGHTS["normal"], np.zeros(16, np.float32))
    with Products() as products:
        exact = layer(torch.from_numpy(x))
        with torch.autocast("cpu", torch.bfloat16):
            rough = layer(torch.from_numpy(x))
    (a, b), (a16, b16) = products.seen
    assert (a.dtype, a16.dtype, b16.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    assert torch.equal(a16.float(), a)
    assert torch.equal(b16.float(), b)
    assert a.abs().max() > 100
    torch.testing.assert_close(rough.float(), exact.detach(), rtol=2**-7, atol=2**-7 * exact.abs().max().item())


def test_gradients_under_bf16_autocast_follow_those_in_fp32():
    """Training steps in BF16 pull in the same direction."""
    gradients = []
    for enabled in (False, True):
        layer = linear(WEIGHTS["normal"], np.zeros(16, np.float32))
        x = torch.from_numpy(INPUTS["normal"]).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        y.float().square().sum().backward()
        gradients.append(torch.cat([x.grad.flatten(), layer.weight.grad.flatten(), layer.bias.grad.flatten()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


@pytest.mark.parametrize("table", [WEIGHTS[n] for n in ("normal", "positive", "zero rows", "zero", "constant")] +
                         [-WEIGHTS["positive"], np.full((4, 3), 0.7, np.float32)])
def test_embedding_rows_are_read_from_a_uint8_table(table):
    """Each row is scale * (integer - zero point); the gradient reaches just the rows looked up, unchanged."""
    module = torch.nn.Embedding(*table.shape)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(table))
    simulate(torch.nn.Sequential(module), False, True, False)
    ids = torch.tensor([[0, 3, 3], [1, 0, 3]])
    rows = module(ids)
    low, high = min(0.0, float(table.min())), max(0.0, float(table.max()))
    scale = np.float32((high - low) / 255) or np.float32(1)
    zero_point = round(-low / float(scale))
    integers = module.stored()["weight.integers"].numpy()
    assert integers.dtype == np.uint8
    np.testing.assert_array_equal(integers, np.clip(np.rint(table / scale) + zero_point, 0, 255))
    plain = (integers.astype(np.float32) - zero_point) * scale
    np.testing.assert_allclose(rows.detach().numpy(), plain[ids.numpy()], rtol=1e-6)
    assert np.abs(rows.detach().numpy() - table[ids.numpy()]).max() <= 0.51 * scale
    (2 * rows).sum().backward()
    counts = np.bincount(ids.numpy().ravel(), minlength=len(table))
    np.testing.assert_array_equal(module.weight.grad.numpy(), np.broadcast_to(2.0 * counts[:, None], table.shape))


def make_bert(folder) -> torch.nn.Module:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder, num_labels=3)).eval()


def test_prepare_changes_no_parameter_and_no_name(tiny_model):
    """A state dict saved in training loads strictly into the plain model, and the other way round."""
    plain, prepared = make_bert(tiny_model), simulate(make_bert(tiny_model), True, True, False)
    assert list(plain.state_dict()) == list(prepared.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in prepared.named_parameters()]
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, prepared.state_dict()[name])
    assert not plain.load_state_dict(prepared.state_dict(), strict=True).missing_keys


def test_prepared_model_computes_otherwise_and_nearly_the_same(tiny_model):
    """The simulation is in force, in every Linear layer and every table, and stays close to FP32."""
    ids = torch.arange(5, 85).reshape(4, 20)
    plain = make_bert(tiny_model)
    with torch.no_grad():
        before = plain(ids).logits
        prepared = simulate(plain, False, True, False)
        after = prepared(ids).logits
    gap = (after - before).abs().max()
    assert 0 < gap < 0.2 * (before.max() - before.min())
    kinds = [type(module).__name__ for module in prepared.modules()]
    assert "Linear" not in kinds
    assert "Embedding" not in kinds


def test_embeddings_stay_float_when_asked(tiny_model):
    """QUANTIZE_EMBEDDINGS False leaves the tables alone."""
    prepared = simulate(make_bert(tiny_model), False, False, False)
    table = prepared.get_input_embeddings()
    ids = torch.arange(50)
    assert torch.equal(table(ids), table.weight[ids])


def test_prepared_model_can_be_trained(tiny_model):
    """Every parameter that the classifier depends on gets a finite gradient, and the loss falls."""
    model = simulate(make_bert(tiny_model), False, True, False)
    ids, labels = torch.arange(5, 85).reshape(4, 20), torch.tensor([0, 1, 2, 1])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
