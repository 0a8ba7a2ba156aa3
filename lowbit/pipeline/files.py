"""What stages hand over: files under models/<run>/, written atomically and recorded in manifest.json."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from lowbit.pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LONGEST_NAME = 200  # bytes; file systems take 255
SCRATCH = ".tmp-", "-lowbit"  # start and end of the names of scratch folders: no user's file is called so
_claimed: set[tuple[int, int]] = set()  # device and inode of the folders that this process works on


def resolve(path: str) -> Path:
    """A setting's path: absolute, or counted from the project's root whatever the shell's folder is."""
    return Path(os.path.normpath(ROOT / path))


def shown(path: Path) -> str:
    """The path as a user reads it: from the project's root where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def run_dir(run: str, setting: str = "RUN") -> Path:
    """models/<run>; raises UserError, naming its `setting`, for what is not one plain folder name, or is a file's."""
    if not run or run.startswith((".", "-")) or Path(run).name != run or len(os.fsencode(run)) > LONGEST_NAME:
        raise UserError(f"{setting} is {run!r}; use one plain folder name of at most {LONGEST_NAME} bytes, such as "
                        "my-run, for a folder under models/")
    folder = ROOT / "models" / run
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{setting} is {run!r}, but {shown(folder)} is a file: choose another name")
    return folder


@contextlib.contextmanager
def atomic_folder(parent: Path):
    """A scratch folder inside `parent`; move_up() and manifest.publish() move its files up, the rest is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(SCRATCH[1], SCRATCH[0], parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def external_data(path: Path) -> Path:
    """The file beside an ONNX file of 2 GB or more that holds its weights."""
    return path.with_name(f"{path.name}.data")


def file_bytes(path: Path) -> int:
    """Bytes of an ONNX file, its external data included."""
    data = external_data(path)
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def move_up(scratch: Path) -> list[str]:
    """Flush every file of a scratch folder to disk and rename it into the parent; returns the names.

    Whoever the umask lets read new files reads these: safetensors makes them for their owner alone. External data of an
    older file of the same name is deleted.
    """
    names = sorted(path.name for path in scratch.iterdir())
    os.umask(mask := os.umask(0))
    for name in names:
        with open(scratch / name, "rb") as handle:
            os.fchmod(handle.fileno(), 0o666 & ~mask)
            os.fsync(handle.fileno())
    for name in names:
        os.replace(scratch / name, scratch.parent / name)
        if external_data(Path(name)).name not in names:
            external_data(scratch.parent / name).unlink(missing_ok=True)
    return names


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    with atomic_folder(path.parent) as scratch:
        (scratch / path.name).write_text(text, encoding="utf-8")
        move_up(scratch)


def write_json(path: Path, value) -> None:
    """Write JSON, indented, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def first_process() -> bool:
    """Whether this one writes: of several processes that train together, the first alone does."""
    return not int(os.environ.get("RANK", 0))


def claim(folder: Path) -> None:
    """Make `folder` this process's own until it ends, and delete the scratch folders that a killed one left in it.

    Raises UserError while another process works on it: two would delete each other's scratch folders.
    """
    if not folder.is_dir() or not first_process():
        return  # nothing to spoil
    handle = os.open(folder, os.O_RDONLY)
    identity = os.fstat(handle).st_dev, os.fstat(handle).st_ino
    if identity in _claimed:
        os.close(handle)
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"another process is working on {shown(folder)}: wait for its end, or stop it, then run the "
                        "same command again") from None
    _claimed.add(identity)  # the descriptor stays open: the lock goes with the process, however it ends
    for scratch in folder.glob("*".join(SCRATCH)):
        shutil.rmtree(scratch)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
