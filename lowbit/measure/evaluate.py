"""The report of stage 4: the low-bit file beside FP32 on the test split, quality, agreement, speed, memory."""

import csv
import io
from pathlib import Path

import numpy as np

from lowbit.data.tokens import encode
from lowbit.data.tsv import describe, read_split
from lowbit.graph.agreement import simulated_logits
from lowbit.measure.plots import plot_confusion, plot_ranges, plot_speed
from lowbit.measure.score import compare, difference, report_text, score
from lowbit.measure.session import Session, full_batches, latency, random_inputs, sorted_batches, throughput
from lowbit.pipeline.files import atomic_folder, file_bytes, publish, resolve, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import require

LATENCY_SHAPES = ((1, 32), (1, 128))  # batch, tokens
ORDERS = 3  # random orders in which the dependence on batch-mates is looked for


def check_settings(s: dict) -> None:
    """Refuse values that cannot measure, each with one sentence."""
    for name in ("BATCH_SIZE", "ROUNDS", "RUNS"):
        require(s[name] > 0, f"{name} is {s[name]}; it must be above 0")
    require(s["THREADS"] >= 0, f"THREADS is {s['THREADS']}; 0 means every core")


def measure_speed(sessions: dict[str, Session], rows, tokenizer, max_length: int, s: dict) -> dict:
    """Latency at batch 1, throughput with sorted dynamic padding and with full padding, for every session."""
    speed = {name: {} for name in sessions}
    for batch, length in LATENCY_SHAPES:
        inputs = random_inputs(len(tokenizer), batch, min(length, max_length), s["RUNS"])
        for name, result in latency(sessions, inputs, s["ROUNDS"]).items():
            speed[name][f"latency_{batch}x{min(length, max_length)}"] = result
    pad_id, size = tokenizer.pad_token_id, s["BATCH_SIZE"]
    for key, inputs in (("texts_per_second", sorted_batches(rows, pad_id, size)),
                        (f"texts_per_second_padded_to_{max_length}", full_batches(rows, pad_id, size, max_length))):
        rates = throughput(sessions, dict.fromkeys(sessions, inputs), len(rows), s["ROUNDS"])
        for name, rate in rates.items():
            speed[name][key] = rate
    return speed


def batch_dependence(session: Session, rows, alone: np.ndarray, pad_id: int, size: int, max_length: int) -> dict:
    """What batch-mates, order and padding change of the logits `alone` [n, labels] that each row has at batch 1.

    `arrangements` are batches of `size` in ORDERS random orders, then each row alone, padded to `max_length`;
    `flips` counts rows whose label changes in any of these, `max_logit_difference` is the largest of all.
    """
    orders = [np.random.default_rng(seed).permutation(len(rows)).tolist() for seed in range(ORDERS)]
    arranged = [session.logits(rows, pad_id, size, order) for order in orders]
    arranged.append(session.logits(rows, pad_id, length=max_length))
    parts = [difference(logits, alone) for logits in arranged]
    changed = np.any([logits.argmax(-1) != alone.argmax(-1) for logits in arranged], axis=0)
    return {"batch_size": size, "flips": int(changed.sum()),
            "max_logit_difference": max(part["max_logit_difference"] for part in parts), "arrangements": parts}


def evaluate(settings: dict, files: dict[str, Path], simulation, tokenizer, preprocessing: dict) -> dict:
    """Everything the report holds. `files` maps FP32 and the low-bit name to their ONNX files, in this order.

    Quality is scored at batch 1, where no batch-mate has a say. `simulation` is the PyTorch model that training
    simulated, or None.
    """
    s = settings
    check_settings(s)
    data = {split: read_split(resolve(s["DATA_DIR"]), split) for split in ("valid", "test")}
    print(f"  {describe('test', data['test'][1])}")
    max_length, pad_id = preprocessing["max_length"], tokenizer.pad_token_id
    rows = {split: encode(texts, tokenizer, preprocessing["cleaning"], max_length)
            for split, (texts, _) in data.items()}
    truth, test = data["test"][1], rows["test"]
    base, low = files
    sessions = {}
    try:
        for name, path in files.items():
            sessions[name] = Session(path, s["PROVIDER"], s["THREADS"], s.get("RUNTIME", "onnxruntime"))
        logits = {name: session.logits(test, pad_id) for name, session in sessions.items()}
        both = {name: np.concatenate([session.logits(rows["valid"], pad_id), logits[name]])
                for name, session in sessions.items()}
        dependence = {name: batch_dependence(session, test, logits[name], pad_id, s["BATCH_SIZE"], max_length)
                      for name, session in sessions.items()}
        print(f"  {len(test)} test texts scored at batch 1; measuring speed over {s['ROUNDS']} rounds, in turns",
              flush=True)
        speed = measure_speed(sessions, test, tokenizer, max_length, s)
        memory = {name: session.peak_memory_mb() for name, session in sessions.items()}
    finally:
        for session in sessions.values():
            session.close()
    result = {"machine": machine(), "versions": versions(), "settings": s, "preprocessing": preprocessing,
              "test_texts": len(test), "files": {}}
    for name, path in files.items():
        result["files"][name] = {
            "file": path.name, "size_mb": file_bytes(path) / 1e6, **score(truth, logits[name]),
            **speed[name], "peak_memory_mb": memory[name],
            "batch_dependence": dependence[name]}
    result["against_fp32"] = compare(truth, logits[low], logits[base])
    result["valid_and_test_against_fp32"] = difference(both[low], both[base])
    if simulation is not None:
        simulated = simulated_logits(simulation, rows["valid"] + test, pad_id)
        result["valid_and_test_against_simulation"] = difference(both[low], simulated)
    result["report"] = {name: report_text(truth, logits[name]) for name in files}
    return result


def table_lines(result: dict, low: str) -> list[str]:
    """FP32 beside the low-bit file, as a table for the terminal."""
    base, ours = result["files"]["FP32"], result["files"][low]
    rows = [("accuracy", base["accuracy"], ours["accuracy"], "{:.4f}", ""),
            ("macro-F1", base["macro_f1"], ours["macro_f1"], "{:.4f}", ""),
            ("size MB", base["size_mb"], ours["size_mb"], "{:.1f}", "{:.1f} %")]
    for key in (key for key in base if key.startswith("latency")):
        rows.append((f"p50 ms, {key[8:]}", base[key]["p50_ms"], ours[key]["p50_ms"], "{:.2f}", "{:.2f}x the speed"))
        rows.append((f"p95 ms, {key[8:]}", base[key]["p95_ms"], ours[key]["p95_ms"], "{:.2f}", "{:.2f}x the speed"))
    rows += [("texts/s", base["texts_per_second"], ours["texts_per_second"], "{:.0f}", "{:.2f}x"),
             ("peak memory MB", base["peak_memory_mb"], ours["peak_memory_mb"], "{:.0f}", "{:.1f} %")]
    lines = [f"  {'':16} {'FP32':>10} {low:>10}"]
    for label, before, after, form, ratio in rows:
        if ratio.endswith("%"):
            note = ratio.format(100 * after / before)
        elif ratio:
            note = ratio.format(before / after if label.startswith("p") else after / before)
        else:
            note = f"{100 * (after - before):+.2f} points"
        lines.append(f"  {label:16} {form.format(before):>10} {form.format(after):>10}  {note}")
    return lines


def agreement_lines(result: dict, low: str) -> list[str]:
    """Flips, significance, agreement with training and dependence on batch-mates, one sentence each."""
    paired, batch = result["against_fp32"], result["files"][low]["batch_dependence"]
    lines = [f"  {paired['flips']} of {paired['texts']} test labels differ from FP32 "
             f"({paired['lost']} lost, {paired['won']} won, McNemar p = {paired['mcnemar_p']:.2f})"]
    fp32 = result["valid_and_test_against_fp32"]
    ours = result.get("valid_and_test_against_simulation")
    if ours:
        lines.append(f"  {ours['flips']} of {ours['texts']} valid + test labels differ from the simulation in "
                     f"training, {fp32['flips']} from FP32")
        lines += [f"  {which} logit difference {ours[key]:.1e} to the simulation, {fp32[key]:.1e} to FP32"
                  for which, key in (("median", "median_logit_difference"), ("largest", "max_logit_difference"))]
    return lines + [f"  {batch['flips']} of {result['test_texts']} test labels change between batch 1 and batches of "
                    f"{batch['batch_size']} in {ORDERS} random orders or full padding "
                    f"(largest logit change {batch['max_logit_difference']:.1e})"]


def csv_text(result: dict) -> str:
    """One row a file, one column a number."""
    out = io.StringIO()
    rows = []
    for name, values in result["files"].items():
        flat = {"model": name}
        for key, value in values.items():
            if isinstance(value, dict):
                flat |= {f"{key}_{part}": number for part, number in value.items() if not isinstance(number, list)}
            elif not isinstance(value, list):
                flat[key] = value
        rows.append(flat)
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_report(folder: Path, result: dict, low: str, ranges: dict | None = None) -> list[str]:
    """results.json, results.csv, classification_report.txt, confusion_matrix.png, speed.png; returns their names.

    With learned activation `ranges` (learned.observed_ranges) also activation_ranges.png.
    """
    texts = result.pop("report")
    with atomic_folder(folder) as scratch:
        write_json(scratch / "results.json", result)
        (scratch / "results.csv").write_text(csv_text(result), encoding="utf-8")
        (scratch / "classification_report.txt").write_text(
            "\n".join(f"{name}\n{text}" for name, text in texts.items()), encoding="utf-8")
        plot_confusion(result, scratch / "confusion_matrix.png")
        plot_speed(result, low, scratch / "speed.png")
        if ranges:
            plot_ranges(ranges, scratch / "activation_ranges.png")
        names = publish(scratch)
    print(f"wrote {', '.join(names)} in {shown(folder)}")
    return names
