"""What the benchmarks at IndoBERT-base's size share: a run made by the stages on random weights, and its latencies."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lowbit.artifacts import ROOT
from lowbit.data import LABELS, SPLITS, read_split
from lowbit.sessions import Session, latency, random_inputs


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
