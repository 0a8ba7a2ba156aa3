"""What the benchmarks at IndoBERT-base's size share: a run made on random weights, latencies, training steps."""

import multiprocessing
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lowbit.data.tsv import LABELS, SPLITS, read_split
from lowbit.measure.session import Session, latency, random_inputs
from lowbit.pipeline.files import ROOT, shown, write_json

STEP_SHAPE = (16, 64)


def make_run(folder: Path, indobert: Path, smsa: Path, stages: list[tuple[str, tuple]]) -> None:
    """Run stages 1 to 3 (paths from the project's root) on random weights of IndoBERT's shape and a handful of texts.

    The texts stay in <folder>/data: every 1/32 of each SMSA split.
    """
    encoder, data = folder / "encoder", folder / "data"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(indobert)).save_pretrained(encoder)
    AutoTokenizer.from_pretrained(indobert).save_pretrained(encoder)
    data.mkdir()
    for split in SPLITS:
        texts, labels = read_split(smsa, split)
        some = slice(None, None, len(texts) // 32)  # the files are sorted by label in places
        rows = [f"{text}\t{LABELS[label]}\n" for text, label in zip(texts[some], labels[some], strict=True)]
        (data / f"{split}.tsv").write_text("".join(rows), encoding="utf-8")
    for stage, flags in stages:
        subprocess.run([sys.executable, ROOT / stage, "--run", folder.name, *flags], check=True)


def write_results(result: dict, name: str, folder: Path, keep: bool) -> None:
    """results/<name>.json; the run's folder is deleted unless it is to be kept."""
    out = ROOT / "results" / f"{name}.json"
    write_json(out, result)
    if not keep:
        shutil.rmtree(folder)
    print(f"wrote {shown(out)}")


def time_shapes(sessions: dict[str, Session], low: str, shapes, vocab_size: int, rounds: int, runs: int) -> dict:
    """`1x32` -> latencies of FP32 and the low-bit file in turns, and how many times faster the latter is."""
    result = {}
    for batch, length in shapes:
        timed = latency(sessions, random_inputs(vocab_size, batch, length, runs), rounds)
        ratios = np.divide(timed["FP32"]["round_medians_ms"], timed[low]["round_medians_ms"])
        timed |= {"speed_up": timed["FP32"]["p50_ms"] / timed[low]["p50_ms"], "round_ratios": ratios.tolist()}
        result[f"{batch}x{length}"] = timed
        print(f"  {batch:2} x {length:3} tokens: FP32 {timed['FP32']['p50_ms']:7.1f} ms, {low} "
              f"{timed[low]['p50_ms']:6.1f} ms, {timed['speed_up']:.3f}x "
              f"({min(ratios):.3f} to {max(ratios):.3f} by round)", flush=True)
    return result


def step_worker(pipe, config_dir: Path, prepare, autocast: bool) -> None:
    """A process that times training steps of prepare(model): forward, backward, AdamW, on random ids [16, 64]."""
    torch.manual_seed(0)
    model = prepare(AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(config_dir))).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-5, fused=True)
    ids = torch.randint(5, 30_000, STEP_SHAPE)
    labels = torch.randint(0, len(LABELS), STEP_SHAPE[:1])
    while (steps := pipe.recv()) is not None:
        seconds = []
        for _ in range(steps + 1):  # the first of a turn warms up
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(time.perf_counter() - start)
        pipe.send(seconds[1:])


def unchanged(model):
    """The plain model."""
    return model


def measure_steps(config_dir: Path, prepare, autocast: bool, rounds: int, count: int) -> dict:
    """Median seconds of a plain step and of one of prepare(model), two processes taking turns, and their ratio."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, prepared in (("plain", unchanged), ("qat", prepare)):
        ours, theirs = context.Pipe()
        workers[name] = ours, context.Process(target=step_worker, args=(theirs, config_dir, prepared, autocast))
        workers[name][1].start()
    seconds = {name: [] for name in workers}
    for _ in range(rounds):
        for name, (pipe, _) in workers.items():
            pipe.send(count)
            seconds[name].append(pipe.recv())
    for pipe, process in workers.values():
        pipe.send(None)
        process.join()
    medians = {f"{name}_seconds": statistics.median(sum(rows, [])) for name, rows in seconds.items()}
    ratios = [statistics.median(qat) / statistics.median(plain)
              for qat, plain in zip(seconds["qat"], seconds["plain"], strict=True)]
    ratio = medians["qat_seconds"] / medians["plain_seconds"]
    print(f"  training step 16 x 64 in {'bf16' if autocast else 'fp32'}: plain {medians['plain_seconds']:.2f} s, QAT "
          f"{medians['qat_seconds']:.2f} s, {ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f} by round)", flush=True)
    return {**medians, "ratio": ratio, "round_ratios": ratios}
