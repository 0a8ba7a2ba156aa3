"""A packed model and the cleaning it was trained with: what a server imports. Needs numpy, onnxruntime, tokenizers."""

import contextlib
import ctypes
import os
import re
import time
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from packed import NEEDED, Refusal, read_json, read_manifest, verify
from tokenizers import Tokenizer

SPECIAL = re.compile(r"[^\w\s]|_")  # all but letters, digits and white space
BATCH_TOKENS = 1024  # tokens of a batch, padding included; twice and half as many are slower on 2 cores
CHUNK = 64  # texts that are tokenized at a time
PIECE = 4096  # characters that are tokenized at a time where only their number counts
LONGEST_WORD = 100  # characters of a word that is looked up; a longer one is unknown as a whole


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


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_back_memory() -> None:
    """Hand freed memory back to the system where the C library is glibc, which keeps it; others do so by themselves.

    Making a session takes more than it holds, above all where it unpacks weights: a server would keep it for good.
    """
    with contextlib.suppress(OSError, AttributeError):  # no such library, or one without this function
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Tokens(NamedTuple):
    """What the model gets of a text or pair; `empty`: the cleaned text, or one of the pair, has no token."""

    ids: list[int]
    type_ids: list[int]
    empty: bool


class Predictor:
    """A packed model; `probabilities` (or `values`, of a model that gives a number) is all that a server needs of it.

    A text is a str, or a tuple of two where the model was trained on pairs (`texts` names them). `seconds` counts what
    cleaning, tokenizing and the session took. `threads` (0: every core) compute one batch together, which answers a
    single text soonest; with `batches_at_once` each computes a batch of its own, which labels many texts soonest. The
    answers are the same.
    """

    def __init__(self, folder: Path, threads: int = 0, batch_size: int = 0, batches_at_once: bool = False):
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
        self.batch_size = batch_size or self.manifest["batch_size"]
        self.batch_tokens = 0 if batch_size else BATCH_TOKENS
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1 if batches_at_once else threads
        options.log_severity_level = 3
        # threads that allocate for a text each wait for one another in the arena: without it 1.4 to 1.6 times as many
        options.enable_cpu_mem_arena = not (batches_at_once and self.batch_size == 1)
        self.at_once = (threads or cores()) if batches_at_once else 1
        self.map = ThreadPoolExecutor(self.at_once).map if batches_at_once else map
        loading = folder / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(loading))
            loading = folder / self.manifest["model"]
            self.session = ort.InferenceSession(str(loading), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # both libraries have no narrower one
            raise Refusal(f"{loading} cannot be loaded here ({str(error).splitlines()[0]}): pip install -r "
                          "requirements.txt, or pack again") from None
        give_back_memory()
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_length)
        self.seconds = Counter()

    def clean(self, text) -> str | tuple:
        """A text, or both of a pair, as the tokenizer gets it."""
        if isinstance(text, str):
            return clean(text, self.steps, self.stop_words)
        return tuple(clean(part, self.steps, self.stop_words) for part in text)

    def count(self, text: str) -> int:
        """Tokens of a cleaned text, however many, counted a few words at a time."""
        added, total, start = self.tokenizer.num_special_tokens_to_add(False), 0, 0
        while start < len(text):
            end = text.find(" ", start + PIECE)
            found = self.tokenizer.encode(text[start : end if end > 0 else len(text)])
            total += sum(len(piece.ids) - added for piece in (found, *found.overflowing))
            start = end if end > 0 else len(text)
        return total

    def head(self, text: str, least: int = 0) -> str:
        """As much of a cleaned text as can matter: its tokens are those of the whole, more than the longest input.

        They are more than `least`, too. Cut between words, or, where a word goes on and on, behind 100 tokens more: no
        longer word is looked up.
        """
        size, least = 4 * self.max_length, max(least, self.max_length)
        while size < len(text):
            for part, more in ((text[:size].rpartition(" ")[0], 0), (text[:size], LONGEST_WORD)):
                if self.count(part) > least + more:
                    return part
            size *= 8
        return text

    def heads(self, pair: tuple[str, str]) -> tuple[str, ...]:
        """The heads of a pair. The longer of two long ones keeps one token more, so it must stay the longer."""
        if max(map(len, pair)) <= 4 * self.max_length:
            return pair
        counts = [self.count(text) for text in pair]
        if min(counts) <= self.max_length:
            return tuple(map(self.head, pair))
        longer = int(counts[0] <= counts[1])  # of equal ones the second
        shorter = self.head(pair[1 - longer])
        return (shorter, self.head(pair[1], self.count(shorter))) if longer else (
            self.head(pair[0], self.count(shorter)), shorter)

    def encodings(self, cleaned: list) -> list[Tokens]:
        """The tokens of each cleaned text, cut to the longest input that the model was trained on."""
        found = []
        for start in range(0, len(cleaned), CHUNK):  # the tokenizer keeps what it cut off, at 100 bytes a token
            heads = [self.head(text) if isinstance(text, str) else self.heads(text)
                     for text in cleaned[start : start + CHUNK]]
            found += [Tokens(one.ids, one.type_ids, len(set(one.sequence_ids) - {None}) < len(self.texts))
                      for one in self.tokenizer.encode_batch(heads)]
        return found

    def groups(self, lengths: list[int]):
        """Indices of length-sorted batches: at most `batch_size` rows and `batch_tokens` (0: any), padding included."""
        group = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            full = len(group) == self.batch_size or (len(group) + 1) * lengths[i] > self.batch_tokens > 0
            if group and full:
                yield group
                group = []
            group.append(i)
        if group:
            yield group

    def batch(self, rows: list[Tokens]) -> dict[str, np.ndarray]:
        """The session's inputs of rows sorted by length: int64 arrays [batch, seq], padded to the longest."""
        shape = len(rows), len(rows[-1].ids)
        inputs = {"input_ids": np.full(shape, self.pad_id, np.int64), "attention_mask": np.zeros(shape, np.int64)}
        if "token_type_ids" in self.inputs:
            inputs["token_type_ids"] = np.zeros(shape, np.int64)
        for line, row in enumerate(rows):
            inputs["input_ids"][line, : len(row.ids)] = row.ids
            inputs["attention_mask"][line, : len(row.ids)] = 1
            if "token_type_ids" in inputs:
                inputs["token_type_ids"][line, : len(row.ids)] = row.type_ids
        return inputs

    def outputs(self, encodings: list[Tokens]) -> np.ndarray:
        """Logits or numbers [n, outputs] of the rows, in their order."""
        found = np.empty((len(encodings), len(self.labels) if self.labels else 1))
        groups = list(self.groups([len(row.ids) for row in encodings]))

        def compute(some: list[list[int]]) -> None:
            for group in some:
                found[group] = self.session.run(["logits"], self.batch([encodings[i] for i in group]))[0]

        # a few batches a task: Ctrl-C waits for those that are being computed, and drops the rest
        size = min(16, 1 + len(groups) // (8 * self.at_once))
        for _ in self.map(compute, [groups[i : i + size] for i in range(0, len(groups), size)]):
            pass  # an exception of a task is raised here
        return found

    def answers(self, texts: list) -> tuple[np.ndarray, list[bool]]:
        """(float64 probabilities [n, labels] or numbers [n, 1]; whether nothing is left of a text, or half a pair).

        What the model says of nothing is the same for every such text, whatever stood there.
        """
        if isinstance(texts, str) or any((1 if isinstance(text, str) else len(text)) != len(self.texts)
                                         for text in texts):
            raise TypeError(f"texts must be a list of {'strings' if len(self.texts) == 1 else 'pairs of strings'}")
        started = time.perf_counter()
        cleaned = [self.clean(text) for text in texts]
        self.seconds["cleaning"] += time.perf_counter() - started
        started = time.perf_counter()
        encodings = self.encodings(cleaned)
        self.seconds["tokens"] += time.perf_counter() - started
        started = time.perf_counter()
        found = self.outputs(encodings)
        self.seconds["session"] += time.perf_counter() - started
        if self.labels and len(found):
            powers = np.exp(found - found.max(1, keepdims=True))
            found = powers / powers.sum(1, keepdims=True)
        return found, [tokens.empty for tokens in encodings]

    def probabilities(self, texts: list) -> np.ndarray:
        """Float64 array [n, labels], in the texts' order."""
        return self.answers(texts)[0]

    def values(self, texts: list) -> np.ndarray:
        """Float64 array [n] of the numbers that a regression model gives."""
        return self.answers(texts)[0][:, 0]
