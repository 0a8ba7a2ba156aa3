"""The files of the matrix: each made from the run's FP32 graph in a process of its own, once."""

import contextlib
import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from lowbit.data.tokens import PREPROCESSING, TOKENIZER_FILES, Row, TextReader, load_reader
from lowbit.data.tsv import Text
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, claim, file_bytes, sha256, write_json
from lowbit.pipeline.machine import versions
from lowbit.pipeline.manifest import is_made, publish, record
from lowbit.ptq import methods, quantizer_process

SOURCE = "model_fp32.onnx"
MAKING = ("CALIBRATION_TEXTS", "PERCENTILE", "ENTROPY_BINS", "QUANTIZE_EMBEDDINGS", "PER_CHANNEL", "REDUCE_RANGE",
          "SEED")


@dataclass
class Candidate:
    """A method's file, or the reason why there is none."""

    method: str
    recipe: dict
    folder: Path  # of its run: tokenizer and preprocessing
    path: Path | None = None
    reason: str = ""
    making: dict = field(default_factory=dict)  # seconds and peak memory of making it, with calibration

    @property
    def reader(self) -> TextReader:
        """How its run reads texts."""
        return load_reader(self.folder)


def ask_child(request: dict) -> dict:
    """What a quantizer_process answers: its peak_memory_mb and seconds, or the `error` that ended it.

    Raises UserError for what is no fault of the method: a full disk.
    """
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", quantizer_process.__name__], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    with contextlib.suppress(BrokenPipeError):  # a child killed before it read all
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
    with child.stdout:
        answer = child.stdout.read()
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    status = child.wait()
    if not answer:
        because = ": killed, for want of memory perhaps" if status == -9 else ""
        answer = json.dumps({"error": f"its process ended with status {status}{because}"})
    answer = json.loads(answer)
    if answer.get("fault"):
        raise UserError(answer["fault"])
    return {**answer, "seconds": time.monotonic() - started}


def make_files(folder: Path, stage: str, recipes: dict[str, dict], s: dict, train: Path,
               texts: list[Text], source_name: str = SOURCE) -> list[Candidate]:
    """A candidate for each recipe: its file made from the run's FP32 graph, or kept where it is made already.

    Recipes that name a calibration calibrate on CALIBRATION_TEXTS of `texts`, the texts of the file `train`.
    """
    source = folder / source_name
    options = {name: s[name] for name in MAKING} | {"MADE_BY": sha256(Path(methods.__file__))}
    reader = load_reader(folder)
    claim(folder)
    chosen = random.Random(s["SEED"]).sample(texts, min(s["CALIBRATION_TEXTS"], len(texts)))
    calibrated, candidates = {}, []
    for method, recipe in recipes.items():
        candidate = Candidate(method, recipe, folder)
        candidates.append(candidate)
        if recipe["kind"] == "fp32":
            candidate.path = source
            continue
        target, key = folder / f"model_{method}.onnx", f"{stage} --methods {method}"
        settings, reads = {"recipe": recipe, **options}, [source]
        if "calibration" in recipe:
            reads += [train, folder / PREPROCESSING, *(folder / name for name in TOKENIZER_FILES)]
        facts = f"model_{method}.json"
        if is_made(folder, key, settings, reads, [target.name, facts]):
            candidate.path, candidate.making = target, json.loads((folder / facts).read_text(encoding="utf-8"))
            print(f"  {method}: made before")
            continue
        with atomic_folder(folder) as scratch:
            ranges, spent = None, {"seconds": 0.0, "peak_memory_mb": 0.0}
            if "calibration" in recipe:
                name = recipe["calibration"]
                if name not in calibrated:
                    calibrated[name] = calibrate(folder, source, name, reader.rows(chosen), options)
                ranges, spent = calibrated[name]
            making: dict = {"error": spent["error"]} if "error" in spent else ask_child({
                "do": "quantize", "source": str(source), "target": str(scratch / target.name), "recipe": recipe,
                "ranges": str(ranges) if ranges else "", "options": options})
            if "error" in making:
                candidate.reason = making["error"]
                print(f"  {method}: could not be made: {candidate.reason}", flush=True)
                continue
            candidate.making = {key: making[key] for key in ("seconds", "peak_memory_mb")} | {"options": options}
            if ranges:
                candidate.making["calibration"] = {"texts": len(chosen), **spent}
            shutil.rmtree(scratch / "source")
            write_json(scratch / facts, candidate.making)
            names = publish(scratch)
        record(folder, key, settings, reads, names)
        candidate.path = target
        print(f"  {method}: {file_bytes(target) / 1e6:.1f} MB, {making['seconds']:.0f} s, "
              f"{making['peak_memory_mb']:.0f} MB of memory", flush=True)
    return candidates


def calibrate(folder: Path, source: Path, name: str, rows: list[Row], options: dict) -> tuple[Path, dict]:
    """(file of the ranges, what it took) of one calibration method; kept for runs on the same source, texts, versions.

    What it took holds `error` instead where it could not be done.
    """
    wanted = json.dumps([sha256(source), rows, options, versions()], sort_keys=True)
    path = folder / f"calibration_{name}_{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    path = path.with_suffix(".npz" if name == "gptq" else ".json")
    facts = path.with_suffix(".facts.json")
    if path.exists() and facts.exists():
        return path, json.loads(facts.read_text(encoding="utf-8"))
    with atomic_folder(folder) as scratch:
        spent = ask_child({"do": "calibrate", "source": str(source), "target": str(scratch / path.name),
                           "calibration": name, "rows": rows, "options": options})
        if "error" in spent:
            return path, spent
        shutil.rmtree(scratch / "source")
        write_json(scratch / facts.name, spent)
        publish(scratch)
    print(f"  calibrated by {name} on {len(rows)} texts: {spent['seconds']:.0f} s, "
          f"{spent['peak_memory_mb']:.0f} MB of memory", flush=True)
    return path, spent
