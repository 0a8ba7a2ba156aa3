"""The FP16 pipeline by path on a two-layer model, and the conversion of graphs that the usual recipe breaks on."""

import json
import os
import re
import shlex
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import SAMPLE, read_plain_rows
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_gemm import Gemm_7
from onnx.reference.ops.op_layer_normalization import LayerNormalization
from onnx.reference.ops.op_matmul import MatMul
from onnx.reference.ops.op_softmax import Softmax
from onnxconverter_common import float16 as common
from onnxruntime.transformers import float16 as runtimes
from stage_runs import changed_manifest, copy_of, ended_well, new_run, run_folder, run_stage_script, stages_in
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification

from lowbit.fp16 import conversion as fp16
from lowbit.fp16 import simulation as fake_fp16
from lowbit.graph import export
from lowbit.graph.agreement import stored_parameters
from lowbit.graph.inputs import hostile_inputs, sample_inputs
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, external_data, file_bytes
from lowbit.pipeline.manifest import publish, record, recorded
from lowbit.training.encoder import load_run
from lowbit.training.weights import load_weights

TRAIN, EXPORT = "train_qat_fp16.py", "export_to_onnx.py"
QUANTIZE, EVALUATE = "quantize_onnx_fp16.py", "eval_onnx_fp16.py"
FILE = "model_qat_fp16.onnx"
HEAD = {"classifier.weight", "classifier.bias"}
NONE = frozenset()


def run_fp16(name: str, run: str, *flags, **more):
    """A stage of fp16_eager on a run."""
    return run_stage_script(name, "--run", run, *flags, folder="fp16_eager", **more)


@pytest.fixture(scope="module")
def fp16_flags(train_flags, eval_flags, small_data):
    """Stage -> the flags of a quick run."""
    return {TRAIN: train_flags, EXPORT: (), QUANTIZE: ("--data-dir", small_data), EVALUATE: eval_flags}


@pytest.fixture(scope="module")
def stages(fp16_flags):
    """(run name, stage -> what a shell saw): all four stages once."""
    run = new_run()
    return run, {name: run_fp16(name, run, *flags) for name, flags in fp16_flags.items()}


@pytest.fixture(scope="module")
def run(stages):
    """Name of a run that went through all four stages; tests copy it and leave it as it is."""
    return ended_well(*stages)


@pytest.fixture(scope="module")
def folder(run):
    """Its folder."""
    return run_folder(run)


@pytest.fixture(scope="module")
def batches(folder):
    """The 234 validation and test texts of the bundled sample, one a batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [text for split in ("valid", "test") for text, _ in read_plain_rows(split, SAMPLE)]
    rows = tokenizer([" ".join(text.lower().split()) for text in texts], truncation=True, max_length=128)
    return [{"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
            for ids in rows["input_ids"]]


def ask(path, batches: list[dict]) -> np.ndarray:
    """Logits of an ONNX file."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], batch)[0] for batch in batches])


def simulation(folder, fp32_ops=NONE) -> torch.nn.Module:
    """The trained model of a run as FP16 training computes it."""
    model = load_run(folder)
    load_weights(model, folder / "model_qat.pth")
    return fake_fp16.simulate(model, fp32_ops)


@torch.inference_mode()
def ask_model(model, batches: list[dict]) -> np.ndarray:
    """Logits of a PyTorch model."""
    return np.concatenate([model(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits.numpy()
                           for batch in batches])


def rounded_once(operator, name: str):
    """A reference operator as half-precision kernels make it: FP32 inside, rounded once; NumPy rounds every sum."""
    def run(self, *given, **attributes):
        single = [x if x is None else x.astype(np.float32) for x in given]
        return tuple(y.astype(given[0].dtype) if y.dtype == np.float32 else y
                     for y in operator._run(self, *single, **attributes))
    return type(name, (operator,), {"_run": run, "op_domain": ""})


class GatherElements(OpRun):
    """The reference one fails on more than 64 columns."""

    op_domain = ""

    def _run(self, data, indices, axis=0):
        return (np.take_along_axis(data, indices, axis),)


OPERATORS = [GatherElements, rounded_once(MatMul, "MatMul"), rounded_once(Gemm_7, "Gemm"),
             rounded_once(Softmax, "Softmax"), rounded_once(LayerNormalization, "LayerNormalization")]


def ask_specification(path, batches: list[dict]) -> np.ndarray:
    """Logits of the file run operator by operator as ONNX specifies it: each FP16 tensor really is FP16."""
    evaluator = ReferenceEvaluator(str(path), new_ops=OPERATORS)
    with np.errstate(over="ignore"):
        return np.concatenate([evaluator.run(["logits"], batch)[0] for batch in batches])


# ---- the four stages


@pytest.mark.parametrize("name", [TRAIN, EXPORT, QUANTIZE, EVALUATE])
def test_stage_ends_well(stages, name):
    """Exit 0, its own first line, the command to run next."""
    run, done = stages[0], stages[1][name]
    assert done.returncode == 0, done.stderr
    assert re.match(r"Stage \d of 4: ", done.stdout)
    following = {TRAIN: EXPORT, EXPORT: QUANTIZE, QUANTIZE: EVALUATE}.get(name)
    if following:
        assert f"next: python fp16_eager/{following} --run {run}" in done.stdout


def test_printed_commands_lead_to_the_end(fp16_flags):
    """Each `next:` can be pasted; operators kept in FP32 are handed on."""
    run, followed = new_run(), []
    done = run_fp16(TRAIN, run, *fp16_flags[TRAIN], "--num-epochs", 1, "--fp32-ops", "Softmax,LayerNormalization")
    while "; next: python " in done.stdout:
        script, *flags = shlex.split(done.stdout.split("; next: python ")[1])
        done = run_stage_script(Path(script).name, *flags, folder="fp16_eager")
        assert done.returncode == 0, f"{script} {' '.join(flags)}: {done.stderr}"
        followed.append(Path(script).name)
    assert followed == [EXPORT, QUANTIZE, EVALUATE]
    kept = json.loads((run_folder(run) / "census.json").read_text())["fp32_weights"]
    assert {name for name in kept if "LayerNorm" not in name} == HEAD
    assert len(kept) == 2 + 2 * 5


def test_run_holds_what_a_server_needs_and_no_scratch(folder):
    """The files that the README lists."""
    assert {path.name for path in folder.iterdir()} == {
        "model_qat.pth", "model_qat.onnx", FILE, "config.json", "tokenizer.json", "tokenizer_config.json",
        "preprocessing.json", "task.json", "training.json", "fp16_ranges.json", "census.json", "manifest.json",
        "results.json", "results.csv", "classification_report.txt", "confusion_matrix.png", "speed.png"}


def test_every_weight_is_the_trained_one_in_fp16(folder):
    """Rounded to nearest by NumPy, bit for bit; the operator that makes the logits keeps its own in FP32."""
    trained = torch.load(folder / "model_qat.pth", weights_only=True)
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(folder / FILE).graph.initializer
              if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)]
    assert len(stored) == len(trained)
    for name, tensor in trained.items():
        wanted = tensor.numpy() if name in HEAD else tensor.numpy().astype(np.float16)
        same = [i for i, ours in enumerate(stored) if ours.dtype == wanted.dtype
                and (np.array_equal(ours, wanted) or np.array_equal(ours, wanted.T))]
        assert same, name
        stored.pop(same[0])
    census = json.loads((folder / "census.json").read_text())
    assert set(census["fp32_weights"]) == HEAD
    assert census["stored"]["FLOAT16"]["tensors"] == len(trained) - 2


def test_file_takes_integers_and_gives_fp32(folder):
    """What a server sends and gets is what it was with FP32, for any batch and length."""
    session = ort.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    assert [given.type for given in session.get_inputs()] == ["tensor(int64)"] * 2
    assert [given.type for given in session.get_outputs()] == ["tensor(float)"]
    for batch in (1, 2, 7, 33, 64):
        for length in (1, 5, 128):
            ids = np.full((batch, length), 7, np.int64)
            (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            assert logits.shape == (batch, 3)
            assert np.isfinite(logits).all()


def test_logits_as_fp16_on_request(run, fp16_flags):
    """KEEP_IO_TYPES False: the same logits, rounded; measured like any other file."""
    other = copy_of(run)
    assert run_fp16(QUANTIZE, other, *fp16_flags[QUANTIZE], "--keep-io-types", "false").returncode == 0
    (output,) = ort.InferenceSession(run_folder(other) / FILE, providers=["CPUExecutionProvider"]).get_outputs()
    assert output.type == "tensor(float16)"
    done = run_fp16(EVALUATE, other, *fp16_flags[EVALUATE])
    assert done.returncode == 0, done.stderr


def test_file_agrees_with_fp32(folder, batches):
    """Logits within 0.02 on 234 texts; a label changes only where FP32 itself is undecided between two by less."""
    ours, fp32 = ask(folder / FILE, batches), ask(folder / "model_qat.onnx", batches)
    assert 0 < np.abs(ours - fp32).max() <= 0.02
    second, first = np.sort(fp32, axis=-1)[:, 1:].T
    decided = first - second > 2 * np.abs(ours - fp32).max()
    assert decided.mean() > 0.5
    assert (ours.argmax(-1) == fp32.argmax(-1))[decided].all()


def test_file_agrees_with_the_simulation(folder, batches):
    """On this CPU and run operator by operator in FP16: what training simulated, within rounding of the logits."""
    some = batches[::6]
    simulated, fp32 = ask_model(simulation(folder), some), ask(folder / "model_qat.onnx", some)
    assert np.abs(simulated - fp32).max() > 1e-4
    for run_by in (ask, ask_specification):
        gap = np.abs(run_by(folder / FILE, some) - simulated)
        assert gap.max() <= 0.02
        assert gap.mean() <= 2e-3


def test_report_tells_what_was_measured(stages, folder):
    """FP32 and FP16 side by side; agreement with training and with FP32 in the file and on the terminal."""
    results, shown = json.loads((folder / "results.json").read_text()), stages[1][EVALUATE].stdout
    assert list(results["files"]) == ["FP32", "FP16"]
    assert results["files"]["FP16"]["file"].endswith(f"/{FILE}")
    for other, words in (("simulation", "differ from the simulation"), ("fp32", "from FP32")):
        found = results["files"]["FP16"][f"all_against_{other}"]
        assert found["texts"] == 30
        assert 0 < found["max_logit_difference"] < 0.02
        assert words in shown
        assert f"{found['median_logit_difference']:.1e}" in shown
    ((fp32, fp16_size),) = re.findall(r"^  MB +(\S+) +(\S+)", shown, re.MULTILINE)
    assert float(fp32) > float(fp16_size) > 0


def test_ranges_are_those_of_the_trained_model(folder):
    """Each parameter's own largest magnitude; nothing overflows in a healthy model."""
    ranges = json.loads((folder / "fp16_ranges.json").read_text())
    trained = torch.load(folder / "model_qat.pth", weights_only=True)
    for name, tensor in trained.items():
        if name not in HEAD:
            assert ranges[name]["largest"] == pytest.approx(tensor.abs().max().item())
            assert ranges[name]["values"] == tensor.numel()
            assert ranges[name]["underflow"] == ((tensor != 0) & (tensor.half() == 0)).sum()
    assert sum(held["overflow"] for held in ranges.values()) == 0
    assert {"bert.encoder.layer.1.attention.self.probabilities", "bert.encoder.layer.0.output.dense.input",
            "bert.encoder.layer.0.output.LayerNorm.output"} <= set(ranges)


# ---- what no runtime may turn into NaN


def test_hostile_batches_are_finite_in_true_fp16(folder):
    """A padded row, holes, one token, the longest text, 64 texts: by ONNX Runtime and by the specification."""
    for given in hostile_inputs(500, 128):
        assert np.isfinite(ask(folder / FILE, [given])).all()
        assert np.isfinite(ask_specification(folder / FILE, [given])).all()


def with_low_scores(tiny_model):
    """The tiny model with attention scores of about -40 everywhere: query and key biases of opposite sign."""
    model = BertForSequenceClassification.from_pretrained(tiny_model, num_labels=3, attn_implementation="eager").eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.bias.fill_(3.2)
            layer.attention.self.key.bias.fill_(-3.2)
    return model


def test_the_documents_converter_passes_the_same_checks(run, folder, fp16_flags, batches):
    """onnxconverter-common on the prepared graph: the same weights, logits as close to FP32, through all of stage 3."""
    other = copy_of(run)
    done = run_fp16(QUANTIZE, other, *fp16_flags[QUANTIZE], "--converter", "onnxconverter-common")
    assert done.returncode == 0, done.stderr
    assert "are the trained ones in FP16, bit for bit" in done.stdout
    ours, theirs = (stored_parameters(where / FILE) for where in (folder, run_folder(other)))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    some = batches[::6]
    gap = np.abs(ask(run_folder(other) / FILE, some) - ask(folder / FILE, some))
    assert gap.max() < 0.02
    assert run_fp16(EVALUATE, other, *fp16_flags[EVALUATE]).returncode == 0


@pytest.mark.parametrize("operators", [{"LayerNormalization"}, set()], ids=["operators in FP32", "beyond 2 GB"])
def test_what_the_documents_converter_cannot_do_is_a_sentence(folder, tmp_path, monkeypatch, operators):
    """Operators kept in FP32, and more weights than one file holds; nothing is written."""
    monkeypatch.setattr(fp16, "LARGEST_FILE", 2**31 if operators else 1000)
    with pytest.raises(UserError, match="set CONVERTER to onnxruntime"):
        fp16.convert(fp16.read_fp32(folder / "model_qat.onnx", frozenset(operators)), tmp_path / FILE, True,
                     "onnxconverter-common")
    assert list(tmp_path.iterdir()) == []


def test_the_old_name_of_a_setting_is_answered_with_the_new_one():
    """AUTOCAST cast nothing here; its flag says what it is called now."""
    for flag in ("--no-autocast", "--autocast", "--autocast=false"):
        done = run_fp16(TRAIN, new_run(), flag)
        assert done.returncode == 2
        assert "AUTOCAST is called TF32 now: use --tf32" in done.error


def test_an_unknown_converter_is_refused(run, fp16_flags):
    """Both names stand in the sentence."""
    done = run_fp16(QUANTIZE, run, *fp16_flags[QUANTIZE], "--converter", "olive")
    assert done.returncode == 2
    assert "CONVERTER is 'olive'; choose onnxruntime or onnxconverter-common" in done.error


def test_padded_row_survives_low_scores(tiny_model, tmp_path):
    """With -65504 in the mask a score of -40 makes a padded row's sum -infinity and its softmax NaN; not with ours."""
    export.export(with_low_scores(tiny_model), tmp_path / "fp32.onnx", 17)
    padded = hostile_inputs(500, 128)[3]
    assert padded["attention_mask"][1].sum() == 0
    onnx.save(runtimes.convert_float_to_float16(str(tmp_path / "fp32.onnx")), tmp_path / "naive.onnx")
    with np.errstate(invalid="ignore"):
        assert np.isnan(ask_specification(tmp_path / "naive.onnx", [padded])).any()
    fp16.convert(fp16.read_fp32(tmp_path / "fp32.onnx", NONE), tmp_path / "ours.onnx", True)
    assert np.isfinite(ask_specification(tmp_path / "ours.onnx", [padded])).all()


@pytest.fixture(scope="module")
def too_large_encoder(tiny_model, tmp_path_factory):
    """The tiny encoder with a feed-forward part scaled until its output passes 65,504."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("scaled") / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight *= 1000
        model.bert.encoder.layer[0].output.dense.weight *= 1000
    model.bert.save_pretrained(folder)
    return folder


def test_encoder_that_overflows_is_refused_before_training(too_large_encoder, fp16_flags):
    """The first tensor beyond the range is named, with its size and a way out."""
    done = run_fp16(TRAIN, new_run(), *fp16_flags[TRAIN], "--model-name", too_large_encoder)
    assert done.returncode == 2
    assert "bert.encoder.layer.0.output.dense.output reaches" in done.error
    assert "--fp32-ops" in done.error


def test_file_that_would_overflow_is_refused_or_kept_right(too_large_encoder, fp16_flags, batches):
    """Tensors are named with their sizes; with the operators that the refusal lists, the file is as good as FP32."""
    run = new_run()
    for name, flags in ((TRAIN, ("--model-name", too_large_encoder, "--no-qat", "--num-epochs", 1)), (EXPORT, ())):
        done = run_fp16(name, run, *fp16_flags[name], *flags)
        assert done.returncode == 0, done.stderr
    done = run_fp16(QUANTIZE, run, *fp16_flags[QUANTIZE])
    assert done.returncode == 2
    assert "/model/bert/encoder/layer.0/output/dense/Add_output_0" in done.error
    assert not (run_folder(run) / FILE).exists()
    (operators,) = re.findall(r"--fp32-ops (\S+)\)", done.error)
    done = run_fp16(QUANTIZE, run, *fp16_flags[QUANTIZE], "--fp32-ops", operators)
    assert done.returncode == 0, done.stderr
    gap = ask(run_folder(run) / FILE, batches) - ask(run_folder(run) / "model_qat.onnx", batches)
    assert np.abs(gap).max() <= 0.02
    assert np.isfinite(ask_specification(run_folder(run) / FILE, batches[:3])).all()


# ---- graphs that the usual recipe breaks on


def export_usually(tiny_model, path, attention: str, dynamo: bool, plain: bool) -> None:
    """The tiny model as users export it; `plain` is without the exporter's own folding of constants."""
    model = BertForSequenceClassification.from_pretrained(tiny_model, num_labels=3, attn_implementation=attention)
    torch.nn.init.normal_(model.classifier.bias)  # zeros would be shared with other constants
    inputs = {name: torch.from_numpy(value) for name, value in sample_inputs(500, 2, 16, 4, 0).items()}
    names = {"input_names": list(inputs), "output_names": ["logits"]}
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
            torch.onnx.export(model.eval(), tuple(inputs.values()), path, dynamo=True, opset_version=18,
                              optimize=not plain, dynamic_shapes=(free, free), external_data=False, verbose=False,
                              **names)
        else:
            torch.onnx.export(model.eval(), tuple(inputs.values()), path, dynamo=False, opset_version=17,
                              do_constant_folding=not plain, dynamic_axes=dict.fromkeys(inputs, axes), **names)


def refusal(model: onnx.ModelProto) -> str:
    """What ONNX Runtime says to a model; empty if it takes it."""
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error)
    return ""


MISMATCH = (r"Type \(tensor\(float16\)\) of output arg \({}.*\) of node .* does not match expected type "
            r"\(tensor\(float\)\)")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("attention", "dynamo", "plain", "by_common", "by_runtime"), [
    ("sdpa", False, True, MISMATCH.format(r"\S*Cast"), ""),
    ("sdpa", True, True, MISMATCH.format("val_"), MISMATCH.format("val_")),
    ("eager", True, False, "", ""),
    ("eager", False, False, "", ""),
], ids=["torchscript-unfolded", "dynamo-unoptimised", "dynamo", "torchscript"])
def test_raw_exports_load(tiny_model, tmp_path, attention, dynamo, plain, by_common, by_runtime):
    """The runtime refuses what the two libraries make of a raw export, in words users meet; ours loads."""
    path = tmp_path / "raw.onnx"
    export_usually(tiny_model, path, attention, dynamo, plain)
    for said, converted in ((by_common, common.convert_float_to_float16(onnx.load(path))),
                            (by_runtime, runtimes.convert_float_to_float16(str(path)))):
        assert re.search(said, refusal(converted)) if said else not refusal(converted)
    fp16.convert(fp16.read_fp32(path, NONE), tmp_path / FILE, True)
    given = [sample_inputs(500, 3, 21, 9, 1), *hostile_inputs(500, 128)[:3]]
    assert np.abs(ask(tmp_path / FILE, given) - ask(path, given)).max() <= 0.02
    types = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / FILE).graph.initializer}
    assert list(types.values()).count(TensorProto.FLOAT) == 2


@pytest.mark.parametrize("operators", ["MatMul", "Softmax,LayerNormalization",
                                       "MatMul,Add,Sum,LayerNormalization,Gather"])
def test_operators_kept_in_fp32_keep_their_weights(folder, tmp_path, batches, operators):
    """Such a file loads, is checked, and just those operators' weights are FP32."""
    chosen = fake_fp16.operators(operators)
    fp16.convert(fp16.read_fp32(folder / "model_qat.onnx", chosen), tmp_path / FILE, True)
    onnx.checker.check_model(str(tmp_path / FILE), full_check=True)
    graph = onnx.load(tmp_path / FILE).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        weights = [types[name] for name in node.input if types.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16)]
        kept = node.op_type in chosen or "logits" in node.output
        assert set(weights) <= {TensorProto.FLOAT if kept else TensorProto.FLOAT16}
    given = batches[:20]
    assert np.abs(ask(tmp_path / FILE, given) - ask(folder / "model_qat.onnx", given)).max() <= 0.02
    simulated = ask_model(simulation(folder, chosen), given)
    assert np.abs(ask(tmp_path / FILE, given) - simulated).max() <= 0.02


def test_value_between_two_fp32_operators_is_not_rounded(tmp_path):
    """1e5 passes from one to the next although FP16 cannot hold it."""
    save_product(tmp_path / "fp32.onnx", np.full((2, 2), 300, np.float32), np.array([1e-5, 1e-5], np.float32))
    fp16.convert(fp16.read_fp32(tmp_path / "fp32.onnx", frozenset({"MatMul", "Mul"})), tmp_path / FILE, True)
    session = ort.InferenceSession(tmp_path / FILE, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.full((1, 2), 250, np.float32)})
    assert got == pytest.approx(np.full((1, 2), 1.5), rel=1e-3)


# ---- weights that do not fit


def save_product(path, weight: np.ndarray, factor: np.ndarray) -> None:
    """y = (x @ weight) * factor + 0, as a graph of three operators."""
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["product"], "product"),
             helper.make_node("Mul", ["product", "factor"], ["scaled"], "scaled"),
             helper.make_node("Add", ["scaled", "zero"], ["y"], "sum")]
    stored = {"weight": weight, "factor": factor, "zero": np.zeros(2, np.float32)}
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
                              [numpy_helper.from_array(value, name) for name, value in stored.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def stored_weight(path) -> np.ndarray:
    """The initializer `weight` of a file."""
    return next(numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer
                if tensor.name == "weight")


def test_weights_are_rounded_to_nearest(tmp_path):
    """What is nearly zero becomes zero or the smallest number, ties go to even, as in NumPy; converters differ."""
    weight = np.array([[1e-8, 4e-8], [-1e-8, 1 + 2**-11]], np.float32)
    save_product(tmp_path / "fp32.onnx", weight, np.ones(2, np.float32))
    assert (runtimes.convert_np_to_float16(weight) != weight.astype(np.float16)).any()
    fp16.convert(fp16.read_fp32(tmp_path / "fp32.onnx", NONE), tmp_path / FILE, True)
    assert np.array_equal(stored_weight(tmp_path / FILE), weight.astype(np.float16))


@pytest.mark.parametrize("value", [7e4, -1.2e5])
def test_weight_beyond_the_range_is_refused_by_name(tmp_path, value):
    """With its magnitude; shipped at the limit if that is allowed, kept exact in FP32 on request."""
    save_product(tmp_path / "fp32.onnx", np.array([[value, 1], [1, 1]], np.float32), np.ones(2, np.float32))
    prepared = fp16.read_fp32(tmp_path / "fp32.onnx", NONE)
    with pytest.raises(UserError, match=rf"weight \(product\) {re.escape(f'{abs(value):.3g}')}.*--fp32-ops MatMul"):
        fp16.refuse_too_large(prepared, clip=False)
    fp16.refuse_too_large(prepared, clip=True)
    fp16.convert(prepared, tmp_path / FILE, True)
    assert stored_weight(tmp_path / FILE)[0, 0] == np.sign(value) * 65504
    kept = fp16.read_fp32(tmp_path / "fp32.onnx", frozenset({"MatMul"}))
    fp16.refuse_too_large(kept, clip=False)
    fp16.convert(kept, tmp_path / FILE, True)
    assert stored_weight(tmp_path / FILE)[0, 0] == np.float32(value)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weight_that_is_no_number_is_refused(tmp_path, value):
    """Clipping does not allow it."""
    save_product(tmp_path / "fp32.onnx", np.array([[value, 1], [1, 1]], np.float32), np.ones(2, np.float32))
    with pytest.raises(UserError, match=r"weight \(product\)"):
        fp16.refuse_too_large(fp16.read_fp32(tmp_path / "fp32.onnx", NONE), clip=True)


# ---- mistakes


def test_converted_file_is_not_converted_again(folder):
    """One sentence, with a tensor that shows it."""
    with pytest.raises(UserError, match="converted already: .* FP16"):
        fp16.read_fp32(folder / FILE, NONE)


@pytest.mark.parametrize(("stage", "flags", "said"), [
    (TRAIN, ("--fp32-ops", "Softmx"), ("'Softmx'", "Softmax")),
    (QUANTIZE, ("--fp32-ops", "Softmx"), ("'Softmx'", "Softmax")),
    (QUANTIZE, ("--fp32-ops", "Softmax"), ("FP32_OPS is 'Softmax'", "trained with ''")),
    (QUANTIZE, ("--check-texts", 0), ("CHECK_TEXTS is 0",)),
    (QUANTIZE, ("--tolerance", 1e-9), ("TOLERANCE 1e-09", "FP32_OPS")),
    (QUANTIZE, ("--data-dir", "no/such/data"), ("no/such/data/valid.tsv is missing",)),
    (EVALUATE, ("--provider", "CUDAExecutionProvider"), ("CUDAExecutionProvider", "CPUExecutionProvider")),
])
def test_setting_that_is_refused(run, folder, fp16_flags, stage, flags, said):
    """Exit 2, one sentence, the run as it was."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = run_fp16(stage, run, *fp16_flags[stage], *flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(words in done.error for words in said), done.error
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_operator_that_the_graph_lacks_is_refused(folder):
    """Named, beside those that it has."""
    with pytest.raises(UserError, match="Conv, which .* LayerNormalization"):
        fp16.read_fp32(folder / "model_qat.onnx", frozenset({"Conv"}))


@pytest.mark.parametrize(("name", "maker", "stage"), [("model_qat.pth", TRAIN, EXPORT),
                                                      ("model_qat.onnx", EXPORT, QUANTIZE), (FILE, QUANTIZE, EVALUATE)])
@pytest.mark.parametrize("damage", ["gone", "cut", "foreign"])
def test_damaged_artifact_is_refused(run, fp16_flags, name, maker, stage, damage):
    """Missing, cut short, or another file under its name: the stage that makes it is named."""
    other = copy_of(run)
    path = run_folder(other) / name
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        shutil.copy(run_folder(other) / "config.json", path)
    done = run_fp16(stage, other, *fp16_flags[stage])
    assert done.returncode == 2, done.stderr
    assert f"models/{other}/{name}" in done.error
    assert f"python fp16_eager/{maker} --run {other}" in done.error


def test_killed_training_goes_on_from_its_checkpoint(run, fp16_flags):
    """Killed after the first epoch: the same command ends with the weights and ranges of an undisturbed run."""
    other = new_run()
    folder, flags = run_folder(other), fp16_flags[TRAIN]
    killed = run_fp16(TRAIN, other, *flags, kill_when=lambda: any(folder.glob("checkpoints/*/complete.json")))
    assert killed.returncode == -signal.SIGKILL
    assert run_fp16(EXPORT, other).returncode == 2
    done = run_fp16(TRAIN, other, *flags)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    one, two = (torch.load(run_folder(name) / "model_qat.pth", weights_only=True) for name in (run, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (folder / "fp16_ranges.json").read_text() == (run_folder(run) / "fp16_ranges.json").read_text()


@pytest.mark.parametrize("moment", [".tmp-*/.tmp-*", ".tmp-*/*.onnx", FILE])
def test_killed_conversion_is_finished_by_the_same_command(run, fp16_flags, moment):
    """Stage 4 refuses what was not recorded; the same command ends well, nothing is left over."""
    other = copy_of(run)
    folder = run_folder(other)
    with changed_manifest(other) as manifest:
        for stage in (QUANTIZE, EVALUATE):
            for name in manifest["stages"].pop(f"fp16_eager/{stage}")["writes"]:
                (folder / name).unlink()
    killed = run_fp16(QUANTIZE, other, *fp16_flags[QUANTIZE], kill_when=lambda: any(folder.glob(moment)))
    recorded = f"fp16_eager/{QUANTIZE}" in stages_in(folder)
    assert killed.returncode == -signal.SIGKILL or recorded
    assert run_fp16(EVALUATE, other, *fp16_flags[EVALUATE]).returncode == (0 if recorded else 2)
    for stage in (QUANTIZE, EVALUATE):
        done = run_fp16(stage, other, *fp16_flags[stage])
        assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {path.name for path in run_folder(run).iterdir()}


# ---- beyond 2 GB


def test_weights_beyond_one_file_go_to_a_second(folder, tmp_path, monkeypatch, batches):
    """FP32 and FP16 files with external data convert, load and agree; the second file is guarded like the first."""
    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    model = simulation(folder)
    model.set_attn_implementation("eager")
    export.save_onnx(onnx.load(folder / "model_qat.onnx"), tmp_path / "fp32.onnx")
    prepared = fp16.read_fp32(tmp_path / "fp32.onnx", NONE)
    seen = fp16.largest_magnitudes(prepared, tmp_path / "watched.onnx", batches[:3])
    assert seen["/model/bert/pooler/dense/Gemm_output_0"][0] > 0
    with atomic_folder(tmp_path / "run") as scratch:
        fp16.convert(prepared, scratch / FILE, True)
        names = publish(scratch)
    path = tmp_path / "run" / FILE
    assert names == [FILE, f"{FILE}.data"]
    assert file_bytes(path) == path.stat().st_size + external_data(path).stat().st_size
    assert np.array_equal(ask(path, batches[:9]), ask(folder / FILE, batches[:9]))
    record(path.parent, "stage.py", {}, [], names)
    assert recorded(path.parent, "stage.py", FILE)[0] == path
    os.truncate(external_data(path), 1000)
    with pytest.raises(UserError, match=f"{FILE}.data .* is not the file"):
        recorded(path.parent, "stage.py", FILE)
    with atomic_folder(path.parent) as scratch:
        shutil.copy(folder / FILE, scratch)
        assert publish(scratch) == [FILE]
    assert not external_data(path).exists()


def test_export_beyond_one_file(tiny_model, tmp_path, monkeypatch):
    """The exporter writes a file a weight then; they are gathered into one."""
    model = BertForSequenceClassification.from_pretrained(tiny_model, num_labels=3, attn_implementation="eager").eval()
    original = torch.onnx.export

    def in_pieces(wrapper, inputs, path, **settings):
        original(wrapper, inputs, path, **settings)
        onnx.save(onnx.load(path), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)

    monkeypatch.setattr(torch.onnx, "export", in_pieces)
    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    export.export(model, tmp_path / "model.onnx", 17)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert export.largest_difference(model, tmp_path / "model.onnx") < 1e-4
