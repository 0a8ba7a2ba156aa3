"""A file of texts explained, a line of JSON a text, by several processes, and continued where a kill stopped it.

The first line is {"format", "run", "task", "settings", "files", "texts", "reader": digests of the files that texts are
read by}. Each other one is {"line", "answer", and a record (see explain.py)}, or {"line", "answer", "texts", "refused":
the reason} of a text that cannot be explained.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch

from lowbit.data.task import Task
from lowbit.data.tsv import Text, read_tsv
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import run_dir, sha256, shown
from lowbit.pipeline.manifest import recorded
from lowbit.training.encoder import RUN_FILES
from lowbit.xai.explain import FORMAT, Explainer
from lowbit.xai.files import FP32

EXPLANATIONS, UNFINISHED = "explanations.jsonl", "explanations.unfinished.jsonl"
STAGE = "xai/explain_tsv.py"
_explainer: Explainer  # of a worker process


def read_texts(path: Path, task: Task) -> tuple[list[Text], list]:
    """(texts, answers) of a TSV as training reads it, or of a .txt of a text a line, whose answers are None."""
    if path.suffix != ".txt":
        return read_tsv(path, task)
    if task.pairs:
        raise UserError(f"{shown(path)} has a text a line, but the run was trained on pairs: name a TSV of "
                        f"{', '.join((*task.texts, task.answer))}")
    try:
        texts: list[Text] = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{shown(path)} is missing: name a TSV, or a .txt of a text a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is not UTF-8 at byte {error.start + 1}: save it as UTF-8") from None
    if not texts:
        raise UserError(f"{shown(path)} holds no text")
    return texts, [None] * len(texts)


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _open(run: str, settings: dict, floors: bool) -> None:
    """Start a worker process: it says nothing, leaves Ctrl-C to its parent, and ends with it, however that ends."""
    global _explainer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        _explainer = Explainer(run_dir(run), settings, floors, threads=1).__enter__()


def explained(explainer: Explainer, text: Text, known: dict | None = None) -> dict:
    """The record of a text, or why it cannot be explained; FP32's part is taken from a `known` record."""
    try:
        return explainer.record(text, known)
    except UserError as error:
        return {"texts": [text] if isinstance(text, str) else list(text), "refused": str(error)}


def _explain(text: Text, known: dict | None) -> dict:
    return explained(_explainer, text, known)


def records(explainer: Explainer, run: str, settings: dict, texts: list[Text], known: list,
            workers: int) -> Iterator[dict]:
    """A record a text, in order, FP32's part from those `known` (None: not).

    With more than one worker from processes that open the run themselves.
    """
    if workers == 1:
        with explainer:
            yield from map(partial(explained, explainer), texts, known)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _open,
                               (run, settings, explainer.floors))
    try:
        yield from pool.map(_explain, texts, known)
    except BrokenProcessPool:
        raise UserError("a process that explained ended, for want of memory perhaps: run the same command again to go "
                        "on, with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _line(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def done_lines(path: Path, head: dict) -> int:
    """How many texts an unfinished file of this very head holds; what a kill cut short in it is taken away.

    A file of another head is deleted, in words.
    """
    if not path.exists():
        return 0
    held = path.read_bytes()
    whole = held[: held.rfind(b"\n") + 1]
    if not whole.startswith(_line(head).encode()):
        print(f"deleting {shown(path)}: it was begun with other settings, texts or files")
        path.unlink()
        return 0
    if len(whole) < len(held):
        with open(path, "r+b") as handle:
            handle.truncate(len(whole))
    return whole.count(b"\n") - 1


def write_lines(path: Path, head: dict, found: Iterator[dict], start: int, answers: list, total: int) -> None:
    """Append a line a record; a count a tenth of the way on the terminal."""
    with open(path, "a" if start else "w", encoding="utf-8") as out:
        if not start:
            out.write(_line(head))
        for number, record in enumerate(found, start):
            out.write(_line({"line": number + 1, "answer": answers[number], **record}))
            out.flush()
            if (number + 1) % max(total // 10, 1) == 0:
                print(f"  {number + 1} of {total} texts", flush=True)
        os.fsync(out.fileno())


def head_of(run: str, explainer: Explainer, settings: dict, files: dict, texts: dict) -> dict:
    """The first line, which an unfinished file must have to be continued."""
    folder = run_dir(run)
    reader = {name: sha256(folder / name) for name in RUN_FILES}
    return {"format": FORMAT, "run": run, "task": explainer.task.as_json(), "settings": settings, "files": files,
            "texts": texts, "reader": reader}


def made_before(results: Path, head: dict) -> tuple[str, list[dict]]:
    """(run, lines) of other explanations of the same texts and FP32 file by the same settings, ("", []) of none.

    Two low-bit files of one FP32 model share it: it is explained once.
    """
    def same(other):
        return (all(other[key] == head[key] for key in ("format", "task", "texts", "reader"))
                and {**other["settings"], "FILES": ""} == {**head["settings"], "FILES": ""}
                and other["files"][FP32]["sha256"] == head["files"][FP32]["sha256"])

    for path in sorted(results.glob(f"*/{EXPLANATIONS}")):
        with contextlib.suppress(UserError, KeyError):  # of another version, or changed: not to be used
            other, lines = read_explanations(path.parent)
            if same(other):
                return other["run"], lines
    return "", []


def read_explanations(folder: Path) -> tuple[dict, list[dict]]:
    """(first line, the others) of a run's explanations; raises UserError unless they are what was recorded last."""
    (path,) = recorded(folder, STAGE, EXPLANATIONS)
    with open(path, encoding="utf-8") as lines:
        head = json.loads(next(lines))
        if head.get("format") != FORMAT:
            raise UserError(f"{shown(path)} has format {head.get('format')}, this version reads {FORMAT}: run "
                            f"`python {STAGE} {folder.name}` again")
        return head, [json.loads(line) for line in lines]


def refuse_other_files(head: dict, explainer: Explainer) -> None:
    """Raise UserError if a file of the run was made anew since its explanations were."""
    for name, held in head["files"].items():
        if sha256(explainer.files[name].path) != held["sha256"]:
            raise UserError(f"{held['file']} was made anew since it was explained: run `python {STAGE} {head['run']}` "
                            "again")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
