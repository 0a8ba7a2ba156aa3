"""Processes that hold one ONNX file each: refused providers, dead workers, rows in their own order."""

import os
import pickle
import signal
import threading

import numpy as np
import onnxruntime as ort
import pytest

from lowbit.data.tokens import pad, width
from lowbit.measure.session import (
    Session,
    full_batches,
    random_inputs,
    require_provider,
    sorted_batches,
    take_turns,
)
from lowbit.pipeline.errors import UserError

CPU = "CPUExecutionProvider"
PATIENCE_SECONDS = 60


@pytest.fixture
def patience():
    """A hang becomes a failure."""
    def give_up(*_):
        raise TimeoutError("still waiting for the worker")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def session(finished_folder, patience):
    """The FP32 file of the tiny run in a process of its own."""
    with Session(finished_folder / "model_qat.onnx", CPU, 1) as opened:
        yield opened


@pytest.fixture(scope="module")
def rows():
    """37 rows of token ids of different lengths, none like another."""
    generator = np.random.default_rng(0)
    return [{"input_ids": generator.integers(5, 400, length).tolist()}
            for length in generator.permutation(np.arange(3, 40))]


@pytest.fixture(scope="module")
def expected(finished_folder, rows):
    """Their logits, each row asked alone of ONNX Runtime in this process."""
    plain = ort.InferenceSession(finished_folder / "model_qat.onnx", providers=[CPU])
    return np.concatenate([plain.run(["logits"], pad([row], 0))[0] for row in rows])


def test_present_provider_is_accepted():
    """The CPU is always there."""
    require_provider(CPU)


@pytest.mark.parametrize("provider", ["NoSuchExecutionProvider", "cpu", ""])
def test_absent_provider_is_refused_with_those_that_are_there(provider, tmp_path):
    """Nothing falls back to the CPU in silence; no process is started."""
    for refuse in (require_provider, lambda name: Session(tmp_path / "absent.onnx", name, 1)):
        with pytest.raises(UserError) as refusal:
            refuse(provider)
        for words in ("PROVIDER", repr(provider), CPU):
            assert words in str(refusal.value)


def test_logits_are_those_of_the_file(session, rows, expected):
    """The other process computes what this one would."""
    np.testing.assert_allclose(session.logits(rows, 0), expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 37, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_rows_come_back_in_their_own_order(session, rows, expected, batch_size, seed):
    """Whatever order they were run in and however they were batched and padded."""
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    np.testing.assert_allclose(session.logits(rows, 0, batch_size, order), expected, atol=1e-5)
    np.testing.assert_allclose(session.logits(rows, 0, batch_size), expected, atol=1e-5)


def test_order_decides_who_is_batched_with_whom(finished_folder, rows, patience):
    """In an INT8 file a text's logits depend on its batch-mates: another order, other last digits."""
    with Session(finished_folder / "model_qat_int8.onnx", CPU, 1) as opened:
        alone = opened.logits(rows, 0)
        backwards = list(reversed(range(len(rows))))
        np.testing.assert_array_equal(opened.logits(rows, 0, 1, backwards), alone)
        assert np.abs(opened.logits(rows, 0, 8) - alone).max() > 0
        assert np.abs(opened.logits(rows, 0, 8, backwards) - opened.logits(rows, 0, 8)).max() > 0


def test_worker_that_died_is_reported(session, rows):
    """Between two questions: the file is named, nothing hangs, and closing is still possible."""
    session.logits(rows[:2], 0)
    os.kill(session.process.pid, signal.SIGKILL)
    session.process.wait()
    with pytest.raises(RuntimeError, match="model_qat.onnx.*died"):
        session.logits(rows, 0)
    session.close()


def test_worker_that_dies_at_work_is_reported(session):
    """In the middle of a long question, such as when the system runs out of memory."""
    long = random_inputs(400, 8, 128, 500)
    killer = threading.Timer(0.5, os.kill, (session.process.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(RuntimeError, match="model_qat.onnx.*died"):
        session.milliseconds(long * 20)
    killer.join()


def test_answer_cut_short_is_reported(session, monkeypatch, tmp_path):
    """The worker died while it was answering."""
    whole = pickle.dumps(([np.zeros((1, 3))], [1.0]))
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    os.kill(session.process.pid, signal.SIGKILL)
    with open(tmp_path / "half", "rb") as half:
        monkeypatch.setattr(session.process, "stdout", half)
        with pytest.raises(RuntimeError, match="model_qat.onnx.*died"):
            session._read()
        monkeypatch.undo()


def test_file_that_is_no_model_is_reported(tmp_path, patience):
    """With ONNX Runtime's reason, and no process left waiting."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(RuntimeError, match="broken.onnx"):
        Session(broken, CPU, 1)


def test_closed_session_leaves_no_process(finished_folder, patience):
    """Nor does one whose block ended in an error."""
    def fail():
        with Session(finished_folder / "model_qat.onnx", CPU, 1) as opened:
            processes.append(opened.process)
            raise ValueError("stop")

    processes = []
    with pytest.raises(ValueError, match="stop"):
        fail()
    assert processes[0].poll() == 0


def test_each_file_reports_its_own_memory(session, rows):
    """More than an interpreter, less than this process with torch in it."""
    session.logits(rows, 0)
    assert 20 < session.peak_memory_mb() < 400


def test_every_measured_run_counts_once(session, finished_folder):
    """One time a batch, of every batch that is asked for, each file in a process of its own."""
    inputs = random_inputs(400, 1, 8, 7)
    times = session.milliseconds(inputs)
    assert len(times) == 7
    assert min(times) > 0
    path = finished_folder / "model_qat.onnx"
    turns = take_turns({"FP32": (path, "onnxruntime"), "broken": (path.with_name("none.onnx"), "onnxruntime")},
                       {"1x8": inputs, "sorted": inputs[:2]}, CPU, 1)
    assert [len(turns["FP32"]["ms"][key]) for key in ("1x8", "sorted")] == [7, 2]
    assert turns["FP32"]["peak_memory_mb"] > 20
    assert 1 < turns["FP32"]["load_ms"] < 10_000
    assert "none.onnx" in turns["broken"]["error"]


def test_batches_for_speed_hold_every_text_once(rows):
    """Sorted ones waste little on padding, full ones are all of one width."""
    slim, full = sorted_batches(rows, 0, 8), full_batches(rows, 0, 8, 50)
    for made in (slim, full):
        assert sum(batch["attention_mask"].sum() for batch in made) == sum(map(width, rows))
        assert sum(len(batch["input_ids"]) for batch in made) == len(rows)
    assert {batch["input_ids"].shape[1] for batch in full} == {50}
    waste = sum(batch["attention_mask"].size for batch in slim) / sum(map(width, rows))
    assert waste < 1.2
