"""Checkpoints of a training run: which of them are whole and continue this very run."""

import hashlib
import json
import shutil
from pathlib import Path

import torch

from lowbit.pipeline.files import sha256, shown

COMPLETE = "complete.json"  # written last into a checkpoint: one without it was cut short by a kill


def file_sizes(folder: Path) -> dict[str, int]:
    """Name -> bytes of a checkpoint's files, its own mark aside."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != COMPLETE}


def fingerprint_of(settings: dict, data: list[Path], model: torch.nn.Module) -> str:
    """Digest of everything a training run depends on: a checkpoint continues only the run it was made by."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in data:
        digest.update(sha256(path).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def delete_unfinished(folder: Path) -> None:
    """Delete the checkpoints that were not written to their end: after a full disk they would keep it full."""
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path, ignore_errors=True)  # what went wrong before is what is told


def last_checkpoint(folder: Path, fingerprint: str) -> str | None:
    """The newest whole checkpoint of this very run; what a kill cut short or another run left is deleted, in words."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        mark = path / COMPLETE
        try:
            made = json.loads(mark.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            made = {}
        if made == {"fingerprint": fingerprint, "bytes": file_sizes(path)}:
            print(f"resuming from {shown(path)}")
            return str(path)
        whole = made.get("bytes") == file_sizes(path)
        print(f"deleting {shown(path)}: it "
              + ("was made with other settings, data or weights" if whole else "was not written to its end"))
        shutil.rmtree(path)
    return None
