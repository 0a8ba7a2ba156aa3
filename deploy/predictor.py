"""A packed model and the cleaning it was trained with: what a server imports. Needs numpy, onnxruntime, tokenizers."""

import hashlib
import json
import os
import re
import time
from collections import Counter, defaultdict, deque
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

SPECIAL = re.compile(r"[^\w\s]|_")  # all but letters, digits and white space
MOST_BATCH = 4096  # texts
NEEDED = ("tokenizer.json", "preprocessing.json", "task.json")


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


def read_json(path: Path):
    """A JSON file; raises Refusal for one that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror}): copy the whole folder that pack.py made") from None
    except ValueError as error:
        raise Refusal(f"{path} is no JSON ({error}): copy the folder again, or pack again") from None


def read_manifest(folder: Path) -> dict:
    """manifest.json of a packed folder; raises Refusal where there is none, or one that pack.py did not write."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise Refusal(f"{folder} holds no manifest.json: name the folder that pack.py made with --model-dir")
    manifest = read_json(path)
    try:
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        size, model = manifest["batch_size"], manifest["model"]
        wrong = [name for name in files if os.path.isabs(name) or os.pardir in Path(name).parts]
        if wrong:
            raise Refusal(f"{path} names {wrong[0]}, which lies outside the folder: pack again")
        if type(size) is not int or not 1 <= size <= MOST_BATCH:
            raise Refusal(f"{path} has the batch_size {size!r}; it must be from 1 to {MOST_BATCH}: pack again")
        absent = [name for name in (model, *NEEDED) if name not in files]
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{path} is not what pack.py writes ({type(error).__name__}: {error}): pack again") from None
    if absent:
        raise Refusal(f"{path} does not list {absent[0]!r} among its files, so it cannot be checked: pack again")
    return manifest


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


def identity(manifest: dict) -> str:
    """Digest of model, tokenizer, preprocessing and task: what a text's answer depends on beside the text."""
    digests = (manifest["files"][name]["sha256"] for name in (manifest["model"], *NEEDED))
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


class Predictor:
    """A packed model; `probabilities` (or `values`, of a model that gives a number) is all that a server needs of it.

    A text is a str, or a tuple of two where the model was trained on pairs (`texts` names them). `seconds` counts what
    cleaning, tokenizing and the session took.
    """

    def __init__(self, folder: Path, threads: int = 0, batch_size: int = 0):
        folder = Path(folder)
        self.manifest = read_manifest(folder)
        verify(folder, self.manifest, [self.manifest["model"], *NEEDED])
        settings, task = read_json(folder / "preprocessing.json"), read_json(folder / "task.json")
        try:
            self.labels, self.texts = task["labels"], task["texts"]
            self.steps, self.max_length = settings["steps"], settings["max_length"]
            self.inputs, self.pad_id = settings["inputs"], settings["pad_id"]
            self.stop_words = frozenset(settings["stop_words"])
        except (KeyError, TypeError) as error:
            raise Refusal(f"{folder} was packed by another version ({error} is not there): pack again") from None
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_length)
        self.batch_size = batch_size or self.manifest["batch_size"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(folder / self.manifest["model"]), options,
                                            providers=["CPUExecutionProvider"])
        self.seconds = Counter()

    def clean(self, text) -> str | tuple:
        """A text, or both of a pair, as the tokenizer gets it."""
        if isinstance(text, str):
            return clean(text, self.steps, self.stop_words)
        return tuple(clean(part, self.steps, self.stop_words) for part in text)

    def head(self, text: str) -> str:
        """As much of a cleaned text as can matter: its first tokens are those of the whole, and fill the longest input.

        Cut between words, or, where a word goes on and on, behind 100 tokens more: no longer word is looked up.
        """
        size, spare = 32 * self.max_length, 1 + 100 // (self.max_length - 2)
        while size < len(text):
            for part, more in ((text[:size].rpartition(" ")[0], 0), (text[:size], spare)):
                encoding = self.tokenizer.encode(part)
                if len(encoding.ids) == self.max_length and len(encoding.overflowing) >= more:
                    return part
            size *= 8
        return text

    def encodings(self, cleaned: list) -> list:
        """An encoding for each cleaned text, cut to the longest input that the model was trained on."""
        return self.tokenizer.encode_batch([self.head(text) if isinstance(text, str) else tuple(map(self.head, text))
                                            for text in cleaned])

    def batches(self, encodings: list):
        """(indices, inputs) of length-sorted batches: int64 arrays [batch, seq], padded to the batch's longest row."""
        order = sorted(range(len(encodings)), key=lambda i: len(encodings[i].ids))
        for start in range(0, len(order), self.batch_size):
            group = order[start : start + self.batch_size]
            shape = len(group), len(encodings[group[-1]].ids)
            inputs = {"input_ids": np.full(shape, self.pad_id, np.int64), "attention_mask": np.zeros(shape, np.int64)}
            if "token_type_ids" in self.inputs:
                inputs["token_type_ids"] = np.zeros(shape, np.int64)
            for line, i in enumerate(group):
                ids = encodings[i].ids
                inputs["input_ids"][line, : len(ids)] = ids
                inputs["attention_mask"][line, : len(ids)] = 1
                if "token_type_ids" in inputs:
                    inputs["token_type_ids"][line, : len(ids)] = encodings[i].type_ids
            yield group, inputs

    def outputs(self, cleaned: list) -> np.ndarray:
        """Logits, float64 [n, labels] (or [n, 1], the number), of cleaned texts, in their order."""
        started = time.perf_counter()
        encodings = self.encodings(cleaned)
        self.seconds["tokens"] += time.perf_counter() - started
        found = np.empty((len(encodings), len(self.labels) if self.labels else 1))
        for group, inputs in self.batches(encodings):
            started = time.perf_counter()
            found[group] = self.session.run(["logits"], inputs)[0]
            self.seconds["session"] += time.perf_counter() - started
        return found

    def answers(self, texts: list) -> tuple[np.ndarray, list[bool]]:
        """(probabilities [n, labels] or numbers [n, 1]; whether cleaning left nothing of a text, or of one of a pair).

        What the model says of nothing is the same for every such text, whatever stood there.
        """
        started = time.perf_counter()
        cleaned = [self.clean(text) for text in texts]
        self.seconds["cleaning"] += time.perf_counter() - started
        found = self.outputs(cleaned)
        if self.labels and len(found):
            powers = np.exp(found - found.max(1, keepdims=True))
            found = powers / powers.sum(1, keepdims=True)
        return found, [not (text if isinstance(text, str) else all(text)) for text in cleaned]

    def probabilities(self, texts: list) -> np.ndarray:
        """Float64 array [n, labels], in the texts' order."""
        return self.answers(texts)[0]

    def values(self, texts: list) -> np.ndarray:
        """Float64 array [n] of the numbers that a regression model gives."""
        return self.answers(texts)[0][:, 0]
