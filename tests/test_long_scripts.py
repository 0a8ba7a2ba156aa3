"""Benchmarks, each once, on the tiny model and in their shortest settings: they start and end well."""

import json

import numpy as np
import pytest
from conftest import SAMPLE, read_plain_rows
from stage_runs import ROOT, new_run, run_folder, run_stage_script

from lowbit.data.tokens import load_reader
from lowbit.measure.session import Session

LABELS = ("positive", "neutral", "negative")


def run_benchmark(name: str, *flags) -> str:
    """What a benchmark prints."""
    done = run_stage_script(name, *flags, folder="benchmarks")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def results():
    """Function: a results file of a benchmark, read and deleted; one that was there before is put back."""
    kept = {path: path.read_bytes() for path in (ROOT / "results").glob("*.*") if path.is_file()}

    def read(name: str) -> dict:
        return json.loads((ROOT / "results" / name).read_text())
    yield read
    for path in (ROOT / "results").glob("*.*"):
        if path in kept:
            path.write_bytes(kept[path])
        elif path.is_file():
            path.unlink()


SHORT = ("--rounds", 2, "--runs", 2)


def test_int8_at_the_size_of_an_encoder(tiny_model, small_data, results):
    """Sizes, latencies by turns, feeding of texts, training steps."""
    said = run_benchmark("bert_base_int8.py", "--indobert-dir", tiny_model, "--data-dir", small_data,
                         "--run", new_run(), *SHORT, "--steps", 1)
    found = results("bert_base_int8.json")
    assert list(found["latency"]) == ["1x32", "1x128", "16x64", "16x128"]
    for shapes in found["latency"].values():
        for name in ("FP32", "INT8"):
            assert min(shapes[name]["round_ratios"]) <= shapes[name]["ratio"] <= max(shapes[name]["round_ratios"])
    assert found["latency"]["1x32"]["FP32"]["ratio"] == 1
    assert found["smsa_test_texts_per_second"]["sorted"] > 0
    assert found["training_step_fp32"]["qat_seconds"] > 0
    assert "16 x 128 tokens" in said


def test_fp16_at_the_size_of_an_encoder(tiny_model, small_data, results):
    """Sizes, types, latencies, memory, training step."""
    run_benchmark("bert_base_fp16.py", "--indobert-dir", tiny_model, "--data-dir", small_data, "--run", new_run(),
                  "--rounds", 1, "--runs", 2, "--steps", 0)
    found = results("bert_base_fp16.json")
    assert 0.5 < found["size_ratio"] < 1
    assert found["peak_memory_mb"]["FP16"] > 20


def test_learned_ranges_beside_nncf(tiny_model, small_data, results):
    """Needs the packages of requirements-benchmarks.txt."""
    pytest.importorskip("nncf", reason="NNCF is not installed: requirements-benchmarks.txt")
    run_benchmark("bert_base_learned.py", "--indobert-dir", tiny_model, "--data-dir", small_data, "--run", new_run(),
                  *SHORT, "--steps", 0, "--nncf-texts", 8)
    assert "NNCF, OpenVINO" in results("bert_base_learned.json")["latency"]["1x32"]


def test_the_matrix_at_the_size_of_an_encoder(tiny_model, small_data, tmp_path):
    """Post-training files, and the report."""
    said = run_benchmark("bert_base_ptq.py", "--indobert-dir", tiny_model, "--data-dir", small_data, "--run", new_run(),
                         "--results", tmp_path, "--methods", "fp32,int8_static_qdq_u8s8_minmax",
                         "--calibration-texts", 4, "--tokens", 8, "--rounds", 1, "--runs", 2)
    assert (tmp_path / "report.html").exists()
    assert "largest peak memory of making a file" in said


def test_training_against_rounding(tiny_model, small_data, results):
    """One seed of the FP32 baseline, quantized after training and with calibrated ranges, under a name of its own."""
    name = new_run()
    said = run_benchmark("qat_against_ptq.py", "--model-name", tiny_model, "--data-dir", small_data, "--name", name,
                         "--cleaning", "minimal", "--seeds", "901", "--num-epochs", 1, "--methods", "ptq,static",
                         "--calibration-texts", 8)
    found = results(f"{name}_qat_against_ptq_int8.json")
    assert found["test_texts"] == 15
    assert len(found["static INT8"]["accuracy"]) == 1
    assert "| static | INT8 |" in said
    cleaning = json.loads((run_folder(f"{name}-int8-ptq-901") / "preprocessing.json").read_text())["cleaning"]
    assert cleaning == "minimal"


def test_a_large_file_through_the_predictor(finished_run, small_data, results, tmp_path):
    """Rates, memory, and where the time goes."""
    done = run_stage_script("pack.py", "--run", finished_run, "--dist", tmp_path, "--force", folder="deploy")
    assert done.returncode == 0, done.stderr
    run_benchmark("predict_million.py", "--model-dirs", tmp_path / finished_run, "--data-dir", small_data,
                  "--rows", 12_000, "--sample", 500, "--rounds", 2)
    found = results("predict_million.json")
    assert found["rows"] == 12_000
    (turns,) = found["turns"].values()
    assert len(turns) == 2
    assert sum(turns[0]["shares"].values()) == pytest.approx(1, abs=0.03)


def test_other_domains(finished_run, results, tmp_path):
    """A set that lacks a label, here the one that the model says most, is scored by the logits of the two it has."""
    rows, reader = read_plain_rows("test", SAMPLE)[:40], load_reader(run_folder(finished_run))
    with Session(run_folder(finished_run) / "model_qat_int8.onnx", "CPUExecutionProvider", 1) as session:
        logits = session.logits(reader.rows([text for text, _ in rows]), reader.pad_id)
    most = int(np.bincount(logits.argmax(-1)).argmax())
    ids = [i for i, (_, label) in enumerate(rows) if label != LABELS[most]]
    for name, kept in {"all": range(len(rows)), "two": ids}.items():
        (tmp_path / f"{name}.tsv").write_text("".join("\t".join(rows[i]) + "\n" for i in kept), encoding="utf-8")
    said = run_benchmark("out_of_domain.py", "--runs", finished_run, "--sets-dir", tmp_path, "--texts", 0)
    found = results("out_of_domain.json")["runs"][finished_run]
    assert found["all"]["texts"] == 40 and said.count(f"| {finished_run} |") == 2
    logits[:, most] = -np.inf
    right = [LABELS[logits[i].argmax()] == rows[i][1] for i in ids]
    assert found["two"]["INT8"]["accuracy"] == pytest.approx(np.mean(right))
