"""The packed file on a two-layer model: unpacked when loaded, equal to the simulation, in old operators."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lowbit.graph.agreement import differing, simulated_tensors, stored_tensors
from lowbit.graph.census import census, census_lines
from lowbit.graph.export import export, largest_difference
from lowbit.graph.inputs import sample_inputs
from lowbit.graph.names import LOOK_UP
from lowbit.int4 import file
from lowbit.int4.arithmetic import simulate
from lowbit.int4.file import quantize
from lowbit.int4.levels import LEVELS
from lowbit.int4.simulation import assign, parts_of, start_scales
from lowbit.pipeline.errors import UserError
from lowbit.training.calibration import calibrate_scales
from lowbit.training.lsq import quantizers

LINEAR_LAYERS, TABLES, ATTENTION_PRODUCTS, HEAD = 14, 2, 4, 2  # tables of words and positions; token types stay FP32
POSITIONS = 1  # of the tables: at 8 bits, as the head is
WIDTHS = {4.0: (4.0, 4.0), 2.0: (2.0, 4.0), 1.6: (1.6, 2.0)}  # bits of weights -> of weights and tables
bits = pytest.mark.parametrize("bits", WIDTHS)
modes = pytest.mark.parametrize("mode", ["dynamic", "learned"])


def settings(bits: float, mode: str, **more) -> dict:
    weights, tables = WIDTHS[bits]
    return {"BITS": weights, "TABLE_BITS": tables, "POSITION_BITS": 8.0, "HEAD_BITS": 8.0, "ACTIVATION_RANGES": mode,
            "TARGET": "openvino", "QUANTIZE_ATTENTION": True} | more


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """Function: (simulation, path of its file) of bits and mode; made once."""
    folder, known = tmp_path_factory.mktemp("files"), {}

    def make(bits, mode, large=False, **more):
        key = f"{bits}-{mode}-{large}-{'-'.join(map(str, more.values()))}"
        if key not in known:
            torch.manual_seed(3)
            config = AutoConfig.from_pretrained(tiny_model, num_labels=3, attn_implementation="eager")
            model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
            export(model, folder / "fp32.onnx", 17)
            start_scales(simulate(model, settings(bits, mode, **more)))
            if mode == "learned":
                rng = np.random.default_rng(0)
                calibrate_scales(model, [{"input_ids": rng.integers(5, 400, 20).tolist()} for _ in range(20)], 20)
            model.eval()
            with pytest.MonkeyPatch.context() as patched:
                if large:  # what a large model is written like
                    patched.setattr(file, "WIDE", 1500)
                    patched.setattr(file, "MANY_ROWS", 100)
                onnx.save(quantize(onnx.load(folder / "fp32.onnx"), model), folder / f"{key}.onnx")
            known[key] = model, folder / f"{key}.onnx"
        return known[key]
    return make


def packed_of(model: onnx.ModelProto, cast: str) -> onnx.TensorProto:
    """The bytes that the operator whose name ends so takes."""
    node = next(node for node in model.graph.node if node.name.endswith(cast))
    return next(tensor for tensor in model.graph.initializer if tensor.name == node.input[0])


@bits
@modes
def test_file_stores_what_is_simulated(made, bits, mode):
    """Every level, scale and zero point, unpacked by ONNX's reference, bit for bit; a changed byte is seen."""
    model, path = made(bits, mode)
    simulated = simulated_tensors(model)
    assert sum(name.endswith("weight.integers") for name in simulated) == LINEAR_LAYERS + TABLES
    assert sum(name.endswith("weight.scale") for name in simulated) == LINEAR_LAYERS + TABLES
    assert differing(stored_tensors(path), simulated) == []
    changed = onnx.load(path)
    tensor = packed_of(changed, "key/weight/Cast")
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    onnx.save(changed, path.with_name("changed.onnx"))
    (wrong,) = differing(stored_tensors(path.with_name("changed.onnx")), simulated)
    assert wrong.endswith("key.weight.integers")


@bits
@modes
def test_nothing_is_unpacked_at_run_time(made, bits, mode):
    """In the graph as ONNX Runtime optimises it: integer kernels on INT8 weights, no look-up left, and it says so."""
    _, path = made(bits, mode)
    found = census(path)
    assert found["linear"] == {"integer": LINEAR_LAYERS, "float": 0}
    assert found["embedding"] == {"integer": TABLES, "float": 0}
    products = {"integer": ATTENTION_PRODUCTS, "float": 0}
    assert found["attention"] == (products if mode == "learned" else {"integer": 0, "float": ATTENTION_PRODUCTS})
    packed = LINEAR_LAYERS + TABLES - HEAD - POSITIONS
    assert found["packed"] == {"stored": packed, "unpacked_at_load": packed, "rows": 0}
    said = f"{packed} packed weights and tables: {packed} unpacked when the session is made, 0 a row at a time"
    assert any(said in line for line in census_lines(found))


@bits
@modes
def test_large_models_are_written_for_less_memory(made, bits, mode):
    """Two bytes at a time, tables of many words a row at a time: the same tensors and logits, the same kernels."""
    model, path = made(bits, mode, large=True)
    _, small = made(bits, mode)
    assert differing(stored_tensors(path), simulated_tensors(model)) == []
    wide = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == onnx.TensorProto.UINT16]
    assert len(wide) == 2 * 2  # a layer's two products of 32 x 64
    found = census(path)
    packed = LINEAR_LAYERS + TABLES - HEAD - POSITIONS
    assert found["packed"] == {"stored": packed, "unpacked_at_load": packed - 1, "rows": 1}
    for kind in ("linear", "embedding", "attention"):
        assert found[kind] == census(small)[kind]
    inputs = sample_inputs(model.config.vocab_size, 8, 20, 6, 0)
    ours, theirs = (ort.InferenceSession(one, providers=["CPUExecutionProvider"]).run(["logits"], inputs)[0]
                    for one in (path, small))
    np.testing.assert_array_equal(ours, theirs)


def test_census_sees_a_look_up_that_stays(made, tmp_path):
    """Bytes that are an input of the graph, and no constant, cannot be unpacked when the session is made."""
    _, path = made(2.0, "dynamic")
    model = onnx.load(path)
    tensor = packed_of(model, "key/weight/Cast")
    shape = [f"n{size}" for size in range(2)]
    model.graph.initializer.remove(tensor)
    model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.UINT8, shape))
    onnx.save(model, tmp_path / "open.onnx")
    packed = LINEAR_LAYERS + TABLES - HEAD - POSITIONS
    found = census(tmp_path / "open.onnx")
    assert found["packed"] == {"stored": packed, "unpacked_at_load": packed - 1, "rows": 0}
    assert any("1 whole in every run" in line for line in census_lines(found))


@bits
@modes
def test_logits_follow_the_simulation(made, bits, mode):
    """On random shapes, closer by far than plain FP32 comes; most logits to the last bits."""
    model, path = made(bits, mode)
    inputs = sample_inputs(model.config.vocab_size, 8, 20, 6, 0)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
    ours = session.run(["logits"], inputs)[0]
    fp32 = ort.InferenceSession(path.with_name("fp32.onnx"), providers=["CPUExecutionProvider"]).run(["logits"], inputs)
    assert np.median(np.abs(ours - expected)) < 1e-5
    assert np.median(np.abs(fp32[0] - expected)) > 1e-3
    assert largest_difference(model, path) < 0.2


@bits
@modes
@pytest.mark.parametrize("large", [False, True])
def test_openvino_gives_the_simulations_logits(made, bits, mode, large):
    """The look-up is folded there too: the same logits, to rounding."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: requirements-openvino.txt")
    model, path = made(bits, mode, large)
    inputs = sample_inputs(model.config.vocab_size, 8, 20, 6, 0)
    request = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
    assert np.median(np.abs(request.infer(inputs)["logits"] - expected)) < 1e-4


@bits
def test_every_operator_is_of_an_old_set(made, bits):
    """Nothing newer than operator set 17 and IR 10, no type of 4 bits: onnxruntime 1.20 and older load it."""
    model = onnx.load(made(bits, "learned")[1])
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [17]
    assert model.ir_version <= 10
    assert {entry.domain for entry in model.opset_import} == {""}
    small = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    assert not small & {tensor.data_type for tensor in model.graph.initializer}
    tables = [tensor for tensor in model.graph.initializer if tensor.name.startswith(LOOK_UP)]
    assert all(len(tensor.raw_data) <= 256 * 5 for tensor in tables)
    assert len(tables) == len(set(WIDTHS[bits]))
    onnx.checker.check_model(model, full_check=True)


def test_bytes_are_at_their_bits(made):
    """The weights of the layers take an eighth, a sixteenth and a twentieth of FP32's bytes."""
    sizes = {}
    for bits in WIDTHS:
        model = onnx.load(made(bits, "dynamic")[1])
        tensors = [packed_of(model, node.name) for node in model.graph.node
                   if "encoder" in node.name and node.name.endswith("weight/Cast")]
        assert len(tensors) == LINEAR_LAYERS - HEAD
        sizes[bits] = sum(len(tensor.raw_data) for tensor in tensors)
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert sizes[4.0] == weights // 2
    assert sizes[2.0] == weights // 4
    assert sizes[1.6] < weights // 4 * 0.9  # 7 bytes a row of 32 at this size


def test_learned_scales_are_of_each_target(made):
    """TARGET onnxruntime makes activations uint8; float attention keeps its products."""
    model, path = made(2.0, "learned", TARGET="onnxruntime", QUANTIZE_ATTENTION=False)
    assert {quantizer.zero_point.dtype for quantizer in quantizers(model).values()} == {torch.uint8}
    assert census(path)["attention"] == {"integer": 0, "float": ATTENTION_PRODUCTS}
    assert differing(stored_tensors(path), simulated_tensors(model)) == []


def albert():
    config = AutoConfig.for_model("albert", vocab_size=50, embedding_size=16, hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=2, intermediate_size=64, num_labels=3)
    return AutoModelForSequenceClassification.from_config(config).eval()


@modes
def test_encoder_with_shared_layers_is_refused(mode):
    """ALBERT runs one layer many times: a sentence before training, in either mode."""
    with pytest.raises(UserError, match="several times.*int8_eager/ with --activation-ranges dynamic"):
        simulate(albert(), settings(4.0, mode))


def test_no_second_use_of_a_weight_stays_on_floats(tmp_path):
    """The writer says so itself, whoever asks it: the stored integers alone would show nothing."""
    model = albert()
    export(model, tmp_path / "fp32.onnx", 17)
    assign(model, dict.fromkeys(parts_of(model), LEVELS[4.0]))
    with pytest.raises(UserError, match="query_1/MatMul would stay on floats"):
        quantize(onnx.load(tmp_path / "fp32.onnx"), model)
