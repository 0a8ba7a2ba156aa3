"""Tasks of other shapes, end to end: training, file, evaluation, matrix, report, pack and predictor."""

import csv
import json
import math
import re
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import pytest
from conftest import SAMPLE, read_plain_rows
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score
from stage_runs import (
    ENVIRONMENT,
    EVALUATE,
    EXPORT,
    ORDER,
    QUANTIZE,
    TRAIN,
    ended_well,
    new_run,
    run_folder,
    run_stage_script,
)
from transformers import AutoTokenizer

from lowbit.data.task import Task
from lowbit.training.encoder import load_pretrained
from lowbit.training.fine_tune import start_at_mean

TASKS = {
    "emotions": {"texts": ["text"], "labels": ["marah", "senang", "takut", "sedih", "cinta"], "score": "macro_f1"},
    "yes or no": {"texts": ["kalimat"], "labels": ["tidak", "ya"], "score": "f1"},
    "pairs": {"texts": ["premis", "hipotesis"], "labels": ["sama", "lain"], "score": "accuracy"},
    "numbers": {"texts": ["satu", "dua"], "labels": None, "score": "pearson"},
}
ROWS = {"train": 60, "valid": 24, "test": 24}
QUICK = ("--rounds", 1, "--runs", 2, "--threads", 1)
LEARNED = ("--activation-ranges", "learned")


def answer_of(task: dict, i: int) -> str:
    """Made up, and not all the same."""
    return f"{(7 * i % 11) / 2}" if task["labels"] is None else task["labels"][i % len(task["labels"])]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Task -> a folder of train, valid and test with its task.json; pairs with a header in another order."""
    folders = {}
    for name, task in TASKS.items():
        folder = folders[name] = tmp_path_factory.mktemp(name.replace(" ", "-"))
        (folder / "task.json").write_text(json.dumps(task))
        for split, count in ROWS.items():
            texts = [text for text, _ in read_plain_rows(split, SAMPLE)]
            rows = [[answer_of(task, i), *(texts[i * place % len(texts)] for place, _ in enumerate(task["texts"], 1))]
                    for i in range(count)]
            if len(task["texts"]) == 2:
                rows.insert(0, ["label", *task["texts"]])
            else:
                rows = [row[1:] + row[:1] for row in rows]
            (folder / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return folders


def rows_of(folder, split: str, task: dict) -> tuple[list, list]:
    """(texts or pairs, answers) of a split, read without the project's reader."""
    with open(folder / f"{split}.tsv", encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if len(task["texts"]) == 2:
        return [(a, b) for _, a, b in rows[1:]], [row[0] for row in rows[1:]]
    return [text for text, _ in rows], [answer for _, answer in rows]


@pytest.fixture(scope="module")
def trained(tiny_model, data):
    """Function: name of the run of a task after all four INT8 stages; pairs with learned ranges."""
    made = {}

    def run_stages(name: str) -> str:
        if name not in made:
            run, ranges = new_run(), LEARNED if name == "pairs" else ()
            flags = {TRAIN: ("--model-name", tiny_model, "--num-epochs", 2, "--learning-rate", 1e-3, "--cleaning",
                             "minimal", *ranges, "--data-dir", data[name]), EXPORT: (), QUANTIZE: ranges,
                     EVALUATE: ("--data-dir", data[name], *QUICK)}
            stages = {stage: run_stage_script(stage, "--run", run, *flags[stage]) for stage in ORDER}
            made[name] = ended_well(run, stages), stages
        return made[name]
    return run_stages


def outputs_of(run: str, file: str, texts: list) -> np.ndarray:
    """What a file answers, asked text by text without the project's code."""
    folder = run_folder(run)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = ort.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    names, found = [given.name for given in session.get_inputs()], []
    for text in texts:
        parts = [" ".join(part.lower().split()) for part in ([text] if isinstance(text, str) else text)]
        given = tokenizer(*parts, truncation=True, max_length=128, return_tensors="np", return_token_type_ids=True)
        found.append(session.run(["logits"], {key: given[key].astype(np.int64) for key in names})[0][0])
    return np.array(found)


@pytest.mark.parametrize("name", TASKS)
def test_scores_are_those_of_an_independent_computation(trained, data, name):
    """scikit-learn and scipy, on the file's own answers to the plain rows of test; FP32 and INT8."""
    run, task = trained(name)[0], TASKS[name]
    results = json.loads((run_folder(run) / "results.json").read_text())
    texts, answers = rows_of(data[name], "test", task)
    for file, model in (("FP32", "model_qat.onnx"), ("INT8", "model_qat_int8.onnx")):
        found, record = outputs_of(run, model, texts), results["files"][file]
        if task["labels"] is None:
            truth = list(map(float, answers))
            assert record["pearson"] == pytest.approx(pearsonr(truth, found[:, 0]).statistic, abs=1e-4)
            assert record["spearman"] == pytest.approx(spearmanr(truth, found[:, 0]).statistic, abs=1e-4)
            assert record["eval_loss"] == pytest.approx(np.mean((found[:, 0] - truth) ** 2), rel=1e-4)
            assert found.shape[1] == 1
            assert "accuracy" not in record
        else:
            truth, predicted = [task["labels"].index(answer) for answer in answers], found.argmax(1)
            assert record["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
            macro = f1_score(truth, predicted, average="macro", zero_division=0)
            assert record["macro_f1"] == pytest.approx(macro)
            wanted = f1_score(truth, predicted, pos_label=1, zero_division=0) if len(task["labels"]) == 2 else macro
            assert record["f1"] == pytest.approx(wanted)
            assert list(record["f1_per_class"]) == task["labels"]


@pytest.mark.parametrize("name", TASKS)
def test_a_run_carries_its_task(trained, name):
    """Configuration, task.json, what ships; the graph has token_type_ids for pairs alone."""
    (run, stages), task = trained(name), TASKS[name]
    folder = run_folder(run)
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == ("single_label_classification" if task["labels"] else "regression")
    assert [config["id2label"][str(i)] for i in range(len(task["labels"] or [0]))] == (task["labels"] or ["LABEL_0"])
    assert json.loads((folder / "task.json").read_text()) == task | {"answer": "label"}
    assert json.loads((folder / "manifest.json").read_text())["ships"]["task"] == task | {"answer": "label"}
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (len(task["texts"]) == 2)
    for file in ("model_qat.onnx", "model_qat_int8.onnx"):
        session = ort.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        assert [given.name for given in session.get_inputs()] == names
    picture = "confusion_matrix.png" if task["labels"] else "predictions.png"
    assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    training = json.loads((folder / "training.json").read_text())
    kept = max(training["epochs"], key=lambda epoch: epoch[f"eval_{task['score']}"])
    assert training["kept_epoch"] == kept["epoch"]
    assert "bit for bit" in stages[QUANTIZE].stdout
    first = next(line for line in stages[EVALUATE].stdout.splitlines() if line.startswith("  ") and "points" in line)
    heading = {"macro_f1": "macro-F1", "f1": "F1", "accuracy": "accuracy", "pearson": "Pearson"}[task["score"]]
    assert first.startswith(f"  {heading}, %")


@pytest.mark.parametrize("name", TASKS)
def test_the_packed_predictor_answers_as_the_evaluation(trained, data, tmp_path, name):
    """Labels or numbers of the test split, from the packed folder alone; texts in their columns."""
    run, task = trained(name)[0], TASKS[name]
    done = run_stage_script("pack.py", "--run", run, "--dist", tmp_path, "--force", folder="deploy")
    assert done.returncode == 0, done.stderr
    texts, answers = rows_of(data[name], "test", task)
    columns = [text if isinstance(text, tuple) else (text,) for text in texts]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(dict(zip(task["texts"], row, strict=True)) | {"id": i}) + "\n"
                              for i, row in enumerate(columns)))
    found = subprocess.run([sys.executable, tmp_path / run / "predict.py", "--input", source, "--keep", "id",
                            "--threads", "1", "--batch-size", "1"], capture_output=True, env=ENVIRONMENT, text=True)
    assert found.returncode == 0, found.stderr
    records = [json.loads(line) for line in found.stdout.splitlines()]
    expected = outputs_of(run, "model_qat_int8.onnx", texts)
    assert [record["id"] for record in records] == list(range(len(texts)))
    if task["labels"] is None:
        assert np.abs([record["value"] - value for record, value in zip(records, expected[:, 0], strict=True)]
                      ).max() < 1e-4
    else:
        assert [record["label"] for record in records] == [task["labels"][i] for i in expected.argmax(1)]
        assert list(records[0]["probabilities"]) == task["labels"]
    words = columns[0] if len(task["texts"]) == 2 else [columns[0][0], "enak"]
    asked = subprocess.run([sys.executable, tmp_path / run / "predict.py", *words], capture_output=True, text=True,
                           env=ENVIRONMENT)
    first = json.loads(asked.stdout.splitlines()[0])
    assert {key: first[key] for key in ("label", "value") if key in first} == {
        key: records[0][key] for key in ("label", "value") if key in records[0]}
    if len(task["texts"]) == 2:
        odd = subprocess.run([sys.executable, tmp_path / run / "predict.py", "enak"], capture_output=True, text=True,
                             env=ENVIRONMENT)
        assert odd.returncode == 2
        assert "pairs" in odd.stderr


@pytest.mark.parametrize("name", ["emotions", "numbers"])
def test_the_matrix_and_its_report_take_the_task(tiny_model, data, tmp_path, name):
    """Baseline, post-training files, tables and HTML; the experiment has the name of the data folder."""
    task, run, results = TASKS[name], new_run(), tmp_path / "results"
    experiment = f"finetuned_{data[name].name}"
    train = run_stage_script("finetune_fp32.py", "--run", run, "--model-name", tiny_model, "--data-dir", data[name],
                             "--num-epochs", 1, "--cleaning", "minimal", folder="ptq")
    assert train.returncode == 0, train.stderr
    assert f"--experiment {experiment}" in train.stdout
    flags = ("--run", run, "--data-dir", data[name], "--results", results, "--methods",
             "fp32,fp16,int8_static_qdq_u8s8_minmax", "--calibration-texts", 8, "--tokens", 16, *QUICK)
    refused = run_stage_script("run_ptq.py", "finetuned_smsa", *flags, folder="ptq")
    assert refused.returncode == 2
    assert experiment in refused.error
    for script, more in (("run_ptq.py", (experiment, *flags)), ("compare_methods.py", ("--results", results)),
                         ("generate_report.py", ("--results", results))):
        done = run_stage_script(script, *more, folder="ptq")
        assert done.returncode == 0, done.stderr
    found = json.loads((results / experiment / "results.json").read_text())
    assert found["experiment"] == {"name": experiment, "trained": True}
    assert [row["status"] for row in found["files"].values()] == ["measured"] * 3
    page = (results / "report.html").read_text()
    text = (results / "comparison" / "comparison.md").read_text()
    for words in (("Pearson, %", "Spearman, %") if task["labels"] is None else ("macro-F1, %", "accuracy, %")):
        assert words in page
        assert words in text
    assert ("F1 marah, %" in page) == (task["labels"] is not None)


def test_fp16_takes_pairs_and_numbers(tiny_model, data):
    """The other precision: three inputs, one output, the same doors."""
    run, folder = new_run(), data["numbers"]
    for stage, flags in (("train_qat_fp16.py", ("--model-name", tiny_model, "--num-epochs", 1, "--cleaning", "minimal",
                                                "--data-dir", folder)), (EXPORT, ()),
                         ("quantize_onnx_fp16.py", ("--data-dir", folder, "--tolerance", 1)),
                         ("eval_onnx_fp16.py", ("--data-dir", folder, *QUICK))):
        done = run_stage_script(stage, "--run", run, *flags, folder="fp16_eager")
        assert done.returncode == 0, f"{stage}: {done.stderr}"
    texts, answers = rows_of(folder, "test", TASKS["numbers"])
    found = outputs_of(run, "model_qat_fp16.onnx", texts)
    results = json.loads((run_folder(run) / "results.json").read_text())
    assert results["files"]["FP16"]["pearson"] == pytest.approx(
        pearsonr(list(map(float, answers)), found[:, 0]).statistic, abs=1e-3)


def test_pairs_without_a_number_are_learned_from(tiny_model, data, tmp_path):
    """4 bits follow a fine-tuned teacher on unlabelled pairs too: the loss of each epoch is a number."""
    source, run = new_run(), new_run()
    flags = ("--cleaning", "minimal", "--data-dir", data["numbers"], "--num-epochs", 1)
    done = run_stage_script("finetune_fp32.py", "--run", source, *flags, "--model-name", tiny_model, folder="ptq")
    assert done.returncode == 0, done.stderr
    texts = tmp_path / "pairs.txt"
    texts.write_text("".join(f"kamar nomor {i}\tkopi nomor {i}\n" for i in range(70)))
    done = run_stage_script("train_qat_int4.py", "--run", run, *flags, "--model-name", run_folder(source),
                            "--unlabelled", texts, folder="int4_eager")
    assert done.returncode == 0, done.stderr
    assert "unlabelled 70 of 70 texts" in done.stdout
    history = json.loads((run_folder(run) / "training.json").read_text())["epochs"]
    assert all(math.isfinite(epoch["eval_loss"]) for epoch in history)
    assert re.search(r"epoch 1/1  loss \d+\.\d+  valid loss", done.stdout)


def test_a_new_head_of_a_number_starts_at_the_mean_of_train(tiny_model, tmp_path):
    """From zero, the first passes only move the answer there; a head that was trained before stays as it is."""
    task = Task(("text",), None, "pearson")
    model, _ = load_pretrained(str(tiny_model), "", task)
    start_at_mean(model, [1.0, 2.0, 6.0])
    assert model.classifier.bias.item() == 3
    assert not model.bert.pooler.dense.bias.any()
    model.save_pretrained(tmp_path)
    model, _ = load_pretrained(str(tmp_path), "", task)
    start_at_mean(model, [10.0])
    assert model.classifier.bias.item() == 3


def test_a_number_of_labels_that_contradicts_the_task_is_refused(data):
    """NUM_LABELS follows the task."""
    done = run_stage_script(TRAIN, "--data-dir", data["emotions"], "--num-labels", 3)
    assert done.returncode == 2
    assert "NUM_LABELS is 3; the data has 5 labels: marah, senang" in done.error
    done = run_stage_script(TRAIN, "--data-dir", data["numbers"], "--num-labels", 3)
    assert "the data has 1 labels: none but a number" in done.error


def test_another_task_than_trained_is_refused(trained, data):
    """Before anything is measured."""
    done = run_stage_script(EVALUATE, "--run", trained("emotions")[0], "--data-dir", data["yes or no"], *QUICK)
    assert done.returncode == 2
    assert "asks something else than" in done.error


def test_glue_becomes_tasks(tmp_path):
    """A folder of GLUE's files: valid is drawn from train, test is dev; a file of another form is named."""
    source, out = tmp_path / "GLUE", tmp_path / "out"
    for name in ("RTE", "CoLA", "STS-B"):
        (source / name).mkdir(parents=True)
    (source / "RTE" / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "".join(
        f"{i}\ta {i}\tb {i}\t{'not_' * (i % 2)}entailment\n" for i in range(40)))
    (source / "RTE" / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tc\td\tentailment\n")
    (source / "CoLA" / "train.tsv").write_text("".join(f"gj04\t{i % 2}\t*\tIt \"is\" {i}.\n" for i in range(20)))
    (source / "CoLA" / "dev.tsv").write_text("gj04\t1\t\tYes.\n")
    (source / "STS-B" / "train.tsv").write_text("sentence1\tsentence2\nx\ty\n")
    flags = ("--source-dir", source, "--out-dir", out)
    done = run_stage_script("prepare_glue.py", *flags, "--tasks", "RTE,CoLA", folder="data")
    assert done.returncode == 0, done.stderr
    assert (out / "RTE" / "test.tsv").read_text() == "sentence1\tsentence2\tlabel\nc\td\tentailment\n"
    train, valid = ((out / "RTE" / f"{split}.tsv").read_text().splitlines()[1:] for split in ("train", "valid"))
    assert (len(train), len(valid), len({*train, *valid})) == (36, 4, 40)
    assert 'It "is" 3.\t1' in (out / "CoLA" / "train.tsv").read_text() + (out / "CoLA" / "valid.tsv").read_text()
    assert json.loads((out / "CoLA" / "task.json").read_text())["score"] == "matthews"
    assert run_stage_script("prepare_glue.py", *flags, "--tasks", "RTE", folder="data").returncode == 0
    (out / "RTE" / "valid.tsv").write_text("mine\n")
    done = run_stage_script("prepare_glue.py", *flags, "--tasks", "RTE", folder="data")
    assert done.returncode == 2
    assert "which may be your own" in done.error
    assert (out / "RTE" / "valid.tsv").read_text() == "mine\n"
    done = run_stage_script("prepare_glue.py", *flags, "--tasks", "STS-B", folder="data")
    assert done.returncode == 2
    assert "lacks the column 'score'" in done.error
