"""A corpus as token ids on disk: tokenized once, mapped into memory, shuffled and packed into rows as training goes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.pipeline.files import sha256, shown, write_json
from lowbit.pipeline.settings import check
from lowbit.pretrain.corpus import Corpus

TOKENS = "tokens"  # folder of a run, a folder a source in it, until the training is over
IDS, ENDS, MARK = "ids.uint16", "ends.int64", "ids.json"  # ids of all documents, where each one ends, what made them
TOGETHER = 30_000  # documents that are packed at once
HELD_OUT = 600  # documents of each phase that are kept from training, for the loss that is reported; at most
HELD_OUT_SHARE = 0.05  # this share of a pass
MOST_PIECES = 2**16
SAMPLE = 20_000_000  # tokens of a sample: what word vectors are counted on


class Stream:
    """The documents of one source: `ids` uint16 [tokens] and `ends` int64 [documents], where each one stops."""

    def __init__(self, folder: Path):
        self.ids = np.memmap(folder / IDS, np.uint16, "r")
        self.ends = np.memmap(folder / ENDS, np.int64, "r")

    def __len__(self) -> int:
        return len(self.ends)

    def document(self, i: int) -> np.ndarray:
        """The ids of document i."""
        return self.ids[(self.ends[i - 1] if i else 0) : self.ends[i]]


def tokenize(corpus: Corpus, source: str, tokenizer, folder: Path, digest: str) -> Stream:
    """Write the ids of a source into `folder`, unless they lie there, made from the same file and texts left out.

    `tokenizer` is one of the tokenizers library, and `digest` says which. A kill or a full disk leaves nothing that is
    taken for whole. Raises UserError for more pieces than 16 bits can number, and for a source without a document.
    """
    pieces = tokenizer.get_vocab_size()
    check(pieces <= MOST_PIECES, f"the vocabulary has {pieces} pieces; at most {MOST_PIECES} can be stored as 16 bits")
    made = {"source": sha256(corpus.files[source]), "by": digest,
            "held_out": corpus.held_out.digest if corpus.held_out else ""}
    mark = folder / MARK
    kept = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else {}
    if not made.items() <= kept.items() or (folder / IDS).stat().st_size != kept["tokens"] * np.uint16().itemsize:
        before = corpus.held_out.found.copy() if corpus.held_out else None
        folder.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)
        ends, total = [], 0
        with open(folder / IDS, "wb") as out:
            for texts in corpus.batches(source):
                for row in tokenizer.encode_batch(texts, add_special_tokens=False):
                    out.write(np.array(row.ids, np.uint16).tobytes())  # tofile() is silent about a full disk
                    total += len(row.ids)
                    ends.append(total)
        check(total > 0, f"CORPUS_DIRS: {shown(corpus.files[source])} holds no document to train on: leave it out of "
              "what is read, or put text there")
        (folder / ENDS).write_bytes(np.array(ends, np.int64).tobytes())
        left = dict(corpus.held_out.found - before) if corpus.held_out else {}
        write_json(mark, made | {"tokens": total, "left_out": left})
    return Stream(folder)


def marks_of(folder: Path, sources) -> dict[str, dict]:
    """Source -> what its ids were made of, and how many of its documents were left out, by kind."""
    return {source: json.loads((folder / source / MARK).read_text(encoding="utf-8")) for source in sources}


def left_out(marks: dict[str, dict]) -> dict[str, dict[str, int]]:
    """Source -> kind -> how many of its documents were left out, of the sources that had such."""
    return {source: mark["left_out"] for source, mark in marks.items() if mark["left_out"]}


class Mixture:
    """Streams in the proportions of `weights`, packed into rows: `first` opens a row, `last` closes a document."""

    def __init__(self, streams: dict[str, Stream], weights: dict[str, float], first: int, last: int, seed: int,
                 skipped: dict[str, set[int]] | None = None):
        self.streams, self.weights, self.first, self.last, self.seed = streams, weights, first, last, seed
        self.skipped = skipped or {}  # source -> documents that no pass has

    def order(self, number: int) -> np.ndarray:
        """(source, document) of pass `number`, shuffled: int32 [documents, 2]; fractions of a weight are drawn anew."""
        rng = np.random.default_rng((self.seed, number))
        parts = []
        for place, (source, weight) in enumerate(self.weights.items()):
            count, skipped = len(self.streams[source]), self.skipped.get(source, ())
            chosen = [rng.permutation(count)[: round(count * share)]
                      for share in (*[1.0] * int(weight), weight % 1) if share]
            for documents in chosen:
                documents = documents[~np.isin(documents, list(skipped))] if skipped else documents
                parts.append(np.stack([np.full(len(documents), place), documents], axis=1).astype(np.int32))
        every = np.concatenate(parts)
        return every[rng.permutation(len(every))]

    def tokens(self) -> int:
        """About how many tokens a pass has."""
        return round(sum(weight * len(self.streams[source].ids) for source, weight in self.weights.items()))

    def rows(self, length: int, number: int) -> Iterator[np.ndarray]:
        """The rows of pass `number`, uint16 [n, length] a part; what is left of the last one is dropped."""
        return self.packed(self.order(number), length)

    def packed(self, order: np.ndarray, length: int) -> Iterator[np.ndarray]:
        """The same of documents [n, 2] in the order given."""
        streams, rest = [self.streams[source] for source in self.weights], np.empty(0, np.uint16)
        last = np.array([self.last], np.uint16)
        for start in range(0, len(order), TOGETHER):
            pieces = [rest]
            for source, document in order[start : start + TOGETHER]:
                pieces += [streams[source].document(document), last]
            flat = np.concatenate(pieces)
            used = len(flat) // (length - 1) * (length - 1)
            rest = flat[used:]
            rows = flat[:used].reshape(-1, length - 1)
            yield np.concatenate([np.full((len(rows), 1), self.first, np.uint16), rows], axis=1)

    def batches(self, length: int, size: int, start: int = 0) -> Iterator[np.ndarray]:
        """Batches int64 [size, length] without end, pass after pass, from batch `start` on."""
        number, held = 0, np.empty((0, length), np.uint16)
        check(self.tokens() >= 2 * size * length, f"the corpus gives about {self.tokens()} tokens a pass, too few for "
              f"batches of {size * length}: add text, or lower TOKENS_PER_STEP")
        while True:
            for rows in self.rows(length, number):
                held = np.concatenate([held, rows])
                skipped = min(start, len(held) // size)
                held, start = held[skipped * size :], start - skipped
                while len(held) >= size:
                    yield held[:size].astype(np.int64)
                    held = held[size:]
            number += 1


@dataclass
class Phase:
    """Steps on one mixture of text, in rows of one length; `held_out` rows [n, tokens] are for the reported loss."""

    mixture: Mixture
    length: int
    steps: int
    held_out: np.ndarray


def phases_of(streams: dict[str, Stream], parts, first: int, last: int, seed: int) -> list[Phase]:
    """A Phase for each (weights, length, steps); the held-out documents of one are trained on in none.

    Held-out rows have the shortest length of all: a longer one reads positions that no step before its phase trains.
    """
    orders = [Mixture(streams, weights, first, last, seed + 1).order(0) for weights, _, _ in parts]
    drawn = [order[: min(HELD_OUT, round(len(order) * HELD_OUT_SHARE))] for order in orders]
    skipped = {}
    for (weights, _, _), documents in zip(parts, drawn, strict=True):
        for place, document in documents:
            skipped.setdefault(list(weights)[place], set()).add(int(document))
    phases, shortest = [], min(length for _, length, _ in parts)
    for (weights, length, steps), documents in zip(parts, drawn, strict=True):
        only = Mixture(streams, weights, first, last, seed)
        rows = list(only.packed(np.unique(documents, axis=0), shortest))
        check(sum(map(len, rows)) > 0, f"the corpus is too small: {len(documents)} documents, kept for the loss that "
              f"is reported, do not fill a row of {shortest} tokens; add text")
        held = np.concatenate(rows)
        phases.append(Phase(Mixture(streams, weights, first, last, seed, skipped), length, steps, held))
    return phases


def sample(mixture: Mixture, length: int) -> np.ndarray:
    """The first SAMPLE tokens of a pass, or all of a shorter one, one after the other."""
    parts, total = [], 0
    for rows in mixture.rows(length, 0):
        parts.append(rows.ravel())
        total += rows.size
        if total >= SAMPLE:
            break
    return np.concatenate(parts)[:SAMPLE]
