"""Make a folder to deploy from a finished run: the ONNX file and all that a server needs to use it rightly.

Reads   models/<RUN>/                       after int8_eager/, int4_eager/, fp16_eager/ or mixed/, all of its stages
Writes  DIST/<RUN>/                         onnx/, tokenizer, config.json, preprocessing.json, manifest.json, predict.py
Next    copy the folder to the server; pip install -r requirements.txt; python predict.py "teksnya"
"""
import importlib.metadata
import json
import os
import shutil
from pathlib import Path

from lowbit.data.cleaning import stop_words
from lowbit.data.task import TASK_FILE, task_of
from lowbit.data.tokens import PREPROCESSING, TOKENIZER_FILES, load_reader
from lowbit.measure.record import RESULTS, TOO_MUCH, UNSURE, judge, metrics, quality_metrics, read_results_file
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT, atomic_folder, claim, external_data, resolve, run_dir, sha256, shown, write_json
from lowbit.pipeline.machine import integer_advice, machine, versions
from lowbit.pipeline.manifest import recorded, settings_of, shipped
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import RUN_FILES

# ---- settings: edit here, or for one run: --run sample-int8 ---------------------------------------
RUN = "indobert-qat-int8-smsa"  # folder under models/ of a run that went through its four stages
DIST = "dist"                   # folder that packed runs lie in, from the project's root
MAX_DROP = 1.0                  # points of test accuracy below FP32 from which a run is refused
FORCE = False                   # pack a run that was not evaluated, or lost more than MAX_DROP; replace edited files
# --------------------------------------------------------------------------------------------------

MANIFEST, FORMAT = "manifest.json", 2
KINDS = {"fp16": "model_fp16.onnx"} | dict.fromkeys(  # as transformers.js names them
    ("int8", "int4", "int2", "ternary", "mixed"), "model_quantized.onnx")
SCRIPTS = ("predict.py", "predictor.py", "packed.py", "lines.py", "rows.py", "records.py", "output.py", "flags.py",
           "serve.py", "service.py", "waiting.py", "connections.py", "pages.py", "asked.py", "metrics.py",
           "page/index.html", "page/page.css", "page/page.js", "page/ask.js")
SERVE_NEEDS = "requirements-serve.txt"
SERVER_PACKAGES = ("numpy", "onnxruntime", "tokenizers")
ADVICE = {"fp16": "FP16 gains no time on CPUs"} | dict.fromkeys(  # without an entry: what this CPU says of INT8
    ("int4", "int2", "ternary", "mixed"), "weights are small enough for exact sums on CPUs without VNNI too")
RUNTIME = "onnxruntime"  # what predict.py runs a file in
SAME = 1e-5  # a logit that batch-mates move by less does not show in a probability


def evaluation(folder: Path, ships: dict) -> dict | None:
    """The record of the file that ships, from stage 4; None where FORCE packs a run without one.

    Raises UserError for a run not to ship.
    """
    try:
        recorded(folder, ships["stages"]["evaluate"], RESULTS)
    except UserError as error:
        if ships["stages"]["train"].startswith("tinybert/"):  # whose stages name runs otherwise
            error = UserError(f"{str(error).split(': run `')[0]}: run tinybert/'s export_to_onnx.py, quantize.py and "
                              "quantization_experiments.py again")
        check(FORCE, f"{error}; or pack it as it is with --force")
        return None
    results = read_results_file(folder / RESULTS)
    runtime = results["protocol"]["RUNTIME"]
    if runtime != RUNTIME:
        check(FORCE, f"{folder.name} was evaluated in {runtime}, but predict.py runs the file in {RUNTIME}: evaluate "
                     f"it there (`python {ships['stages']['evaluate']} --run {folder.name} --runtime {RUNTIME}`), or "
                     "pack it without figures with --force")
        return None
    record = results["files"][ships["precision"].upper()]
    found, loss = judge(record, MAX_DROP), record["loss"]
    check(FORCE or found != TOO_MUCH,
          f"{folder.name} loses {loss['points']:.2f} points against FP32 on {loss['texts']} texts (95 % interval "
          f"{loss['low']:.2f} to {loss['high']:.2f}), more than MAX_DROP {MAX_DROP:g}: train it again, choose another "
          "precision, or pack it as it is with --force")
    if found == UNSURE:
        print(f"  {loss['texts']} texts are too few to tell whether it loses more than {MAX_DROP:g} points: "
              f"{loss['points']:+.2f} were measured, {loss['low']:+.2f} to {loss['high']:+.2f} are possible (95 %)")
    return record | {"measured_on": results["machine"], "protocol": results["protocol"]}


def target_folder() -> Path:
    """DIST/<RUN>; raises UserError where a pack would replace something else."""
    target = resolve(DIST) / RUN
    check(not target.resolve().is_relative_to((ROOT / "models").resolve()),
          f"DIST is {DIST!r}: {shown(target)} lies among the runs, and would be replaced: name another folder")
    for folder in (target.parent, target):
        check(folder.is_dir() or not folder.exists(), f"{shown(folder)} is a file: name another DIST, or move it away")
    check(not target.exists() or not any(target.iterdir()) or bool(packed_files(target)),
          f"{shown(target)} was not made by pack.py: name another DIST, or move it away")
    return target


def packed_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of what an earlier pack.py wrote into a folder, by its manifest; {} where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        if manifest["model"] not in files:
            return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: digest for name, digest in files.items()
            if not Path(name).is_absolute() and ".." not in Path(name).parts}


def refuse_losses(target: Path, packed: Path, old: dict[str, str], new: list[str]) -> None:
    """Raises UserError where the place of a new file is not free, or (unless FORCE) the old one was edited."""
    for name in (*new, *old):
        path, above = target / name, [target / parent for parent in Path(name).parents[:-1]]
        blocked = next((place for place in above if place.exists() and not place.is_dir()), path)
        check(blocked is path and not path.is_dir(),
              f"{shown(blocked)} is in the way of a file of the pack: move it away")
        if name == MANIFEST or not path.exists() or (name in new and sha256(path) == sha256(packed / name)):
            continue
        check(name in old, f"{shown(path)} is not of the pack that is there, but the new one has a file of that name: "
                           "move it away")
        check(FORCE or sha256(path) == old[name],
              f"{shown(path)} was edited since it was packed: move it away, or replace it with --force")


def replace(target: Path, packed: Path) -> int:
    """Put the files of a new pack in the place of the old one's; returns how many others are in the folder, left alone.

    The manifest comes last: until then it does not fit the files, and predict.py refuses the folder.
    """
    if not target.exists():
        packed.rename(target)
        return 0
    old = packed_files(target)
    new = sorted((path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()),
                 key=lambda name: name == MANIFEST)
    refuse_losses(target, packed, old, new)
    for name in new:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(packed / name, target / name)
    for name in set(old) - set(new):
        (target / name).unlink(missing_ok=True)
    return sum(path.is_file() and path.relative_to(target).as_posix() not in new and "__pycache__" not in path.parts
               for path in target.rglob("*"))


def main(settings):
    check(0 <= MAX_DROP <= 100, f"MAX_DROP is {MAX_DROP}; it is in points, from 0 to 100")
    folder = run_dir(RUN)
    ships = shipped(folder)
    kind, task = ships["precision"], task_of(ships["task"])
    model = recorded(folder, ships["stages"]["quantize"], ships["file"])[0]
    recorded(folder, ships["stages"]["train"], *RUN_FILES)
    measured = evaluation(folder, ships)
    reader = load_reader(folder)
    preprocessing = json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
    dependence = (measured or {}).get("batch_dependence")
    alone = dependence is None or dependence["max_logit_difference"] > SAME
    target = target_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    claim(target.parent)
    with atomic_folder(target.parent) as scratch:
        packed = scratch / RUN
        (packed / "onnx").mkdir(parents=True)
        name = f"onnx/{KINDS[kind]}"
        shutil.copyfile(model, packed / name)
        if external_data(model).exists():
            raise UserError(f"{shown(model)} keeps its weights in a second file, 2 GB and more: not packed")
        for file in ("config.json", TASK_FILE, *TOKENIZER_FILES):
            shutil.copyfile(folder / file, packed / file)
        steps = preprocessing["steps"]
        write_json(packed / PREPROCESSING, preprocessing | {
            "pad_id": reader.pad_id, "stop_words": sorted(stop_words(steps["KEEP_NEGATIONS"]))
            if steps["REMOVE_STOP_WORDS"] else []})
        (packed / "page").mkdir()
        for script in SCRIPTS:
            shutil.copyfile(Path(__file__).parent / script, packed / script)
        needs = (ROOT / SERVE_NEEDS).read_text(encoding="utf-8")
        (packed / SERVE_NEEDS).write_text(f"-r requirements.txt\n{needs}", encoding="utf-8")
        (packed / "requirements.txt").write_text("".join(
            f"{package}=={importlib.metadata.version(package)}\n" for package in SERVER_PACKAGES), encoding="utf-8")
        files = {path.relative_to(packed).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
                 for path in sorted(packed.rglob("*")) if path.is_file()}
        write_json(packed / MANIFEST, {
            "format": FORMAT, "model": name, "precision": kind, "batch_size": 1 if alone else 128,
            "labels": preprocessing["labels"], "files": files,
            "measured": measured and {metric.key: metric.value(measured) / metric.scale for metric in (
                *quality_metrics(task), *metrics("model_size"))},
            "batch_dependence": dependence, "test_texts": measured and measured["samples"],
            "measured_on": measured and measured["measured_on"],
            "cpu_advice": ADVICE.get(kind) or integer_advice(),
            "packed_on": machine(), "versions": versions(), "run": RUN,
            "settings": settings_of(folder, ships["stages"]["quantize"])})
        kept = replace(target, packed)
    print(f"  {len(files) + 1} files, {sum(entry['bytes'] for entry in files.values()) / 1e6:.1f} MB"
          + f"; {kept} files that are not of the pack were left in it" * bool(kept))
    print(f"  predict.py labels {'one text' if alone else 'up to 1,024 tokens'} at a time: "
          + ("batch-mates move this file's logits" if alone else "batch-mates do not move this file's logits"))
    print(f"wrote {shown(target)}; on the server: pip install -r requirements.txt && python predict.py \"teksnya\"")


if __name__ == "__main__":
    run_stage(main, globals())
