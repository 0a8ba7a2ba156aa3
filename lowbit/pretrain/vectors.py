"""First values of a table of word embeddings: from a corpus's own statistics, or from a larger encoder's words."""

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds

WINDOW = 4  # neighbours counted on each side
CONTEXT_POWER = 0.75  # frequencies of contexts are flattened by it
PART = 2_000_000  # tokens counted at once


def cooccurrences(ids: np.ndarray, size: int, special: int) -> sp.csr_matrix:
    """How often two tokens stand within WINDOW of each other, nearer pairs weighing more: symmetric [size, size]."""
    counts = sp.csr_matrix((size, size), dtype=np.float32)
    for start in range(0, len(ids), PART):
        part = ids[start : start + PART]
        for distance in range(1, WINDOW + 1):
            left, right = part[:-distance], part[distance:]
            words = (left >= special) & (right >= special)
            weights = np.full(int(words.sum()), 1 / distance, np.float32)
            counts += sp.csr_matrix((weights, (left[words], right[words])), shape=counts.shape)
    return counts + counts.T


def corpus_vectors(ids: np.ndarray, size: int, special: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors [size, width] of a token stream; zero rows for tokens below `special` and unseen ones.

    Truncated SVD of positive pointwise mutual information with context smoothing (Levy, Goldberg, Dagan 2015).
    """
    counts = cooccurrences(ids, size, special).tocoo()
    totals = np.asarray(counts.sum(1)).ravel()
    context = totals**CONTEXT_POWER / (totals**CONTEXT_POWER).sum()
    pmi = np.log(counts.data / (totals[counts.row] * context[counts.col]))
    seen = pmi > 0
    matrix = sp.csr_matrix((pmi[seen], (counts.row[seen], counts.col[seen])), shape=counts.shape)
    left, strengths, _ = svds(matrix, k=width, random_state=seed)
    return unit(left * np.sqrt(strengths))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def projected_vectors(words: list[str], tokenizer, table: torch.Tensor, width: int) -> np.ndarray:
    """Unit vectors [words, width]: the mean of each word's rows in a larger encoder's `table`, on its main axes.

    `words` are as they stand in text; one that follows inside a word starts with ##. `tokenizer` is the encoder's.
    """
    spelled = [word.removeprefix("##") for word in words]
    rows = tokenizer(spelled, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    means = np.stack([table[row].mean(0).numpy() if row else np.zeros(table.shape[1], np.float32) for row in rows])
    known = np.abs(means).sum(1) > 0
    centred = np.where(known[:, None], means - means[known].mean(0), 0)
    _, _, axes = np.linalg.svd(centred[known], full_matrices=False)
    return unit(centred @ axes[:width].T)
