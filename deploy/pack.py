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
from lowbit.data.tokens import PREPROCESSING, TOKENIZER_FILES, load_text_settings
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, external_data, resolve, run_dir, sha256, shown, write_json
from lowbit.pipeline.machine import integer_advice, machine, versions
from lowbit.pipeline.manifest import read_manifest, require, settings_of
from lowbit.pipeline.settings import require as require_setting
from lowbit.pipeline.stage import run_stage

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


def kind_of(folder: Path) -> str:
    """int8 or fp16: whose stages made the run; raises UserError for neither."""
    stages = read_manifest(folder)
    for kind in KINDS:
        if f"{kind}_eager/quantize_onnx_{kind}.py" in stages:
            return kind
    raise UserError(f"{shown(folder)} holds no quantized file: run the four stages of int8_eager/ or fp16_eager/ "
                    f"with --run {folder.name} first")


def evaluation(folder: Path, kind: str) -> dict | None:
    """results.json of stage 4; None where FORCE packs a run without one. Raises UserError for a run not to ship."""
    stage = f"{kind}_eager/eval_onnx_{kind}.py"
    try:
        require(folder, stage, "results.json")
    except UserError as error:
        require_setting(FORCE, f"{error}; or pack it as it is with --force")
        return None
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    base, ours = result["files"]["FP32"]["accuracy"], result["files"][kind.upper()]["accuracy"]
    lost = 100 * (base - ours)
    require_setting(FORCE or lost <= MAX_DROP + 1e-9,
                    f"{folder.name} loses {lost:.2f} points of test accuracy ({100 * base:.2f} -> {100 * ours:.2f} %), "
                    f"more than MAX_DROP {MAX_DROP:g}: train it again, choose another precision, or pack it as it is "
                    "with --force")
    return result


def main(settings):
    require_setting(0 <= MAX_DROP <= 100, f"MAX_DROP is {MAX_DROP}; it is in points, from 0 to 100")
    folder = run_dir(RUN)
    kind = kind_of(folder)
    train, quantize = f"{kind}_eager/train_qat_{kind}.py", f"{kind}_eager/quantize_onnx_{kind}.py"
    model = require(folder, quantize, f"model_qat_{kind}.onnx")[0]
    require(folder, train, "config.json", PREPROCESSING, *TOKENIZER_FILES)
    result = evaluation(folder, kind)
    measured = result["files"][kind.upper()] if result else None
    tokenizer, preprocessing = load_text_settings(folder)
    dependence = (measured or {}).get("batch_dependence")  # an evaluation from before it was measured has none
    alone = dependence is None or dependence["max_logit_difference"] > SAME
    parent = resolve(DIST)
    with atomic_folder(parent) as scratch:
        packed = scratch / RUN
        (packed / "onnx").mkdir(parents=True)
        name = f"onnx/{KINDS[kind]}"
        shutil.copyfile(model, packed / name)
        if external_data(model).exists():
            raise UserError(f"{shown(model)} keeps its weights in a second file, 2 GB and more: not packed")
        for file in ("config.json", *TOKENIZER_FILES):
            shutil.copyfile(folder / file, packed / file)
        steps = preprocessing["steps"]
        write_json(packed / PREPROCESSING, preprocessing | {
            "pad_id": tokenizer.pad_token_id, "stop_words": sorted(stop_words(steps["KEEP_NEGATIONS"]))
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
            "measured": measured and {key: measured[key] for key in ("accuracy", "macro_f1", "size_mb")},
            "batch_dependence": dependence,
            "test_texts": result and result["test_texts"], "measured_on": result and result["machine"],
            "cpu_advice": integer_advice() if kind == "int8" else "FP16 gains no time on CPUs",
            "packed_on": machine(), "versions": versions(), "run": RUN, "settings": settings_of(folder, quantize)})
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
