"""The post-training matrix by path on a two-layer model: every row, resumption, refusals, the tables made of it."""

import csv
import json
import re
import shutil

import numpy as np
import onnxruntime as ort
import pytest
from conftest import read_plain_rows
from safetensors.torch import load_file
from stage_runs import ROOT, changed_manifest, copy_of, ended_well, new_run, run_folder, run_stage_script
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lowbit.data.task import SENTIMENT
from lowbit.measure.record import MEASURED, TOO_MUCH, UNSURE
from lowbit.pipeline.errors import UserError
from lowbit.ptq.advice import recommend, target_rows
from lowbit.ptq.experiments import Experiment
from lowbit.ptq.files import Candidate
from lowbit.ptq.matrix import measure
from lowbit.ptq.plots import OTHER, kind_of, pareto_front
from lowbit.ptq.results import read_results, verdict, write_results

FINETUNE, MATRIX, QAT = "finetune_fp32.py", "run_ptq.py", "run_qat.py"
COMPARE, REPORT = "compare_methods.py", "generate_report.py"
QUICK = ("--calibration-texts", 12, "--entropy-bins", 128, "--rounds", 2, "--runs", 3, "--threads", 1, "--tokens", 16)
MEASURE = QUICK[4:]
STATIC = [f"int8_static_{form}_{calibration}" for form in ("qdq_s8s8", "qdq_u8s8", "qoperator_u8s8")
          for calibration in ("minmax", "entropy", "percentile")]
INT4 = [f"int4_{algorithm}_{form}_block{size}" for algorithm in ("rtn", "hqq") for form in ("sym", "asym")
        for size in (32, 64, 128)]
PER_CHANNEL = ["int4_per_channel", "int2_per_channel", "int4_per_channel_gptq", "int2_per_channel_gptq"]
METHODS = ["fp32", "fp16", "int8_dynamic", "int8_dynamic_per_channel", *STATIC, *INT4, *PER_CHANNEL]
NEVER = [name for name in INT4 if name.startswith("int4_hqq_sym")]
SMALL = "fp32,int8_dynamic,int8_static_qdq_u8s8_minmax"


def stage(name: str, *flags, **more):
    """A stage of ptq/ by path."""
    return run_stage_script(name, *flags, folder="ptq", **more)


@pytest.fixture(scope="module")
def baseline(train_flags):
    """Name of a run of finetune_fp32.py on the tiny model."""
    run = new_run()
    return ended_well(run, {FINETUNE: stage(FINETUNE, "--run", run, *train_flags)})


@pytest.fixture(scope="module")
def experiment_flags(baseline, small_data):
    """Function: flags that measure the baseline quickly into a results folder."""
    return lambda results, *more: ("finetuned_smsa", "--run", baseline, "--data-dir", small_data,
                                   "--results", results, *QUICK, *more)


@pytest.fixture(scope="module")
def results(experiment_flags, tmp_path_factory):
    """(results folder, what the shell saw) of the whole matrix."""
    folder = tmp_path_factory.mktemp("results")
    # one turn of all 26 files; several turns are tested on three of them
    return folder, stage(MATRIX, *experiment_flags(folder, "--rounds", 1))


@pytest.fixture(scope="module")
def rows(results):
    """results.json of the whole matrix."""
    folder, done = results
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "finetuned_smsa" / "results.json").read_text())["files"]


def test_the_baseline_loads_in_transformers_and_agrees_with_its_graph(baseline):
    """A user's from_pretrained() on the folder and onnxruntime on the exported file give the same logits."""
    folder = run_folder(baseline)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["kamarnya bersih", "paket belum sampai juga"], padding=True, return_tensors="pt",
                       return_token_type_ids=False)
    session = ort.InferenceSession(folder / "model_fp32.onnx", providers=["CPUExecutionProvider"])
    given = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0]
    assert given == pytest.approx(model(**inputs).logits.detach().numpy(), abs=1e-5)
    assert model.config.label2id == {"positive": 0, "neutral": 1, "negative": 2}
    assert not (folder / "model_qat.pth").exists()


def test_every_method_is_a_row_and_every_file_loads(baseline, results, rows):
    """25 measured methods and FP32; what cannot exist is a row with its reason; nothing half-made is left."""
    folder, done = results
    assert list(rows) == METHODS
    for method, row in rows.items():
        if method in NEVER:
            assert row["status"] == "could not run"
            assert "HQQ" in row["reason"]
            assert "accuracy" not in row
            continue
        assert row["status"] == MEASURED, row
        for key in ("accuracy", "f1", "eval_loss", "model_size", "mean_ms"):
            assert isinstance(row[key], float), (method, key)
        path = ROOT / row["file"]
        assert row["model_size"] == pytest.approx(path.stat().st_size / 1e6)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        ids = np.array([[2, 7, 8, 3]])
        assert np.isfinite(session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]).all()
        assert len(row["runs_ms"]) == 3
        assert row["min_ms"] <= row["median_ms"] <= row["max_ms"]
        assert row["mean_ms"] == pytest.approx(np.mean(row["runs_ms"]))
        assert row["std_ms"] == pytest.approx(np.std(row["runs_ms"], ddof=1))
        assert row["speedup"] == pytest.approx(np.median(row["round_speedups"]))
    assert not list(run_folder(baseline).glob(".tmp-*"))
    assert sorted(path.name for path in (folder / "finetuned_smsa").iterdir()) == [
        "manifest.json", "results.csv", "results.json"]
    assert all(f"  {method} " in done.stdout for method in METHODS)


def test_the_table_for_spreadsheets_says_the_same(results, rows):
    """results.csv: a line a method, the numbers of results.json."""
    with open(results[0] / "finetuned_smsa" / "results.csv", newline="") as lines:
        table = {line["method"]: line for line in csv.DictReader(lines)}
    assert list(table) == METHODS
    for method, row in rows.items():
        for key in ("accuracy", "f1", "eval_loss", "model_size", "mean_ms", "speedup"):
            assert table[method][key] == str(row.get(key, ""))


def test_scores_are_those_of_the_file_on_the_test_texts(rows, baseline, small_data):
    """Accuracy and flips of a static file, counted here from onnxruntime and the plain rows."""
    tokenizer = AutoTokenizer.from_pretrained(run_folder(baseline))
    texts = read_plain_rows("test", small_data)

    def labels(method):
        session = ort.InferenceSession(ROOT / rows[method]["file"], providers=["CPUExecutionProvider"])
        found = []
        for text, _ in texts:
            ids = np.array([tokenizer(" ".join(text.lower().split()))["input_ids"]])
            given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            found.append(session.run(["logits"], given)[0].argmax())
        return np.array(found)

    truth = np.array([("positive", "neutral", "negative").index(label) for _, label in texts])
    reference = labels("fp32")
    for method in ("int8_static_qdq_u8s8_minmax", "int8_dynamic", "int4_rtn_sym_block32"):
        ours = labels(method)
        assert rows[method]["accuracy"] == pytest.approx((ours == truth).mean())
        assert rows[method]["against_fp32"]["flips"] == (ours != reference).sum()
        drop = 100 * ((reference == truth).mean() - (ours == truth).mean())
        assert rows[method]["points_lost"]["test"] == pytest.approx(drop)


def test_another_run_gives_the_same_scores_to_the_last_digit(experiment_flags, rows, baseline, tmp_path):
    """Files made anew from the same baseline and seed: the same accuracy, loss and logits' distance."""
    chosen = ["int8_dynamic", "int8_static_qdq_u8s8_entropy", "int4_hqq_asym_block64"]
    for method in chosen:
        (run_folder(baseline) / f"model_{method}.onnx").unlink()
    for cached in run_folder(baseline).glob("calibration_*"):
        cached.unlink()
    done = stage(MATRIX, *experiment_flags(tmp_path), "--methods", ",".join(chosen))
    assert done.returncode == 0, done.stderr
    again = read_results(tmp_path / "finetuned_smsa")["files"]
    assert list(again) == ["fp32", *chosen]
    for method in again:
        for key in ("accuracy", "f1", "eval_loss", "ece", "against_fp32", "confusion_matrix"):
            assert again[method][key] == rows[method][key], (method, key)


@pytest.mark.parametrize("moment", ("model_int8_dynamic.onnx", "finetuned_smsa/unfinished_ptq/int8_dynamic.json",
                                    "finetuned_smsa/unfinished_ptq/round-1.json"))
def test_a_killed_run_goes_on_with_what_is_not_done(moment, experiment_flags, rows, baseline, tmp_path):
    """Killed while making, scoring or timing: the same command keeps what is done and ends with the same scores."""
    if moment.endswith(".onnx"):
        (run_folder(baseline) / moment).unlink(missing_ok=True)
        (run_folder(baseline) / "model_int8_static_qdq_u8s8_minmax.onnx").unlink(missing_ok=True)
    flags = experiment_flags(tmp_path, "--methods", SMALL)
    mark = (run_folder(baseline) if moment.endswith(".onnx") else tmp_path) / moment
    killed = stage(MATRIX, *flags, kill_when=mark.exists)
    assert killed.returncode == -9
    assert not (tmp_path / "finetuned_smsa" / "results.json").exists()
    done = stage(MATRIX, *flags)
    assert done.returncode == 0, done.stderr
    if moment.endswith(".onnx"):  # what came behind the kill is made now; the file itself may just have been recorded
        assert re.search(r"^  int8_static_qdq_u8s8_minmax: [\d.]+ MB", done.stdout, re.MULTILINE)
        assert re.search(r"^  int8_dynamic: (made before|[\d.]+ MB)", done.stdout, re.MULTILINE)
    else:
        assert "int8_dynamic: made before" in done.stdout
    if "unfinished" in moment:
        assert "int8_dynamic: scored before" in done.stdout
    if "round" in moment:
        assert "round 1 of 2: timed before" in done.stdout
    again = read_results(tmp_path / "finetuned_smsa")["files"]
    assert {name: row["accuracy"] for name, row in again.items()} == {
        name: rows[name]["accuracy"] for name in SMALL.split(",")}
    assert all(len(row["runs_ms"]) == 2 * 3 and len(row["round_speedups"]) == 2 for row in again.values())
    assert not list(run_folder(baseline).glob(".tmp-*"))


def test_a_file_that_does_not_run_is_a_row_with_the_reason(baseline, tmp_path):
    """A damaged file ends its own row only."""
    folder = run_folder(baseline)
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no graph")
    settings = {"PROVIDER": "CPUExecutionProvider", "THREADS": 1, "BATCH_SIZE": 1, "TOKENS": 8, "ROUNDS": 1, "RUNS": 2,
                "DEPENDENCE_TEXTS": 5, "MAX_DROP": 1.0}
    found = measure([Candidate("fp32", {}, folder, folder / "model_fp32.onnx"), Candidate("int8", {}, folder, broken),
                     Candidate("int4", {}, folder, reason="never made")],
                    Experiment("finetuned_smsa", True, False), {"test": (["enak", "jelek"], [0, 2])}, SENTIMENT,
                    settings, tmp_path / "unfinished")["files"]
    assert found["fp32"]["status"] == MEASURED
    assert found["int8"]["status"] == "could not run"
    assert str(broken) in found["int8"]["reason"]
    assert found["int4"]["reason"] == "never made"


def test_rows_of_another_baseline_do_not_stay(results, tmp_path):
    """Beside a retrained FP32 file, old rows would be compared with the wrong reference: they go, in words."""
    whole = read_results(results[0] / "finetuned_smsa")

    def written(name: str, changed: dict, spoil: bool = False) -> list[str]:
        folder = shutil.copytree(results[0] / "finetuned_smsa", tmp_path / name)
        if spoil:
            (folder / "results.json").write_text("{}")
        return list(write_results(folder, "ptq/run_ptq.py", {}, whole | changed, [], "none")["files"])

    for key in ("fp32_sha256", "circumstances"):
        assert written(key, {key: "0" * 64, "files": {"fp32": whole["files"]["fp32"]}}) == ["fp32"]
    again = {"files": {"fp16": whole["files"]["fp16"]}}
    assert written("same", again) == list(whole["files"])
    assert written("spoilt", again, spoil=True) == ["fp16"]


def test_figures_of_another_protocol_do_not_stay(experiment_flags, results, tmp_path):
    """Half the tokens, or another guard: the old rows would be read as if they had been measured so."""
    folder = tmp_path / "results"
    shutil.copytree(results[0] / "finetuned_smsa", folder / "finetuned_smsa")
    done = stage(MATRIX, *experiment_flags(folder, "--methods", "fp32,int8_dynamic", "--rounds", 1, "--max-drop", 50))
    assert done.returncode == 0, done.stderr
    assert list(read_results(folder / "finetuned_smsa")["files"]) == ["fp32", "int8_dynamic"]
    assert "dropping fp16, int8_dynamic_per_channel" in done.stdout


def test_results_that_were_changed_by_hand_are_refused(results, tmp_path):
    """An edited figure does not reach a table."""
    folder = shutil.copytree(results[0] / "finetuned_smsa", tmp_path / "finetuned_smsa")
    path = folder / "results.json"
    path.write_text(path.read_text().replace('"samples": 15', '"samples": 1500'))
    with pytest.raises(UserError, match="was changed"):
        read_results(folder)
    done = stage(COMPARE, "--results", tmp_path)
    assert done.returncode == 2
    assert "results.json was changed" in done.error


@pytest.fixture(scope="module")
def with_qat(results, finished_run, baseline, small_data):
    """What the shell saw of run_qat.py on a finished INT8 run, into the results of the matrix."""
    return stage(QAT, "finetuned_smsa", "--run", baseline, "--int8-runs", finished_run, "--fp16-runs", "no-such-run",
                 "--int4-runs", "", "--data-dir", small_data, "--results", results[0], *MEASURE, "--rounds", 1)


@pytest.fixture(scope="module")
def compared(with_qat, results):
    """What the shell saw of compare_methods.py on the matrix with QAT rows."""
    assert with_qat.returncode == 0, with_qat.stderr
    return stage(COMPARE, "--results", results[0])


def test_qat_files_stand_in_the_same_table(with_qat, results, rows):
    """The trained INT8 file is measured by the same protocol; a run that is not there is a row with the reason."""
    assert with_qat.returncode == 0, with_qat.stderr
    table = read_results(results[0] / "finetuned_smsa")["files"]
    assert list(table) == [*METHODS, "qat_int8_dynamic", "qat_fp16_no-such-run"]
    assert table["qat_int8_dynamic"]["status"] == MEASURED
    assert table["qat_int8_dynamic"].keys() == table["int8_dynamic"].keys()
    assert "fp16_eager/ with --run no-such-run" in table["qat_fp16_no-such-run"]["reason"]
    assert table["int8_dynamic"] == rows["int8_dynamic"]


def test_what_nothing_trained_is_no_qat(finished_run, baseline, small_data, tmp_path):
    """A run of NUM_EPOCHS 0 is a row with the reason, not one of QAT."""
    run = copy_of(finished_run)
    with changed_manifest(run) as manifest:
        manifest["stages"]["int8_eager/train_qat_int8.py"]["settings"]["NUM_EPOCHS"] = 0
    done = stage(QAT, "finetuned_smsa", "--run", baseline, "--int8-runs", run, "--fp16-runs", "", "--int4-runs", "",
                 "--data-dir", small_data, "--results", tmp_path, *MEASURE, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path / "finetuned_smsa")["files"][f"qat_int8_{run}"]["reason"] == (
        f"{run} was trained with --num-epochs 0")


def test_the_comparison_holds_every_row_and_picture(compared, results):
    """comparison.csv and .md name every method of every experiment; five pictures an experiment."""
    assert compared.returncode == 0, compared.stderr
    folder = results[0] / "comparison"
    with open(folder / "comparison.csv", newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [line["method"] for line in table] == [*METHODS, "qat_int8_dynamic", "qat_fp16_no-such-run"]
    assert {line["experiment"] for line in table} == {"finetuned_smsa"}
    text = (folder / "comparison.md").read_text()
    assert all(f"| {method}" in text for method in METHODS)
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 5
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in pictures)


def test_an_untrained_head_is_measured_too(tiny_model, small_data, tmp_path):
    """original_smsa: the encoder as it comes, exported here; a second run keeps the export."""
    run = new_run()
    flags = ("original_smsa", "--original-run", run, "--model-name", tiny_model, "--data-dir", small_data,
             "--methods", "fp32,int8_dynamic", "--results", tmp_path, *QUICK)
    done = stage(MATRIX, *flags)
    assert done.returncode == 0, done.stderr
    first = (run_folder(run) / "model_fp32.onnx").stat().st_mtime_ns
    assert read_results(tmp_path / "original_smsa")["files"]["int8_dynamic"]["status"] == MEASURED
    assert stage(MATRIX, *flags).returncode == 0
    assert (run_folder(run) / "model_fp32.onnx").stat().st_mtime_ns == first


def test_the_head_of_an_original_is_new_even_where_the_folder_brings_one(baseline, small_data, tmp_path):
    """Made from a fine-tuned folder, its encoder stays and its head goes; one seed gives one head."""
    heads = []
    for seed in (1, 1, 2):
        run = new_run()
        done = stage(MATRIX, "original_smsa", "--original-run", run, "--model-name", run_folder(baseline), "--methods",
                     "fp32", "--data-dir", small_data, "--results", tmp_path, "--seed", seed, *QUICK)
        assert done.returncode == 0, done.stderr
        heads.append(load_file(run_folder(run) / "model.safetensors"))
    trained = load_file(run_folder(baseline) / "model.safetensors")
    changed = {name for name in trained if not trained[name].equal(heads[0][name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert heads[0]["classifier.weight"].equal(heads[1]["classifier.weight"])
    assert not heads[0]["classifier.weight"].equal(heads[2]["classifier.weight"])


TWEETS = 'Date\tUser\tTweet\tsentiment\n' + "".join(
    f"2021-07-0{day}\tuser{day}\t{tweet}\t{label}\n" for day, (tweet, label) in enumerate((
        ("ppkm bagus sekali", 0), ('"katanya ""darurat""\nlagi"', 2), ("rapat diundur", 1), ("macet terus", 2)), 1))


def test_tweets_are_an_experiment(baseline, small_data, tmp_path):
    """The file as pandas writes it, a tweet over two lines included; calibration stays with SMSA's train texts."""
    path = tmp_path / "tweets.csv"
    path.write_text(TWEETS, encoding="utf-8")
    done = stage(MATRIX, "finetuned_tweets", "--tweets", path, "--run", baseline, "--data-dir", small_data,
                 "--methods", SMALL, "--results", tmp_path, *QUICK)
    assert done.returncode == 0, done.stderr
    table = read_results(tmp_path / "finetuned_tweets")["files"]
    assert table["fp32"]["samples"] == 4
    assert table["fp32"]["valid"] is None
    assert set(table["int8_dynamic"]["points_lost"]) == {"test"}


def test_without_tweets_the_rest_is_run_and_a_sentence_says_where_to_put_them(baseline, small_data, tiny_model,
                                                                             tmp_path):
    """No experiment named: those with data. Named without its file: one sentence."""
    absent = tmp_path / "absent.csv"
    flags = ("--tweets", absent, "--run", baseline, "--original-run", new_run(), "--model-name", tiny_model,
             "--data-dir", small_data, "--results", tmp_path, "--methods", "fp32", *QUICK)
    done = stage(MATRIX, *flags)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finetuned_smsa", "original_smsa"]
    assert f"put INA_TweetsPPKM_Labeled_Pure.csv at {absent}" in done.stdout
    refused = stage(MATRIX, "finetuned_tweets", *flags)
    assert refused.returncode == 2
    assert str(absent) in refused.error
    assert "INA_TweetsPPKM_Labeled_Pure.csv" in refused.error


@pytest.mark.parametrize(("name", "flags", "said"), [
    (MATRIX, ("finetuned",), ("EXPERIMENT names 'finetuned'", "finetuned_smsa")),
    (MATRIX, ("--methods", "int8"), ("METHODS names 'int8'", "int8_dynamic")),
    (MATRIX, ("finetuned_smsa", "--calibration-texts", 0), ("CALIBRATION_TEXTS is 0",)),
    (MATRIX, ("finetuned_smsa", "--percentile", 40), ("PERCENTILE is 40.0",)),
    (MATRIX, ("finetuned_smsa", "--max-drop", -1), ("MAX_DROP is -1.0", "points")),
    (MATRIX, ("finetuned_smsa", "--tokens", 0), ("TOKENS is 0",)),
    (MATRIX, ("finetuned_smsa", "--runs", 1), ("RUNS is 1", "at least 2")),
    (MATRIX, ("finetuned_smsa", "--entropy-bins", 64), ("ENTROPY_BINS is 64", "128")),
    (MATRIX, ("original_smsa", "--seed", -1), ("SEED is -1",)),
    (MATRIX, ("finetuned_smsa", "--provider", "NoneExecutionProvider"), ("NoneExecutionProvider", "CPUExecution")),
    (MATRIX, ("original_smsa", "--original-run", "bert-mini-id"), ("ORIGINAL_RUN is 'bert-mini-id'", "another model")),
    (MATRIX, ("finetuned_smsa", "--run", "no-such-run"), ("model_fp32.onnx is missing", "ptq/finetune_fp32.py")),
    (QAT, ("original_smsa",), ("finetuned_smsa",)),
    (COMPARE, ("--results", "no-such-folder"), ("no-such-folder", "run_ptq.py")),
    (REPORT, ("--results", "no-such-folder"), ("no-such-folder", "run_ptq.py")),
    (FINETUNE, ("--opset", 9), ("OPSET is 9",)),
])
def test_a_users_mistake_is_one_sentence(name, flags, said, baseline, small_data):
    """Exit status 2, the setting by name, and what to do."""
    run = ("--run", baseline) if name in (MATRIX, QAT) and "--run" not in flags else ()
    data = ("--data-dir", small_data) if name == MATRIX else ()
    done = stage(name, *flags, *run, *data)
    assert done.returncode == 2, done.stderr
    for words in said:
        assert words in done.error


def row(size: float, ms: float, lost: float, spread: float = 0.5, flips: int = 0, **more) -> dict:
    """A measured row as far as advice reads it: `lost` points, give or take `spread`."""
    return {"status": MEASURED, "recipe": {"kind": "dynamic"}, "accuracy": 0.9,
            "model_size": size, "median_ms": ms, "speedup": 10 / ms,
            "compression": 100 / size, "memory_saving": 0.5, "points_lost": {"valid": lost, "test": lost},
            "loss": {"points": lost, "low": lost - spread, "high": lost + spread, "texts": 500},
            "all_against_fp32": {"flips": flips, "median_logit_difference": 0.0}, **more}


def results_of(**rows) -> dict:
    """Results of an experiment with FP32 and `rows`."""
    return {"max_drop": 1.0, "task": SENTIMENT.as_json(), "files": {
        "fp32": row(100, 10, 0, recipe={"kind": "fp32"}), **rows}}


def test_a_method_that_loses_too_much_is_never_advised():
    """However fast and small it is; and FP32 stays where nothing passes."""
    fast, slow = row(1, 1, 40), row(25, 4, 0.5)
    assert recommend(results_of(int4=fast, int8=slow))[0] == "int8"
    assert recommend(results_of(int4=fast))[0] == "fp32"
    assert recommend(results_of(int4=fast), "size")[0] == "fp32"
    assert recommend(results_of(int4={"status": "could not run", "reason": "no"}))[0] == "fp32"
    assert all(line["best_method"] != "int4" for line in target_rows(results_of(int4=fast, int8=slow), "int8"))


def test_what_too_few_texts_cannot_tell_is_said_and_not_ruled_out():
    """An interval from a gain to a loss beyond the guard: 2 labels of 101 convict nobody."""
    found = results_of(int8=row(25, 4, 1.9, spread=3))
    assert verdict("int8", found) == UNSURE
    method, why = recommend(found)
    assert method == "int8"
    assert "as far as 500 texts can tell" in why
    assert verdict("int8", results_of(int8=row(25, 4, 0.4))) == ""
    assert verdict("int8", results_of(int8=row(25, 4, 1.6))) == TOO_MUCH


def test_of_equally_fast_files_the_smallest_is_advised():
    """Within 5 % is a tie in speed, within 1 % one in size: then the file that changes fewest labels."""
    method, why = recommend(results_of(a=row(26, 4.0, -0.4), b=row(25, 4.1, 0), c=row(10, 6, 0)))
    assert method == "b"
    assert "a, b" in why
    assert recommend(results_of(a=row(25, 4.0, 0, flips=3), b=row(25.1, 4.1, 0, flips=1)))[0] == "b"


def test_of_equally_fast_files_one_that_surely_stays_within_the_guard_goes_first():
    """A smaller one of which the texts cannot tell stays behind it; alone, or where nobody is sure, it is advised."""
    sure, small = row(26, 4.0, 0), row(10, 4.1, 0.9, spread=2)
    method, why = recommend(results_of(sure=sure, small=small))
    assert method == "sure"
    assert "sure, small" in why and "that surely loses no more than 1, of the 2 that are fastest" in why
    assert recommend(results_of(sure=row(26, 8, 0), small=small))[0] == "small"
    assert recommend(results_of(large=row(26, 4.0, 0, spread=2), small=small))[0] == "small"
    assert recommend(results_of(sure=sure, small=small), "size")[0] == "small"


def test_a_file_slower_than_fp32_is_advised_for_its_size_alone():
    """FP16 on a CPU: half the size, but not faster; a file of a third the speed stays behind one that is faster."""
    half = row(50, 10.4, 0)
    method, why = recommend(results_of(fp16=half))
    assert method == "fp32"
    assert "none" in why
    assert why.endswith("is faster than FP32 here")
    assert recommend(results_of(fp16=half), "size")[0] == "fp16"
    assert recommend(results_of(fp16=row(100, 10.4, 0)), "size")[0] == "fp32"
    assert recommend(results_of(slow=row(5, 33, 0), fast=row(60, 9.6, 0)))[0] == "fast"
    assert recommend(results_of(slow=row(5, 33, 0), fast=row(60, 9.6, 0)), "size")[0] == "slow"


def test_the_pareto_front_holds_what_nothing_beats():
    """Cheapest first, each more accurate than all cheaper ones."""
    rows = {name: row(size, 1, 0) | {"accuracy": accuracy} for name, accuracy, size in (
        ("a", 0.8, 10), ("b", 0.7, 11), ("c", 0.9, 20), ("d", 0.9, 30))}
    assert pareto_front(rows, "model_size") == ["a", "c"]


def test_a_method_of_an_unknown_kind_is_drawn_too():
    """A row that a later version adds has a colour and a name of its own."""
    assert kind_of("pruned_half") == OTHER
    assert kind_of("int8_static_qdq_u8s8_minmax")[0] == "INT8 static"
