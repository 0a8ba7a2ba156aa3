"""Batches to ask a graph with: random ones of many shapes, and those that a server meets at worst."""

import numpy as np

from lowbit.data.tokens import INPUT_NAMES, PAIR_INPUT

# batch, length, padding at the end of every second row: other shapes than the traced one
CHECKED_SHAPES = ((1, 3, 0), (1, 32, 0), (2, 17, 5), (4, 64, 40), (3, 128, 100), (16, 24, 8))


def sample_inputs(vocab_size: int, batch: int, length: int, padding: int, seed: int,
                  names: tuple[str, ...] = INPUT_NAMES) -> dict[str, np.ndarray]:
    """Random int64 inputs [batch, length]; every second row ends in `padding` masked positions.

    Where `names` hold token_type_ids, the second half of each row belongs to the second text.
    """
    ids = np.random.default_rng(seed).integers(0, vocab_size, (batch, length))
    mask = np.ones_like(ids)
    mask[1::2, length - padding:] = 0
    kinds = np.zeros_like(ids)
    kinds[:, length // 2:] = 1
    given = dict(zip((*INPUT_NAMES, PAIR_INPUT), (ids, mask, kinds), strict=True))
    return {name: given[name] for name in names}


def hostile_inputs(vocab_size: int, longest: int, names: tuple[str, ...] = INPUT_NAMES) -> list[dict[str, np.ndarray]]:
    """Batches as a server meets them at worst: one token, the longest text, 64 texts, a padded row, a mask with holes.

    The padded row, which no position of attends to anything, is the second of its batch.
    """
    inputs = [sample_inputs(vocab_size, batch, length, 0, batch, names)
              for batch, length in ((1, 1), (64, min(8, longest)), (1, longest))]
    padded, holes = (sample_inputs(vocab_size, 4, min(24, longest), 0, seed, names) for seed in (1, 2))
    padded["attention_mask"][1] = 0
    holes["attention_mask"][:, 1:] = np.random.default_rng(0).integers(0, 2, holes["attention_mask"][:, 1:].shape)
    return [*inputs, padded, holes]
