"""A user's mistakes, by path: exit 2, one sentence that says what and where, no traceback, nothing half-written."""

import contextlib
import json
import os
import shutil
import subprocess

import pytest
from stage_runs import (
    EVALUATE,
    EXPORT,
    ORDER,
    QUANTIZE,
    ROOT,
    TRAIN,
    Finished,
    changed_manifest,
    contents,
    copy_of,
    copy_until,
    new_run,
    run_folder,
    run_stage_script,
    stages_in,
)

AFTER = {TRAIN: EXPORT, EXPORT: QUANTIZE, QUANTIZE: EVALUATE}
MAIN_FILE = {TRAIN: "model_qat.pth", EXPORT: "model_qat.onnx", QUANTIZE: "model_qat_int8.onnx"}
PAGE = 4096  # bytes in which a tmpfs counts


def assert_refused(done: Finished, *said: str) -> str:
    """Exit 2 and one sentence holding these words, at the end of stderr; returns it."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.error
    return done.error


@pytest.fixture(scope="module")
def other_run(finished_run):
    """A run of the same settings whose weights were trained from another seed."""
    trained = stages_in(run_folder(finished_run))[f"int8_eager/{TRAIN}"]["settings"]
    run = new_run()
    for name, flags in ((TRAIN, ("--model-name", trained["MODEL_NAME"], "--data-dir", trained["DATA_DIR"],
                                 "--num-epochs", 1, "--seed", 7)), (EXPORT, ()), (QUANTIZE, ())):
        done = run_stage_script(name, "--run", run, *flags)
        assert done.returncode == 0, done.stderr
    return run


# ---- order of the stages


@pytest.mark.parametrize("stage", AFTER)
def test_stage_before_its_predecessor(finished_run, stage):
    """The missing file and the command that makes it are named; it does not matter what else is there."""
    run = copy_of(finished_run)
    (run_folder(run) / MAIN_FILE[stage]).unlink()
    assert_refused(run_stage_script(AFTER[stage], "--run", run), f"models/{run}/{MAIN_FILE[stage]} is missing",
                   f"python int8_eager/{stage} --run {run}")


@pytest.mark.parametrize("stage", AFTER.values())
def test_run_that_does_not_exist(stage):
    """No folder is made for it."""
    run = new_run()
    assert_refused(run_stage_script(stage, "--run", run), f"models/{run}/", "missing")
    assert not run_folder(run).exists()


@pytest.mark.parametrize("stage", AFTER)
def test_artifact_of_another_run(finished_run, other_run, stage):
    """Copied in under the right name: both stages know what they wrote."""
    run = copy_of(finished_run)
    shutil.copy(run_folder(other_run) / MAIN_FILE[stage], run_folder(run))
    assert_refused(run_stage_script(AFTER[stage], "--run", run), f"models/{run}/{MAIN_FILE[stage]}", stage)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessing.json"])
def test_edited_side_file(finished_run, name):
    """What goes with the weights to the server is guarded as the weights are."""
    run = copy_of(finished_run)
    path = run_folder(run) / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert_refused(run_stage_script(EVALUATE, "--run", run), f"models/{run}/{name}", TRAIN)


def test_training_again_outdates_what_came_of_it(finished_run, other_run):
    """A new training in an old run: exporting is asked for before quantizing or measuring."""
    run = copy_of(finished_run)
    for name in ("model_qat.pth", "training.json"):
        shutil.copy(run_folder(other_run) / name, run_folder(run))
    others = stages_in(run_folder(other_run))
    with changed_manifest(run) as manifest:
        manifest["stages"][f"int8_eager/{TRAIN}"] = others[f"int8_eager/{TRAIN}"]
    for stage in (QUANTIZE, EVALUATE):
        assert_refused(run_stage_script(stage, "--run", run), "model_qat.pth", EXPORT)


# ---- settings that cannot work


@pytest.mark.parametrize(("flags", "said"), [
    (("--num-epochs", 0), ("NUM_EPOCHS is 0",)),
    (("--num-epochs", -1), ("NUM_EPOCHS is -1",)),
    (("--batch-size", 0), ("BATCH_SIZE is 0",)),
    (("--learning-rate", 0), ("LEARNING_RATE is 0",)),
    (("--learning-rate", "nan"), ("LEARNING_RATE",)),
    (("--learning-rate", "inf"), ("LEARNING_RATE",)),
    (("--weight-decay", -1), ("WEIGHT_DECAY is -1",)),
    (("--warmup-ratio", 1), ("WARMUP_RATIO is 1",)),
    (("--num-labels", 4), ("NUM_LABELS is 4", "positive, neutral, negative")),
    (("--cleaning", "full"), ("CLEANING is 'full'", "documents, negation-safe, minimal")),
    (("--max-length", 2), ("MAX_LENGTH is 2",)),
    (("--max-length", 129), ("MAX_LENGTH is 129", "128")),
    (("--seed", -1), ("SEED",)),
    (("--seed", 2**32), ("SEED",)),
    (("--run", "a/b"), ("RUN is 'a/b'",)),
    (("--run", ".."), ("RUN is '..'",)),
    (("--run", ""), ("RUN is ''",)),
    (("--model-name", "models/no-such-encoder"), ("models/no-such-encoder", "models/bert-mini-id")),
    (("--model-name", "/no/such/encoder"), ("/no/such/encoder", "models/bert-mini-id")),
    (("--model-name", ""), ("MODEL_NAME",)),
    (("--data-dir", "no/such/data"), ("no/such/data/train.tsv is missing", "data/download_smsa.py")),
], ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) and str(value[0]).startswith("--") else "")
def test_setting_that_cannot_train(train_flags, flags, said):
    """The constant and its value are named; no folder is left that a run could be taken for."""
    run = new_run()
    assert_refused(run_stage_script(TRAIN, "--run", run, *train_flags, *flags), *said)
    assert not (run_folder(run) / "manifest.json").exists()


def test_hub_name_without_network(train_flags):
    """The default encoder cannot be fetched offline: the bundled one is offered."""
    done = run_stage_script(TRAIN, "--run", new_run(), *train_flags, "--model-name", "indobenchmark/no-such-model")
    assert_refused(done, "indobenchmark/no-such-model", "--model-name models/bert-mini-id", "94b4e0a82081")


@pytest.mark.parametrize(("stage", "flags", "said"), [
    (EXPORT, ("--opset", 16), ("OPSET is 16", "17")),
    (EXPORT, ("--opset", 99), ("OPSET is 99",)),
    (QUANTIZE, ("--per-channel",), ("PER_CHANNEL is True", "trained with False")),
    (EVALUATE, ("--provider", "NoSuchExecutionProvider"), ("NoSuchExecutionProvider", "CPUExecutionProvider")),
    (EVALUATE, ("--rounds", 0), ("ROUNDS is 0",)),
    (EVALUATE, ("--runs", -3), ("RUNS is -3",)),
    (EVALUATE, ("--batch-size", 0), ("BATCH_SIZE is 0",)),
    (EVALUATE, ("--threads", -1), ("THREADS is -1",)),
    (EVALUATE, ("--data-dir", "no/such/data"), ("no/such/data/", "is missing")),
])
def test_setting_that_later_stages_refuse(finished_run, eval_flags, stage, flags, said):
    """The files of the run stay as they are."""
    folder = run_folder(finished_run)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    more = eval_flags if stage == EVALUATE else ()
    assert_refused(run_stage_script(stage, "--run", finished_run, *more, *flags), *said)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_training_that_diverges(train_flags):
    """A learning rate at which the loss is no number any more: said so, with the setting to change."""
    done = run_stage_script(TRAIN, "--run", new_run(), *train_flags, "--learning-rate", 1e6)
    assert_refused(done, "LEARNING_RATE")


# ---- files that cannot be used


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_bad_row(train_flags, small_data, tmp_path, split):
    """File and line number, before the model is loaded; all three files are read before training starts."""
    data = shutil.copytree(small_data, tmp_path / "data")
    with open(data / f"{split}.tsv", "a") as rows:
        rows.write("bagus sekali\tpositif\n")
    lines = (data / f"{split}.tsv").read_text().count("\n")
    done = run_stage_script(TRAIN, "--run", new_run(), *train_flags, "--data-dir", data)
    assert_refused(done, f"{split}.tsv has 1 bad row", f"line {lines} ", "'positif'")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_missing_split(train_flags, small_data, tmp_path, split):
    """Named, with both ways to get it."""
    data = shutil.copytree(small_data, tmp_path / "data")
    (data / f"{split}.tsv").unlink()
    done = run_stage_script(TRAIN, "--run", new_run(), *train_flags, "--data-dir", data)
    assert_refused(done, f"{data}/{split}.tsv is missing", "data/download_smsa.py")


def test_run_name_that_is_a_file(train_flags):
    """models/README.md is not a run."""
    run = new_run()
    run_folder(run).write_text("a file")
    assert_refused(run_stage_script(TRAIN, "--run", run, *train_flags), run)
    assert run_folder(run).read_text() == "a file"


def test_run_that_another_stage_began(finished_run, train_flags):
    """Training in FP16 under the name of an INT8 run changes nothing of it."""
    run = copy_of(finished_run)
    before = contents(run_folder(run))
    done = run_stage_script("train_qat_fp16.py", "--run", run, *train_flags, folder="fp16_eager")
    assert_refused(done, f"int8_eager/{TRAIN} began", "choose a new name for RUN")
    assert contents(run_folder(run)) == before


def test_run_folder_with_a_model_of_the_users_own(tiny_model, train_flags):
    """A model that was copied under models/ is not trained over."""
    run = new_run()
    shutil.copytree(tiny_model, run_folder(run))
    before = contents(run_folder(run))
    assert_refused(run_stage_script(TRAIN, "--run", run, *train_flags), "which no stage recorded", "choose a new name")
    assert contents(run_folder(run)) == before


def cut_weights(folder):
    os.truncate(folder / "model.safetensors", 1000)


def cut_weights_late(folder):
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 4)


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def break_config(folder):
    (folder / "config.json").write_text("{")


def remove_config(folder):
    (folder / "config.json").unlink()


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": ')


def smaller_table(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))


@pytest.mark.parametrize("damage", [cut_weights, cut_weights_late, remove_weights, break_config, remove_config,
                                    break_tokenizer, smaller_table])
def test_damaged_encoder(tiny_model, train_flags, tmp_path, damage):
    """A download that broke off, or the files of two models in one folder: the folder is named."""
    broken = shutil.copytree(tiny_model, tmp_path / "encoder")
    damage(broken)
    done = run_stage_script(TRAIN, "--run", new_run(), *train_flags, "--model-name", broken)
    assert_refused(done, str(broken))


# ---- disks


@contextlib.contextmanager
def small_disk(run: str, size: int, source: str | None = None):
    """A file system of `size` bytes in the place of the run's folder, holding a copy of the run `source`."""
    folder = run_folder(run)
    folder.mkdir()
    options = f"size={-(-size // PAGE) * PAGE}"
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
                                           capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root and mount")
    try:
        if source:
            shutil.copytree(run_folder(source), folder, dirs_exist_ok=True)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def leave_free(folder, free: int) -> None:
    """Fill the disk under `folder` but for `free` bytes, rounded up to whole pages."""
    disk = os.statvfs(folder)
    pages = disk.f_bavail * disk.f_frsize // PAGE - -(-free // PAGE)
    (folder / "filler").write_bytes(bytes(pages * PAGE))


def bytes_of(folder, *names) -> int:
    """Whole pages that these files take."""
    return sum(-(-(folder / name).stat().st_size // PAGE) * PAGE for name in names)


def assert_nothing_half_written(folder, stage: str) -> None:
    """No scratch folder stays, and the next stage does not take what is there for the finished thing."""
    assert list(folder.glob(".tmp-*")) == []
    assert_refused(run_stage_script(AFTER[stage], "--run", folder.name), stage, f"--run {folder.name}")


# free pages, counted in files of the tiny run: the first checkpoint's weights, its optimizer state, the final files
ROOM_FOR_TRAINING = {"half the weights of a checkpoint": 0.5, "no optimizer state": 1.3, "half the optimizer state": 2,
                     "half the artifacts": 3.4}


@pytest.mark.parametrize("weights", ROOM_FOR_TRAINING.values(), ids=ROOM_FOR_TRAINING)
def test_full_disk_while_training(train_flags, finished_folder, weights):
    """Wherever the space runs out: one sentence; after making room the same command succeeds."""
    run = new_run()
    with small_disk(run, 8 << 20) as folder:
        leave_free(folder, int(weights * (finished_folder / "model_qat.pth").stat().st_size))
        flags = ("--run", run, *train_flags, "--num-epochs", 1)
        assert_refused(run_stage_script(TRAIN, *flags), "space")
        assert_nothing_half_written(folder, TRAIN)
        assert all((path / "complete.json").exists() for path in folder.glob("checkpoints/checkpoint-*"))
        (folder / "filler").unlink()
        done = run_stage_script(TRAIN, *flags)
        assert done.returncode == 0, done.stderr
        assert run_stage_script(EXPORT, "--run", run).returncode == 0


@pytest.mark.parametrize("room", ["half the file", "no manifest"])
@pytest.mark.parametrize("stage", [EXPORT, QUANTIZE])
def test_full_disk_while_converting(finished_run, finished_folder, stage, room):
    """Half an ONNX file, or a whole one that could not be recorded: neither is taken by the next stage."""
    run = new_run()
    with small_disk(run, 8 << 20, copy_until(finished_run, ORDER[ORDER.index(stage) - 1])) as folder:
        written = stages_in(finished_folder)[f"int8_eager/{stage}"]["writes"]
        leave_free(folder, bytes_of(finished_folder, *written) if room == "no manifest" else
                   (finished_folder / MAIN_FILE[stage]).stat().st_size // 2)
        assert_refused(run_stage_script(stage, "--run", run), "space")
        assert_nothing_half_written(folder, stage)
        (folder / "filler").unlink()
        done = run_stage_script(stage, "--run", run)
        assert done.returncode == 0, done.stderr
        assert f" --run {run}" in done.stdout  # the next command is of this run, whatever it was called in training


def test_full_disk_while_measuring(finished_run, eval_flags):
    """The old report stays whole."""
    run = new_run()
    with small_disk(run, 8 << 20, finished_run) as folder:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        leave_free(folder, PAGE)
        assert_refused(run_stage_script(EVALUATE, "--run", run, *eval_flags), "space")
        (folder / "filler").unlink()
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("stage", [TRAIN, EXPORT, QUANTIZE, EVALUATE])
def test_read_only_disk(finished_run, train_flags, eval_flags, stage):
    """Said so, and the run is as it was."""
    run = new_run()
    flags = {TRAIN: train_flags, EVALUATE: eval_flags}.get(stage, ())
    with small_disk(run, 8 << 20, finished_run) as folder:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        assert_refused(run_stage_script(stage, "--run", run, *flags), "read-only", run)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_stages_run_from_anywhere(finished_run, tmp_path):
    """The folder of the shell does not matter: models/ and data/ are those of the project."""
    done = run_stage_script(EXPORT, "--run", copy_of(finished_run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert (ROOT / "models").is_dir()
