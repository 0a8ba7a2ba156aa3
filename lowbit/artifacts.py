"""What stages hand over: files under models/<run>/, written atomically and recorded in manifest.json."""

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from lowbit.errors import UserError
from lowbit.machine import machine, versions

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = "manifest.json"


def resolve(path: str) -> Path:
    """A setting's path: absolute, or counted from the project's root whatever the shell's folder is."""
    return Path(os.path.normpath(ROOT / path))


def shown(path: Path) -> str:
    """The path as a user reads it: from the project's root where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def run_dir(run: str) -> Path:
    """models/<run>; raises UserError for a name that is not one plain folder name, or is a file's."""
    if not run or run.startswith(".") or Path(run).name != run:
        raise UserError(f"RUN is {run!r}; use one plain folder name, such as my-run: it is made under models/")
    folder = ROOT / "models" / run
    if folder.exists() and not folder.is_dir():
        raise UserError(f"RUN is {run!r}, but {shown(folder)} is a file: choose another name")
    return folder


@contextlib.contextmanager
def atomic_folder(parent: Path):
    """A scratch folder inside `parent`; publish() moves its files up, whatever is left is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
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


def publish(scratch: Path) -> list[str]:
    """Flush every file of a scratch folder to disk and rename it into the parent; returns the names.

    External data of an older file of the same name is deleted.
    """
    names = sorted(path.name for path in scratch.iterdir())
    for name in names:
        with open(scratch / name, "rb") as handle:
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
        publish(scratch)


def write_json(path: Path, value) -> None:
    """Write JSON, indented, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_leftovers(folder: Path) -> None:
    """Delete scratch folders that a killed run left in `folder`."""
    for scratch in folder.glob(".tmp-*"):
        shutil.rmtree(scratch)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict:
    """Stage -> record; empty for a folder without a manifest."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for made in manifest.values():
            if not all(isinstance(file["sha256"], str) for file in made["writes"].values()):
                raise ValueError("a file without its SHA-256")
            if not all(isinstance(digest, str) for digest in made["reads"].values()):
                raise ValueError("a source without its SHA-256")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown(path)} cannot be read ({error}): delete it and run the stages again") from None


def _digests(folder: Path, reads: list[Path]) -> dict[str, str]:
    return {path.name if path.parent == folder else shown(path): sha256(path) for path in reads}


def record(folder: Path, stage: str, settings: dict, reads: list[Path], writes: list[str]) -> None:
    """Note in the manifest what `stage` wrote into `folder` (bytes, SHA-256), from what, how and with what.

    `reads` are the files it read: those of the run itself form the chain that `require` checks.
    """
    manifest = read_manifest(folder)
    manifest[stage] = {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", stage, *sys.argv[1:]]),
        "settings": settings,
        "versions": versions(),
        "machine": machine(),
        "reads": _digests(folder, reads),
        "writes": {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
                   for name in writes},
    }
    write_json(folder / MANIFEST, manifest)


def require(folder: Path, stage: str, *names: str) -> list[Path]:
    """The files `names` that `stage` wrote into `folder`, checked against the manifest and its chain.

    Raises UserError if one is missing, differs from what was recorded, or was made from something that
    an earlier stage has replaced since.
    """
    manifest = read_manifest(folder)
    again = f"run `python {stage} --run {folder.name}`"
    writes = manifest.get(stage, {}).get("writes", {})
    names += tuple(data for name in names if (data := external_data(Path(name)).name) in writes)
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{shown(folder / name)} is missing: {again} first")
        written = writes.get(name)
        if written is None:
            raise UserError(f"{shown(folder / name)} is not recorded in {shown(folder / MANIFEST)}: {again} to make it")
        found = sha256(folder / name)
        if found != written["sha256"]:
            raise UserError(
                f"{shown(folder / name)} (SHA-256 {found[:12]}) is not the file that {stage} recorded "
                f"({written['sha256'][:12]}): it was changed, cut short or copied from elsewhere; {again} again")
    for source, digest in manifest[stage]["reads"].items():
        for maker, other in manifest.items():
            now = other["writes"].get(source)
            if now is not None and now["sha256"] != digest:
                raise UserError(
                    f"{shown(folder / names[0])} was made from another {source} (SHA-256 {digest[:12]}) than the one "
                    f"that {maker} has written since ({now['sha256'][:12]}): {again} again")
            if now is not None and maker != stage:
                require(folder, maker, source)
    return [folder / name for name in names]


def is_made(folder: Path, stage: str, settings: dict, reads: list[Path], names: list[str]) -> bool:
    """Whether `stage` has written the files `names`, whole, with these settings and versions and from these sources."""
    made = read_manifest(folder).get(stage)
    return (made is not None and made["settings"] == settings and made["versions"] == versions()
            and made["reads"] == _digests(folder, reads) and set(names) <= set(made["writes"])
            and all((folder / name).exists() and sha256(folder / name) == made["writes"][name]["sha256"]
                    for name in made["writes"]))


def settings_of(folder: Path, stage: str) -> dict:
    """The settings that `stage` recorded for this run; call after `require`."""
    return read_manifest(folder)[stage]["settings"]
