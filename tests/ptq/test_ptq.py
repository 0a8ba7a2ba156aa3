"""Post-training quantization: calibrated ranges against NumPy, and what each recipe stores and runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import load_tensors_data
from scipy.special import rel_entr

from lowbit.data.tokens import pad
from lowbit.data.tokens import width as tokens_of
from lowbit.graph.census import census, linear_bytes
from lowbit.ptq.files import ask_child
from lowbit.ptq.methods import calibrate_ranges, check_runs, quantize

OPTIONS = {"CALIBRATION_TEXTS": 40, "PERCENTILE": 99.9, "ENTROPY_BINS": 256, "QUANTIZE_EMBEDDINGS": True,
           "PER_CHANNEL": False, "REDUCE_RANGE": False, "SEED": 0}
CALIBRATIONS = ("minmax", "entropy", "percentile")
HIDDEN, WORDS = 256, 60
ACTIVATION = "hidden"  # what the second product reads
BINS = {"entropy": 256, "percentile": 2048}


def random_weights() -> dict[str, np.ndarray]:
    """A table with a few large values, two square products and a head."""
    random = np.random.default_rng(3)
    table = random.normal(0, 1, (WORDS, HIDDEN))
    table[5, :4] = (30, -22, 17, 9)
    return {"table": table.astype(np.float32),
            "first": random.normal(0, 0.1, (HIDDEN, HIDDEN)).astype(np.float32),
            "second": random.normal(0, 0.1, (HIDDEN, HIDDEN)).astype(np.float32),
            "head": random.normal(0, 0.1, (HIDDEN, 3)).astype(np.float32)}


WEIGHTS = random_weights()
ROWS = [{"input_ids": np.random.default_rng(seed).integers(0, WORDS, 3 + seed % 7).tolist()} for seed in range(40)]


def activation(row: dict[str, list[int]]) -> np.ndarray:
    """What ACTIVATION holds for one text: the input of the second product."""
    row = row["input_ids"]
    return np.tanh(WEIGHTS["table"][row]) * 3 + WEIGHTS["table"][row] @ WEIGHTS["first"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """input_ids, attention_mask -> logits: a look-up, two products, a mean, a head; saved as an ONNX file."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], "words"),
        helper.make_node("MatMul", ["words", "first"], ["product"], "first_product"),
        helper.make_node("Tanh", ["words"], ["squashed"], "squash"),
        helper.make_node("Mul", ["squashed", "three"], ["scaled"], "scale"),
        helper.make_node("Add", ["product", "scaled"], [ACTIVATION], "sum"),
        helper.make_node("MatMul", [ACTIVATION, "second"], ["deep"], "second_product"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], "mask_cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"], "mask_column"),
        helper.make_node("Mul", ["deep", "column"], ["masked"], "masked_product"),
        helper.make_node("ReduceMean", ["masked"], ["pooled"], "pool", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"], "classifier"),
    ]
    constants = {**WEIGHTS, "three": np.array(3, np.float32), "last": np.array([-1], np.int64)}
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
           for name in ("input_ids", "attention_mask")]
    made = helper.make_graph(nodes, "small", ids, [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()])
    path = tmp_path_factory.mktemp("graph") / "model_fp32.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def ranges(graph, tmp_path_factory):
    """Calibration method -> file of the ranges over ROWS."""
    files = {}
    for name in CALIBRATIONS:
        files[name] = tmp_path_factory.mktemp("ranges") / f"{name}.json"
        calibrate_ranges(graph, files[name], name, ROWS, OPTIONS)
    return files


def streamed_histogram(bins: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Counts, edges, least and largest value of ACTIVATION over all texts, each text alone, the longest first.

    The first text's largest magnitude is cut into `bins`; later texts add whole bins of the same width at both ends.
    """
    texts = [activation(row) for row in sorted(ROWS, key=tokens_of, reverse=True)]
    reach = np.abs(texts[0]).max()
    width = 2 * reach / bins
    for text in texts[1:]:
        if np.abs(text).max() > reach:
            more = int((np.abs(text).max() - reach) // width + 1)
            reach, bins = reach + more * width, bins + 2 * more
    values = np.concatenate([text.ravel() for text in texts])
    counts, edges = np.histogram(values, bins, (-reach, reach))
    return counts, edges, values.min(), values.max()


def numpy_minmax() -> tuple[float, float]:
    values = np.concatenate([activation(row).ravel() for row in ROWS])
    return values.min(), values.max()


def numpy_percentile() -> tuple[float, float]:
    """The edges outside of which half of the cut share lies on either side, within what was seen."""
    counts, edges, least, largest = streamed_histogram(BINS["percentile"])
    share = np.cumsum(counts) / counts.sum()
    cut = (100 - OPTIONS["PERCENTILE"]) / 200
    return max(edges[np.argmax(share >= cut)], least), min(edges[np.argmax(share >= 1 - cut)], largest)


def smoothed(histogram: np.ndarray) -> np.ndarray:
    """Zeros become 1e-4, taken from the others in equal parts."""
    zeros = histogram == 0
    return histogram + 1e-4 * zeros - 1e-4 * zeros.sum() / (~zeros).sum() * ~zeros


def numpy_entropy(levels: int = 128) -> tuple[float, float]:
    """The symmetric cut whose clipped histogram loses least, by Kullback and Leibler, when put into `levels` bins."""
    counts, edges, least, largest = streamed_histogram(BINS["entropy"])
    middle, best = len(counts) // 2, (np.inf, None)
    for half in range(levels // 2, middle + 1):
        start, end = middle - half, min(middle + half + 1, len(counts))
        inside = counts[start:end]
        clipped = inside.copy()
        clipped[0] += counts[:start].sum()
        clipped[-1] += counts[end:].sum()
        group = len(inside) // levels
        merged = inside[:levels * group].reshape(levels, group).sum(1)
        merged[-1] += inside[levels * group:].sum()
        filled = (clipped != 0)[:levels * group].reshape(levels, group)
        spread = np.zeros(len(inside), np.int64)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.where(filled.any(1), merged / filled.sum(1), 0).astype(np.int64)
        spread[:levels * group] = np.repeat(value, group)
        if not spread.any():
            continue
        p, q = smoothed(clipped.astype(np.float64)), smoothed(spread.astype(np.float64))
        if (p <= 0).any() or (q <= 0).any():
            continue
        loss = rel_entr(p / p.sum(), q / q.sum()).sum()
        if loss < best[0]:
            best = loss, (edges[start], edges[end])
    return max(best[1][0], least), min(best[1][1], largest)


EXPECTED = {"minmax": numpy_minmax, "entropy": numpy_entropy, "percentile": numpy_percentile}


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_calibrated_ranges_equal_numpy(ranges, calibration):
    """Streamed one text at a time, each calibrator finds the range that its definition gives on all texts."""
    low, high = load_tensors_data(ranges[calibration])[ACTIVATION].range_value
    assert (np.ravel(low)[0], np.ravel(high)[0]) == pytest.approx(tuple(map(float, EXPECTED[calibration]())), rel=1e-5)


def stored(path: Path) -> dict[str, np.ndarray]:
    """Initializer name -> array."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def made(graph, ranges, tmp_path_factory):
    """Function: the file that a recipe makes of the small graph; each is made once."""
    files = {}

    def make(**recipe) -> Path:
        key = json.dumps(recipe, sort_keys=True)
        if key not in files:
            files[key] = tmp_path_factory.mktemp("made") / "model.onnx"
            quantize(graph, files[key], recipe, ranges.get(recipe.get("calibration")), OPTIONS)
            check_runs(files[key])
        return files[key]

    return make


def scale_of_activation(path: Path) -> tuple[float, int]:
    """(scale, zero point) with which the file quantizes ACTIVATION."""
    tensors = stored(path)
    node = next(node for node in onnx.load(path).graph.node
                if node.op_type == "QuantizeLinear" and node.input[0] == ACTIVATION)
    return float(tensors[node.input[1]]), int(tensors[node.input[2]])


@pytest.mark.parametrize("form", ("qdq", "qoperator"))
def test_uint8_scales_are_the_calibrated_ranges_and_all_differ(made, form):
    """scale = range, widened to zero, over 255; MinMax, Entropy and Percentile choose three different ones."""
    found = set()
    for calibration in CALIBRATIONS:
        scale, zero = scale_of_activation(made(kind="static", form=form, activations="u8", calibration=calibration))
        low, high = EXPECTED[calibration]()
        low, high = min(low, 0), max(high, 0)
        assert scale == pytest.approx((high - low) / 255, rel=1e-5)
        assert zero == round(-low / scale)
        found.add(scale)
    assert len(found) == 3


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_int8_activations_are_symmetric(made, calibration):
    """S8S8: zero point 0, the scale from the larger side of the range."""
    scale, zero = scale_of_activation(made(kind="static", form="qdq", activations="s8", calibration=calibration))
    assert zero == 0
    assert scale == pytest.approx(max(map(abs, EXPECTED[calibration]())) / 127.5, rel=1e-2)


def test_a_static_file_runs_on_integers_with_float_logits(made):
    """Both forms: the hidden products on integers as ONNX Runtime optimises them, logits that 8 bits did not round."""
    for form in ("qdq", "qoperator"):
        counted = census(made(kind="static", form=form, activations="u8", calibration="minmax"))
        assert counted["linear"]["integer"] >= 2, counted
        assert counted["embedding"] == {"integer": 1, "float": 0}
    graph = onnx.load(made(kind="static", form="qoperator", activations="u8", calibration="minmax")).graph
    (last,) = [node for node in graph.node if "logits" in node.output]
    assert last.op_type == "MatMul"


def test_a_channel_that_reaches_far_does_not_round_the_others_away(graph, tmp_path):
    """The second product gives one channel 1,000 times the others' reach, which the head does not read.

    QOperator's own QLinearMatMul rounds the others to zero there, and all logits are 0.
    """
    model = onnx.load(graph)
    far = {"second": WEIGHTS["second"] * np.where(np.arange(HIDDEN) == 7, 1000, 1).astype(np.float32),
           "head": WEIGHTS["head"] * (np.arange(HIDDEN) != 7)[:, None].astype(np.float32)}
    for tensor in model.graph.initializer:
        if tensor.name in far:
            tensor.CopyFrom(numpy_helper.from_array(far[tensor.name], tensor.name))
    source, ranges, made = (tmp_path / name for name in ("model_fp32.onnx", "ranges.json", "model.onnx"))
    onnx.save(model, source)
    options = OPTIONS | {"PER_CHANNEL": True}
    calibrate_ranges(source, ranges, "minmax", ROWS, options)
    recipe = {"kind": "static", "form": "qoperator", "activations": "u8", "calibration": "minmax"}
    quantize(source, made, recipe, ranges, options)
    assert "QLinearMatMul" not in census(made)["operators"]
    ours, theirs = (np.concatenate([session.run(["logits"], pad([row], 0))[0] for row in ROWS])
                    for session in (ort.InferenceSession(path, providers=["CPUExecutionProvider"])
                                    for path in (made, source)))
    assert np.abs(ours - theirs).max() < 0.3 * theirs.std()


@pytest.mark.parametrize("per_channel", (False, True))
def test_dynamic_scales_are_one_a_tensor_or_one_a_column(made, per_channel):
    """int8 weights, scale max|w| / 127 of the tensor or of each output column."""
    tensors = stored(made(kind="dynamic", per_channel=per_channel))
    (scale,) = [value for name, value in tensors.items() if name == "second_scale"]
    largest = np.abs(WEIGHTS["second"]).max(0 if per_channel else None)
    assert scale.shape == largest.shape
    assert scale == pytest.approx(largest / 127, rel=1e-2)
    assert tensors["second_quantized"].dtype == np.int8


@pytest.mark.parametrize("block_size", (32, 64, 128))
@pytest.mark.parametrize("symmetric", (True, False))
def test_round_to_nearest_int4_is_within_half_a_step(made, block_size, symmetric):
    """Each block of a column: 4-bit integers times the block's scale come back to the weight within half a step."""
    path = made(kind="int4", algorithm="rtn", symmetric=symmetric, block_size=block_size)
    tensors = stored(path)
    node = next(node for node in onnx.load(path).graph.node
                if node.op_type == "MatMulNBits" and ACTIVATION in node.input)
    assert {entry.name: entry.i for entry in node.attribute}["block_size"] == block_size
    assert (len(node.input) == 3) == symmetric
    packed = tensors[node.input[1]]  # [columns, blocks, block_size / 2]
    integers = np.stack([packed & 15, packed >> 4], -1).reshape(HIDDEN, -1, block_size).astype(np.int32)
    scales = tensors[node.input[2]].reshape(HIDDEN, -1, 1)
    zeros = 8
    if not symmetric:
        packed = tensors[node.input[3]].reshape(HIDDEN, -1)
        zeros = np.stack([packed & 15, packed >> 4], -1).reshape(HIDDEN, -1)[:, :scales.shape[1], None].astype(np.int32)
    gap = np.abs((integers - zeros) * scales - WEIGHTS["second"].T.reshape(HIDDEN, -1, block_size))
    assert (gap <= 0.51 * np.abs(scales) + 1e-6).mean() > 0.98  # the largest of a block may be cut to 7 of -8 … 7
    assert (gap <= 1.01 * np.abs(scales)).all()


def test_int4_weights_are_at_most_60_percent_of_int8_from_block_64_on(made):
    """4 bits and a scale a block: 62.5 % of a byte at block 32, 56 % at 64, 53 % at 128; computed by MatMulNBits."""
    int8 = linear_bytes(made(kind="dynamic", per_channel=False))
    for block_size, share in ((32, 0.63), (64, 0.57), (128, 0.54)):
        path = made(kind="int4", algorithm="rtn", symmetric=True, block_size=block_size)
        head = WEIGHTS["head"].nbytes  # the logits' own product stays FP32
        assert linear_bytes(path) - head <= share * int8
        assert census(path)["operators"]["MatMulNBits"] == 2
        assert census(path)["linear"]["integer"] == 2


def test_hqq_moves_the_zero_point_and_multiplies_floats(made):
    """Its zero points are floats, so the kernel dequantizes; the census says so."""
    path = made(kind="int4", algorithm="hqq", symmetric=False, block_size=64)
    node = next(node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits")
    assert stored(path)[node.input[3]].dtype == np.float32
    assert census(path)["linear"]["float"] == 3
    assert any("4-bit" in reason for reason in census(path)["float_nodes"].values())


@pytest.mark.parametrize("recipe", ({"kind": "fp16"}, {"kind": "dynamic", "per_channel": False},
                                    {"kind": "static", "form": "qdq", "activations": "u8", "calibration": "minmax"},
                                    {"kind": "static", "form": "qoperator", "activations": "u8",
                                     "calibration": "minmax"},
                                    {"kind": "int4", "algorithm": "rtn", "symmetric": True, "block_size": 64}),
                         ids=lambda recipe: recipe.get("form", recipe["kind"]))
def test_weights_beside_the_file_are_read_too(graph, made, recipe, tmp_path):
    """A source with its weights in model_fp32.onnx.data, as from 2 GB on, gives what the whole file gives."""
    source, scratch = tmp_path / "model_fp32.onnx", tmp_path / "scratch"
    onnx.save(onnx.load(graph), source, save_as_external_data=True, location=f"{source.name}.data", size_threshold=1000)
    scratch.mkdir()
    target, own = scratch / "model.onnx", ""
    if recipe["kind"] == "static":
        own = str(scratch / "ranges.json")
        answer = ask_child({"do": "calibrate", "source": str(source), "target": own, "calibration": "minmax",
                            "rows": ROWS, "options": OPTIONS})
        assert "error" not in answer, answer
        shutil.rmtree(scratch / "source")
    answer = ask_child({"do": "quantize", "source": str(source), "target": str(target), "recipe": recipe,
                        "ranges": own, "options": OPTIONS})
    assert "error" not in answer, answer
    batch = {name: np.array([[5, 9, 2]]) ** (name == "input_ids") for name in ("input_ids", "attention_mask")}
    ours, theirs = (ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, batch)[0]
                    for path in (target, made(**recipe)))
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_method_that_cannot_be_made_says_why(graph, tmp_path):
    """HQQ without a zero point does not exist, a file that is no graph does not load: both are reasons, not crashes."""
    request = {"do": "quantize", "source": str(graph), "target": str(tmp_path / "model.onnx"), "ranges": "",
               "options": OPTIONS, "recipe": {"kind": "int4", "algorithm": "hqq", "symmetric": True, "block_size": 32}}
    assert "no symmetric form" in ask_child(request)["error"]
    broken = tmp_path / "other" / "model_fp32.onnx"
    broken.parent.mkdir()
    broken.write_bytes(b"no graph")
    answer = ask_child({**request, "source": str(broken), "target": str(broken.with_name("model.onnx")),
                        "recipe": {"kind": "dynamic", "per_channel": False}})
    assert answer["error"].split(":")[0].isidentifier()
    assert not broken.with_name("model.onnx").exists()
