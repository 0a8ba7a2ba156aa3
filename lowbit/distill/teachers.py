"""What trained models say of texts: logits and sentence vectors of each, their mean, and how far they disagree."""

from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from tqdm import tqdm

from lowbit.data.tokens import batches, load_reader, pad
from lowbit.data.tsv import Text
from lowbit.training.encoder import load_run
from lowbit.training.fine_tune import autocast_dtype
from lowbit.training.weights import WEIGHTS, load_weights

BATCH_SIZE = 64  # texts


@torch.inference_mode()
def judged(run: Path, texts: list[Text], weights: str = WEIGHTS) -> tuple[np.ndarray, np.ndarray]:
    """(logits [texts, labels], unit vectors [texts, width] of the first token) of a trained run, as float32 arrays.

    Computed in BF16 where the device has it: a label that this changes is one that the model is not sure of.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, reader = load_run(run), load_reader(run)
    load_weights(model, run / weights)
    model.to(device)
    rows, dtype = reader.rows(texts), autocast_dtype()
    logits, vectors = [None] * len(rows), [None] * len(rows)
    for batch in tqdm(batches(rows, BATCH_SIZE, sort=True), desc=run.name, unit="batch", disable=None):
        given = pad([rows[i] for i in batch], reader.pad_id)
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            out = model(**{name: torch.from_numpy(value).to(device) for name, value in given.items()},
                        output_hidden_states=True)
        first = torch.nn.functional.normalize(out.hidden_states[-1][:, 0].float(), dim=-1)
        for i, ours, vector in zip(batch, out.logits.float().cpu().numpy(), first.cpu().numpy(), strict=True):
            logits[i], vectors[i] = ours, vector
    return np.stack(logits), np.stack(vectors)


def agreed(logits: list[np.ndarray]) -> np.ndarray:
    """Log of the mean of several models' probabilities [texts, labels]."""
    return np.log(np.mean([softmax(one, axis=-1) for one in logits], axis=0) + 1e-9)


def disagreement(logits: list[np.ndarray]) -> np.ndarray:
    """Jensen-Shannon divergence of several models' probabilities, a number from 0 for each text [texts]."""
    mean = agreed(logits)
    parts = [(np.exp(own) * (own - mean)).sum(-1) for own in (log_softmax(one, axis=-1) for one in logits)]
    return np.mean(parts, axis=0)


def on_main_axes(vectors: list[np.ndarray], width: int) -> np.ndarray:
    """Several models' vectors side by side, centred, on their `width` main axes: [texts, width]."""
    joined = np.concatenate(vectors, axis=1)
    joined = joined - joined.mean(0)
    _, axes = np.linalg.eigh(joined.T @ joined)
    return joined @ axes[:, ::-1][:, :width]
