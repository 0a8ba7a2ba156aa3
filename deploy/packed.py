"""A folder that pack.py made: its manifest understood, its files as they were packed, or a refusal."""

import hashlib
import json
import os
from pathlib import Path

MOST_BATCH = 4096  # texts
NEEDED = ("tokenizer.json", "preprocessing.json", "task.json")


class Refusal(Exception):
    """One sentence that says what is wrong and what to do."""


def sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_json(path: Path):
    """A JSON file; raises Refusal for one that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}): copy the whole folder that pack.py made") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is no JSON ({error}): copy the folder again, or pack again") from None


def read_manifest(folder: Path) -> dict:
    """manifest.json of a packed folder; raises Refusal where there is none, or one that pack.py did not write."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise Refusal(f"{folder} holds no manifest.json: name the folder that pack.py made with --model-dir")
    manifest = read_json(path)
    try:
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        size, model = manifest["batch_size"], manifest["model"]
        wrong = [name for name, digest in files.items() if not isinstance(digest, str) or len(digest) != 64]
        if wrong:
            raise Refusal(f"{path} has no SHA-256 for {wrong[0]}: pack again")
        wrong = [name for name in files if os.path.isabs(name) or os.pardir in Path(name).parts]
        if wrong:
            raise Refusal(f"{path} names {wrong[0]}, which lies outside the folder: pack again")
        if type(size) is not int or not 1 <= size <= MOST_BATCH:
            raise Refusal(f"{path} has the batch_size {size!r}; it must be from 1 to {MOST_BATCH}: pack again")
        absent = [name for name in (model, *NEEDED) if name not in files]
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{path} is not what pack.py writes ({type(error).__name__}: {error}): pack again") from None
    if absent:
        raise Refusal(f"{path} does not list {absent[0]!r} among its files, so it cannot be checked: pack again")
    return manifest


def verify(folder: Path, manifest: dict, names) -> None:
    """Raises Refusal, naming file and hashes, unless every file is the one that was packed."""
    for name in names:
        wanted = manifest["files"][name]["sha256"]
        if not (folder / name).is_file():
            raise Refusal(f"{folder / name} is missing: copy the whole folder that pack.py made")
        found = sha256(folder / name)
        if found != wanted:
            raise Refusal(f"{folder / name} (SHA-256 {found[:12]}) is not the file that was packed ({wanted[:12]}): "
                          "copy the folder again")


def identity(manifest: dict) -> str:
    """Digest of model, tokenizer, preprocessing and task: what a text's answer depends on beside the text."""
    digests = (manifest["files"][name]["sha256"] for name in (manifest["model"], *NEEDED))
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
