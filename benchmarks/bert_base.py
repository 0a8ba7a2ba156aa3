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

from lowbit.data.task import SENTIMENT
from lowbit.data.tokens import INPUT_NAMES
from lowbit.data.tsv import SPLITS, read_split
from lowbit.graph.export import trace
from lowbit.measure.session import random_inputs, take_turns
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT, run_dir, shown, write_json
from lowbit.pipeline.settings import check
from lowbit.training.weights import WEIGHTS, load_weights

STEP_SHAPE = (16, 64)


def fresh_run(run: str) -> Path:
    """models/<run>, emptied if a benchmark made it; raises UserError for anybody else's folder."""
    folder = run_dir(run)
    if folder.exists() and not (folder / "encoder").is_dir():
        raise UserError(f"RUN is {run!r}, but {shown(folder)} was not made by a benchmark: choose another name")
    shutil.rmtree(folder, ignore_errors=True)
    return folder


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
        some = slice(None, None, max(len(texts) // 32, 1))  # the files are sorted by label in places
        rows = [f"{text}\t{SENTIMENT.labels[label]}\n" for text, label in zip(texts[some], labels[some], strict=True)]
        (data / f"{split}.tsv").write_text("".join(rows), encoding="utf-8")
    for stage, flags in stages:
        subprocess.run([sys.executable, ROOT / stage, "--run", folder.name, *flags], check=True)


def plain_export(run: Path, path: Path) -> None:
    """The FP32 graph of a run as torch's exporter gives it: every token of the last layer, shapes computed in a run."""
    config = AutoConfig.from_pretrained(run, attn_implementation="eager", return_dict=False)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    load_weights(model, run / WEIGHTS)
    trace(model, path, 17, INPUT_NAMES, config.vocab_size)


def write_results(result: dict, name: str, folder: Path, keep: bool) -> None:
    """results/<name>.json; the run's folder is deleted unless it is to be kept."""
    out = ROOT / "results" / f"{name}.json"
    write_json(out, result)
    if not keep:
        shutil.rmtree(folder)
    print(f"wrote {shown(out)}")


def read_shapes(text: str) -> list[tuple[int, int]]:
    """(batch, tokens) of each entry of a SHAPES setting; raises UserError for anything else."""
    shapes = []
    for entry in text.split(","):
        parts = entry.split("x")
        check(len(parts) == 2 and all(part.isdigit() and int(part) > 0 for part in parts),
              f"SHAPES has {entry!r}; write texts x tokens, such as 16x64")
        shapes.append((int(parts[0]), int(parts[1])))
    return shapes


def time_files(files: dict[str, tuple[Path, str]], reference: str, shapes, vocab_size: int, rounds: int, runs: int,
               provider: str = "CPUExecutionProvider", extra: dict | None = None, threads: int = 0) -> dict:
    """Median times of each (file, runtime) at `shapes` (batch, tokens), a process each in every turn, in turns.

    `latency` maps "16x64" to name -> median_ms, ratio (how many times the reference's speed: the median of the rounds'
    ratios) and round_ratios; `peak_memory_mb` and `load_ms` are each process's. `extra` batches are timed too: their
    seconds a round. `threads` of each session; 0 = every core.
    """
    timed = {f"{batch}x{length}": random_inputs(vocab_size, batch, length, runs) for batch, length in shapes}
    turns = [take_turns(files, timed | (extra or {}), provider, threads) for _ in range(rounds)]
    for name, turn in ((name, turn) for each in turns for name, turn in each.items() if "error" in turn):
        raise UserError(f"{name} ({shown(files[name][0])}) does not run: {turn['error']}")
    latency = {}
    for shape in timed:
        medians = {name: [statistics.median(turn[name]["ms"][shape]) for turn in turns] for name in files}
        print(f"  {shape.replace('x', ' x ')} tokens")
        latency[shape] = {}
        for name, ours in medians.items():
            ratios = np.divide(medians[reference], ours).tolist()
            found = {"median_ms": statistics.median(ours), "ratio": statistics.median(ratios), "round_ratios": ratios}
            latency[shape][name] = found
            print(f"    {name:22} {found['median_ms']:8.2f} ms, {found['ratio']:.2f}x the speed of {reference} "
                  f"({min(ratios):.2f} to {max(ratios):.2f} by round)", flush=True)
    seconds = {key: {name: [sum(turn[name]["ms"][key]) / 1e3 for turn in turns] for name in files}
               for key in extra or ()}
    memory, load = ({name: statistics.median(turn[name][key] for turn in turns) for name in files}
                    for key in ("peak_memory_mb", "load_ms"))
    return {"latency": latency, "peak_memory_mb": memory, "load_ms": load, "seconds": seconds}


def step_worker(pipe, config_dir: Path, simulate, autocast: bool) -> None:
    """A process that times training steps of simulate(model): forward, backward, AdamW, on random ids [16, 64]."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(config_dir, num_labels=len(SENTIMENT.labels))
    model = simulate(AutoModelForSequenceClassification.from_config(config)).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-5, fused=True)
    ids = torch.randint(5, min(30_000, model.config.vocab_size), STEP_SHAPE)
    labels = torch.randint(0, len(SENTIMENT.labels), STEP_SHAPE[:1])
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


def measure_steps(config_dir: Path, simulate, autocast: bool, rounds: int, count: int) -> dict:
    """Median seconds of a plain step and of one of simulate(model), two processes taking turns, and their ratio."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, changed in (("plain", unchanged), ("qat", simulate)):
        ours, theirs = context.Pipe()
        workers[name] = ours, context.Process(target=step_worker, args=(theirs, config_dir, changed, autocast),
                                              daemon=True)  # it ends with this process, however that ends
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
    ratio = statistics.median(ratios)
    print(f"  training step 16 x 64 in {'bf16' if autocast else 'fp32'}: plain {medians['plain_seconds']:.2f} s, QAT "
          f"{medians['qat_seconds']:.2f} s, {ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f} by round)", flush=True)
    return {**medians, "ratio": ratio, "round_ratios": ratios}
