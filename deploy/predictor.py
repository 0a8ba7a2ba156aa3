"""A packed model and the cleaning it was trained with: what a server imports. Needs numpy, onnxruntime, tokenizers."""

import hashlib
import json
import re
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

SPECIAL = re.compile(r"[^\w\s]|_")  # all but letters, digits and white space


class Refusal(Exception):
    """One sentence that says what is wrong and what to do."""


def remove_stop_words(words: list[str], stop_words: set[str]) -> list[str]:
    """Without stop words, as Sastrawi's remover leaves them, in one pass.

    It deletes the first equal word of the list that it walks over, so that the word behind each hit is not looked at.
    """
    kept, places, at = [], defaultdict(deque), 0
    while at < len(words):
        hit = words[at] in stop_words
        for word in words[at : at + 1 + hit]:
            if word in stop_words:
                places[word].append(len(kept))
            kept.append(word)
        if hit:
            kept[places[words[at]].popleft()] = None
        at += 1 + hit
    return [word for word in kept if word is not None]


def clean(text: str, steps: dict, stop_words: set[str]) -> str:
    """The cleaning that the model was trained with."""
    if steps["LOWER_CASE"]:
        text = text.lower()
    if steps["REMOVE_SPECIAL"]:
        text = SPECIAL.sub(" ", text)
    words = text.split()
    if steps["REMOVE_STOP_WORDS"]:
        words = remove_stop_words(words, stop_words)
    return " ".join(words)


def sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict:
    """manifest.json of a packed folder; raises Refusal where there is none."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"{folder} holds no manifest.json: name the folder that pack.py made with --model-dir") from None
    except ValueError as error:
        raise Refusal(f"{folder / 'manifest.json'} cannot be read ({error}): pack again") from None


def verify(folder: Path, manifest: dict, names) -> None:
    """Raises Refusal, naming file and hashes, unless every file is the one that was packed."""
    for name in names:
        wanted = manifest["files"][name]["sha256"]
        if not (folder / name).is_file():
            raise Refusal(f"{folder / name} is missing: copy the whole folder that pack.py made")
        found = sha256(folder / name)
        if found != wanted:
            raise Refusal(f"{folder / name} (SHA-256 {found[:12]}) is not the file that was packed ({wanted[:12]}): "
                          "copy the folder again")


class Predictor:
    """A packed model; `probabilities` is all that a server needs of it."""

    def __init__(self, folder: Path, threads: int = 0, batch_size: int = 0):
        folder = Path(folder)
        self.manifest = read_manifest(folder)
        self.model = self.manifest["model"]
        verify(folder, self.manifest, [name for name in self.manifest["files"] if name.startswith(self.model)])
        verify(folder, self.manifest, ["tokenizer.json", "preprocessing.json"])
        settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        self.labels, self.steps = settings["labels"], settings["steps"]
        self.stop_words = frozenset(settings["stop_words"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(settings["max_length"])
        self.pad_id, self.batch_size = settings["pad_id"], batch_size or self.manifest["batch_size"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(folder / self.model), options, providers=["CPUExecutionProvider"])

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of the cleaned texts, cut to the longest that the model was trained on."""
        cleaned = [clean(text, self.steps, self.stop_words) for text in texts]
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(cleaned)]

    def batches(self, rows: list[list[int]]):
        """(indices, inputs) of length-sorted batches: int64 arrays [batch, seq], padded to the batch's longest row."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), self.batch_size):
            group = order[start : start + self.batch_size]
            ids = np.full((len(group), len(rows[group[-1]])), self.pad_id, np.int64)
            mask = np.zeros_like(ids)
            for line, i in enumerate(group):
                ids[line, : len(rows[i])] = rows[i]
                mask[line, : len(rows[i])] = 1
            yield group, {"input_ids": ids, "attention_mask": mask}

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Float64 array [n, labels], in the texts' order."""
        rows = self.token_ids(texts)
        logits = np.empty((len(rows), len(self.labels)))
        for group, inputs in self.batches(rows):
            logits[group] = self.session.run(["logits"], inputs)[0]
        powers = np.exp(logits - logits.max(1, keepdims=True)) if len(rows) else logits
        return powers / powers.sum(1, keepdims=True)
