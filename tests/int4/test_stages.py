"""The four stages by path on a two-layer model: from a fine-tuned start to a report, refusals, kills, packing."""

import gzip
import importlib.util
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from scipy.special import softmax
from stage_runs import EXPORT, ROOT, changed_manifest, ended_well, new_run, run_folder, run_stage_script

from lowbit.data.tokens import load_reader
from lowbit.data.tsv import read_tsv
from lowbit.int4.levels import LEVELS
from lowbit.measure.session import Session

TRAIN, QUANTIZE, EVALUATE = "train_qat_int4.py", "quantize_onnx_int4.py", "eval_onnx_int4.py"
ORDER = (TRAIN, EXPORT, QUANTIZE, EVALUATE)
TWO = ("--bits", 2, "--table-bits", 4)
LABELS_TOO = ("--label-weight", 0.5)
LEARNED = ("--activation-ranges", "learned")


def stage(name: str, run: str, *flags, **how):
    return run_stage_script(name, "--run", run, *flags, folder="int4_eager", **how)


@pytest.fixture(scope="module")
def start_flags(finetuned, train_flags):
    """Flags of stage 1 that start from the fine-tuned model."""
    return (*train_flags, "--model-name", finetuned)


def through(run: str, train: tuple, quantize: tuple, evaluate: tuple) -> dict:
    """All four stages: name -> Finished."""
    flags = {TRAIN: train, EXPORT: (), QUANTIZE: quantize, EVALUATE: evaluate}
    return {name: stage(name, run, *flags[name]) for name in ORDER}


@pytest.fixture(scope="module")
def pipeline_two(start_flags, eval_flags):
    """(run, stages) at 2 bits, dynamic ranges."""
    run = new_run()
    return run, through(run, (*start_flags, *TWO, *LABELS_TOO), TWO, eval_flags)


@pytest.fixture(scope="module")
def run_two(pipeline_two):
    return ended_well(*pipeline_two)


def copy_until(run: str, last: str) -> str:
    """A new run as another was right after a stage."""
    name = new_run()
    shutil.copytree(run_folder(run), run_folder(name))
    with changed_manifest(name) as manifest:
        for later in ORDER[ORDER.index(last) + 1:]:
            for file in manifest["stages"].pop(f"int4_eager/{later}", {"writes": ()})["writes"]:
                (run_folder(name) / file).unlink()
            if later == QUANTIZE:
                manifest.pop("ships", None)
    return name


def test_stages_end_well_and_lead_on(pipeline_two, run_two):
    """Each names the next with the settings that were trained; what was checked is said."""
    said = {name: done.stdout for name, done in pipeline_two[1].items()}
    assert f"next: python int4_eager/export_to_onnx.py --run {run_two}" in said[TRAIN]
    assert f"next: python int4_eager/quantize_onnx_int4.py --run {run_two} --bits 2.0" in said[EXPORT]
    assert "32 of 32 weights and scales, unpacked, equal those simulated in training, bit for bit" in said[QUANTIZE]
    assert "13 packed weights and tables: 13 unpacked when the session is made" in said[QUANTIZE]
    assert f"deploy models/{run_two}/model_qat_int2.onnx" in said[EVALUATE]


def test_run_is_recorded_and_compared_with_its_teacher(run_two, finetuned):
    """The manifest says what ships; FP32 in the report is the model that training started from."""
    folder = run_folder(run_two)
    ships = json.loads((folder / "manifest.json").read_text())["ships"]
    assert (ships["precision"], ships["file"], ships["runtime"]) == ("int2", "model_qat_int2.onnx", "onnxruntime")
    results = json.loads((folder / "results.json").read_text())
    assert list(results["files"]) == ["FP32", "INT2"]
    assert results["files"]["FP32"]["file"].endswith("model_fp32.onnx")
    assert results["files"]["INT2"]["all_against_simulation"]["same_label"] == 1
    assert results["files"]["INT2"]["model_size"] < results["files"]["FP32"]["model_size"]
    teacher = torch.load(folder / "model_fp32.pth", weights_only=True)
    from safetensors.torch import load_file
    start = load_file(finetuned / "model.safetensors")
    assert all(torch.equal(teacher[name], start[name]) for name in start)


def outputs(path, reader, texts):
    """Logits of a file, one text at a time."""
    with Session(path, "CPUExecutionProvider", 1) as session:
        return session.logits(reader.rows(texts), reader.pad_id)


def test_epoch_that_lies_nearest_to_the_teacher_is_kept(pipeline_two, run_two, small_data):
    """That of least loss on valid, which is the trained loss of the kept weights against the teacher's outputs."""
    history = json.loads((run_folder(run_two) / "training.json").read_text())
    losses = {one["epoch"]: one["eval_loss"] for one in history["epochs"]}
    assert history["kept_epoch"] == min(losses, key=losses.get)
    kept = losses[history["kept_epoch"]]
    assert f"of least loss on valid, {kept:.4f}: valid macro-F1" in pipeline_two[1][TRAIN].stdout
    (texts, labels), reader = read_tsv(small_data / "valid.tsv"), load_reader(run_folder(run_two))
    ours, theirs = (outputs(run_folder(run_two) / name, reader, texts) for name in (
        "model_qat_int2.onnx", "model_fp32.onnx"))
    teacher, model = softmax(theirs / 2, axis=1), softmax(ours / 2, axis=1)
    of_labels = -np.log(softmax(ours, axis=1)[range(len(labels)), labels]).mean()
    weight = float(LABELS_TOO[1])
    assert 4 * (teacher * np.log(teacher / model)).sum(1).mean() + weight * of_labels == pytest.approx(kept, rel=0.02)


def test_scales_were_trained(run_two, finetuned):
    """Scales moved from where least error starts them, all but one or two that came back, and none far."""
    from safetensors.torch import load_file

    from lowbit.int4.rounding import best_scales
    state = torch.load(run_folder(run_two) / "model_qat.pth", weights_only=True)
    name = "bert.encoder.layer.0.intermediate.dense"
    start = best_scales(load_file(finetuned / "model.safetensors")[f"{name}.weight"], LEVELS[2.0])
    moved = (state[f"{name}.log_scale"].exp() / start - 1).abs()
    assert (moved > 1e-5).float().mean() > 0.9
    assert (moved < 0.3).all()


@pytest.mark.parametrize("flags", [LEARNED, ("--bits", 1.6, "--table-bits", 2, "--head-bits", 4)],
                         ids=["learned", "ternary"])
def test_other_arithmetic_goes_through(start_flags, eval_flags, flags):
    """To the report; learned ranges make no text depend on its batch."""
    run = new_run()
    stages = through(run, (*start_flags, "--num-epochs", 1, *flags), flags, eval_flags)
    ended_well(run, stages)
    results = json.loads((run_folder(run) / "results.json").read_text())
    low = list(results["files"].values())[1]
    assert low["all_against_simulation"]["same_label"] == 1
    if flags == LEARNED:
        assert low["batch_dependence"]["max_logit_difference"] <= 1e-4
        assert (run_folder(run) / "activation_ranges.png").exists()


def test_twin_is_rounded_after_training(start_flags, eval_flags):
    """--no-qat trains FP32 by the same teacher; stage 3 rounds it with scales of least error.

    A file that an older stage 3 rounded otherwise is not scored.
    """
    run = new_run()
    twin = (*start_flags, "--no-qat", *LABELS_TOO, "--num-epochs", 1)
    for name, flags in ((TRAIN, twin), (EXPORT, ()), (QUANTIZE, TWO)):
        done = stage(name, run, *flags)
        assert done.returncode == 0, done.stderr
    names = torch.load(run_folder(run) / "model_qat.pth", weights_only=True)
    assert not any(name.endswith("log_scale") for name in names)
    assert (run_folder(run) / "model_qat_int2.onnx").exists()
    with changed_manifest(run) as manifest:
        for name in (TRAIN, QUANTIZE):
            del manifest["stages"][f"int4_eager/{name}"]["settings"]["POSITION_BITS"]
    done = stage(EVALUATE, run, *eval_flags)
    assert done.returncode == 2 and "was made by an older version" in done.error


def test_texts_without_labels_are_learned_from(start_flags, small_data, tmp_path):
    """They change the weights, valid's text among them is left out, the manifest holds their digest; none left is said.
    """
    texts, held = tmp_path / "texts.txt.gz", (small_data / "valid.tsv").read_text().splitlines()[0].split("\t")[0]
    texts.write_bytes(gzip.compress(f"kamar bersih\n{held}\nmakanan lambat sekali\n\n".encode()))
    flags = (*start_flags, *TWO, "--num-epochs", 1)
    states = []
    for more in ((), ("--unlabelled", texts)):
        run = new_run()
        done = stage(TRAIN, run, *flags, *more)
        assert done.returncode == 0, done.stderr
        states.append(torch.load(run_folder(run) / "model_qat.pth", weights_only=True))
    assert "unlabelled 2 of 3 texts; left out for valid and test: 1 exact" in done.stdout
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    reads = json.loads((run_folder(run) / "manifest.json").read_text())["stages"][f"int4_eager/{TRAIN}"]["reads"]
    assert any(str(path).endswith("texts.txt.gz") for path in reads)
    texts.write_bytes(gzip.compress(f"{held}\n".encode()))
    done = stage(TRAIN, new_run(), *flags, "--unlabelled", texts)
    assert done.returncode == 2
    assert "no text is left of 1" in done.error


def test_training_goes_on_from_its_checkpoint(start_flags, run_two):
    """Killed after its first epoch, the same command ends with the weights and scales of an undisturbed run."""
    run = new_run()
    checkpoints, flags = run_folder(run) / "checkpoints", (*start_flags, *TWO, *LABELS_TOO)
    stage(TRAIN, run, *flags, kill_when=lambda: list(checkpoints.glob("checkpoint-*/complete.json")))
    done = stage(TRAIN, run, *flags)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    ours, theirs = (torch.load(run_folder(name) / "model_qat.pth", weights_only=True) for name in (run, run_two))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_killed_packing_leaves_nothing_half_made(run_two):
    """Whatever is there is whole or not there, and the same command ends well."""
    run = copy_until(run_two, EXPORT)
    folder = run_folder(run)
    stage(QUANTIZE, run, *TWO, kill_when=lambda: list(folder.glob(".tmp-*/*.onnx")))
    if (folder / "model_qat_int2.onnx").exists():
        onnx.checker.check_model(str(folder / "model_qat_int2.onnx"))
    done = stage(QUANTIZE, run, *TWO)
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob(".tmp-*"))
    assert (folder / "model_qat_int2.onnx").read_bytes() == (run_folder(run_two) / "model_qat_int2.onnx").read_bytes()


@pytest.mark.parametrize(("name", "flags", "said"), [
    (TRAIN, ("--bits", 3), "BITS is 3; choose 4, 2, 1.6"),
    (TRAIN, ("--bits", 8), "BITS is 8; choose 4, 2, 1.6"),
    (TRAIN, ("--table-bits", 5), "TABLE_BITS is 5; choose 8, 4, 2, 1.6"),
    (TRAIN, ("--position-bits", 16), "POSITION_BITS is 16; choose 8, 4, 2, 1.6"),
    (TRAIN, ("--activation-ranges", "static"), "ACTIVATION_RANGES is 'static'; choose dynamic or learned"),
    (TRAIN, (*LEARNED, "--target", "cpu"), "TARGET is 'cpu'; choose openvino, tensorrt, onnxruntime"),
    (TRAIN, (*LEARNED, "--no-qat"), "QAT is off"),
    (TRAIN, ("--no-qat",), "a model in FP32 that follows itself alone learns nothing"),
    (TRAIN, ("--label-weight", -1), "LABEL_WEIGHT is -1"),
    (TRAIN, ("--unlabelled", "nowhere.txt"), "UNLABELLED names nowhere.txt, which is no file"),
    (TRAIN, ("--unlabelled", "nowhere.txt", "--no-distil"), "DISTIL is off"),
    (TRAIN, ("--model-name", "models/nobody"), "fine-tune an encoder first with `python ptq/finetune_fp32.py`"),
    (QUANTIZE, (), "BITS is 4.0 here but"),
    (QUANTIZE, (*TWO, "--table-bits", 2), "TABLE_BITS is 2.0 here but"),
    (QUANTIZE, (*TWO, "--position-bits", 4), "POSITION_BITS is 4.0 here but"),
    (QUANTIZE, (*TWO, *LEARNED), "has learned none"),
    (EVALUATE, ("--runtime", "tensorrt"), "RUNTIME is 'tensorrt'; choose onnxruntime or openvino"),
])
def test_setting_that_is_refused(run_two, start_flags, eval_flags, name, flags, said):
    """One sentence, exit 2, nothing made."""
    before = {QUANTIZE: EXPORT, EVALUATE: QUANTIZE}
    run = new_run() if name == TRAIN else copy_until(run_two, before[name])
    given = {TRAIN: start_flags, QUANTIZE: (), EVALUATE: eval_flags}[name]
    done = stage(name, run, *given, *flags)
    assert done.returncode == 2, done.stderr
    assert said in done.error
    made = {TRAIN: "model_qat.pth", QUANTIZE: "model_qat_int2.onnx", EVALUATE: "results.json"}[name]
    assert not (run_folder(run) / made).exists()


def test_run_of_an_older_version_is_not_quantized_otherwise_than_it_was_trained(run_two):
    """Its tables of positions and token types were simulated at TABLE_BITS: no setting of today says so."""
    run = copy_until(run_two, EXPORT)
    with changed_manifest(run) as manifest:
        del manifest["stages"][f"int4_eager/{TRAIN}"]["settings"]["POSITION_BITS"]
    done = stage(QUANTIZE, run, *TWO)
    assert done.returncode == 2
    assert "was made by an older version" in done.error and "run its stages again" in done.error


def test_head_that_was_not_trained_is_no_teacher(tiny_model, train_flags):
    """An encoder alone is refused with both ways out; the one without a teacher works."""
    run = new_run()
    done = stage(TRAIN, run, *train_flags)
    assert done.returncode == 2
    assert "--no-distil" in done.error
    assert "finetune_fp32.py" in done.error
    done = stage(TRAIN, run, *train_flags, "--no-distil", "--num-epochs", 1)
    assert done.returncode == 0, done.stderr
    assert not (run_folder(run) / "model_fp32.pth").exists()


def test_file_changed_by_hand_is_refused(run_two, eval_flags):
    """A byte of the packed weights: the chain of SHA-256 no longer holds."""
    run = copy_until(run_two, QUANTIZE)
    path = run_folder(run) / "model_qat_int2.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = stage(EVALUATE, run, *eval_flags)
    assert done.returncode == 2
    assert "model_qat_int2.onnx" in done.error


def test_run_is_packed_and_predicts(run_two, tmp_path):
    """deploy/pack.py takes the run; the folder labels a text; sums need no VNNI, and the manifest says so."""
    done = run_stage_script("pack.py", "--run", run_two, "--dist", tmp_path, "--force", folder="deploy")
    assert done.returncode == 0, done.stderr
    packed = tmp_path / run_two
    manifest = json.loads((packed / "manifest.json").read_text())
    assert "without VNNI" in manifest["cpu_advice"]
    assert manifest["model"] == "onnx/model_quantized.onnx"
    done = run_stage_script("predict.py", "kamar bersih sekali", folder=packed)
    assert done.returncode == 0, done.stderr
    assert any(label in done.stdout for label in ("positive", "neutral", "negative"))


def test_stages_have_the_names_of_their_siblings():
    """int4_eager/ and int8_eager/ have the same four stages, so that they can be read side by side."""
    ours, theirs = (sorted(path.name.replace(kind, "") for path in (ROOT / f"{kind}_eager").glob("*.py"))
                    for kind in ("int4", "int8"))
    assert ours == theirs
    assert len(ours) == 4


def test_benchmark_tells_what_it_has(run_two, finetuned, small_data):
    """benchmarks/low_bits.py: a run that is finished is scored and timed beside rounded files; with none it says so."""
    results = [ROOT / "results" / f"low_bits.{kind}" for kind in ("json", "md", "png")]
    kept = {path: path.read_bytes() for path in results if path.exists()}
    prefix = f"{new_run()}-"
    flags = ("--model-name", finetuned, "--data-dir", small_data, "--prefix", prefix, "--seeds", "901,902",
             "--formats", "w2t4", "--no-train-missing")
    done = run_stage_script("low_bits.py", *flags, folder="benchmarks")
    assert done.returncode == 2
    assert "no such run is finished" in done.error
    shutil.copytree(run_folder(run_two), run_folder(f"{prefix}w2t4-902"))
    try:
        done = run_stage_script("low_bits.py", *flags, "--calibration-texts", 8, "--rounds", 1, "--runs", 2,
                                "--threads", 1, folder="benchmarks")
        assert done.returncode == 0, done.stderr
        found = json.loads(results[0].read_text())
        assert results[2].stat().st_size > 10_000
    finally:
        for path in results:
            path.write_bytes(kept[path]) if path in kept else path.unlink(missing_ok=True)
        shutil.rmtree(run_folder(f"{prefix}w2t4-902"))
    timed = {"FP32", "INT8", "MatMulNBits RTN", "MatMulNBits HQQ", "w2t4 QAT"}
    timed |= {"NNCF 4 bits, OpenVINO"} if importlib.util.find_spec("nncf") else set()
    assert set(found["latency"]["16x64"]) == timed
    assert set(found["files"]) == timed | {"w2t4 rounded", "w2t4 GPTQ"}
    assert found["files"]["w2t4 QAT"]["seeds"] == [902]
    assert {"against_start", "against_rounded"} <= set(found["files"]["w2t4 QAT"])
    assert found["files"]["w2t4 QAT"]["size_mb"] < found["files"]["INT8"]["size_mb"]
