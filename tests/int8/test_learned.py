"""Learned activation ranges: arithmetic, gradients, calibration, the Q/DQ file and its rules, both runtimes."""

import functools
import importlib.util
import itertools
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from stage_runs import (
    EVALUATE,
    EXPORT,
    ORDER,
    QUANTIZE,
    TRAIN,
    copy_of,
    copy_until,
    ended_well,
    new_run,
    run_folder,
    run_stage_script,
    stages_in,
)
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from lowbit.data.task import SENTIMENT
from lowbit.data.tokens import TextReader, pad
from lowbit.data.tsv import read_split
from lowbit.graph.census import census, openvino_kernels, openvino_lines
from lowbit.int8 import arithmetic as int8
from lowbit.int8.learned import simulate
from lowbit.measure import session as sessions
from lowbit.measure.evaluate import batch_dependence
from lowbit.measure.session import Session
from lowbit.pipeline.errors import UserError
from lowbit.training.calibration import SHRINKAGE, calibrate_scales, observed_ranges
from lowbit.training.encoder import load_pretrained, load_run
from lowbit.training.first_token import read_first_token_only
from lowbit.training.lsq import ActivationQuantizer, quantizers, refuse_lost_scales

LEARNED = ("--activation-ranges", "learned")
VARIANTS = {"int8": (), "uint8": ("--target", "onnxruntime"), "per channel": ("--per-channel",),
            "float attention": ("--no-quantize-attention",), "float tables": ("--no-quantize-embeddings",),
            "7 bits": ("--reduce-range", "--target", "tensorrt")}
LINEAR_LAYERS, TABLES, ATTENTION_PRODUCTS, LAYERS = 14, 3, 4, 2
LINEAR_INPUTS = 4 * LAYERS + 2  # Q, K and V share one
INPUTS_OF_A_RUN = LINEAR_INPUTS + 1  # in the last layer Q takes the first token alone
LOOK_UPS = TABLES - 1  # a lone text's type is one row, which is looked up when the session is made
runtimes = pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed: requirements-openvino.txt"))])


# ---- one tensor


def quantizer_of(scale: float, zero_point: int = 0, dtype=torch.int8) -> ActivationQuantizer:
    made = ActivationQuantizer(dtype)
    with torch.no_grad():
        made.scale.fill_(scale)
        made.zero_point.fill_(zero_point)
    return made


@pytest.mark.parametrize(("dtype", "zero_point"), [(torch.int8, 0), (torch.uint8, 0), (torch.uint8, 97)])
def test_integers_are_those_of_quantizelinear(dtype, zero_point):
    """Ties, clipping and all: what ONNX Runtime's QuantizeLinear gives, less the zero point."""
    scale = np.float32(0.3)
    x = np.concatenate([scale * np.arange(-300, 300, 0.5, dtype=np.float32),
                        np.random.default_rng(0).standard_normal(2000, dtype=np.float32) * 30])
    integers, factor = quantizer_of(scale, zero_point, dtype)(torch.from_numpy(x))
    kind = np.dtype(str(dtype).removeprefix("torch."))
    node = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "one", [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])],
        [onnx.helper.make_tensor_value_info("y", onnx.helper.np_dtype_to_tensor_dtype(kind), [None])],
        [numpy_helper.from_array(np.array(scale), "s"), numpy_helper.from_array(np.array(zero_point, kind), "z")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(integers.detach().numpy(), expected.astype(np.float32) - zero_point)
    assert np.float32(factor) == scale
    assert len(np.unique(expected)) == 256


@pytest.mark.parametrize(("dtype", "zero_point", "low", "high"),
                         [(torch.int8, 0, -128, 127), (torch.uint8, 97, -97, 158)])
def test_gradients_are_lsqs(dtype, zero_point, low, high):
    """Esser et al. 2020, equations 3 and 5, term by term in NumPy: rounding error inside, the bound outside."""
    scale = 0.05
    x = np.random.default_rng(1).standard_normal(5000) * 4
    upstream = np.random.default_rng(2).standard_normal(5000)
    made, given = quantizer_of(scale, zero_point, dtype), torch.tensor(x, dtype=torch.float32, requires_grad=True)
    integers, factor = made(given)
    (integers * factor * torch.tensor(upstream, dtype=torch.float32)).sum().backward()
    ratio = x / scale
    inside = (ratio > low) & (ratio < high)
    assert 0.05 < 1 - inside.mean() < 0.5
    slope = np.where(inside, np.rint(ratio) - ratio, np.where(ratio >= high, high, low))
    expected = (upstream * slope).sum() / np.sqrt(len(x) * (high - low) / 2)
    assert made.scale.grad.item() == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(given.grad.numpy(), upstream * inside, rtol=1e-5)


def test_training_a_scale_lowers_the_error():
    """From a scale three times too large, gradient steps on the squared error find one near the best."""
    x = torch.from_numpy(np.random.default_rng(3).standard_normal(4000, dtype=np.float32))

    def error(made):
        integers, factor = made(x)
        return ((integers * factor - x) ** 2).mean()

    best = min(float(error(quantizer_of(scale)).detach()) for scale in np.linspace(0.01, 0.1, 91))
    made = quantizer_of(0.1)
    first = float(error(made).detach())
    optimiser = torch.optim.Adam(made.parameters(), 1e-3)
    for _ in range(300):
        optimiser.zero_grad()
        error(made).backward()
        optimiser.step()
    assert first > 5 * best
    assert float(error(made).detach()) < 1.3 * best


# ---- a model


def make_bert(folder) -> torch.nn.Module:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder, num_labels=3)).eval()


@pytest.fixture(scope="module")
def rows():
    """60 rows of token ids of many lengths."""
    generator = np.random.default_rng(0)
    return [{"input_ids": generator.integers(5, 400, length).tolist()} for length in generator.integers(3, 40, 60)]


def prepared(folder, target="openvino", quantize_attention=True) -> torch.nn.Module:
    return simulate(make_bert(folder), target, False, True, quantize_attention, False)


def test_one_scale_an_activation_tensor(tiny_model):
    """Q, K and V read one tensor and share its scale; the FP32 model's own tensors keep their names."""
    model = prepared(tiny_model)
    assert len(quantizers(model)) == LINEAR_INPUTS + 2 * ATTENTION_PRODUCTS
    layer = model.bert.encoder.layer[0].attention.self
    assert layer.query.quantize is layer.key.quantize is layer.value.quantize
    scales = [name for name in model.state_dict() if name.endswith(".scale")]
    assert len(scales) == len(set(scales)) == len(quantizers(model))
    assert set(make_bert(tiny_model).state_dict()) == {name for name in model.state_dict() if ".quantizer" not in name}
    assert len(quantizers(prepared(tiny_model, quantize_attention=False))) == LINEAR_INPUTS


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_calibration_takes_the_share_of_least_squared_error(tiny_model, rows, target):
    """For every tensor, the share of its range whose rounding and clipping cost least, computed again in NumPy."""
    model = prepared(tiny_model, target)
    calibrate_scales(model, rows, len(rows))
    names = {quantizer: name for name, quantizer in quantizers(model).items()}
    tensors = {}
    for quantizer in names:
        quantizer.enabled = False
        quantizer.watch = lambda x, made=quantizer: tensors.setdefault(names[made], []).append(x.flatten().numpy())
    batches = [{name: torch.from_numpy(value) for name, value in pad([row], 0).items()} for row in rows]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    shares = set()
    for name, parts in tensors.items():
        x, quantizer = np.concatenate(parts).astype(np.float64), quantizers(model)[name]
        low, high = min(x.min(), 0), max(x.max(), 0)
        width = max(-low, high) / 127 if target == "openvino" else (high - low) / 255
        bounds = (-128, 127) if target == "openvino" else (-np.rint(-low / width), 255 - np.rint(-low / width))
        errors = [((np.clip(np.rint(x / (share * width)), *bounds) * share * width - x) ** 2).sum()
                  for share in SHRINKAGE]
        chosen = int(np.argmin(np.abs(np.array(SHRINKAGE) * width - quantizer.scale.item())))
        assert SHRINKAGE[chosen] * width == pytest.approx(quantizer.scale.item(), rel=0.02), name
        assert errors[chosen] <= 1.05 * min(errors), name
        assert int(quantizer.zero_point) == (0 if target == "openvino" else -bounds[0]), name
        shares.add(SHRINKAGE[chosen])
    assert len(tensors) == len(names)
    assert len(shares) > 1


def test_calibrated_model_follows_fp32(tiny_model, rows):
    """Closer by far than with scales eight times as coarse."""
    model, batch = prepared(tiny_model), {name: torch.from_numpy(value) for name, value in pad(rows, 0).items()}
    calibrate_scales(model, rows, len(rows))
    with torch.no_grad():
        expected = make_bert(tiny_model)(**batch).logits
        calibrated = (model(**batch).logits - expected).abs().median()
        for quantizer in quantizers(model).values():
            quantizer.scale.mul_(8)
        coarse = (model(**batch).logits - expected).abs().median()
    assert 0 < calibrated < coarse / 4


def test_ranges_tell_what_lies_beyond(tiny_model, rows):
    """Extremes and the share of clipped values are those of the tensors themselves."""
    model = prepared(tiny_model)
    calibrate_scales(model, rows, len(rows))
    quantizer = quantizers(model)["classifier.quantizer"]
    with torch.no_grad():
        quantizer.scale.fill_(0.002)
    taken = []
    hook = model.classifier.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0].flatten()))
    seen = observed_ranges(model, rows)["classifier.quantizer"]
    hook.remove()
    x = torch.cat(taken)
    assert seen["observed"] == [x.min().item(), x.max().item()]
    assert seen["learned"] == pytest.approx([-0.256, 0.254])
    assert seen["clipped"] == pytest.approx(((x > 0.255) | (x < -0.257)).float().mean().item())
    assert seen["clipped"] > 0.1
    assert not model.training


# ---- the stages


@pytest.fixture(scope="module")
def stage_flags(train_flags, eval_flags):
    """Flags of each stage for the tiny model with learned ranges, less --run and the variant's own."""
    return {TRAIN: (*train_flags, *LEARNED), EXPORT: (), QUANTIZE: LEARNED, EVALUATE: eval_flags}


@pytest.fixture(scope="module")
def stages(stage_flags):
    """(run, stage -> Finished) of the default learned run."""
    run = new_run()
    return run, {name: run_stage_script(name, "--run", run, *stage_flags[name]) for name in ORDER}


@pytest.fixture(scope="module")
def run(stages):
    """Name of the finished learned run."""
    return ended_well(*stages)


@pytest.fixture(scope="module")
def folder(run):
    return run_folder(run)


@pytest.fixture(scope="module")
def variant_folder(run, stage_flags):
    """Function: folder of the run of one of VARIANTS after stage 3; made once."""
    made = {"int8": run_folder(run)}

    def make(name):
        if name not in made:
            other = new_run()
            for stage in (TRAIN, EXPORT, QUANTIZE):
                flags = () if stage == EXPORT else VARIANTS[name]
                done = run_stage_script(stage, "--run", other, *stage_flags[stage], *flags)
                assert done.returncode == 0, done.stderr
            made[name] = run_folder(other)
        return made[name]
    return make


@pytest.fixture(scope="module")
def texts(folder, small_data):
    """Token rows of the small data's test texts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = (small_data / "test.tsv").read_text(encoding="utf-8").splitlines()
    return [{"input_ids": tokenizer(line.split("\t")[0].lower(), truncation=True, max_length=128)["input_ids"]}
            for line in lines]


def simulation_of(folder) -> torch.nn.Module:
    """The trained simulation of a run, loaded strictly."""
    trained = stages_in(folder)[f"int8_eager/{TRAIN}"]["settings"]
    model = simulate(load_run(folder), trained["TARGET"], trained["PER_CHANNEL"], trained["QUANTIZE_EMBEDDINGS"],
                     trained["QUANTIZE_ATTENTION"], trained["REDUCE_RANGE"])
    model.load_state_dict(torch.load(folder / "model_qat.pth", weights_only=True), strict=True)
    return model.eval()


def file_of(folder):
    """Graph, initializers and producer of each tensor of a run's INT8 file."""
    graph = onnx.load(folder / "model_qat_int8.onnx").graph
    return (graph, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer},
            {output: node for node in graph.node for output in node.output})


def test_stages_say_what_they_did(stages, run):
    """Scales are counted where they are learned, left out of FP32, and compared where they are written."""
    said = {name: done.stdout for name, done in stages[1].items()}
    scales = INPUTS_OF_A_RUN + 2 * ATTENTION_PRODUCTS
    assert f"{scales} activation scales for the file" in said[TRAIN]
    assert f"{2 * scales} fake-quantization tensors left out" in said[EXPORT]
    assert f"next: python int8_eager/quantize_onnx_int8.py --run {run} --activation-ranges learned" in said[EXPORT]
    assert "weights and scales equal those simulated in training, bit for bit" in said[QUANTIZE]
    assert "activation_ranges.png" in said[EVALUATE]


@pytest.mark.parametrize("name", VARIANTS)
def test_scales_of_the_file_are_the_trained_ones(variant_folder, name):
    """Each activation that a product takes has the scale and zero point of model_qat.pth, bit for bit; none is left."""
    folder = variant_folder(name)
    graph, values, maker = file_of(folder)
    state = torch.load(folder / "model_qat.pth", weights_only=True)
    trained = {key: value.numpy() for key, value in state.items() if key.endswith((".scale", ".zero_point"))}
    kind = np.uint8 if name == "uint8" else np.int8
    used = set()
    for node in graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        scale, zero_point = (values[tensor] for tensor in node.input[1:])
        assert (scale.dtype, zero_point.dtype) == (np.float32, kind)
        same = {key for key in trained if key.endswith(".scale") and trained[key].tobytes() == scale.tobytes()
                and trained[key.replace(".scale", ".zero_point")] == zero_point}
        assert same, f"{node.name} has a scale that was not trained"
        used |= same
    assert used == {key for key in trained if key.endswith(".scale")}
    assert len(used) == INPUTS_OF_A_RUN + (0 if name == "float attention" else 2 * ATTENTION_PRODUCTS)


def behind_layout(maker, tensor):
    """What made a tensor, ahead of what only lays its numbers out anew."""
    while (node := maker.get(tensor)) is not None and node.op_type in ("Transpose", "Reshape"):
        tensor = node.input[0]
    return node


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "uint8"])
def test_graph_follows_the_rules_of_explicit_quantization(variant_folder, name):
    """TensorRT's rules: both inputs of each MatMul dequantized, each pair of one scale, zero points 0, int8 weights.

    For tensorrt (7 bits) each pair stands right at its product, for others ahead of splitting and joining heads.
    Scales are positive scalars, or one an output channel of a weight, along the axis that is not summed over.
    """
    folder = variant_folder(name)
    graph, values, maker = file_of(folder)
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == LINEAR_LAYERS + ATTENTION_PRODUCTS
    dequantized = 0
    for node in products:
        find = maker.get if name == "7 bits" else functools.partial(behind_layout, maker)
        sources = [find(tensor) for tensor in node.input]
        if not all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            assert name == "float attention"
            assert not set(node.input) & set(values), f"{node.name} takes a float weight"
            continue
        dequantized += 1
        for source in sources:
            scale, zero_point = (values[tensor] for tensor in source.input[1:])
            assert (scale > 0).all()
            assert not zero_point.any()
            if source.input[0] in values:
                weight = values[source.input[0]]
                assert weight.dtype == np.int8
                assert np.abs(weight.astype(int)).max() == (64 if name == "7 bits" else 127)
                assert not zero_point.any()
                axis = [attribute.i for attribute in source.attribute if attribute.name == "axis"]
                assert (scale.shape, axis) == (((weight.shape[1],), [1]) if name == "per channel" else ((), []))
            else:
                quantize = maker[source.input[0]]
                assert quantize.op_type == "QuantizeLinear"
                assert list(quantize.input[1:]) == list(source.input[1:])
                assert scale.shape == zero_point.shape == ()
    assert dequantized == len(products) - (ATTENTION_PRODUCTS if name == "float attention" else 0)
    for node in graph.node:  # what was left float is no weight of a product or table
        if node.op_type == "Gather" and node.input[0] in values and values[node.input[0]].ndim == 2:
            assert values[node.input[0]].dtype == (np.float32 if name == "float tables" else np.int8)
    onnx.checker.check_model(str(folder / "model_qat_int8.onnx"), full_check=True)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name in ("int8", "per channel", "float tables")])
def test_pairs_stand_ahead_of_splitting_and_joining_heads(variant_folder, name):
    """Then bytes are moved and not floats; of a key's transposition OpenVINO's attention takes in the second step."""
    graph, _, maker = file_of(variant_folder(name))
    sources = [maker[node.input[0]].op_type for node in graph.node if node.op_type == "QuantizeLinear"]
    assert sources.count("Transpose") == sources.count("Reshape") == 0
    steps = [list(node.attribute[0].ints) for node in graph.node if node.op_type == "Transpose"]
    layers = ATTENTION_PRODUCTS // 2
    assert sorted(steps) == sorted(layers * [[0, 1, 3, 2]] + 4 * layers * [[0, 2, 1, 3]])


def test_uint8_file_has_product_scales_and_bias_in_one_operator(variant_folder):
    """ONNX Runtime's own: no Linear layer leaves its bias to an Add, and Q, K and V take one tensor's integers."""
    graph, values, maker = file_of(variant_folder("uint8"))
    products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(products) == LINEAR_LAYERS
    assert all(len(node.input) == 7 and values[node.input[6]].ndim == 1 for node in products)
    assert all(values[node.input[1]].dtype == np.int8 and values[node.input[4]].dtype == np.uint8 for node in products)
    assert len({node.input[0] for node in products}) == INPUTS_OF_A_RUN
    assert {maker[node.input[0]].op_type for node in products} == {"QuantizeLinear"}


@pytest.mark.parametrize("name", VARIANTS)
def test_integers_run_in_onnx_runtime(variant_folder, name):
    """In the graph as it is optimised, no product and no look-up is left on floats but those that were to be."""
    found = census(variant_folder(name) / "model_qat_int8.onnx")
    attention = {"integer": 0, "float": ATTENTION_PRODUCTS}
    if name != "float attention":
        attention = {"integer": ATTENTION_PRODUCTS, "float": 0}
    tables = {"integer": 0, "float": LOOK_UPS} if name == "float tables" else {"integer": LOOK_UPS, "float": 0}
    assert found["linear"] == {"integer": LINEAR_LAYERS, "float": 0}
    assert found["attention"] == attention
    assert found["embedding"] == tables
    operators = found["operators"]
    assert operators.get("MatMulIntegerToFloat", 0) + operators.get("QLinearMatMul", 0) == (
        LINEAR_LAYERS + attention["integer"])


def test_integers_run_in_openvino(folder):
    """Every Linear layer and every attention of the compiled graph is an int8 kernel."""
    pytest.importorskip("openvino", reason="openvino is not installed: requirements-openvino.txt")
    found = openvino_kernels(folder / "model_qat_int8.onnx")
    assert found["FullyConnected"] == {"i8": LINEAR_LAYERS}
    assert set(openvino_kernels(folder / "model_qat.onnx")["FullyConnected"]) == {"f32"}
    assert f"FullyConnected: {LINEAR_LAYERS} on i8" in openvino_lines(found)[0]


@runtimes
@pytest.mark.parametrize("name", VARIANTS)
def test_file_follows_the_simulation(variant_folder, texts, name, runtime):
    """Labels that are no tie equal the simulation's, most logits to the last bits, in either runtime."""
    folder = variant_folder(name)
    model = simulation_of(folder)
    with torch.inference_mode():
        expected = np.concatenate([model(**{key: torch.from_numpy(value) for key, value in pad([row], 0).items()}
                                         ).logits.numpy() for row in texts])
    with Session(folder / "model_qat_int8.onnx", "CPUExecutionProvider", 1, runtime) as session:
        logits = session.logits(texts, 0)
    assert np.median(np.abs(logits - expected)) < 1e-5
    lead = np.diff(np.sort(expected)[:, -2:])[:, 0]  # a last bit can move a value over a rounding border, by a step
    assert (logits.argmax(-1) == expected.argmax(-1))[lead > 0.05].all()
    assert (lead > 0.05).mean() > 0.5
    with Session(folder / "model_qat.onnx", "CPUExecutionProvider", 1, runtime) as session:
        assert np.median(np.abs(logits - session.logits(texts, 0))) > 1e-4


@runtimes
def test_batch_mates_order_and_padding_change_nothing(folder, texts, runtime):
    """The same logits, alone and in company, in any order, with any padding: the mode's promise."""
    with Session(folder / "model_qat_int8.onnx", "CPUExecutionProvider", 1, runtime) as session:
        alone = session.logits(texts, 0)
        for seed, (size, length) in enumerate(itertools.product((2, 5, 16, 64), (0, 128))):
            order = np.random.default_rng(seed).permutation(len(texts)).tolist()
            assert np.abs(session.logits(texts, 0, size, order, length) - alone).max() <= 1e-4


def test_dynamic_ranges_do_depend_on_the_batch(finished_folder, texts):
    """The contrast that the report shows: the same measure finds the dynamic file's dependence."""
    with Session(finished_folder / "model_qat_int8.onnx", "CPUExecutionProvider", 1) as session:
        alone = session.logits(texts, 0)
        assert np.abs(session.logits(texts, 0, 16, list(range(len(texts)))) - alone).max() > 1e-4


def test_report_has_batch_dependence_and_ranges(folder, stages):
    """Three orders and full padding in the results, their sentence on the terminal, the picture beside them."""
    found = json.loads((folder / "results.json").read_text())["files"]["INT8"]["batch_dependence"]
    assert len(found["arrangements"]) == 3 + 1
    assert found["flips"] == 0
    largest = max(part["max_logit_difference"] for part in found["arrangements"])
    assert largest == found["max_logit_difference"] <= 1e-4
    assert "test labels change between batch 1 and batches of 16 in 3 random orders" in stages[1][EVALUATE].stdout
    ranges = json.loads((folder / "activation_ranges.json").read_text())
    assert set(ranges) == set(quantizers(simulation_of(folder)))
    assert (folder / "activation_ranges.png").stat().st_size > 10_000


def test_report_in_openvino(run, stage_flags):
    """RUNTIME moves both files to OpenVINO and says which kernels run."""
    pytest.importorskip("openvino", reason="openvino is not installed: requirements-openvino.txt")
    other = copy_of(run)
    done = run_stage_script(EVALUATE, "--run", other, *stage_flags[EVALUATE], "--runtime", "openvino")
    assert done.returncode == 0, done.stderr
    assert f"OpenVINO runs FullyConnected: {LINEAR_LAYERS} on i8" in done.stdout
    found = json.loads((run_folder(other) / "results.json").read_text())
    assert found["settings"]["RUNTIME"] == "openvino"
    assert found["versions"]["openvino"]
    assert found["files"]["INT8"]["all_against_simulation"]["same_label"] > 0.99


def test_training_goes_on_from_its_checkpoint(run, stage_flags):
    """A run killed after its first epoch ends with the scales that an undisturbed one learns."""
    other = new_run()
    checkpoints = run_folder(other) / "checkpoints"
    run_stage_script(TRAIN, "--run", other, *stage_flags[TRAIN],
                     kill_when=lambda: list(checkpoints.glob("checkpoint-*/complete.json")))
    done = run_stage_script(TRAIN, "--run", other, *stage_flags[TRAIN])
    assert done.returncode == 0, done.stderr
    ours, theirs = (torch.load(run_folder(name) / "model_qat.pth", weights_only=True) for name in (other, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "resuming from" in done.stdout


def test_scales_were_trained(folder, tiny_model, small_data):
    """Each has moved from where calibration on the same texts, made again here, starts it; none is lost."""
    trained = torch.load(folder / "model_qat.pth", weights_only=True)
    set_seed(42)
    model, tokenizer = load_pretrained(str(tiny_model), "", SENTIMENT)
    read_first_token_only(model)
    simulate(model, "openvino", False, True, True, False)
    calibrate_scales(model, TextReader(tokenizer, "minimal", 128).rows(read_split(small_data, "train")[0]), 512)
    started = {name: value for name, value in model.state_dict().items() if name.endswith(".scale")}
    assert len(started) == INPUTS_OF_A_RUN + 2 * ATTENTION_PRODUCTS
    for name, start in started.items():
        assert 0 < trained[name] < float("inf"), name
        # from there, and not there any more; the last layer's attention is one row a text, whose scale moves by 0.51
        most = 0.6 if name.startswith(f"bert.encoder.layer.{LAYERS - 1}.attention.self.quantizers.prob") else 0.5
        assert 1e-5 < abs(trained[name] / start - 1) < most, name


# ---- refusals


@pytest.mark.parametrize(("stage", "flags", "said"), [
    (TRAIN, ("--activation-ranges", "static"), "ACTIVATION_RANGES is 'static'; choose dynamic or learned"),
    (TRAIN, (*LEARNED, "--target", "cpu"), "TARGET is 'cpu'; choose openvino, tensorrt, onnxruntime"),
    (TRAIN, (*LEARNED, "--no-qat"), "QAT is off"),
    (TRAIN, (*LEARNED, "--calibration-texts", 0), "CALIBRATION_TEXTS is 0; it must be above 0"),
    (QUANTIZE, (), "ACTIVATION_RANGES is dynamic here but"),
    (QUANTIZE, (*LEARNED, "--target", "onnxruntime"), "TARGET is onnxruntime here but"),
    (QUANTIZE, (*LEARNED, "--no-quantize-attention"), "QUANTIZE_ATTENTION is False here but"),
    (QUANTIZE, (*LEARNED, "--per-channel"), "PER_CHANNEL is True here but"),
    (EVALUATE, ("--runtime", "tensorrt"), "RUNTIME is 'tensorrt'; choose onnxruntime or openvino"),
    pytest.param(EVALUATE, ("--runtime", "openvino", "--provider", "CUDAExecutionProvider"),
                 "PROVIDER is 'CUDAExecutionProvider', but RUNTIME openvino runs on the CPU", marks=pytest.mark.skipif(
                     importlib.util.find_spec("openvino") is None, reason="openvino is not installed")),
])
def test_setting_that_is_refused(run, train_flags, eval_flags, stage, flags, said):
    """One sentence, exit 2, nothing made."""
    before = {TRAIN: None, QUANTIZE: EXPORT, EVALUATE: QUANTIZE}[stage]
    other = new_run() if stage == TRAIN else copy_until(run, before)
    given = {TRAIN: train_flags, QUANTIZE: (), EVALUATE: eval_flags}[stage]
    done = run_stage_script(stage, "--run", other, *given, *flags)
    assert done.returncode == 2, done.stderr
    assert said in done.error
    assert not (run_folder(other) / {TRAIN: "model_qat.pth", QUANTIZE: "model_qat_int8.onnx",
                                     EVALUATE: "results.json"}[stage]).exists()


def test_scale_below_zero_is_refused(tiny_model):
    """A learning rate that is too high for scales is a sentence, not a file that inverts its inputs."""
    model = prepared(tiny_model)
    with torch.no_grad():
        quantizers(model)["classifier.quantizer"].scale.fill_(-0.01)
    with pytest.raises(UserError, match=r"classifier\.quantizer to -0\.01: lower LEARNING_RATE"):
        refuse_lost_scales(model)


def test_learned_file_of_a_dynamic_run_is_refused(finished_run):
    """There is nothing learned to write."""
    done = run_stage_script(QUANTIZE, "--run", copy_until(finished_run, EXPORT), *LEARNED)
    assert done.returncode == 2
    assert "has learned none: train it with --activation-ranges learned" in done.error


def test_absent_openvino_is_one_sentence(monkeypatch):
    """A runtime that is not installed is named with the line that installs it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(UserError, match=r"not installed: `pip install -r requirements-openvino\.txt`"):
        sessions.require_runtime("openvino")


def test_scale_that_was_changed_is_refused(run):
    """One bit of one scale in the weights' file: the chain no longer holds, and stage 3 says so."""
    other = copy_until(run, EXPORT)
    path = run_folder(other) / "model_qat.pth"
    state = torch.load(path, weights_only=True)
    name = next(key for key in state if key.endswith(".scale"))
    state[name] = torch.nextafter(state[name], torch.tensor(1.0))
    torch.save(state, path)
    done = run_stage_script(QUANTIZE, "--run", other, *LEARNED)
    assert done.returncode == 2
    assert "model_qat.pth" in done.error


class _Depending:
    """Stands in for a session: logits that padding to 9 tokens changes, and one text's label with its batch-mates."""

    def logits(self, rows, pad_id, batch_size=1, order=None, length=0):
        logits = np.tile(np.float32([1.0, 0.5, 0.0]), (len(rows), 1))
        logits += np.float32(0.25) * (length == 9) * np.float32([0, 0, 1])
        if batch_size > 1:
            logits[2] = [0.0, 3.0, 0.0]
        return logits


def test_batch_dependence_counts_texts_once():
    """A text that changes in every order is one text; the largest change is that of any arrangement."""
    session, rows = _Depending(), [[1], [2], [3], [4]]
    found = batch_dependence(session, rows, session.logits(rows, 0), 0, 2, 9, SENTIMENT)
    assert (found["flips"], found["max_logit_difference"], found["batch_size"]) == (1, 2.5, 2)
    assert [part["flips"] for part in found["arrangements"]] == [1, 1, 1, 0]
    assert found["arrangements"][-1]["max_logit_difference"] == 0.25


def test_encoder_with_shared_layers_is_refused():
    """ALBERT runs one layer many times: a sentence before training, not an invalid file after it."""
    config = AutoConfig.for_model("albert", vocab_size=50, embedding_size=16, hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=2, intermediate_size=64, num_labels=3)
    with pytest.raises(UserError, match="several times.*--activation-ranges dynamic"):
        simulate(AutoModelForSequenceClassification.from_config(config), "openvino", False, True, True, False)


def test_attention_that_cannot_be_simulated_is_refused():
    """No silent return to float attention: DeBERTa's does not go through the interface."""
    config = AutoConfig.for_model("deberta-v2", vocab_size=50, hidden_size=32, num_hidden_layers=1, num_labels=3,
                                  num_attention_heads=2, intermediate_size=64)
    with pytest.raises(UserError, match="--no-quantize-attention"):
        simulate(AutoModelForSequenceClassification.from_config(config), "openvino", False, True, True, False)


def test_fp16_steps_are_for_products_scaled_inside(monkeypatch):
    """Unscaled sums of integers pass FP16's 65,504: learned ranges and per-channel scales train in FP32 there."""
    settings = {"AUTOCAST": True, "PER_CHANNEL": False, "ACTIVATION_RANGES": "dynamic"}
    monkeypatch.setattr(int8, "autocast_dtype", lambda: torch.float16)
    assert int8.step_dtype(settings) is torch.float16
    assert int8.step_dtype(settings | {"PER_CHANNEL": True}) is None
    assert int8.step_dtype(settings | {"ACTIVATION_RANGES": "learned"}) is None
    monkeypatch.setattr(int8, "autocast_dtype", lambda: torch.bfloat16)
    assert int8.step_dtype(settings | {"ACTIVATION_RANGES": "learned"}) is torch.bfloat16
