"""Texts without labels for a student to learn its teachers' probabilities on: chosen, judged, filtered."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from lowbit.data.tsv import Text, folded
from lowbit.distill.soft_labels import Taught
from lowbit.distill.teachers import agreed, disagreement, judged, on_main_axes
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, sha256, shown
from lowbit.pipeline.manifest import publish
from lowbit.pretrain.corpus import Corpus
from lowbit.training.encoder import RUN_FILES

SHORTEST_TEXT = 3  # words


def chosen_texts(corpus: Corpus, weights: dict[str, float], known: list[Text], longest: int, seed: int) -> list[str]:
    """Different texts of the corpus, none of `known`, of SHORTEST_TEXT to `longest` words."""
    seen, found = {folded(text) for text in known}, []
    for text in corpus.weighted(weights, seed):
        key = str(folded(text))
        if key not in seen and SHORTEST_TEXT <= len(key.split()) <= longest:
            seen.add(key)
            found.append(text)
    return found


def digest_of(run: Path, weights: Path) -> str:
    """Digest of all that a teacher's words depend on: its weights, configuration, tokenizer and text cleaning."""
    read = [weights, *(run / name for name in RUN_FILES if (run / name).exists())]
    return hashlib.sha256("".join(map(sha256, read)).encode()).hexdigest()


def judge(teachers: list[Path], weights_of: list[Path], texts: list[Text], folder: Path) -> tuple[list, list]:
    """(logits, vectors) of each teacher on the texts; kept in `folder`, a teacher a file, and read from there again."""
    logits, vectors = [], []
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    for run, weights in zip(teachers, weights_of, strict=True):
        path = folder / f"{run.name}-{digest[:8]}-{digest_of(run, weights)[:8]}.npz"
        if not path.exists():
            ours = judged(run, texts, weights.name)
            with atomic_folder(folder) as scratch:
                np.savez(scratch / path.name, logits=ours[0], vectors=ours[1].astype(np.float16))
                publish(scratch)
        try:
            with np.load(path) as held:
                logits.append(held["logits"])
                vectors.append(held["vectors"].astype(np.float32))
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            raise UserError(f"{shown(path)} cannot be read ({error}): delete it, the same command makes it again"
                            ) from None
    return logits, vectors


def taught_of(logits: list, vectors: list, labelled: int, keep: float, width: int) -> tuple[Taught, np.ndarray]:
    """(what a student learns, numbers of the texts it learns from): the `keep` share that teachers agree on most.

    The first `labelled` texts always stay. Rows of unlabelled texts are filled in by the caller, in the numbers' order.
    """
    torn = disagreement(logits)[labelled:]
    kept = np.sort(np.argsort(torn, kind="stable")[: round(len(torn) * keep)]) + labelled
    places = np.concatenate([np.arange(labelled), kept])
    return Taught(agreed(logits)[places], labelled, vectors=on_main_axes(vectors, width)[places]), kept
