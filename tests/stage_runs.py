"""Stage scripts run by path, as a shell runs them, and the folders that such runs leave under models/."""

import contextlib
import glob
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAIN, EXPORT = "train_qat_int8.py", "export_to_onnx.py"
QUANTIZE, EVALUATE = "quantize_onnx_int8.py", "eval_onnx_int8.py"
ORDER = (TRAIN, EXPORT, QUANTIZE, EVALUATE)
# one thread and no GPU: results are equal bit for bit, and waiting threads do not slow a busy machine down
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
               "TOKENIZERS_PARALLELISM": "false"}
POLL_SECONDS = 0.001

_numbers = itertools.count(1)
_made: list[Path] = []
_warm: list[subprocess.Popen] = []


@dataclass
class Finished:
    """What a shell sees of a command that ended; `returncode` is -9 after SIGKILL."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The refusal: the one `error:` on stderr, to its end."""
        parts = ("\n" + self.stderr).split("\nerror: ")
        assert len(parts) == 2, f"not exactly one error sentence:\n{self.stderr}"
        return parts[1].strip()


def new_run() -> str:
    """A run name that nothing else uses; its folder under models/ is deleted when the tests end."""
    name = f"test-{os.getpid()}-{next(_numbers)}"
    _made.append(ROOT / "models" / name)
    return name


def run_folder(run: str) -> Path:
    """models/<run>."""
    return ROOT / "models" / run


def copy_of(run: str) -> str:
    """A new run whose folder is a copy of another's, as `cp -r` makes it."""
    name = new_run()
    shutil.copytree(run_folder(run), run_folder(name))
    return name


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name; of a link, what it points to."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}


def copy_until(run: str, stage: str) -> str:
    """A new run as the finished one was right after `stage`: later files and records are taken away."""
    name = copy_of(run)
    with changed_manifest(name) as manifest:
        for later in ORDER[ORDER.index(stage) + 1:]:
            for file in manifest["stages"].pop(f"int8_eager/{later}", {"writes": ()})["writes"]:
                (run_folder(name) / file).unlink()
            if later == QUANTIZE:
                manifest.pop("ships", None)
    return name


def stages_in(folder: Path) -> dict[str, dict]:
    """What the stages recorded in a run's manifest."""
    return json.loads((folder / "manifest.json").read_text())["stages"]


@contextlib.contextmanager
def changed_manifest(run: str):
    """The manifest of a run, written back as it is left."""
    path = run_folder(run) / "manifest.json"
    manifest = json.loads(path.read_text())
    yield manifest
    path.write_text(json.dumps(manifest))


def ended_well(run: str, stages: dict[str, Finished]) -> str:
    """The run's name, if each of its stages ended with status 0."""
    for name, done in stages.items():
        assert done.returncode == 0, f"{name}:\n{done.stderr}"
    return run


def remove_runs() -> None:
    """Delete the folders of every run that new_run named and end the warm process."""
    for folder in _made:
        named_after_it = folder.parent.glob(f"{glob.escape(folder.name)}-*")  # by stages
        for path in (folder, *named_after_it):
            shutil.rmtree(path, ignore_errors=True)
        folder.unlink(missing_ok=True)
    for process in _warm:
        process.stdin.close()
        process.wait()
    _warm.clear()


def run_stage_script(name: str, *flags: str, cwd: Path = ROOT, fresh: bool = False, kill_when=None,
                     kill_with: int = signal.SIGKILL, folder: str = "int8_eager") -> Finished:
    """`python <folder>/<name> flags…` from `cwd`, ended by a signal as soon as kill_when() is true.

    `fresh` starts a new interpreter from nothing; without it a process that already holds the libraries forks,
    which is five seconds faster and otherwise the same.
    """
    argv = [os.path.relpath(ROOT / folder / name, cwd), *map(str, flags)]
    if fresh:
        done = subprocess.run([sys.executable, *argv], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
        return Finished(done.returncode, done.stdout, done.stderr)
    if not _warm:
        _warm.append(subprocess.Popen([sys.executable, Path(__file__).with_name("warm.py")], env=ENVIRONMENT,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1))
    server = _warm[0]
    with tempfile.TemporaryDirectory() as scratch:
        out, err = Path(scratch, "stdout"), Path(scratch, "stderr")
        server.stdin.write(json.dumps({"argv": argv, "cwd": str(cwd), "stdout": str(out), "stderr": str(err)}) + "\n")
        child = int(server.stdout.readline())
        while kill_when is not None and not select.select([server.stdout], [], [], POLL_SECONDS)[0]:
            with contextlib.suppress(FileNotFoundError):  # a folder got another name while kill_when looked into it
                if kill_when():
                    os.kill(child, kill_with)
                    break
        returncode = int(server.stdout.readline())
        return Finished(returncode, out.read_text(errors="replace"), err.read_text(errors="replace"))
