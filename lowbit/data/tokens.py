"""From texts to token ids and to padded batches, the same way in every stage."""

import json
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from lowbit.data.cleaning import clean

INPUT_NAMES = ("input_ids", "attention_mask")


def encode(texts: list[str], tokenizer, preset: str, max_length: int) -> list[list[int]]:
    """Token ids of the cleaned texts, cut to max_length; prints how many were cut or cleaned to nothing."""
    cleaned = [clean(text, preset) for text in texts]
    ids = tokenizer(cleaned, add_special_tokens=True, truncation=False, return_attention_mask=False,
                    return_token_type_ids=False, verbose=False)["input_ids"]
    cut = sum(len(row) > max_length for row in ids)
    empty = sum(not text for text in cleaned)
    if cut or empty:
        print(f"  {cut} of {len(texts)} texts cut to {max_length} tokens, {empty} empty after cleaning")
    # cut as the tokenizer's own truncation does: the closing [SEP] stays
    return [row if len(row) <= max_length else row[: max_length - 1] + row[-1:] for row in ids]


def pad(rows: list[list[int]], pad_id: int, length: int = 0) -> dict[str, np.ndarray]:
    """A batch of int64 arrays [batch, seq], padded to its longest row or to `length`."""
    width = max(length, *(len(row) for row in rows))
    ids = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return dict(zip(INPUT_NAMES, (ids, mask), strict=True))


def batches(rows: list[list[int]], batch_size: int, sort: bool) -> list[list[int]]:
    """Row numbers in batches; sorted by length, a batch wastes next to nothing on padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if sort else list(range(len(rows)))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

PREPROCESSING = "preprocessing.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_text_settings(folder: Path):
    """(tokenizer, preprocessing settings) of a run's folder."""
    preprocessing = json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
    return AutoTokenizer.from_pretrained(folder), preprocessing
