"""The four stages by path on a two-layer model: integers in the file, logits that agree, reports that add up."""

import csv
import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from conftest import SAMPLE, read_plain_rows
from onnx import TensorProto, numpy_helper
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from stage_runs import (
    EVALUATE,
    EXPORT,
    QUANTIZE,
    ROOT,
    TRAIN,
    copy_of,
    new_run,
    run_folder,
    run_stage_script,
    stages_in,
)
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lowbit.data.cleaning import clean
from lowbit.graph.census import census, census_lines
from lowbit.int8.dynamic import simulate
from lowbit.measure.record import METRICS
from lowbit.pipeline.errors import UserError
from lowbit.training.first_token import read_first_token_only
from lowbit.training.weights import load_weights

LABELS = ["positive", "neutral", "negative"]
# of a two-layer BERT: 2 x 6, pooler and classifier; words, positions and types; two products a layer
LINEAR_LAYERS, TABLES, ATTENTION_PRODUCTS = 14, 3, 4
LOOK_UPS = TABLES - 1  # a lone text's type is one row, which is looked up when the session is made
VARIANTS = {"per channel": ("--per-channel",), "7 bits": ("--reduce-range",),
            "float tables": ("--no-quantize-embeddings",),
            "all": ("--per-channel", "--reduce-range", "--no-quantize-embeddings")}


def load_model(folder) -> torch.nn.Module:
    """The trained FP32 model of a run, in eval mode, loaded without the project's code."""
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    model.load_state_dict(torch.load(folder / "model_qat.pth", weights_only=True), strict=True)
    return model.eval()


def load_simulation(folder) -> torch.nn.Module:
    """The same model computing as training simulated it."""
    trained = stages_in(folder)[f"int8_eager/{TRAIN}"]["settings"]
    model = load_model(folder)
    read_first_token_only(model)
    return simulate(model, trained["PER_CHANNEL"], trained["QUANTIZE_EMBEDDINGS"], trained["REDUCE_RANGE"])


def ask_file(path, batches: list[dict]) -> np.ndarray:
    """Logits of an ONNX file."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], batch)[0] for batch in batches])


@torch.inference_mode()
def ask_model(model, batches: list[dict]) -> np.ndarray:
    """Logits of a PyTorch model on the same batches."""
    return np.concatenate([model(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits.numpy()
                           for batch in batches])


def tokenized(folder, texts: list[str], batch_size: int = 1) -> list[dict]:
    """Batches as a server makes them from a run's tokenizer: lower-cased text, cut to 128 tokens, padded together."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cleaned = [" ".join(text.lower().split()) for text in texts]
    groups = [cleaned[start : start + batch_size] for start in range(0, len(cleaned), batch_size)]
    return [{name: value.astype(np.int64) for name, value in
             tokenizer(group, padding=True, truncation=True, max_length=128, return_tensors="np").items()
             if name != "token_type_ids"} for group in groups]


@pytest.fixture(scope="module")
def sample_texts():
    """The 230 validation and test texts of the bundled sample."""
    return [text for split in ("valid", "test") for text, _ in read_plain_rows(split, SAMPLE)]


def agreement_of(folder, texts) -> tuple[float, float]:
    """Median logit difference of the INT8 file to the simulation, and to the FP32 file."""
    batches = tokenized(folder, texts)
    int8 = ask_file(folder / "model_qat_int8.onnx", batches)
    simulated, fp32 = ask_model(load_simulation(folder), batches), ask_file(folder / "model_qat.onnx", batches)
    return float(np.median(np.abs(int8 - simulated))), float(np.median(np.abs(int8 - fp32)))


def weights_of(path) -> dict[str, np.ndarray]:
    """Initializers with two dimensions: the weights and the tables."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer
            if len(tensor.dims) == 2}


def assert_weights_are_the_simulated(folder, tables: bool) -> None:
    """Each simulated Linear weight and table stands in the file, integer for integer, and nothing is left over."""
    stored = list(weights_of(folder / "model_qat_int8.onnx").values())
    simulated = [module.stored()["weight.integers"].numpy() for module in load_simulation(folder).modules()
                 if hasattr(module, "stored")]
    assert len(simulated) == LINEAR_LAYERS + (TABLES if tables else 0)
    for integers in simulated:
        wanted = integers.T if integers.dtype == np.int8 else integers
        same = [i for i, weight in enumerate(stored) if weight.dtype == wanted.dtype and np.array_equal(weight, wanted)]
        assert same, f"no {wanted.dtype} weight of shape {wanted.shape} equals the simulated one"
        stored.pop(same[0])
    assert sorted(weight.dtype.name for weight in stored) == ([] if tables else ["float32"] * TABLES)


# ---- the default run


@pytest.mark.parametrize("name", [TRAIN, EXPORT, QUANTIZE, EVALUATE])
def test_stage_ends_well(pipeline, name):
    """Exit 0, its own first line, and the command to run next; one stage was started inside its own folder."""
    run, stages = pipeline
    done = stages[name]
    assert done.returncode == 0, done.stderr
    assert re.match(r"Stage \d of 4: ", done.stdout)
    assert "Traceback" not in done.stderr
    following = {TRAIN: EXPORT, EXPORT: QUANTIZE, QUANTIZE: EVALUATE}.get(name)
    if following:
        assert f"next: python int8_eager/{following} --run {run}" in done.stdout
    assert "done in " in done.stdout.splitlines()[-1]


def test_run_holds_what_a_server_needs_and_no_scratch(finished_folder):
    """The files of the design, whole, with nothing temporary beside them."""
    names = {path.name for path in finished_folder.iterdir()}
    assert names == {"model_qat.pth", "model_qat.onnx", "model_qat_int8.onnx", "config.json", "tokenizer.json",
                     "tokenizer_config.json", "preprocessing.json", "task.json", "training.json", "census.json",
                     "manifest.json", "results.json", "results.csv", "classification_report.txt",
                     "confusion_matrix.png", "speed.png"}
    for name in ("confusion_matrix.png", "speed.png"):
        assert (finished_folder / name).read_bytes().startswith(b"\x89PNG")
    config = json.loads((finished_folder / "config.json").read_text())
    assert [config["id2label"][str(i)] for i in range(3)] == LABELS
    preprocessing = json.loads((finished_folder / "preprocessing.json").read_text())
    assert preprocessing["cleaning"] == "minimal"
    assert preprocessing["max_length"] == 128
    assert preprocessing["labels"] == LABELS


def test_every_linear_weight_is_int8_and_every_table_uint8(finished_folder):
    """In the file itself: 14 products and 3 look-ups on integers, no float weight left."""
    graph = onnx.load(finished_folder / "model_qat_int8.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
    products = [node.input[1] for node in graph.node if node.op_type == "MatMulInteger"]
    assert [types[name] for name in products] == [TensorProto.INT8] * LINEAR_LAYERS
    looked_up = [node.input[0] for node in graph.node if node.op_type == "Gather" and node.input[0] in types]
    assert [types[name] for name in looked_up] == [TensorProto.UINT8] * TABLES
    assert sorted(types) == sorted({*products, *looked_up})


def test_integers_run_as_integers(finished_folder, tmp_path):
    """In the graph as ONNX Runtime optimises it, and census.json says so too."""
    counted = json.loads((finished_folder / "census.json").read_text())
    assert counted["linear"] == {"integer": LINEAR_LAYERS, "float": 0}
    assert counted["embedding"] == {"integer": LOOK_UPS, "float": 0}
    assert counted["attention"] == {"integer": 0, "float": ATTENTION_PRODUCTS}
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(finished_folder / "model_qat_int8.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    stored = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    with_weight = [node.op_type for node in graph.node if "Mat" in node.op_type and stored & set(node.input)]
    assert len(with_weight) == LINEAR_LAYERS
    assert set(with_weight) <= {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger"}


def test_fp32_file_counts_as_float(finished_folder):
    """The census is not blind: the file before quantization has no integer product, and every float one a reason."""
    counted = census(finished_folder / "model_qat.onnx")
    assert counted["linear"] == {"integer": 0, "float": LINEAR_LAYERS}
    assert counted["embedding"] == {"integer": 0, "float": LOOK_UPS}
    assert len(counted["float_nodes"]) == LINEAR_LAYERS + LOOK_UPS + ATTENTION_PRODUCTS
    assert any("14 on floats" in line for line in census_lines(counted))


@pytest.mark.parametrize("name", ["model_qat.onnx", "model_qat_int8.onnx"])
def test_batch_and_sequence_are_free(finished_folder, name):
    """Any batch of texts of any length up to 128 tokens gives one row of three logits each."""
    session = ort.InferenceSession(finished_folder / name, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [given.type for given in session.get_inputs()] == ["tensor(int64)"] * 2
    assert all(isinstance(size, str) for given in session.get_inputs() for size in given.shape)
    for batch, length in ((1, 1), (1, 128), (3, 7), (17, 2), (5, 50)):
        ids = np.full((batch, length), 7, np.int64)
        (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        assert logits.shape == (batch, 3)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_fp32_file_equals_pytorch(finished_folder, sample_texts, batch_size):
    """Within 1e-4 on real texts, alone and padded together; and texts do differ in their logits."""
    batches = tokenized(finished_folder, sample_texts, batch_size)
    expected = ask_model(load_model(finished_folder), batches)
    assert np.abs(ask_file(finished_folder / "model_qat.onnx", batches) - expected).max() <= 1e-4
    assert expected.std(axis=0).min() > 0.01


def test_int8_file_follows_the_simulation(finished_folder, sample_texts):
    """What was trained is what ships: at least four times closer to the simulation than to FP32."""
    to_simulation, to_fp32 = agreement_of(finished_folder, sample_texts)
    assert to_fp32 > 0
    assert to_simulation * 4 <= to_fp32


def test_int8_weights_are_those_that_training_simulated(finished_folder):
    """Integer for integer."""
    assert_weights_are_the_simulated(finished_folder, tables=True)


# ---- its report


@pytest.fixture(scope="module")
def results(finished_folder):
    """results.json."""
    return json.loads((finished_folder / "results.json").read_text())


def test_quality_is_that_of_the_files(finished_folder, small_data, results):
    """Scored again here, text by text: accuracy, macro-F1, confusion matrix, flips and logit differences."""
    rows = read_plain_rows("test", small_data)
    truth = [LABELS.index(label) for _, label in rows]
    batches = tokenized(finished_folder, [text for text, _ in rows])
    logits = {name: ask_file(finished_folder / file, batches)
              for name, file in (("FP32", "model_qat.onnx"), ("INT8", "model_qat_int8.onnx"))}
    for name, values in results["files"].items():
        predicted = logits[name].argmax(-1)
        assert values["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
        assert values["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
        assert values["confusion_matrix"] == confusion_matrix(truth, predicted, labels=[0, 1, 2]).tolist()
    int8 = results["files"]["INT8"]
    against = int8["against_fp32"]
    assert against["texts"] == int8["samples"] == 15
    assert against["flips"] == (logits["INT8"].argmax(-1) != logits["FP32"].argmax(-1)).sum()
    assert int8["all_against_simulation"]["texts"] == 30
    assert int8["all_against_simulation"]["median_logit_difference"] * 4 <= (
        int8["all_against_fp32"]["median_logit_difference"])
    gap = np.abs(logits["INT8"] - logits["FP32"])
    assert against["median_logit_difference"] == pytest.approx(np.median(gap), rel=1e-3)
    assert against["max_logit_difference"] == pytest.approx(gap.max(), rel=1e-3)


def test_sizes_and_speed_are_of_both_files(results):
    """Both files, measured in one run, on the machine that is named."""
    assert list(results["files"]) == ["FP32", "INT8"]
    for record in results["files"].values():
        assert record["model_size"] == pytest.approx((ROOT / record["file"]).stat().st_size / 1e6)
        assert record["peak_memory_mb"] > 20
        assert record["texts_per_second"] > 0
        assert list(record["timings"]) == results["protocol"]["SHAPES"] == ["1x32", "1x128"]
        for timing in record["timings"].values():
            assert 0 < timing["min_ms"] <= timing["median_ms"] <= timing["p95_ms"] <= timing["max_ms"]
            assert len(timing["round_speedups"]) == 2
            assert min(timing["round_speedups"]) <= timing["speedup"] <= max(timing["round_speedups"])
        assert record["mean_ms"] == record["timings"]["1x128"]["mean_ms"]
    assert results["machine"]["cpu"]
    assert results["versions"]["onnxruntime"] == ort.__version__


def test_csv_repeats_the_json(finished_folder, results):
    """One row a file; each figure of the table METRICS that a record holds is there, and is the JSON's."""
    with open(finished_folder / "results.csv", newline="", encoding="utf-8") as lines:
        rows = {row["file"]: row for row in csv.DictReader(lines)}
    assert list(rows) == list(results["files"])
    for name, record in results["files"].items():
        for key, metric in METRICS.items():
            value = metric._replace(scale=1).value(record)
            assert (key in rows[name]) == (value is not None or key.startswith("against_fp32"))
            if value is not None:
                assert float(rows[name][key]) == value
    assert {"accuracy", "f1", "eval_loss", "model_size", "mean_ms"} <= rows["INT8"].keys()


def test_terminal_shows_the_numbers_of_the_json(pipeline, results):
    """Nothing is claimed that the results file does not hold."""
    shown = pipeline[1][EVALUATE].stdout
    for key in ("macro_f1", "accuracy", "model_size"):
        ((fp32, int8),) = re.findall(rf"^  {METRICS[key].heading} +(\S+) +(\S+)", shown, re.MULTILINE)
        assert [fp32, int8] == [METRICS[key].show(record) for record in results["files"].values()]
    assert f"{results['files']['INT8']['against_fp32']['flips']} of 15 test labels differ from FP32" in shown


def test_report_per_class_is_of_both_files(finished_folder):
    """A table for FP32 and one for INT8, each with the three labels."""
    report = (finished_folder / "classification_report.txt").read_text()
    for word in ("FP32", "INT8"):
        assert report.count(word) == 1
    for label in LABELS:
        assert report.count(label) == 2


# ---- other settings


@pytest.fixture(scope="module")
def train(train_flags):
    """Function: train one epoch with extra flags; returns the run's name."""
    def run_training(*flags):
        run = new_run()
        done = run_stage_script(TRAIN, "--run", run, *train_flags, "--num-epochs", 1, *flags)
        assert done.returncode == 0, done.stderr
        return run
    return run_training


def export_and_quantize(run: str, *flags) -> None:
    """Stages 2 and 3 of a trained run."""
    for name, more in ((EXPORT, ()), (QUANTIZE, flags)):
        done = run_stage_script(name, "--run", run, *more)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def trained_tensors(run: str) -> dict[str, torch.Tensor]:
    """The state dict of a run."""
    return torch.load(run_folder(run) / "model_qat.pth", weights_only=True)


def differing(one: dict, other: dict) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    assert list(one) == list(other)
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.fixture(scope="module")
def variant(train):
    """Function: the run that was trained, exported and quantized with one of VARIANTS; made once."""
    @functools.cache
    def run_variant(name):
        run = train(*VARIANTS[name])
        export_and_quantize(run, *VARIANTS[name])
        return run
    return run_variant


@pytest.mark.parametrize("name", VARIANTS)
def test_other_arithmetic_is_simulated_and_shipped(variant, sample_texts, name):
    """Weights equal the simulation integer for integer, and the logits follow it four times closer than FP32."""
    folder, flags = run_folder(variant(name)), VARIANTS[name]
    tables = "--no-quantize-embeddings" not in flags
    assert_weights_are_the_simulated(folder, tables)
    sizes = [np.abs(weight.astype(int)) for weight in weights_of(folder / "model_qat_int8.onnx").values()
             if weight.dtype == np.int8]
    bound = 64 if "--reduce-range" in flags else 127
    assert max(size.max() for size in sizes) == bound
    # per channel, every output reaches the bound; per tensor, most do not
    assert all((size.max(axis=0) == bound).all() for size in sizes) == ("--per-channel" in flags)
    counted = json.loads((folder / "census.json").read_text())
    assert counted["linear"] == {"integer": LINEAR_LAYERS, "float": 0}
    assert counted["embedding"] == {"integer": LOOK_UPS * tables, "float": LOOK_UPS * (not tables)}
    to_simulation, to_fp32 = agreement_of(folder, sample_texts)
    assert to_simulation * 4 <= to_fp32


def test_printed_commands_lead_to_the_end(train_flags):
    """Each stage's `next:` can be pasted, also after a training with other settings than the defaults."""
    run = new_run()
    done = run_stage_script(TRAIN, "--run", run, *train_flags, "--num-epochs", 1, "--per-channel", "--reduce-range")
    followed = []
    while "; next: python " in done.stdout:
        script, *flags = shlex.split(done.stdout.split("; next: python ")[1])
        done = run_stage_script(Path(script).name, *flags)
        assert done.returncode == 0, f"{script} {' '.join(flags)}: {done.stderr}"
        followed.append(Path(script).name)
    assert followed == [EXPORT, QUANTIZE, EVALUATE]
    assert (run_folder(run) / "results.json").exists()


@pytest.mark.parametrize("name", ["7 bits", "all"])
def test_report_compares_with_the_arithmetic_that_was_trained(variant, eval_flags, name):
    """Stage 4 takes its settings from the run: the file is no further from its simulation than rounding explains."""
    done = run_stage_script(EVALUATE, "--run", variant(name), *eval_flags)
    assert done.returncode == 0, done.stderr
    results = json.loads((run_folder(variant(name)) / "results.json").read_text())
    ours, fp32 = (results["files"]["INT8"][f"all_against_{other}"]["median_logit_difference"]
                  for other in ("simulation", "fp32"))
    assert ours * 4 <= fp32
    assert f"to the simulation, {fp32:.1e} to FP32" in done.stdout


def test_best_epoch_is_kept(train_flags, small_data, tmp_path):
    """Not the last: the weights saved are those that scored best on valid, in the arithmetic of the file.

    The labels of valid are wrong on purpose, so that every epoch of learning makes its score worse.
    """
    rows = read_plain_rows("train", small_data)
    data = shutil.copytree(small_data, tmp_path / "data")
    wrong = [(text, LABELS[(LABELS.index(label) + 1) % 3]) for text, label in rows]
    (data / "valid.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in wrong), encoding="utf-8")
    run = new_run()
    done = run_stage_script(TRAIN, "--run", run, *train_flags, "--data-dir", data, "--num-epochs", 8,
                            "--learning-rate", 5e-3)
    assert done.returncode == 0, done.stderr
    training = json.loads((run_folder(run) / "training.json").read_text())
    scores = {entry["epoch"]: entry["eval_macro_f1"] for entry in training["epochs"]}
    assert list(scores) == list(range(1, 9))
    kept = training["kept_epoch"]
    assert scores[kept] == max(scores.values()) > scores[8]
    assert f"keeping epoch {kept:.0f}: valid macro-F1 {scores[kept]:.4f}" in done.stdout
    (batch,) = tokenized(run_folder(run), [text for text, _ in wrong], len(wrong))
    logits = ask_model(load_simulation(run_folder(run)), [batch])
    truth = [LABELS.index(label) for _, label in wrong]
    assert f1_score(truth, logits.argmax(-1), average="macro") == pytest.approx(scores[kept])
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.tensor(truth)).item()
    told = {entry["epoch"]: entry["eval_loss"] for entry in training["epochs"]}[kept]
    assert loss == pytest.approx(told, rel=1e-5)  # scored in FP32, whatever the training steps are computed in


def test_fp32_baseline_goes_through(train, eval_flags):
    """--no-qat: trained in FP32, quantized after training in an arithmetic of one's choice, measured."""
    run = train("--no-qat")
    export_and_quantize(run, "--per-channel")
    done = run_stage_script(EVALUATE, "--run", run, *eval_flags)
    assert done.returncode == 0, done.stderr
    counted = json.loads((run_folder(run) / "census.json").read_text())
    assert counted["linear"] == {"integer": LINEAR_LAYERS, "float": 0}
    assert differing(trained_tensors(run), trained_tensors(train()))  # the simulation is in force where it is on


def test_texts_are_cleaned_for_measuring_as_for_training(train, small_data, eval_flags):
    """The run's own cleaning is used by stage 4, whatever the default of stage 1 is."""
    run = train("--cleaning", "documents")
    export_and_quantize(run)
    assert run_stage_script(EVALUATE, "--run", run, *eval_flags).returncode == 0
    results = json.loads((run_folder(run) / "results.json").read_text())
    texts = [clean(text, "documents") for text, _ in read_plain_rows("test", small_data)]
    fp32, int8 = (ask_file(run_folder(run) / name, tokenized(run_folder(run), texts))
                  for name in ("model_qat.onnx", "model_qat_int8.onnx"))
    found = results["files"]["INT8"]["against_fp32"]
    assert found["max_logit_difference"] == pytest.approx(np.abs(int8 - fp32).max(), rel=1e-3)
    assert found["median_logit_difference"] == pytest.approx(np.median(np.abs(int8 - fp32)), rel=1e-3)


def test_same_seed_gives_the_same_weights(finished_run, train_flags):
    """The same command in another process: equal bit for bit; another seed: not."""
    again, other = new_run(), new_run()
    for run, seed in ((again, 42), (other, 43)):
        assert run_stage_script(TRAIN, "--run", run, *train_flags, "--seed", seed).returncode == 0
    assert differing(trained_tensors(finished_run), trained_tensors(again)) == []
    assert differing(trained_tensors(finished_run), trained_tensors(other))


@pytest.mark.parametrize(("flag", "setting"), [("--per-channel", "PER_CHANNEL"), ("--reduce-range", "REDUCE_RANGE"),
                                               ("--no-quantize-embeddings", "QUANTIZE_EMBEDDINGS")])
def test_other_arithmetic_than_trained_is_refused(finished_run, flag, setting):
    """Before anything is written; the setting and both values stand in the sentence."""
    before = (run_folder(finished_run) / "model_qat_int8.onnx").stat().st_mtime_ns
    done = run_stage_script(QUANTIZE, "--run", finished_run, flag)
    assert done.returncode == 2
    assert setting in done.error
    assert "True" in done.error
    assert "False" in done.error
    assert (run_folder(finished_run) / "model_qat_int8.onnx").stat().st_mtime_ns == before


def test_newer_opset_goes_through(finished_run):
    """OPSET 18 exports and quantizes to the same integers."""
    run = copy_of(finished_run)
    for name, flags in ((EXPORT, ("--opset", 18)), (QUANTIZE, ())):
        done = run_stage_script(name, "--run", run, *flags)
        assert done.returncode == 0, done.stderr
    assert onnx.load(run_folder(run) / "model_qat.onnx").opset_import[0].version == 18
    assert_weights_are_the_simulated(run_folder(run), tables=True)


# ---- weights from elsewhere


@pytest.fixture
def model_and_state(finished_folder):
    """The trained model and a copy of its state dict."""
    model = load_model(finished_folder)
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_state_of_fake_quantizers_is_left_out_by_name(model_and_state, tmp_path, capsys):
    """A state dict from torch.ao's QAT loads: what its observers left is named, the weights are taken."""
    model, state = model_and_state
    before = {name: tensor.clone() for name, tensor in state.items()}
    layer = "bert.encoder.layer.0.attention.self.query"
    for name in (f"{layer}.weight_fake_quant.scale", f"{layer}.weight_fake_quant.zero_point",
                 f"{layer}.activation_post_process.min_val", "fake_quant_enabled"):
        state[name] = torch.ones(1)
    state["classifier.bias"] = state["classifier.bias"] + 1
    torch.save(state, tmp_path / "model_qat.pth")
    load_weights(model, tmp_path / "model_qat.pth")
    shown = capsys.readouterr().out
    assert "4 fake-quantization tensors" in shown
    assert f"{layer}.weight_fake_quant.scale" in shown
    assert torch.equal(model.state_dict()["classifier.bias"], before["classifier.bias"] + 1)


def rename(state, name):
    state[name + "s"] = state.pop(name)


def drop(state, name):
    del state[name]


def reshape(state, name):
    state[name] = state[name][..., :-1]


def add(state, name):
    state["extra.weight"] = torch.ones(2)


@pytest.mark.parametrize("change", [rename, drop, reshape, add])
def test_state_dict_that_does_not_fit_is_refused(model_and_state, tmp_path, change):
    """A missing, superfluous, renamed or reshaped tensor is named with both shapes; nothing is loaded in part."""
    model, state = model_and_state
    name = "bert.encoder.layer.1.output.dense.weight"
    state["classifier.bias"] = state["classifier.bias"] + 1
    change(state, name)
    torch.save(state, tmp_path / "model_qat.pth")
    before = model.state_dict()["classifier.bias"].clone()
    with pytest.raises(UserError) as refusal:
        load_weights(model, tmp_path / "model_qat.pth")
    assert "model_qat.pth" in str(refusal.value)
    assert ("extra.weight" if change is add else name) in str(refusal.value)
    assert torch.equal(model.state_dict()["classifier.bias"], before)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"text"])
def test_file_that_is_no_state_dict_is_refused(model_and_state, tmp_path, content):
    """Named, with a reason."""
    (tmp_path / "model_qat.pth").write_bytes(content)
    with pytest.raises(UserError, match="model_qat.pth"):
        load_weights(model_and_state[0], tmp_path / "model_qat.pth")


def test_pickled_model_is_refused(model_and_state, tmp_path):
    """A whole model saved with torch.save could run code when it is loaded: it is not loaded."""
    torch.save(model_and_state[0], tmp_path / "model_qat.pth")
    with pytest.raises(UserError, match="model_qat.pth"):
        load_weights(model_and_state[0], tmp_path / "model_qat.pth")


@pytest.mark.parametrize("value", [torch.ones(3), [torch.ones(3)], {"step": 3, "model": {"a": torch.ones(1)}}])
def test_other_things_saved_by_torch_are_refused(model_and_state, tmp_path, value):
    """A tensor, a list, a training checkpoint around the state dict."""
    torch.save(value, tmp_path / "model_qat.pth")
    with pytest.raises(UserError, match="model_qat.pth"):
        load_weights(model_and_state[0], tmp_path / "model_qat.pth")
