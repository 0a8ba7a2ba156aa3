"""The matrix of methods: each file made in a process of its own, then scored and timed by one protocol, in turns.

What a kill interrupts goes on: a file is made once, a method scored once, a round of turns timed once.
"""

import hashlib
import json
import statistics
import time
from pathlib import Path

import numpy as np

from lowbit.data.tokens import PREPROCESSING, TOKENIZER_FILES, encode, load_text_settings
from lowbit.graph.census import census, linear_bytes
from lowbit.measure.evaluate import batch_dependence
from lowbit.measure.evaluate import check_settings as check_evaluation
from lowbit.measure.score import compare, score
from lowbit.measure.session import WARMUP, Session, random_inputs, require_provider
from lowbit.pipeline.files import file_bytes, sha256, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import require
from lowbit.ptq.files import Candidate

DEPENDENCE_BATCH = 16  # texts a batch when batch-mates are looked at
MEASURED, COULD_NOT_RUN = "measured", "could not run"
MEASURING = ("PROVIDER", "THREADS", "BATCH_SIZE", "TOKENS", "ROUNDS", "RUNS", "DEPENDENCE_TEXTS")
NUMBERS = ("accuracy", "f1", "eval_loss", "ece", "model_size", "compression", "mean_ms", "std_ms", "min_ms", "max_ms",
           "median_ms", "speedup", "peak_memory_mb", "memory_saving")


def check_settings(s: dict) -> None:
    """Refuse values that cannot make or measure, each with one sentence."""
    check_evaluation(s)
    require_provider(s["PROVIDER"])
    require(s["RUNS"] > 1, f"RUNS is {s['RUNS']}; a spread takes at least 2")
    for name in ("TOKENS", "DEPENDENCE_TEXTS"):
        require(s[name] > 0, f"{name} is {s[name]}; it must be above 0")
    require(0 <= s["MAX_DROP"] < 100, f"MAX_DROP is {s['MAX_DROP']}; it is in points, from 0 to below 100")


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


def score_file(candidate: Candidate, data: dict, s: dict) -> dict:
    """Logits of every split at batch 1, dependence on batch-mates, census."""
    tokenizer, preprocessing = load_text_settings(candidate.folder)
    length, pad_id = preprocessing["max_length"], tokenizer.pad_token_id
    rows = {split: encode(texts, tokenizer, preprocessing["cleaning"], length) for split, (texts, _) in data.items()}
    with Session(candidate.path, s["PROVIDER"], s["THREADS"]) as session:
        logits = {split: session.logits(rows[split], pad_id) for split in rows}
        if not all(np.isfinite(values).all() for values in logits.values()):
            raise RuntimeError("its logits are no numbers for some text")
        some = slice(None, None, -(-len(rows["test"]) // s["DEPENDENCE_TEXTS"]))
        dependence = batch_dependence(session, rows["test"][some], logits["test"][some], pad_id,
                                      DEPENDENCE_BATCH, length)
    return {"logits": {split: values.tolist() for split, values in logits.items()},
            "batch_dependence": {"texts": len(rows["test"][some]), **dependence}, "census": census(candidate.path),
            "linear_weights_mb": linear_bytes(candidate.path) / 1e6}


def time_round(candidates: list[Candidate], inputs: list[dict], s: dict) -> dict[str, dict]:
    """One turn each, in a fresh process: method -> runs_ms after WARMUP uncounted ones, peak_memory_mb; or `error`."""
    turns = {}
    for candidate in candidates:
        try:
            with Session(candidate.path, s["PROVIDER"], s["THREADS"]) as session:
                turns[candidate.method] = {"runs_ms": session.milliseconds(inputs),
                                           "peak_memory_mb": session.peak_memory_mb()}
        except RuntimeError as error:
            turns[candidate.method] = {"error": str(error)}
    return turns


def measure(candidates: list[Candidate], data: dict, s: dict, unfinished: Path) -> dict[str, dict]:
    """Method -> row. `data` maps test, and valid where there is one, to (texts, label ids); the first file is FP32.

    Steps are kept in the folder `unfinished` until the caller deletes it.
    """
    base = candidates[0]
    _, preprocessing = load_text_settings(base.folder)
    s = s | {"TOKENS": min(s["TOKENS"], preprocessing["max_length"])}
    marks = fingerprints(candidates, data, s)
    scored = score_all(candidates, marks, data, s, unfinished)
    if not base.reason:
        rounds = time_all([candidate for candidate in candidates if not candidate.reason], marks, s, unfinished)
    if base.reason:
        raise RuntimeError(f"the FP32 file could not be measured: {base.reason}")
    return {candidate.method: row_of(candidate, base, scored, rounds, data, s) for candidate in candidates}


def fingerprints(candidates: list[Candidate], data: dict, s: dict) -> dict[str, str]:
    """Method -> digest of what its figures depend on: file, cleaning, tokenizer, data, protocol, versions, machine."""
    context = {name: s[name] for name in MEASURING}, versions(), machine(), data
    return {candidate.method: digest(context, *(sha256(path) for path in (
        candidate.path, *(candidate.folder / name for name in (PREPROCESSING, *TOKENIZER_FILES)))))
        for candidate in candidates if candidate.path}


def score_all(candidates: list[Candidate], marks: dict, data: dict, s: dict, unfinished: Path) -> dict[str, dict]:
    """Method -> score_file() of every file that there is; one that fails gets its `reason`."""
    scored = {}
    for candidate in [candidate for candidate in candidates if candidate.path]:
        method, path = candidate.method, unfinished / f"{candidate.method}.json"
        scored[method] = remembered(path, marks[method])
        if scored[method] is not None:
            print(f"  {method}: scored before")
            continue
        try:
            scored[method] = score_file(candidate, data, s)
        except RuntimeError as error:
            candidate.reason = str(error)
            print(f"  {method}: could not be scored: {candidate.reason}", flush=True)
            continue
        write_json(path, {"fingerprint": marks[method], "value": scored[method]})
        right = np.argmax(scored[method]["logits"]["test"], -1) == np.asarray(data["test"][1])
        print(f"  {method}: test accuracy {right.mean():.4f}", flush=True)
    return scored


def time_all(candidates: list[Candidate], marks: dict, s: dict, unfinished: Path) -> list[dict]:
    """ROUNDS times time_round(); a file that fails in one gets its `reason`."""
    tokenizer, _ = load_text_settings(candidates[0].folder)
    inputs = random_inputs(len(tokenizer), s["BATCH_SIZE"], s["TOKENS"], s["RUNS"])
    fingerprint = digest({candidate.method: marks[candidate.method] for candidate in candidates})
    rounds = []
    for number in range(1, s["ROUNDS"] + 1):
        path = unfinished / f"round-{number}.json"
        turns = remembered(path, fingerprint)
        if turns is None:
            started = time.monotonic()
            first = (number - 1) * len(candidates) // s["ROUNDS"]  # no file is early, or late, in every round
            turns = time_round(candidates[first:] + candidates[:first], inputs, s)
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


def row_of(candidate: Candidate, base: Candidate, scored: dict, rounds: list[dict], data: dict, s: dict) -> dict:
    """All that results.json says of one method."""
    protocol = {name: s[name] for name in MEASURING} | {"WARMUP": WARMUP}
    common = {"recipe": candidate.recipe, "protocol": protocol, "max_drop": s["MAX_DROP"],
              "fp32_sha256": sha256(base.path),
              "circumstances": digest(data, protocol, s["MAX_DROP"], versions(), machine())}
    if candidate.reason:
        reason = " ".join(candidate.reason.split())
        return {"status": COULD_NOT_RUN, "reason": reason, **dict.fromkeys(NUMBERS), **common}
    method = candidate.method
    turns, theirs = ([turn[name] for turn in rounds] for name in (method, base.method))
    logits, reference = ({split: np.array(values, np.float32) for split, values in scored[name]["logits"].items()}
                         for name in (method, base.method))
    quality = {split: score(data[split][1], values) for split, values in logits.items()}
    before = {split: score(data[split][1], values) for split, values in reference.items()}
    drop = {split: 100 * (before[split]["accuracy"] - quality[split]["accuracy"]) for split in quality}
    runs = np.concatenate([turn["runs_ms"] for turn in turns])
    ratios = [statistics.median(other["runs_ms"]) / statistics.median(turn["runs_ms"])
              for turn, other in zip(turns, theirs, strict=True)]
    size, memory = file_bytes(candidate.path) / 1e6, statistics.median(turn["peak_memory_mb"] for turn in turns)
    base_memory = statistics.median(turn["peak_memory_mb"] for turn in theirs)
    return {
        "status": MEASURED, "file": shown(candidate.path), "sha256": sha256(candidate.path),
        "samples": len(data["test"][1]),
        **quality["test"], "f1": quality["test"]["macro_f1"],
        "valid": quality.get("valid"), "against_fp32": compare(data["test"][1], logits["test"], reference["test"]),
        "accuracy_drop": drop, "within_max_drop": bool(max(drop.values()) <= s["MAX_DROP"] + 1e-9),
        "model_size": size, "compression": file_bytes(base.path) / 1e6 / size,
        "mean_ms": float(runs.mean()), "std_ms": float(runs.std(ddof=1)),
        "min_ms": float(runs.min()), "max_ms": float(runs.max()), "median_ms": float(np.median(runs)),
        "speedup": statistics.median(ratios), "round_speedups": ratios, "runs_ms": runs.tolist(),
        "fp32_median_ms": float(np.median([run for turn in theirs for run in turn["runs_ms"]])),
        "peak_memory_mb": memory, "memory_saving": 1 - memory / base_memory,
        **{key: scored[method][key] for key in ("batch_dependence", "census", "linear_weights_mb")},
        "making": candidate.making, **common}
