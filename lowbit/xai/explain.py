"""One text explained: every method on every file of a run, and the floors that differences are seen beside.

A record is {"texts", "words": [[part, start, end]], "gaps": [[part, start, end, why]], "label": id that is explained,
FP32's, or null for a number, "files": name -> {"outputs", "value": f(x), "reference": f(no word), "methods": method ->
[value a word], "gap": of ig}, "floors"}. `floors` holds what changes although no precision does: {"seed": {"fp32":
methods of another seed}, "batch": {file: methods asked TOGETHER at a time instead of alone}}.
"""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import torch

from lowbit.data.task import read_task
from lowbit.data.tokens import load_reader
from lowbit.data.tsv import Text
from lowbit.measure.session import Session
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown
from lowbit.pipeline.settings import check, chosen
from lowbit.xai import blackbox
from lowbit.xai.files import FP32, Explained, files_of
from lowbit.xai.gradients import attention_rollout, integrated_gradients
from lowbit.xai.variants import AT_ONCE, REPLACE, TOGETHER, Asked, mask_id_of, values_of
from lowbit.xai.words import Reading, read

METHODS = ("shap", "lime", "occlusion", "ig", "attention")
ASKING, DRAWN = ("shap", "lime", "occlusion"), ("shap", "lime")  # ask the file; depend on a seed
UNSIGNED = ("attention",)
FORMAT = 1  # of explanation.json and explanations.jsonl
DIGITS = 7  # decimals of a value: more are rounding of the arithmetic
MOST = {"SAMPLES": 100_000, "ORDERS": 10_000, "STEPS": 1_000}


def check_settings(s: dict) -> list[str]:
    """The methods that METHODS names; raises UserError for settings that cannot explain."""
    methods = chosen(s["METHODS"], METHODS, "METHODS")
    check("ig" not in methods or importlib.util.find_spec("captum") is not None,
          "METHODS has ig, which needs captum: `pip install -r requirements-xai.txt`, or name the others")
    check(s["REPLACE"] in REPLACE, f"REPLACE is {s['REPLACE']!r}; choose {' or '.join(REPLACE)}")
    for name, most in MOST.items():
        check(1 <= s[name] <= most, f"{name} is {s[name]}; it must be from 1 to {most}")
    check(0 <= s["SEED"] < 2**32 - 1, f"SEED is {s['SEED']}; it must be from 0 to 4294967294")
    return methods


class Explainer:
    """A run's files, which a context manager holds open; `floors` also measures what changes without a precision."""

    def __init__(self, folder: Path, s: dict, floors: bool, threads: int):
        self.methods, self.s, self.floors, self.threads = check_settings(s), s, floors, threads
        if not folder.is_dir():
            raise UserError(f"RUN is {folder.name!r}, but there is no {shown(folder)}: train it first, or name a run")
        self.files = files_of(folder, s["FILES"])
        self.reader, self.task = load_reader(folder), read_task(folder)
        needs_mask = s["REPLACE"] == "mask" or "ig" in self.methods
        self.mask_id = mask_id_of(self.reader.tokenizer) if needs_mask else None
        self.inside_methods = [method for method in self.methods if method not in ASKING]
        for name, file in self.files.items():
            if self.inside_methods and file.load is None:
                print(f"  {name} has no PyTorch model that computes as it does: without "
                      f"{', '.join(self.inside_methods)}")
        self.models: dict[str, torch.nn.Module] = {}
        self.sessions: dict[str, Session] = {}
        self.open = contextlib.ExitStack()

    def __enter__(self):
        for name, file in self.files.items():
            if self.inside_methods and file.load is not None:
                self.models[name] = file.load().eval().requires_grad_(False)
            self.sessions[name] = self.open.enter_context(Session(file.path, "CPUExecutionProvider", self.threads))
        return self

    def __exit__(self, *_):
        self.open.close()

    def read(self, text: Text) -> Reading:
        """How the run reads a text or pair; raises UserError if it is no text of the task, or nothing is left of it."""
        parts = (text,) if isinstance(text, str) else text
        if len(parts) != len(self.task.texts):
            raise UserError(f"{len(parts)} text{'s' * (len(parts) > 1)} given, but the run was trained on "
                            f"{' and '.join(self.task.texts)}: give {len(self.task.texts)}")
        reading = read(self.reader, text)
        if not reading.words:
            raise UserError(f"nothing is left of {' / '.join(parts)!r} after cleaning ({self.reader.cleaning}): the "
                            "model gives all such texts one answer, and there is no word to explain it by")
        return reading

    def asked(self, file: Explained, reading: Reading, batch_size: int) -> Asked:
        """The file, to be asked about variants of a text."""
        return Asked(self.sessions[file.name], reading, self.s["REPLACE"], self.mask_id, self.reader.pad_id, batch_size)

    def record(self, text: Text, known: dict | None = None) -> dict:
        """The record of a text (see the top), FP32's part from a `known` one; raises UserError as read() does."""
        reading = self.read(text)
        ends = blackbox.whole_and_none(len(reading.words))
        asked = {name: self.asked(file, reading, 1 if file.alone else AT_ONCE) for name, file in self.files.items()}
        label = known["label"] if known else (
            int(asked[FP32].logits(ends[:1])[0].argmax()) if self.task.labels else None)
        found: dict = {"texts": list(reading.texts), "words": [list(word[:3]) for word in reading.words],
                       "gaps": [list(gap) for gap in reading.gaps], "label": label, "files": {}}
        for name, file in self.files.items():
            if known and name == FP32:
                found["files"][name] = known["files"][name]
                continue
            outputs = asked[name].logits(ends)
            value, reference = values_of(outputs, label)
            held: dict = {"outputs": rounded(outputs[0]), "value": float(value), "reference": float(reference),
                          "methods": self.black_box(asked[name], reading, label, self.methods, self.s["SEED"])}
            held["methods"] |= self.inside(file, reading, label, held)
            found["files"][name] = held
        if self.floors:
            seed = known["floors"]["seed"] if known else self.seed_floor(asked[FP32], reading, label)
            found["floors"] = {"seed": seed, "batch": self.batch_floor(reading, label)}
        return found

    def black_box(self, asked: Asked, reading: Reading, label: int | None, methods: list[str], seed: int) -> dict:
        """Method -> values of those that only ask the file."""
        found = blackbox.explain(lambda masks: asked.values(masks, label), len(reading.words), methods,
                                 self.s["ORDERS"], self.s["SAMPLES"], (seed, *reading.texts))
        return {method: rounded(found[method]) for method in methods if method in found}

    def inside(self, file: Explained, reading: Reading, label: int | None, held: dict) -> dict:
        """Method -> values of those that look inside the PyTorch model; notes the gap of ig in `held`."""
        found, model = {}, self.models.get(file.name)
        if model is not None and "ig" in self.methods:
            values, held["gap"] = integrated_gradients(
                model, reading, self.mask_id, self.reader.pad_id, label, self.s["STEPS"])
            found["ig"] = rounded(values)
        if model is not None and "attention" in self.methods:
            found["attention"] = rounded(attention_rollout(model, reading, self.reader.pad_id))
        return found

    def seed_floor(self, asked: Asked, reading: Reading, label: int | None) -> dict:
        """FP32's values by another seed, of the methods that draw."""
        drawn = [method for method in DRAWN if method in self.methods]
        return {FP32: self.black_box(asked, reading, label, drawn, self.s["SEED"] + 1)} if drawn else {}

    def batch_floor(self, reading: Reading, label: int | None) -> dict:
        """File -> its values if it is asked TOGETHER variants at a time, of files whose logits that changes."""
        asking = [method for method in ASKING if method in self.methods]
        return {name: self.black_box(self.asked(file, reading, TOGETHER), reading, label, asking, self.s["SEED"])
                for name, file in self.files.items() if file.alone and asking}


def rounded(values: np.ndarray) -> list[float]:
    """Values as they are stored."""
    return [round(float(value), DIGITS) + 0.0 for value in values]  # + 0.0: no minus zero
