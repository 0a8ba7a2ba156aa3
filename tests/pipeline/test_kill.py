"""Stages killed at many moments: what is there afterwards is whole or refused, and the same command ends well."""

import os
import shutil
import signal
import time

import psutil
import pytest
import torch
from stage_runs import (
    EVALUATE,
    EXPORT,
    QUANTIZE,
    TRAIN,
    Finished,
    copy_of,
    copy_until,
    new_run,
    run_folder,
    run_stage_script,
    stages_in,
)

from lowbit.pipeline.manifest import stages_of

PATIENCE_SECONDS = 30
TRIES = 10


def exists(pattern: str):
    """Moment: a path of the run's folder matches."""
    return lambda folder, _: any(folder.glob(pattern))


def is_recorded(folder) -> bool:
    """Whether the manifest says that the run was trained."""
    return "int8_eager/train_qat_int8.py" in stages_of(folder)


def share(part: float):
    """Moment: a share of the time that the undisturbed stage takes."""
    return lambda _, passed: passed > part


# three steps an epoch: the checkpoints are 3, 6 and 9
TRAINING_MOMENTS = {
    "a tenth": share(0.1), "half": share(0.5),
    "first checkpoint begun": exists("checkpoints/checkpoint-*"),
    "first checkpoint's weights": exists("checkpoints/checkpoint-*/model.safetensors"),
    "first checkpoint's optimizer": exists("checkpoints/checkpoint-*/optimizer.pt"),
    "first checkpoint whole": exists("checkpoints/checkpoint-*/complete.json"),
    "second checkpoint whole": exists("checkpoints/checkpoint-6/complete.json"),
    "last checkpoint whole": exists("checkpoints/checkpoint-9/complete.json"),
    "artifacts begun": exists(".tmp-*/config.json"),
    "weights in place": exists("model_qat.pth"),
    "recorded": lambda folder, _: is_recorded(folder),
}
CONVERTING_MOMENTS = {
    "two thirds": share(0.67),
    "begun": exists(".tmp-*"),
    "file begun": exists(".tmp-*/*.onnx"),
}


@pytest.fixture(scope="module")
def kill(finished_run):
    """Function: run a stage and kill it at a moment; returns what a shell saw."""
    def run_and_kill(name: str, run: str, *flags, moment, seconds: float, sign=signal.SIGKILL) -> Finished:
        started = time.monotonic()
        folder = run_folder(run)
        return run_stage_script(name, "--run", run, *flags, kill_with=sign,
                                kill_when=lambda: moment(folder, (time.monotonic() - started) / seconds))
    return run_and_kill


def timed(name: str, run: str, *flags) -> float:
    """Seconds that a stage takes undisturbed."""
    started = time.monotonic()
    done = run_stage_script(name, "--run", run, *flags)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started


def tensors(run: str) -> dict[str, torch.Tensor]:
    """The trained weights of a run."""
    return torch.load(run_folder(run) / "model_qat.pth", weights_only=True)


def differing(one: dict, other: dict) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    assert list(one) == list(other)
    return [name for name in one if not torch.equal(one[name], other[name])]


def names_in(run: str) -> set[str]:
    """Every name in a run's folder, hidden ones too."""
    return {path.name for path in run_folder(run).iterdir()}


@pytest.fixture(scope="module")
def own_data(small_data, tmp_path_factory):
    """A data folder of this file's own."""
    return shutil.copytree(small_data, tmp_path_factory.mktemp("own") / "data")


@pytest.fixture(scope="module")
def training(train_flags, own_data):
    """(flags of a training of three epochs, its weights undisturbed, the seconds it takes)."""
    flags = (*train_flags, "--data-dir", own_data, "--num-epochs", 3)
    run_stage_script(TRAIN, "--help")  # the libraries are loaded before the clock starts
    run = new_run()
    seconds = timed(TRAIN, run, *flags)
    return flags, tensors(run), seconds


@pytest.fixture(scope="module")
def stopped_training(kill, training, tmp_path_factory):
    """(run, copy of its folder): killed when it had written its first checkpoint and nothing after it."""
    flags, _, seconds = training
    run = new_run()
    for _ in range(TRIES):
        shutil.rmtree(run_folder(run), ignore_errors=True)
        kill(TRAIN, run, *flags, moment=exists("checkpoints/checkpoint-3/complete.json"), seconds=seconds)
        if [path.name for path in run_folder(run).glob("checkpoints/*")] == ["checkpoint-3"]:
            return run, shutil.copytree(run_folder(run), tmp_path_factory.mktemp("stopped") / run)
    pytest.fail(f"{TRIES} kills came too late")


@pytest.fixture
def stopped_run(stopped_training):
    """Name of that run, its folder as the kill left it."""
    run, kept = stopped_training
    shutil.rmtree(run_folder(run))
    shutil.copytree(kept, run_folder(run))
    return run


# ---- stage 1


@pytest.mark.parametrize("moment", TRAINING_MOMENTS.values(), ids=TRAINING_MOMENTS)
def test_killed_training_is_finished_by_the_same_command(kill, training, moment):
    """Nothing of it is exported before; afterwards the weights are those of an undisturbed run, bit for bit."""
    flags, expected, seconds = training
    run = new_run()
    killed = kill(TRAIN, run, *flags, moment=moment, seconds=seconds)
    recorded = is_recorded(run_folder(run))
    assert killed.returncode == -signal.SIGKILL or recorded
    exported = run_stage_script(EXPORT, "--run", run)
    assert exported.returncode == (0 if recorded else 2), exported.stderr
    whole = [path.parent.name for path in run_folder(run).glob("checkpoints/*/complete.json")]
    again = run_stage_script(TRAIN, "--run", run, *flags)
    assert again.returncode == 0, again.stderr
    assert ("resuming from" in again.stdout) == bool(whole)
    assert differing(tensors(run), expected) == []
    assert not any(name.startswith(".tmp-") or name == "checkpoints" for name in names_in(run))
    assert run_stage_script(EXPORT, "--run", run).returncode == 0


def test_training_killed_again_and_again_ends_with_the_same_weights(kill, training):
    """Three kills, each after a further checkpoint."""
    flags, expected, seconds = training
    run = new_run()
    for epoch in (1, 2, 3):
        kill(TRAIN, run, *flags, moment=exists(f"checkpoints/checkpoint-{3 * epoch}/complete.json"), seconds=seconds)
    done = run_stage_script(TRAIN, "--run", run, *flags)
    assert done.returncode == 0, done.stderr
    assert differing(tensors(run), expected) == []


def cut(folder):
    (folder / "complete.json").unlink()
    os.truncate(folder / "model.safetensors", 1000)


def unmark(folder):
    (folder / "complete.json").unlink()


def cut_weights_alone(folder):
    os.truncate(folder / "model.safetensors", 1000)


def cut_optimizer_alone(folder):
    os.truncate(folder / "optimizer.pt", 1000)


def empty_mark(folder):
    (folder / "complete.json").write_text("")


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


def lose_optimizer(folder):
    (folder / "optimizer.pt").unlink()


def lose_random_state(folder):
    (folder / "rng_state.pth").unlink()


@pytest.mark.parametrize("damage", [cut, unmark, cut_weights_alone, cut_optimizer_alone, empty_mark, lose_weights,
                                    lose_optimizer, lose_random_state])
def test_damaged_checkpoint_leads_to_a_clean_start(stopped_run, training, damage):
    """What a kill cut short, while it was written or while it was deleted, goes in words; training begins anew."""
    flags, expected, _ = training
    damage(run_folder(stopped_run) / "checkpoints" / "checkpoint-3")
    done = run_stage_script(TRAIN, "--run", stopped_run, *flags)
    assert done.returncode == 0, done.stderr
    assert f"deleting models/{stopped_run}/checkpoints/checkpoint-3" in done.stdout
    assert "resuming" not in done.stdout
    assert differing(tensors(stopped_run), expected) == []


def test_checkpoint_of_other_settings_is_not_continued(stopped_run, training):
    """Another learning rate after a kill: said so, and the weights are those of that rate alone."""
    flags, _, _ = training
    clean = new_run()
    for run in (stopped_run, clean):
        done = run_stage_script(TRAIN, "--run", run, *flags, "--learning-rate", 5e-4)
        assert done.returncode == 0, done.stderr
        assert ("other settings" in done.stdout) == (run == stopped_run)
    assert differing(tensors(stopped_run), tensors(clean)) == []


def test_checkpoint_of_other_texts_is_not_continued(stopped_run, training, own_data):
    """A corrected row after a kill: training begins anew."""
    flags, expected, _ = training
    before = (own_data / "train.tsv").read_bytes()
    (own_data / "train.tsv").write_bytes(before + b"bagus sekali\tpositive\n")
    try:
        done = run_stage_script(TRAIN, "--run", stopped_run, *flags)
    finally:
        (own_data / "train.tsv").write_bytes(before)
    assert done.returncode == 0, done.stderr
    assert "deleting" in done.stdout
    assert "resuming" not in done.stdout
    assert differing(tensors(stopped_run), expected)


def test_finished_run_survives_a_killed_second_training(kill, training, finished_run, eval_flags):
    """Until new weights are there the old ones are, and everything that came of them."""
    flags, _, seconds = training
    run = copy_of(finished_run)
    before = {path.name: path.read_bytes() for path in run_folder(run).iterdir()}
    killed = kill(TRAIN, run, *flags, "--seed", 7, "--num-epochs", 50, seconds=seconds,
                  moment=exists("checkpoints/*/complete.json"))
    assert killed.returncode == -signal.SIGKILL
    shutil.rmtree(run_folder(run) / "checkpoints")
    assert {path.name: path.read_bytes() for path in run_folder(run).iterdir()} == before
    assert run_stage_script(EVALUATE, "--run", run, *eval_flags).returncode == 0


def test_interrupted_training_says_how_to_go_on(kill, training):
    """Ctrl-C: status 130, one sentence, no traceback; the same command goes on from the checkpoint."""
    flags, _, seconds = training
    flags = (*flags, "--num-epochs", 10)
    run = new_run()
    stopped = kill(TRAIN, run, *flags, moment=exists("checkpoints/*/complete.json"), seconds=seconds,
                   sign=signal.SIGINT)
    assert stopped.returncode == 130
    assert "Traceback" not in stopped.stderr
    assert "interrupted" in stopped.error
    again = run_stage_script(TRAIN, "--run", run, *flags)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stdout


# ---- stages 2 and 3


@pytest.fixture(scope="module")
def seconds_of(finished_run):
    """Stage -> the seconds it takes undisturbed."""
    return {stage: timed(stage, copy_of(finished_run)) for stage in (EXPORT, QUANTIZE)}


@pytest.mark.parametrize("moment", [*CONVERTING_MOMENTS, "file in place", "recorded"])
@pytest.mark.parametrize("stage", [EXPORT, QUANTIZE])
def test_killed_conversion_is_finished_by_the_same_command(kill, finished_run, eval_flags, seconds_of, stage, moment):
    """The next stage refuses what was not recorded; after the same command again it accepts, and nothing is left."""
    before, after, name = {EXPORT: (TRAIN, QUANTIZE, "model_qat.onnx"),
                           QUANTIZE: (EXPORT, EVALUATE, "model_qat_int8.onnx")}[stage]
    when = CONVERTING_MOMENTS.get(moment)
    if moment == "file in place":
        when = exists(name)
    elif moment == "recorded":
        def when(folder, _):
            return f"int8_eager/{stage}" in stages_in(folder)
    run = copy_until(finished_run, before)
    killed = kill(stage, run, moment=when, seconds=seconds_of[stage])
    recorded = f"int8_eager/{stage}" in stages_in(run_folder(run))
    assert killed.returncode == -signal.SIGKILL or recorded
    more = eval_flags if after == EVALUATE else ()
    following = run_stage_script(after, "--run", run, *more)
    assert following.returncode == (0 if recorded else 2), following.stderr
    assert run_stage_script(stage, "--run", run).returncode == 0
    following = run_stage_script(after, "--run", run, *more)
    assert following.returncode == 0, following.stderr
    assert names_in(run) <= names_in(finished_run)


@pytest.mark.parametrize("stage", [EXPORT, QUANTIZE])
def test_finished_file_survives_a_killed_second_conversion(kill, finished_run, eval_flags, seconds_of, stage):
    """Killed while it writes a new one, the old file is there, whole and accepted."""
    run = copy_of(finished_run)
    killed = kill(stage, run, moment=exists(".tmp-*/*.onnx"), seconds=seconds_of[stage])
    assert killed.returncode == -signal.SIGKILL
    done = run_stage_script(EVALUATE, "--run", run, *eval_flags)
    assert done.returncode == 0, done.stderr
    assert names_in(run) == names_in(finished_run)


# ---- stage 4


def test_killed_measurement_leaves_no_process_and_no_half_report(kill, finished_run, eval_flags):
    """Its worker ends with it; the old report stays, and the same command measures again."""
    run = copy_of(finished_run)
    before = (run_folder(run) / "results.json").read_bytes()

    def workers():
        return [process for process in psutil.process_iter(["cmdline"])
                if "lowbit.measure.session_process" in (process.info["cmdline"] or ())
                and run in " ".join(process.info["cmdline"])]

    killed = kill(EVALUATE, run, *eval_flags, moment=lambda *_: len(workers()) == 1, seconds=1)
    assert killed.returncode == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers(), timeout=PATIENCE_SECONDS)
    assert alive == []
    assert (run_folder(run) / "results.json").read_bytes() == before
    done = run_stage_script(EVALUATE, "--run", run, *eval_flags)
    assert done.returncode == 0, done.stderr
    assert names_in(run) == names_in(finished_run)
