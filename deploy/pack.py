"""Make a folder to deploy from a finished run: the ONNX file and all that a server needs to use it rightly.

Reads   models/<RUN>/                       after int8_eager/ or fp16_eager/, all four stages
Writes  DIST/<RUN>/                         onnx/, tokenizer, config.json, preprocessing.json, manifest.json, predict.py
Next    copy the folder to the server; pip install -r requirements.txt; python predict.py "teksnya"
"""
import importlib.metadata
import json
import shutil
from pathlib import Path

from lowbit.data.cleaning import stop_words
from lowbit.data.task import TASK_FILE, task_of
from lowbit.data.tokens import PREPROCESSING, TOKENIZER_FILES, load_reader
from lowbit.measure.record import RESULTS, TOO_MUCH, UNSURE, judge, metrics, quality_metrics, read_results_file
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, external_data, resolve, run_dir, sha256, shown, write_json
from lowbit.pipeline.machine import integer_advice, machine, versions
from lowbit.pipeline.manifest import recorded, settings_of, shipped
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import RUN_FILES

# ---- settings: edit here, or for one run: --run sample-int8 ---------------------------------------
RUN = "indobert-qat-int8-smsa"  # folder under models/ of a run that went through its four stages
DIST = "dist"                   # folder that packed runs lie in, from the project's root
MAX_DROP = 1.0                  # points of test accuracy below FP32 from which a run is refused
FORCE = False                   # pack a run that was not evaluated, or lost more than MAX_DROP
# --------------------------------------------------------------------------------------------------

STAGE = "deploy/pack.py"
KINDS = {"int8": "model_quantized.onnx", "fp16": "model_fp16.onnx"}  # as transformers.js names them
SCRIPTS = ("predict.py", "predictor.py", "records.py")
SERVER_PACKAGES = ("numpy", "onnxruntime", "tokenizers")
SAME = 1e-5  # a logit that batch-mates move by less does not show in a probability


def evaluation(folder: Path, ships: dict) -> dict | None:
    """The record of the file that ships, from stage 4; None where FORCE packs a run without one.

    Raises UserError for a run not to ship.
    """
    try:
        recorded(folder, ships["stages"]["evaluate"], RESULTS)
    except UserError as error:
        check(FORCE, f"{error}; or pack it as it is with --force")
        return None
    results = read_results_file(folder / RESULTS)
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
    parent = resolve(DIST)
    with atomic_folder(parent) as scratch:
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
        for script in SCRIPTS:
            shutil.copyfile(Path(__file__).with_name(script), packed / script)
        (packed / "requirements.txt").write_text("".join(
            f"{package}=={importlib.metadata.version(package)}\n" for package in SERVER_PACKAGES), encoding="utf-8")
        files = sorted(path for path in packed.rglob("*") if path.is_file())
        write_json(packed / "manifest.json", {
            "model": name, "batch_size": 1 if alone else 16, "labels": preprocessing["labels"],
            "files": {path.relative_to(packed).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
                      for path in files},
            "measured": measured and {metric.key: metric.value(measured) / metric.scale for metric in (
                *quality_metrics(task), *metrics("model_size"))},
            "batch_dependence": dependence, "test_texts": measured and measured["samples"],
            "measured_on": measured and measured["measured_on"],
            "cpu_advice": integer_advice() if kind == "int8" else "FP16 gains no time on CPUs",
            "packed_on": machine(), "versions": versions(), "run": RUN,
            "settings": settings_of(folder, ships["stages"]["quantize"])})
        target = parent / RUN
        old = scratch / "old"
        if target.exists():
            target.rename(old)
        packed.rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"  {len(files) + 1} files, {size / 1e6:.1f} MB")
    print(f"  predict.py labels {'one text' if alone else '16 texts'} at a time: "
          + ("batch-mates move this file's logits" if alone else "batch-mates do not move this file's logits"))
    print(f"wrote {shown(target)}; on the server: pip install -r requirements.txt && python predict.py \"teksnya\"")


if __name__ == "__main__":
    run_stage(main, globals())
