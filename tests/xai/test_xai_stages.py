"""Explanations as a user runs them: one text, a file of texts, drift, faithfulness, the page; on tiny runs."""

import json
import shutil

import pytest
from stage_runs import (
    EVALUATE,
    EXPORT,
    ORDER,
    QUANTIZE,
    TRAIN,
    copy_of,
    ended_well,
    new_run,
    run_folder,
    run_stage_script,
)

from lowbit.pipeline.manifest import note

QUICK = ("--orders", 2, "--samples", 20, "--steps", 8)
TEXT = "Kamarnya bersih, tapi tidak enak 😡 <b>$x_1$</b>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def run_xai(script: str, *flags, **more):
    return run_stage_script(script, *flags, folder="xai", **more)


def explain_one(run, text, out, *more):
    """(what the shell saw, explanation.json or None)."""
    done = run_xai("run_xai.py", run, text, *QUICK, "--threads", 1, "--results", out, *more)
    path = out / run / "explanation.json"
    return done, json.loads(path.read_text()) if done.returncode == 0 else None


@pytest.fixture(scope="module")
def texts(tmp_path_factory, small_data):
    """A TSV of six texts: five of test, and one of which cleaning leaves nothing."""
    path = tmp_path_factory.mktemp("texts") / "some.tsv"
    rows = (small_data / "test.tsv").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*rows[:3], "\u00ad\u00ad\tpositive", *rows[-2:]]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def explained(finished_run, texts, tmp_path_factory):
    """(run, results folder) after all four stages on six texts."""
    out = tmp_path_factory.mktemp("explained")
    for script, flags in (("explain_tsv.py", (texts, *QUICK, "--workers", 1)), ("drift.py", ()),
                          ("faithfulness.py", ("--random-orders", 3, "--threads", 1)),
                          ("what_it_reads.py", ("--least-texts", 1))):
        done = run_xai(script, finished_run, *flags, "--results", out)
        assert done.returncode == 0, f"{script}:\n{done.stderr}"
    return finished_run, out


def test_one_text(finished_run, tmp_path):
    """Every method on both files; SHAP adds up; words as they were written; the page shows them, escaped."""
    done, found = explain_one(finished_run, TEXT, tmp_path)
    record = found["text"]
    assert list(record["files"]) == ["fp32", "int8"]
    assert [record["texts"][0][start:end] for _, start, end in record["words"]][:4] == [
        "Kamarnya", "bersih", ",", "tapi"]
    for held in record["files"].values():
        assert list(held["methods"]) == ["shap", "lime", "occlusion", "ig", "attention"]
        assert all(len(values) == len(record["words"]) for values in held["methods"].values())
        assert sum(held["methods"]["shap"]) == pytest.approx(held["value"] - held["reference"], abs=1e-4)
        assert min(held["methods"]["attention"]) >= 0
    assert record["files"]["fp32"]["gap"] < 0.05
    assert found["files"]["int8"]["alone"]
    assert not found["files"]["fp32"]["alone"]
    page = (tmp_path / finished_run / "explanation.html").read_text(encoding="utf-8")
    assert "<b>$x" not in page
    assert "src=" not in page
    assert "wrote explanation.html, explanation.json, explanation.png" in done.stdout


def test_the_same_seed_gives_the_same_bytes(finished_run, tmp_path):
    made = []
    for seed in (7, 7, 8):
        assert explain_one(finished_run, TEXT, tmp_path, "--seed", seed)[0].returncode == 0
        out = tmp_path / finished_run
        made.append([(out / f"explanation.{kind}").read_bytes() for kind in ("html", "json", "png")])
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_an_int8_file_is_asked_one_by_one_if_its_ranges_are_measured(finished_run, tmp_path):
    """What a dynamic file answers about a variant is what it answers to it alone."""
    import numpy as np
    import onnxruntime as ort
    from transformers import AutoTokenizer
    _, found = explain_one(finished_run, "kamar bagus sekali", tmp_path, "--methods", "occlusion")
    tokenizer = AutoTokenizer.from_pretrained(run_folder(finished_run))
    session = ort.InferenceSession(run_folder(finished_run) / "model_qat_int8.onnx", providers=["CPUExecutionProvider"])
    ids = np.array([tokenizer("kamar bagus sekali")["input_ids"]])
    reading, label = found["text"], found["text"]["label"]

    def value(row):
        logits = session.run(["logits"], {"input_ids": row, "attention_mask": np.ones_like(row)})[0][0].astype(float)
        return logits[label] - np.log(np.exp(np.delete(logits, label)).sum())

    words = tokenizer(["kamar bagus sekali"]).encodings[0].word_ids
    for place, values in enumerate(reading["files"]["int8"]["methods"]["occlusion"]):
        without = np.where([word == place for word in words], tokenizer.mask_token_id, ids)
        assert values == pytest.approx(value(ids) - value(without), abs=1e-5)


@pytest.mark.parametrize(("text", "says"), [("\u00ad \u00ad", "nothing is left of"), (" ", "TEXT is empty")])
def test_nothing_to_explain(finished_run, tmp_path, text, says):
    done, _ = explain_one(finished_run, text, tmp_path)
    assert done.returncode == 2
    assert says in done.error


@pytest.mark.parametrize("text", ["bagus", "kamar " * 200, "مرحبا بالعالم"])
def test_hostile_texts(finished_run, tmp_path, text):
    done, found = explain_one(finished_run, text, tmp_path, "--methods", "shap,lime,occlusion,ig")
    assert done.returncode == 0, done.stderr
    assert ("longer than 128 tokens" in done.stdout) == (text.startswith("kamar"))
    held = found["text"]["files"]["int8"]
    assert sum(held["methods"]["shap"]) == pytest.approx(held["value"] - held["reference"], abs=1e-4)


@pytest.mark.parametrize(("flags", "says"), [
    (("--methods", "shep"), "METHODS names 'shep'"), (("--files", "int4"), "FILES names 'int4'"),
    (("--replace", "pad"), "REPLACE is 'pad'"), (("--samples", 0), "SAMPLES is 0"),
    (("--text2", "dua"), "2 texts given"), (("--top", 0), "TOP is 0")])
def test_settings_that_cannot_explain(finished_run, tmp_path, flags, says):
    done, _ = explain_one(finished_run, "kamar bagus", tmp_path, *flags)
    assert done.returncode == 2
    assert says in done.error
    assert not (tmp_path / finished_run).exists()


def test_a_changed_file_is_refused(finished_run, tmp_path):
    run = copy_of(finished_run)
    with open(run_folder(run) / "model_qat_int8.onnx", "ab") as file:
        file.write(b"\0")
    done, _ = explain_one(run, "kamar bagus", tmp_path)
    assert done.returncode == 2
    assert "is not the file that" in done.error


@pytest.fixture(scope="module")
def other_tasks(tiny_model, tmp_path_factory):
    """"pairs" and "numbers" -> a run after stages 1 to 3; pairs with learned ranges."""
    made = {}
    for name, task in {"pairs": {"texts": ["premis", "hipotesis"], "labels": ["sama", "lain"], "score": "accuracy"},
                       "numbers": {"texts": ["teks"], "labels": None, "score": "pearson"}}.items():
        folder, run = tmp_path_factory.mktemp(name), new_run()
        (folder / "task.json").write_text(json.dumps(task))
        for split in ("train", "valid", "test"):
            rows = [("kamar bagus", "kamar buruk", "sama"), ("makanan enak", "hotel bersih", "lain")] * 8
            lines = rows if name == "pairs" else [(one, str(i % 5)) for i, (one, _, _) in enumerate(rows)]
            (folder / f"{split}.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
        ranges = ("--activation-ranges", "learned") if name == "pairs" else ()
        flags = {TRAIN: ("--model-name", tiny_model, "--num-epochs", 1, "--cleaning", "minimal", *ranges, "--data-dir",
                         folder), EXPORT: (), QUANTIZE: ranges}
        made[name] = ended_well(run, {stage: run_stage_script(stage, "--run", run, *flags[stage])
                                      for stage in ORDER if stage != EVALUATE}), folder
    return made


def test_a_pair_shows_both_texts(other_tasks, tmp_path):
    run, _ = other_tasks["pairs"]
    done, found = explain_one(run, "kamar bagus", tmp_path, "--text2", "hotel bersih")
    assert done.returncode == 0, done.stderr
    assert {part for part, _, _ in found["text"]["words"]} == {0, 1}
    assert not found["files"]["int8"]["alone"]
    page = (tmp_path / run / "explanation.html").read_text()
    assert "premis" in page
    assert "hipotesis" in page
    assert explain_one(run, "kamar bagus", tmp_path)[0].returncode == 2


def test_a_number_is_explained_itself(other_tasks, tmp_path):
    run, folder = other_tasks["numbers"]
    _, found = explain_one(run, "kamar bagus", tmp_path)
    held = found["text"]["files"]["fp32"]
    assert found["text"]["label"] is None
    assert held["value"] == pytest.approx(held["outputs"][0], abs=1e-6)
    for script, flags in (("explain_tsv.py", (folder / "test.tsv", *QUICK, "--workers", 1, "--limit", 4)),
                          ("drift.py", ()), ("faithfulness.py", ("--threads", 1)), ("what_it_reads.py", ())):
        done = run_xai(script, run, *flags, "--results", tmp_path)
        assert done.returncode == 0, f"{script}:\n{done.stderr}"
    assert "Largest errors" in (tmp_path / run / "what_it_reads.html").read_text()


def test_lines_of_a_file(explained, texts):
    """A line a text in order, those that cannot be explained with the reason; floors beside the values."""
    run, out = explained
    head, *lines = map(json.loads, (out / run / "explanations.jsonl").read_text(encoding="utf-8").splitlines())
    assert head["texts"]["count"] == len(lines) == 6
    assert [line["line"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["texts"][0] for line in lines] == [
        row.split("\t")[0] for row in texts.read_text(encoding="utf-8").splitlines()]
    assert "nothing is left" in lines[3]["refused"]
    first = lines[0]
    assert set(first["floors"]["seed"]["fp32"]) == {"shap", "lime"}
    assert set(first["floors"]["batch"]) == {"int8"}
    assert first["floors"]["seed"]["fp32"]["shap"] != first["files"]["fp32"]["methods"]["shap"]


def test_a_killed_run_goes_on_to_the_same_bytes(explained, texts, tmp_path):
    run, out = explained
    unfinished = tmp_path / run / "explanations.unfinished.jsonl"
    flags = ("explain_tsv.py", run, texts, *QUICK, "--workers", 1, "--results", tmp_path)
    run_xai(*flags, kill_when=lambda: unfinished.exists() and unfinished.read_bytes().count(b"\n") >= 3)
    assert unfinished.exists()
    with open(unfinished, "ab") as file:
        file.write(b'{"line": 4, "cut sh')
    done = run_xai(*flags)
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stdout
    wanted = (out / run / "explanations.jsonl").read_bytes()
    assert (tmp_path / run / "explanations.jsonl").read_bytes() == wanted


@pytest.mark.parametrize("left", ["head alone", "half a head", "of another seed"])
def test_what_a_kill_left_is_no_text(explained, texts, tmp_path, left):
    run, out = explained
    wanted = (out / run / "explanations.jsonl").read_text(encoding="utf-8")
    head = wanted[: wanted.index("\n") + 1]
    (tmp_path / run).mkdir()
    note(tmp_path / run, {"explanations.unfinished.jsonl": ""})
    held = {"head alone": head, "half a head": head[:50], "of another seed": wanted.replace('"SEED": 42', '"SEED": 1')}
    (tmp_path / run / "explanations.unfinished.jsonl").write_text(held[left], encoding="utf-8")
    done = run_xai("explain_tsv.py", run, texts, *QUICK, "--workers", 1, "--results", tmp_path)
    assert ("deleting" in done.stdout) == (left != "head alone")
    assert (tmp_path / run / "explanations.jsonl").read_text(encoding="utf-8") == wanted


def test_two_processes_give_the_same_bytes(explained, texts, tmp_path):
    run, out = explained
    done = run_xai("explain_tsv.py", run, texts, *QUICK, "--workers", 2, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / run / "explanations.jsonl").read_bytes() == (out / run / "explanations.jsonl").read_bytes()


def test_two_files_share_fp32(explained, texts, tmp_path):
    """Of the same FP32 file, texts and settings: taken from the other run's explanations, to the same values."""
    run, out = explained
    other = copy_of(run)
    shutil.copytree(out / run, tmp_path / run)
    flags = ("explain_tsv.py", other, texts, *QUICK, "--workers", 1, "--results", tmp_path)
    done = run_xai(*flags)
    assert f"FP32 as explained for {run}" in done.stdout
    found, wanted = ((tmp_path / name / "explanations.jsonl").read_text().splitlines()[1:] for name in (other, run))
    assert found == wanted
    again = run_xai(*flags, "--seed", 5)
    assert again.returncode == 0
    assert "FP32 as explained" not in again.stdout


def test_drift_and_faithfulness(explained):
    run, out = explained
    drift = json.loads((out / "drift.json").read_text())["files"][f"{run}/int8"]
    assert drift["refused"] == 1
    assert drift["shap_sum_error"] < 1e-4
    for method in ("shap", "lime", "occlusion"):
        held = drift["methods"][method]
        assert held["drift"]["texts"] + drift["labels_changed"] == 5
        assert held["floor"] in ("seed", "batch")
        assert ("seed" in held) == (method != "occlusion")
    assert drift["methods"]["ig"]["beyond"] is None
    faithful = json.loads((out / run / "faithfulness.json").read_text())["files"]
    assert set(faithful) == {"fp32", "int8"}
    for held in faithful.values():
        assert held["texts"] == 5
        assert 0 <= held["methods"]["shap"]["beats_random"] <= 1
        assert "beats_random" not in held["methods"]["random"]


def test_changed_explanations_are_refused(explained, tmp_path):
    run, out = explained
    shutil.copytree(out, tmp_path / "copy")
    with open(tmp_path / "copy" / run / "explanations.jsonl", "a") as file:
        file.write("\n")
    for script in ("drift.py", "faithfulness.py", "what_it_reads.py"):
        done = run_xai(script, run, "--results", tmp_path / "copy")
        assert done.returncode == 2
        assert "explanations.jsonl" in done.error
    assert "no such run" not in run_xai("drift.py", "nobody", "--results", tmp_path).error


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["what_it_reads.html", "explanation.html"])
def test_pages_in_a_browser(explained, finished_run, tmp_path, page, scheme):
    """No error, nothing fetched, nothing wider than a phone; for and against differ in more than colour."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    run, out = explained
    if page == "explanation.html":
        explain_one(finished_run, TEXT, tmp_path)
        out = tmp_path
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme).new_page()
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"file://{out / run / page}")
        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        styles = {kind: tab.evaluate(f"getComputedStyle(document.querySelector('.{kind}')).borderBottomStyle")
                  for kind in ("for", "against") if tab.query_selector(f".{kind}")}
        assert styles == {kind: {"for": "solid", "against": "dashed"}[kind] for kind in styles}
        assert styles
        browser.close()
