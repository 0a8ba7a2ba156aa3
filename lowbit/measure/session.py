"""Measuring ONNX files fairly: each in a process of its own, the processes taking turns.

Two sessions in one process spin on each other's cores: it doubled latencies on two cores and turned a 3.3x
speed-up into 1.3x.
"""

import contextlib
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lowbit.data.tokens import INPUT_NAMES, PAIR_INPUT, Row, batches, pad
from lowbit.measure.session_process import OPENERS
from lowbit.pipeline.errors import UserError

WARMUP = 5  # batches that are run and not counted, each time a process gets its turn


def require_provider(provider: str) -> None:
    """Raises UserError unless this onnxruntime has the execution provider; nothing falls back silently."""
    available = ort.get_available_providers()
    if provider not in available:
        raise UserError(f"PROVIDER {provider!r} is not in this onnxruntime, which has {', '.join(available)}: "
                        "choose one of these, or install the onnxruntime build that has it")


def require_runtime(runtime: str) -> None:
    """Raises UserError unless `runtime` is one of ours and installed."""
    if runtime not in OPENERS:
        raise UserError(f"RUNTIME is {runtime!r}; choose {' or '.join(OPENERS)}")
    if importlib.util.find_spec(runtime) is None:
        raise UserError(f"RUNTIME is {runtime!r}, which is not installed: `pip install -r requirements-{runtime}.txt`, "
                        "or choose onnxruntime")


class Session:
    """An ONNX file in a process of its own; use as a context manager. `provider` is ONNX Runtime's."""

    def __init__(self, path: Path, provider: str, threads: int, runtime: str = "onnxruntime"):
        require_runtime(runtime)
        if runtime == "onnxruntime":
            require_provider(provider)
        elif provider != "CPUExecutionProvider":
            raise UserError(f"PROVIDER is {provider!r}, but RUNTIME {runtime} runs on the CPU: drop one of the two")
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lowbit.measure.session_process", str(path), runtime, provider, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        problem = self._read()
        if problem:
            self.close()
            if problem.endswith("on this machine"):
                raise UserError(f"PROVIDER: {problem.removeprefix('RuntimeError: ')}; choose another")
            raise RuntimeError(f"{path}: {problem}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        with contextlib.suppress(BrokenPipeError):  # a request that a dead process never took
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _read(self):
        try:
            return pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._death() from None

    def _death(self) -> RuntimeError:
        self.process.kill()  # it may be waiting for a request that will not come
        return RuntimeError(f"the process running {self.path} died (exit status {self.process.wait()})")

    def _ask(self, command: str, inputs: list[dict], warmup: int = 0):
        try:
            pickle.dump((command, inputs, warmup), self.process.stdin)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        return self._read()

    def logits(self, rows: list[Row], pad_id: int, batch_size: int = 1, order: list[int] | None = None,
               length: int = 0):
        """Logits [n, outputs] of the rows in their own order, run in batches of consecutive rows (of `order`).

        A batch is padded to its longest row, or to `length`.
        """
        order = order or list(range(len(rows)))
        groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        stacked = self.outputs([pad([rows[i] for i in group], pad_id, length) for group in groups])
        result = np.empty_like(stacked)
        result[order] = stacked
        return result

    def outputs(self, inputs: list[dict]) -> np.ndarray:
        """Logits [n, outputs] of batches of any inputs, in their order."""
        return np.concatenate(self._ask("logits", inputs)[0]).astype(np.float32, copy=False)

    def milliseconds(self, inputs: list[dict], warmup: int = WARMUP) -> list[float]:
        """Time of each batch in ms, after `warmup` uncounted ones."""
        return self._ask("time", inputs, warmup)[1]

    def peak_memory_mb(self) -> float:
        """Largest resident memory of the process so far."""
        return self._ask("memory", [])

    def load_ms(self) -> float:
        """Time that the process took from the file's path to a session that can run, its imports aside."""
        return self._ask("load", [])


def random_inputs(vocab_size: int, batch: int, length: int, count: int,
                  names: tuple[str, ...] = INPUT_NAMES) -> list[dict]:
    """`count` unpadded batches [batch, length] of random token ids; of pairs, the second half is the second text."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (count, batch, length)).tolist()
    kinds = {PAIR_INPUT: [0] * (length - length // 2) + [1] * (length // 2)} if PAIR_INPUT in names else {}
    return [pad([{"input_ids": row, **kinds} for row in rows], 0) for rows in ids]


def sorted_batches(rows: list[Row], pad_id: int, batch_size: int) -> list[dict]:
    """Length-sorted batches padded to their own longest row."""
    return [pad([rows[i] for i in group], pad_id) for group in batches(rows, batch_size, sort=True)]


def full_batches(rows: list[Row], pad_id: int, batch_size: int, length: int) -> list[dict]:
    """Batches in the file's order, all padded to `length`: what `padding="max_length"` makes."""
    return [pad([rows[i] for i in group], pad_id, length) for group in batches(rows, batch_size, sort=False)]


def take_turns(files: dict[str, tuple[Path, str]], timed: dict[str, list[dict]], provider: str,
               threads: int, warmup: int = WARMUP) -> dict[str, dict]:
    """One turn of each (file, runtime), in a process of its own.

    Name -> {"ms": key of `timed` -> ms of each batch, `warmup` uncounted ones aside, "peak_memory_mb", "load_ms"}, or
    {"error"} of a file that cannot run.
    """
    turns = {}
    for name, (path, runtime) in files.items():
        try:
            with Session(path, provider, threads, runtime) as session:
                turns[name] = {"ms": {key: session.milliseconds(inputs, warmup) for key, inputs in timed.items()},
                               "peak_memory_mb": session.peak_memory_mb(), "load_ms": session.load_ms()}
        except RuntimeError as error:
            turns[name] = {"error": str(error)}
    return turns
