"""What a file says of a text with some of its words: variants of its row, and the log-odds of a label.

    value(variant) = logit[label] - log(sum of exp(logit) of the other labels)        a number: the number itself

Log-odds and not probabilities: these hardly move where a model is sure.
"""

import numpy as np

from lowbit.data.tokens import Row, width
from lowbit.measure.session import Session
from lowbit.pipeline.errors import UserError
from lowbit.xai.words import Reading

REPLACE = ("mask", "delete")  # what stands where a word is left out: [MASK] for each of its tokens, or nothing
AT_ONCE = 16  # variants a batch, where a file's logits do not depend on batch-mates; 64 take a tenth longer
TOGETHER = 64  # variants a batch of the floor that batch-mates make


def mask_id_of(tokenizer) -> int:
    """The id of [MASK]; raises UserError for a tokenizer that has none."""
    if tokenizer.mask_token_id is None:
        raise UserError("REPLACE is 'mask', but this model's tokenizer has no mask token: use --replace delete, and "
                        "methods other than ig")
    return tokenizer.mask_token_id


def word_of_token(reading: Reading) -> np.ndarray:
    """The word that each token of the row belongs to, -1 for the special ones."""
    of = np.full(width(reading.row), -1)
    for number, word in enumerate(reading.words):
        of[list(word.tokens)] = number
    return of


def variants(reading: Reading, masks: np.ndarray, replace: str, mask_id: int | None) -> list[Row]:
    """A row for each of `masks` [variants, words], whose words are kept where it is True."""
    of = word_of_token(reading)
    kept = np.concatenate([masks, np.ones((len(masks), 1), bool)], 1)[:, of]  # special tokens take the last column
    if replace == "mask":
        ids = np.where(kept, np.array(reading.row["input_ids"]), mask_id).tolist()
        return [{**reading.row, "input_ids": row} for row in ids]
    return [{name: [value for value, stays in zip(values, row, strict=True) if stays]
             for name, values in reading.row.items()} for row in kept.tolist()]


def values_of(logits: np.ndarray, label: int | None) -> np.ndarray:
    """Log-odds [n] of a label from logits [n, labels]; without a label the number that a model gives."""
    logits = logits.astype(np.float64)
    if label is None:
        return logits[:, 0]
    others = np.delete(logits, label, 1)
    top = others.max(1, keepdims=True)
    return logits[:, label] - top[:, 0] - np.log(np.exp(others - top).sum(1))


class Asked:
    """A file that is asked about variants of one text; each different variant is asked once."""

    def __init__(self, session: Session, reading: Reading, replace: str, mask_id: int | None, pad_id: int,
                 batch_size: int):
        self.session, self.reading, self.replace, self.mask_id = session, reading, replace, mask_id
        self.pad_id, self.batch_size = pad_id, batch_size
        self.known: dict[bytes, np.ndarray] = {}

    def logits(self, masks: np.ndarray) -> np.ndarray:
        """Logits [n, outputs] of masks [n, words]."""
        keys = [mask.tobytes() for mask in masks]
        new = dict.fromkeys(key for key in keys if key not in self.known)
        if new:
            unknown = np.frombuffer(b"".join(new), bool).reshape(len(new), -1)
            rows = variants(self.reading, unknown, self.replace, self.mask_id)
            order = sorted(range(len(rows)), key=lambda i: width(rows[i]))
            self.known |= zip(new, self.session.logits(rows, self.pad_id, self.batch_size, order), strict=True)
        return np.array([self.known[key] for key in keys])

    def values(self, masks: np.ndarray, label: int | None) -> np.ndarray:
        """Log-odds [n] of a label, or the number, of masks [n, words]."""
        return values_of(self.logits(masks), label)
