"""The stages by path on a two-layer model: from a fine-tuned start to a packed mix, refusals, kills, the matrix."""

import json
import shutil

import onnx
import pytest
from stage_runs import ROOT, changed_manifest, ended_well, new_run, run_folder, run_stage_script

SENSITIVITY, MIX, TRAIN, EVALUATE = ("sensitivity_analysis.py", "mixed_precision.py", "train_qat_mixed.py",
                                     "eval_mixed.py")
FEW = ("--random", 1, "--rounds", 1, "--runs", 2, "--threads", 1)


def stage(name: str, run: str, *flags, **how):
    return run_stage_script(name, "--run", run, *flags, folder="mixed", **how)


@pytest.fixture(scope="module")
def finetuned(train_flags, small_data):
    """Run of the tiny model, fine-tuned in FP32 and analysed at 8, 4 and 2 bits."""
    run = new_run()
    done = run_stage_script("finetune_fp32.py", "--run", run, *train_flags, folder="ptq")
    assert done.returncode == 0, done.stderr
    done = stage(SENSITIVITY, run, "--data-dir", small_data)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def budget_mb(finetuned):
    """A size between those of 4 and 8 bits everywhere."""
    held = json.loads((run_folder(finetuned) / "sensitivity.json").read_text())["modules"].values()
    fp32 = (run_folder(finetuned) / "model_fp32.onnx").stat().st_size
    return (fp32 + sum(module["bits"]["4"]["bytes"] + module["bits"]["8"]["bytes"] for module in held) / 2) / 1e6


@pytest.fixture(scope="module")
def mixed(finetuned, small_data, budget_mb):
    """(run, stages) of a mix of that size."""
    run = new_run()
    return run, {MIX: stage(MIX, run, "--fp32-run", finetuned, "--data-dir", small_data, "--rounds", 1,
                            "--budget", f"size_mb={budget_mb:.4f}")}


@pytest.fixture(scope="module")
def mixed_run(mixed):
    return ended_well(*mixed)


@pytest.fixture(scope="module")
def trained(mixed_run, small_data):
    """(run, stages) of the mix, trained for an epoch and evaluated."""
    run = new_run()
    return run, {TRAIN: stage(TRAIN, run, "--mixed-run", mixed_run, "--data-dir", small_data, "--num-epochs", 1),
                 EVALUATE: stage(EVALUATE, run, "--data-dir", small_data, *FEW)}


@pytest.fixture(scope="module")
def evaluated(mixed_run, small_data):
    """The mix, evaluated: (run, what stage 4 said)."""
    done = stage(EVALUATE, mixed_run, "--data-dir", small_data, *FEW)
    assert done.returncode == 0, done.stderr
    return mixed_run, done.stdout


def test_analysis_says_what_it_found(finetuned):
    """JSON, CSV and a picture a number of bits; nothing unfinished is left."""
    folder = run_folder(finetuned)
    result = json.loads((folder / "sensitivity.json").read_text())
    assert len(result["modules"]) == 17
    assert len((folder / "sensitivity.csv").read_text().splitlines()) == 1 + 3 * 17
    for bits in (8, 4, 2):
        assert (folder / f"sensitivity_{bits}.png").stat().st_size > 10_000
    assert not (folder / "unfinished_sensitivity.json").exists()
    assert result["texts"] == 8  # every second one of 15


def test_mix_keeps_its_budget_and_is_what_was_chosen(mixed, mixed_run, budget_mb):
    """The file's bytes, the assignment's, and what was foretold; no candidate within the budget beat it."""
    folder = run_folder(mixed_run)
    held = json.loads((folder / "assignment.json").read_text())
    size = (folder / "model_mixed.onnx").stat().st_size
    assert size == held["measured"]["bytes"] <= budget_mb * 1e6
    assert size == pytest.approx(held["predicted"]["bytes"], rel=0.05)  # 1 % where weights outweigh the graph
    fitting = [one for one in held["candidates"] if one["fits"]]
    assert {"uniform 4", "uniform 2", "hand 2, tables 4", "added logits"} <= {one["name"] for one in fitting}
    assert held["measured"]["confirm"]["divergence"] == min(one["measured"]["confirm"]["divergence"] for one in fitting)
    said = mixed[1][MIX].stdout
    assert "bit for bit" in said
    assert "uniform 8" in said
    ships = json.loads((folder / "manifest.json").read_text())["ships"]
    assert (ships["precision"], ships["file"]) == ("mixed", "model_mixed.onnx")


@pytest.mark.parametrize(("budget", "kept"), [
    ("effective_bits=4.5", lambda held: held["mean_bits"] <= 4.5),
    ("max_kl=0.02", lambda held: all(measured["divergence"] <= 0.02 for measured in (
        held["measured"], held["measured"]["confirm"]))),
    ("speed=1.01", lambda held: held["chosen"] is not None)])
def test_other_budgets(finetuned, small_data, budget, kept):
    run = new_run()
    done = stage(MIX, run, "--fp32-run", finetuned, "--data-dir", small_data, "--rounds", 1, "--budget", budget)
    if budget.startswith("speed") and done.returncode == 2:  # a tiny model may be no faster in INT8
        assert "out of reach" in done.error
        return
    assert done.returncode == 0, done.stderr
    assert kept(json.loads((run_folder(run) / "assignment.json").read_text()))


def test_choices_without_int8(finetuned, small_data):
    """No candidate has bits that were not asked for; the evaluation has uniform 8 for its speed all the same."""
    run = new_run()
    done = stage(MIX, run, "--fp32-run", finetuned, "--data-dir", small_data, "--choices", "32,4", "--rounds", 1,
                 "--budget", "effective_bits=8")
    assert done.returncode == 0, done.stderr
    held = json.loads((run_folder(run) / "assignment.json").read_text())
    assert {bits for one in held["candidates"] for bits in one["assignment"].values()} <= {32.0, 4.0}
    done = stage(EVALUATE, run, "--data-dir", small_data, *FEW)
    assert done.returncode == 0, done.stderr
    assert "uniform 8" in json.loads((run_folder(run) / "results.json").read_text())["files"]


def test_evaluation_compares_and_is_recorded(evaluated):
    """FP32 first, the mix last, all others between, each with its divergence; the table has the speed against INT8."""
    run, said = evaluated
    results = json.loads((run_folder(run) / "results.json").read_text())
    names = list(results["files"])
    assert (names[0], names[-1]) == ("FP32", "MIXED")
    assert {"uniform 8", "uniform 4", "uniform 2", "hand 2, tables 4", "random 1"} <= set(names)
    assert all("divergence" in record["against_fp32"] for record in results["files"].values())
    assert results["files"]["FP32"]["against_fp32"]["divergence"] == 0
    assert results["files"]["MIXED"]["all_against_simulation"]["same_label"] == 1
    sizes = [results["files"][name]["model_size"] for name in ("MIXED", "random 1")]
    assert sizes[1] <= sizes[0] * 1.01
    assert "x uniform 8" in said
    assert (run_folder(run) / "pareto.png").stat().st_size > 10_000


def test_mix_is_trained_at_its_bits(trained, mixed_run, finetuned):
    """The trained file holds the assignment's bits and other integers; FP32 is the model that training started from."""
    run = ended_well(*trained)
    folder, results = run_folder(run), json.loads((run_folder(run) / "results.json").read_text())
    assert "bit for bit" in trained[1][TRAIN].stdout
    assert (folder / "assignment.json").read_bytes() == (run_folder(mixed_run) / "assignment.json").read_bytes()
    assert (folder / "model_fp32.onnx").read_bytes() == (run_folder(finetuned) / "model_fp32.onnx").read_bytes()
    rounded, ours = run_folder(mixed_run) / "model_mixed.onnx", folder / "model_qat_mixed.onnx"
    assert ours.read_bytes() != rounded.read_bytes()
    assert abs(ours.stat().st_size - rounded.stat().st_size) < 200
    assert list(results["files"])[-2:] == ["rounded", "MIXED"]
    assert results["files"]["MIXED"]["all_against_simulation"]["same_label"] == 1


def test_trained_mix_is_packed_and_predicts(trained, tmp_path):
    run = ended_well(*trained)
    done = run_stage_script("pack.py", "--run", run, "--dist", tmp_path, "--force", folder="deploy")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / run / "manifest.json").read_text())
    assert manifest["model"] == "onnx/model_quantized.onnx"
    assert manifest["measured"]["accuracy"] is not None
    done = run_stage_script("predict.py", "kamar bersih sekali", folder=tmp_path / run)
    assert done.returncode == 0, done.stderr
    assert any(label in done.stdout for label in ("positive", "neutral", "negative"))


def test_mixes_are_rows_of_the_matrix(trained, mixed_run, finetuned, small_data, tmp_path):
    """Rounded and trained, each named by its budget, and in the report; an INT8 setting given a mix says so."""
    run = ended_well(*trained)
    done = run_stage_script(
        "run_qat.py", "finetuned_smsa", "--run", finetuned, "--int8-runs", mixed_run, "--int4-runs", "", "--fp16-runs",
        "", "--mixed-runs", f"{mixed_run},{run}", "--data-dir", small_data, "--results", tmp_path, "--rounds", 1,
        "--runs", 2, "--tokens", 16, "--threads", 1, folder="ptq")
    assert done.returncode == 0, done.stderr
    files = json.loads((tmp_path / "finetuned_smsa" / "results.json").read_text())["files"]
    budget = json.loads((run_folder(mixed_run) / "assignment.json").read_text())["budget"].replace("=", "_")
    assert {f"mixed_{budget}", f"qat_mixed_{budget}"} <= {name for name, row in files.items()
                                                          if row["status"] == "measured"}
    assert "is a run of mixed/, not of int8_eager/" in files[f"qat_int8_{mixed_run}"]["reason"]
    done = run_stage_script("generate_report.py", "--results", tmp_path, folder="ptq")
    assert done.returncode == 0, done.stderr
    assert f"qat_mixed_{budget}" in (tmp_path / "report.html").read_text()


def test_killed_analysis_goes_on(finetuned, small_data):
    """Figures that were measured before a kill are not measured again, and the result is the same."""
    run = new_run()
    shutil.copytree(run_folder(finetuned), run_folder(run))
    part = run_folder(run) / "unfinished_sensitivity.json"
    flags = ("--data-dir", small_data, "--bits", "4")
    stage(SENSITIVITY, run, *flags, kill_when=lambda: part.exists() and part.read_text().count("divergence") > 3)
    done = stage(SENSITIVITY, run, *flags)
    assert done.returncode == 0, done.stderr
    assert "going on:" in done.stdout
    ours, theirs = (json.loads((run_folder(name) / "sensitivity.json").read_text())["modules"] for name in (
        run, finetuned))
    assert all(ours[name]["bits"]["4"]["kl_only"] == theirs[name]["bits"]["4"]["kl_only"] for name in theirs)
    assert not part.exists()


def test_killed_search_leaves_nothing_half_made(finetuned, mixed_run, small_data, budget_mb):
    run = new_run()
    flags = ("--fp32-run", finetuned, "--data-dir", small_data, "--rounds", 1, "--budget", f"size_mb={budget_mb:.4f}")
    folder = run_folder(run)
    stage(MIX, run, *flags, kill_when=lambda: list(folder.glob(".tmp-*/*.onnx")))
    if (folder / "model_mixed.onnx").exists():
        onnx.checker.check_model(str(folder / "model_mixed.onnx"))
    done = stage(MIX, run, *flags)
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob(".tmp-*"))
    assert (folder / "model_mixed.onnx").read_bytes() == (run_folder(mixed_run) / "model_mixed.onnx").read_bytes()


def test_a_mix_is_not_trained_on_other_labels(mixed_run, small_data, tmp_path):
    """The teacher would have a new head, and answer by chance."""
    other = shutil.copytree(small_data, tmp_path / "other")
    (other / "task.json").write_text(json.dumps(
        {"texts": ["text"], "labels": ["negative", "neutral", "positive"], "score": "macro_f1"}))
    run = new_run()
    done = stage(TRAIN, run, "--mixed-run", mixed_run, "--data-dir", other)
    assert done.returncode == 2, done.stderr
    assert "asks something else than" in done.error
    assert not run_folder(run).exists()


@pytest.mark.parametrize(("name", "flags", "said"), [
    (SENSITIVITY, ("--bits", "8,3"), "BITS names '3'; choose from 32, 8, 4, 2, 1.6"),
    (SENSITIVITY, ("--bits", "32,8"), "BITS names 32"),
    (SENSITIVITY, ("--score", "hessian"), "SCORE names 'hessian'; choose from kl, fisher"),
    (SENSITIVITY, ("--mode", "both"), "MODE names 'both'; choose from only, all_but"),
    (SENSITIVITY, ("--texts", -1), "TEXTS is -1"),
    (MIX, ("--budget", "4.6"), "BUDGET is '4.6'; write one of size_mb=…"),
    (MIX, ("--budget", "size_mb=0.001"), "BUDGET size_mb=0.001 is out of reach"),
    (MIX, ("--budget", "effective_bits=1"), "BUDGET effective_bits=1 is out of reach"),
    (MIX, ("--budget", "max_kl=1e-15"), "no candidate keeps it as measured"),
    (MIX, ("--choices", "8,1.6"), "CHOICES names 1.6 bits, which"),
    (MIX, ("--choices", "32"), "with KEEP_SPEED it needs"),
    (MIX, ("--fp32-run", "nobody"), "model_fp32.onnx is missing: run `python ptq/finetune_fp32.py --run nobody`"),
    (TRAIN, ("--mixed-run", "nobody"), "assignment.json is missing: run `python mixed/mixed_precision.py"),
    (EVALUATE, ("--random", -1), "RANDOM is -1"),
])
def test_setting_that_is_refused(finetuned, mixed_run, small_data, name, flags, said):
    """One sentence, exit 2, nothing made."""
    run = new_run()
    given = {SENSITIVITY: (), MIX: ("--fp32-run", finetuned), TRAIN: ("--mixed-run", mixed_run), EVALUATE: ()}[name]
    if name == SENSITIVITY:
        shutil.copytree(run_folder(finetuned), run_folder(run))
    done = stage(name, run, *given, "--data-dir", small_data, *flags)
    assert done.returncode == 2, done.stderr
    assert said in done.error
    assert not list(run_folder(run).glob("model_*mixed.onnx"))


def test_runs_of_other_kinds_are_refused(finetuned, mixed_run, small_data):
    """An INT8 run has no mix to evaluate; a model must not be overwritten by its own mix."""
    run = new_run()
    shutil.copytree(run_folder(mixed_run), run_folder(run))
    with changed_manifest(run) as manifest:
        manifest["ships"]["stages"]["quantize"] = "int8_eager/quantize_onnx_int8.py"
    done = stage(EVALUATE, run, "--data-dir", small_data)
    assert done.returncode == 2
    assert "was made by int8_eager/quantize_onnx_int8.py" in done.error
    done = stage(MIX, finetuned, "--fp32-run", finetuned, "--data-dir", small_data)
    assert done.returncode == 2
    assert "name another RUN" in done.error
    for name, flags in ((MIX, ("--fp32-run", finetuned)), (TRAIN, ("--mixed-run", mixed_run))):
        done = stage(name, run, *flags, "--data-dir", small_data) if name == TRAIN else stage(
            name, "bert-mini-id", *flags, "--data-dir", small_data)
        assert done.returncode == 2
        assert "choose a new name for RUN" in done.error


def test_assignment_changed_by_hand_is_refused(mixed_run, small_data):
    """Bits that nobody measured are not evaluated."""
    run = new_run()
    shutil.copytree(run_folder(mixed_run), run_folder(run))
    path = run_folder(run) / "assignment.json"
    path.write_text(path.read_text().replace("4.0", "2.0", 1))
    done = stage(EVALUATE, run, "--data-dir", small_data)
    assert done.returncode == 2
    assert "assignment.json" in done.error


def test_analysis_of_another_model_is_refused(finetuned, small_data, budget_mb):
    """The model was trained anew since: its figures are another model's."""
    run = new_run()
    shutil.copytree(run_folder(finetuned), run_folder(run))
    with changed_manifest(run) as manifest:
        manifest["stages"]["mixed/sensitivity_analysis.py"]["reads"]["model.safetensors"] = "0" * 64
    done = stage(MIX, new_run(), "--fp32-run", run, "--data-dir", small_data, "--budget", f"size_mb={budget_mb:.4f}")
    assert done.returncode == 2
    assert "model.safetensors" in done.error


def test_folder_has_its_stages():
    assert {path.name for path in (ROOT / "mixed").glob("*.py")} == {SENSITIVITY, MIX, TRAIN, EVALUATE}
