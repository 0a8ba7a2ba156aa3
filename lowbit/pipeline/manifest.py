"""manifest.json of a run: what each stage wrote, from what, how and with what; the chain of stages is checked."""

import datetime
import hashlib
import itertools
import json
import os
import sys
from pathlib import Path

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import claim, external_data, first_process, move_up, sha256, shown, write_json, write_text
from lowbit.pipeline.machine import machine, versions

MANIFEST = "manifest.json"
FORMAT = 2  # of manifest.json; 1 had no number
MODEL_FILES = (".json", ".onnx", ".pth", ".safetensors")  # what stages write over in a run's folder ends so


def read_manifest(folder: Path) -> dict:
    """What a folder's manifest holds, under "stages" a stage's name -> its record.

    "ships" is what shipped() returns, from stage 3 on; "published" maps the names that note() took to the SHA-256 of
    what was last moved there, or to "".

    Raises UserError for one that cannot be read, or that another version wrote in another format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {"format": FORMAT, "stages": {}}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT:
            raise UserError(f"{shown(path)} has format {manifest.get('format', 1)}, this version reads {FORMAT}: "
                            f"choose another name, or delete {shown(path)}, and run the stages again from the first")
        for made in manifest["stages"].values():
            if not all(isinstance(file["sha256"], str) for file in made["writes"].values()):
                raise ValueError("a file without its SHA-256")
            if not all(isinstance(digest, str) for digest in made["reads"].values()):
                raise ValueError("a source without its SHA-256")
        if not isinstance(published := manifest.get("published", {}), dict):  # names alone, as it was once
            manifest["published"] = dict.fromkeys(published, "")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{shown(path)} cannot be read ({error}): delete it and run the stages again") from None


def stages_of(folder: Path) -> dict[str, dict]:
    """Stage -> what it recorded: finished, command, settings, versions, machine, reads, writes."""
    return read_manifest(folder)["stages"]


def shipped(folder: Path) -> dict:
    """What a run is, as its stage 3 recorded it: precision, file that ships, runtime, task, names of its four stages.

    Raises UserError for a run that has no low-bit file yet.
    """
    manifest = read_manifest(folder)
    if "ships" not in manifest:
        raise UserError(f"{shown(folder)} holds no low-bit file: run the four stages of int8_eager/, int4_eager/, "
                        f"mixed/ or fp16_eager/ with --run {folder.name} first")
    return manifest["ships"]


def begin_run(folder: Path, stage: str, *leaves: str) -> None:
    """Make the folder of the run that `stage` begins, or claim the one that it began before.

    Raises UserError for a folder that another stage began, or that holds a model which is not this project's.
    `leaves` are names in it that `stage` works with until it is finished: the user's own are refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(folder)
    stages = manifest["stages"]
    if stage not in stages:
        held = sorted(path.name for path in folder.iterdir() if path.suffix in MODEL_FILES)
        held = [name for name in held if name not in {MANIFEST, *_ours(manifest)}]
        if stages:
            raise UserError(f"{shown(folder)} holds another model, which {next(iter(stages))} began: choose a new name "
                            "for RUN")
        if held:
            raise UserError(f"{shown(folder)} holds {held[0]}, which no stage recorded: choose a new name for RUN, or "
                            "take away what the folder holds")
    claim(folder)
    if first_process():
        note(folder, dict.fromkeys(leaves, ""))


def _ours(manifest: dict) -> dict[str, set[str]]:
    """Name in its folder that a stage wrote, or had begun to write -> the SHA-256 that a stage knows of it, if any."""
    found = {name: {digest} - {""} for name, digest in manifest.get("published", {}).items()}
    for made in manifest["stages"].values():
        for name, file in made["writes"].items():
            found.setdefault(name, set()).add(file["sha256"])
    return found


def note(folder: Path, names: dict[str, str]) -> None:
    """Note in a folder's manifest that `names` in it are this project's, before they are written.

    They map to the SHA-256 of what will lie there, "" if that is not known yet. Raises UserError for one that is there
    already and is not: it is the user's. What a killed stage had begun to write is known by its note. What a stage
    wrote and somebody changed is kept under another name, in words.
    """
    manifest = read_manifest(folder)
    ours = _ours(manifest)
    for name in sorted(names.keys() - ours):
        if os.path.lexists(folder / name):  # a link to nowhere too
            raise UserError(f"{shown(folder / name)} is in the way: no stage wrote it, so it is not replaced; move it "
                            "to another folder, then run the same command again")
    changed = [name for name in sorted(names) if ours.get(name) and (folder / name).is_file()
               and sha256(folder / name) not in ours[name]]
    published = manifest.get("published", {})
    if published != (noted := published | names):
        write_json(folder / MANIFEST, manifest | {"published": dict(sorted(noted.items()))})
    for name in changed:
        kept = next(free for number in itertools.count(1)
                    if not os.path.lexists(free := folder / f"{name}.changed-{number}"))
        (folder / name).rename(kept)
        print(f"  {shown(folder / name)} was changed since a stage wrote it: kept as {kept.name}", flush=True)


def publish(scratch: Path) -> list[str]:
    """Move the files of a scratch folder up into the run's or the results' folder; returns their names.

    Raises UserError if one of them, or its external data, would replace a file of the user's.
    """
    names = {path.name: sha256(path) for path in scratch.iterdir()}
    data = {external_data(Path(name)).name for name in names} - names.keys()
    note(scratch.parent, names | {name: "" for name in data if (scratch.parent / name).exists()})
    return move_up(scratch)


def publish_text(path: Path, text: str) -> None:
    """Write a UTF-8 file of a run's or a results' folder whole or not at all; raises UserError if it is the user's."""
    note(path.parent, {path.name: hashlib.sha256(text.encode()).hexdigest()})
    write_text(path, text)


def digests(folder: Path, reads: list[Path]) -> dict[str, str]:
    """SHA-256 of files by their names, as a record of `folder` calls them: its own plainly, others by their paths."""
    return {path.name if path.parent == folder else shown(path): sha256(path) for path in reads}


def record(folder: Path, stage: str, settings: dict, reads: list[Path], writes: list[str],
           ships: dict | None = None) -> None:
    """Note in the manifest what `stage` wrote into `folder` (bytes, SHA-256), from what, how and with what.

    `reads` are the files it read: those of the run itself form the chain that `recorded` checks. `ships` is what
    shipped() returns from now on.
    """
    manifest = read_manifest(folder)
    if ships:
        manifest["ships"] = ships
    manifest["stages"][stage] = {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", stage, *sys.argv[1:]]),
        "settings": settings,
        "versions": versions(),
        "machine": machine(),
        "reads": digests(folder, reads),
        "writes": {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
                   for name in writes},
    }
    write_json(folder / MANIFEST, manifest)


def withdraw(folder: Path) -> None:
    """Record that a run ships no file any more."""
    manifest = read_manifest(folder)
    if manifest.pop("ships", None):
        write_json(folder / MANIFEST, manifest)


def recorded(folder: Path, stage: str, *names: str) -> list[Path]:
    """The files `names` that `stage` wrote into `folder`, checked against the manifest and its chain.

    Raises UserError if one is missing, differs from what was recorded, or was made from something that
    an earlier stage has replaced since.
    """
    manifest = stages_of(folder)
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
                recorded(folder, maker, source)
    return [folder / name for name in names]


def is_made(folder: Path, stage: str, settings: dict, reads: list[Path], names: list[str]) -> bool:
    """Whether `stage` has written the files `names`, whole, with these settings and versions and from these sources."""
    made = stages_of(folder).get(stage)
    return (made is not None and made["settings"] == settings and made["versions"] == versions()
            and made["reads"] == digests(folder, reads) and set(names) <= set(made["writes"])
            and all((folder / name).exists() and sha256(folder / name) == made["writes"][name]["sha256"]
                    for name in made["writes"]))


def settings_of(folder: Path, stage: str) -> dict:
    """The settings that `stage` recorded for this run; call after `recorded`."""
    return stages_of(folder)[stage]["settings"]
