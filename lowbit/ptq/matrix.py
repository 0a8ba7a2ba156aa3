"""The matrix of methods: each file made in a process of its own, then scored and timed by one protocol, in turns.

What a kill interrupts goes on: a file is made once, a method scored once, a round of turns timed once.
"""

import hashlib
import json
import time
from pathlib import Path

import numpy as np

from lowbit.data.task import Task
from lowbit.data.tokens import PREPROCESSING, TOKENIZER_FILES, TextReader, load_reader
from lowbit.graph.census import census, linear_bytes
from lowbit.measure.evaluate import batch_dependence, record_of
from lowbit.measure.evaluate import check_settings as check_evaluation
from lowbit.measure.record import COULD_NOT_RUN, FORMAT, quality_metrics
from lowbit.measure.score import quick_score
from lowbit.measure.session import WARMUP, Session, random_inputs, require_provider, take_turns
from lowbit.pipeline.files import sha256, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import check
from lowbit.ptq.experiments import Experiment
from lowbit.ptq.files import Candidate

DEPENDENCE_BATCH = 16  # texts a batch when batch-mates are looked at
MEASURING = ("PROVIDER", "THREADS", "BATCH_SIZE", "TOKENS", "ROUNDS", "RUNS", "DEPENDENCE_TEXTS")


def check_settings(s: dict) -> None:
    """Refuse values that cannot make or measure, each with one sentence."""
    check_evaluation(s)
    require_provider(s["PROVIDER"])
    for name in ("TOKENS", "DEPENDENCE_TEXTS"):
        check(s[name] > 0, f"{name} is {s[name]}; it must be above 0")
    check(0 <= s["MAX_DROP"] < 100, f"MAX_DROP is {s['MAX_DROP']}; it is in points, from 0 to below 100")


def remembered(path: Path, fingerprint: str):
    """What an interrupted run measured under the same circumstances, or None."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return held["value"] if held["fingerprint"] == fingerprint else None


def digest(*parts) -> str:
    """Of everything that a measurement depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def score_file(candidate: Candidate, data: dict, task: Task, s: dict) -> dict:
    """Outputs of every split at batch 1, dependence on batch-mates, census."""
    reader = candidate.reader
    rows = {split: reader.rows(texts) for split, (texts, _) in data.items()}
    with Session(candidate.path, s["PROVIDER"], s["THREADS"]) as session:
        outputs = {split: session.logits(rows[split], reader.pad_id) for split in rows}
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise RuntimeError("its logits are no numbers for some text")
        some = slice(None, None, -(-len(rows["test"]) // s["DEPENDENCE_TEXTS"]))
        dependence = batch_dependence(session, rows["test"][some], outputs["test"][some], reader.pad_id,
                                      DEPENDENCE_BATCH, reader.max_length, task)
    return {"outputs": {split: values.tolist() for split, values in outputs.items()},
            "batch_dependence": dependence, "census": census(candidate.path),
            "linear_weights_mb": linear_bytes(candidate.path) / 1e6}


def measure(candidates: list[Candidate], experiment: Experiment, data: dict, task: Task, s: dict,
            unfinished: Path) -> dict:
    """The results of an experiment (see measure/record.py). `data` maps test, and valid where there is one, to
    (texts, answers); the first candidate is FP32. Steps are kept in the folder `unfinished` until the caller deletes
    it. Raises RuntimeError if FP32 itself cannot be measured.
    """
    base = candidates[0]
    s = s | {"TOKENS": min([s["TOKENS"], *(reader.max_length for reader in readers_of(candidates).values())])}
    marks = fingerprints(candidates, data, s)
    scored = score_all(candidates, marks, data, task, s, unfinished)
    rounds = [] if base.reason else time_all([c for c in candidates if not c.reason], marks, s, unfinished)
    if base.reason:
        raise RuntimeError(f"the FP32 file could not be measured: {base.reason}")
    shape = shape_of(s)
    protocol = {"WARMUP": WARMUP} | {name: s[name] for name in measuring(s)} | {"SHAPES": [shape]}
    outputs = {method: {split: np.array(values, np.float32) for split, values in held["outputs"].items()}
               for method, held in scored.items() if held}
    records: dict[str, dict] = {}
    for candidate in candidates:
        method = candidate.method
        records[method] = {"recipe": candidate.recipe}
        if candidate.reason:
            records[method] |= {"status": COULD_NOT_RUN, "reason": " ".join(candidate.reason.split())}
            continue
        turns, theirs = ([turn[name] for turn in rounds] for name in (method, base.method))
        records[method] |= record_of(candidate.path, outputs[method], outputs[base.method], data, task, turns, theirs,
                                     [shape], base.path) | {"making": candidate.making}
        records[method] |= {key: scored[method][key] for key in ("batch_dependence", "census", "linear_weights_mb")}
    return {"format": FORMAT, "experiment": {"name": experiment.name, "trained": experiment.trained},
            "task": task.as_json(), "protocol": protocol, "max_drop": s["MAX_DROP"], "fp32_sha256": sha256(base.path),
            "circumstances": digest(data, task.as_json(), protocol, s["MAX_DROP"], versions(), machine()),
            "machine": machine(), "versions": versions(), "files": records}


def readers_of(candidates: list[Candidate]) -> dict[Path, TextReader]:
    """How each run that has a file here reads texts, by its folder."""
    return {folder: load_reader(folder) for folder in dict.fromkeys(c.folder for c in candidates if c.path)}


def shape_of(s: dict) -> str:
    """The timed batch, as a key of a record's timings."""
    return f"{s['BATCH_SIZE']}x{s['TOKENS']}"


def measuring(s: dict) -> list[str]:
    """The settings that figures depend on; WARMUP is one where the stage has it."""
    return [*MEASURING, *(["WARMUP"] if "WARMUP" in s else [])]


def fingerprints(candidates: list[Candidate], data: dict, s: dict) -> dict[str, str]:
    """Method -> digest of what its figures depend on: file, cleaning, tokenizer, data, protocol, versions, machine."""
    context = {name: s[name] for name in measuring(s)}, versions(), machine(), data
    return {candidate.method: digest(context, *(sha256(path) for path in (
        candidate.path, *(candidate.folder / name for name in (PREPROCESSING, *TOKENIZER_FILES)))))
        for candidate in candidates if candidate.path}


def score_all(candidates: list[Candidate], marks: dict, data: dict, task: Task, s: dict,
              unfinished: Path) -> dict[str, dict]:
    """Method -> score_file() of every file that there is; one that fails gets its `reason`."""
    scored, main = {}, quality_metrics(task)[0]
    for candidate in [candidate for candidate in candidates if candidate.path]:
        method, path = candidate.method, unfinished / f"{candidate.method}.json"
        scored[method] = remembered(path, marks[method])
        if scored[method] is not None:
            print(f"  {method}: scored before")
            continue
        try:
            scored[method] = score_file(candidate, data, task, s)
        except RuntimeError as error:
            candidate.reason = str(error)
            print(f"  {method}: could not be scored: {candidate.reason}", flush=True)
            continue
        write_json(path, {"fingerprint": marks[method], "value": scored[method]})
        found = quick_score(data["test"][1], np.array(scored[method]["outputs"]["test"]), task)
        print(f"  {method}: test {task.score_name} {main.value(found):.2f} %", flush=True)
    return scored


def time_all(candidates: list[Candidate], marks: dict, s: dict, unfinished: Path) -> list[dict]:
    """ROUNDS times take_turns(); a file that fails in one gets its `reason`."""
    inputs = {folder: random_inputs(len(reader.tokenizer), s["BATCH_SIZE"], s["TOKENS"], s["RUNS"], reader.inputs)
              for folder, reader in readers_of(candidates).items()}
    fingerprint = digest({candidate.method: marks[candidate.method] for candidate in candidates})
    rounds = []
    for number in range(1, s["ROUNDS"] + 1):
        path = unfinished / f"round-{number}.json"
        turns = remembered(path, fingerprint)
        if turns is None:
            started = time.monotonic()
            first = (number - 1) * len(candidates) // s["ROUNDS"]  # no file is early, or late, in every round
            order = candidates[first:] + candidates[:first]
            turns = {}
            for candidate in order:
                turns |= take_turns({candidate.method: (candidate.path, "onnxruntime")},
                                    {shape_of(s): inputs[candidate.folder]}, s["PROVIDER"], s["THREADS"],
                                    s.get("WARMUP", WARMUP))
            if not any("error" in turn for turn in turns.values()):
                write_json(path, {"fingerprint": fingerprint, "value": turns})
            print(f"  round {number} of {s['ROUNDS']}: {len(candidates)} files timed in turns, "
                  f"{time.monotonic() - started:.0f} s", flush=True)
        else:
            print(f"  round {number} of {s['ROUNDS']}: timed before")
        rounds.append(turns)
    for candidate in candidates:
        candidate.reason = next((turns[candidate.method]["error"] for turns in rounds
                                 if "error" in turns[candidate.method]), "")
    return rounds
