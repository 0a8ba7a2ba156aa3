"""More texts to ask the teacher about: copies of each text of train with words replaced by near ones.

Near is what lies near in the teacher's table of word embeddings; a word is a piece that no other piece continues.
After Jiao et al. 2020 (arXiv:1909.10351), section 3.3, which asks a masked language model and GloVe for the words.
Copies have no labels of their own: what they say is the teacher's to judge.
"""

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from torch.nn.functional import normalize

NEAREST = 15  # words that one is replaced by, all equally often
AT_ONCE = 1024  # words whose neighbours are looked for together


def starts(pieces: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(whether a piece starts a word of letters, whether it continues one), of WordPiece's or SentencePiece's."""
    if any(piece.startswith("##") for piece in pieces):
        return (np.array([piece.isalpha() for piece in pieces]), np.array([piece.startswith("##") for piece in pieces]))
    return (np.array([piece.startswith("▁") and piece[1:].isalpha() for piece in pieces]),
            np.array([piece.isalpha() for piece in pieces]))


@torch.no_grad()
def neighbours(table: torch.Tensor, words: np.ndarray, wanted: np.ndarray) -> dict[int, np.ndarray]:
    """Id -> the ids of its NEAREST words by cosine, of those in `words`, for each id of `wanted`."""
    unit = normalize(table.float(), dim=-1)
    known = unit[torch.from_numpy(words)]
    found = {}
    for start in range(0, len(wanted), AT_ONCE):
        ids = wanted[start : start + AT_ONCE]
        near = (unit[torch.from_numpy(ids)] @ known.T).topk(min(NEAREST + 1, len(words))).indices.numpy()
        for id_, row in zip(ids.tolist(), words[near], strict=True):
            others = row[row != id_][:NEAREST]
            if len(others):
                found[id_] = others
    return found


def augmented(train: Dataset, teacher: nn.Module, tokenizer, copies: int, share: float, seed: int) -> Dataset:
    """Train's rows, then `copies` of each with a `share` of its words replaced."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    start, continues = starts(pieces)
    rows, rng = train["input_ids"], np.random.default_rng(seed)
    used = np.unique(np.concatenate([np.asarray(row) for row in rows]))
    near = neighbours(teacher.get_input_embeddings().weight.cpu(), np.flatnonzero(start), used[start[used]])
    made = []
    for _ in range(copies):
        copy = []
        for row in rows:
            ids = np.array(row)
            whole = start[ids] & ~np.append(continues[ids[1:]], False)
            for place in np.flatnonzero(whole & (rng.random(len(ids)) < share)):
                if int(ids[place]) in near:
                    ids[place] = rng.choice(near[int(ids[place])])
            copy.append(ids.tolist())
        made.append(Dataset.from_dict({**train.to_dict(), "input_ids": copy}, features=train.features))
    return concatenate_datasets([train, *made])
