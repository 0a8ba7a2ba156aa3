"""Folders as pack.py makes them, of a model made by hand in milliseconds, and a process that forks for predict.py."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from conftest import tiny_tokenizer
from onnx import TensorProto, helper
from stage_runs import ENVIRONMENT, ROOT

from lowbit.data.cleaning import PRESETS, stop_words

LABELS = ("positive", "neutral", "negative")
NO_NUMBER = "x"  # a text with a word of this letter gets logits that are not finite
SCRIPTS = next(ast.literal_eval(node.value) for node in ast.parse((ROOT / "deploy" / "pack.py").read_text()).body
               if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SCRIPTS")


def write_model(path: Path, words: int, outputs: int, bad: int, pairs: bool) -> None:
    """logits = sum over places of table[token] / place: each token counts, and so does its place."""
    random = np.random.default_rng(7)
    table = random.normal(size=(words, outputs)).astype(np.float32)
    table[bad] = np.nan
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * pairs
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in names]
    constants = {"table": table, "one": np.array(1, np.int64), "ones": np.array([1], np.int64),
                 "last": np.array([2], np.int64), "sides": random.normal(size=(2, outputs)).astype(np.float32)}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("CumSum", ["mask", "one"], ["places"]),
        helper.make_node("Div", ["mask", "places"], ["weights"]),
        helper.make_node("Unsqueeze", ["weights", "last"], ["factors"]),
        *([helper.make_node("Gather", ["sides", "token_type_ids"], ["side"]),
           helper.make_node("Add", ["tokens", "side"], ["summed"])] if pairs else
          [helper.make_node("Identity", ["tokens"], ["summed"])]),
        helper.make_node("Mul", ["summed", "factors"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "ones"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "by-hand", inputs, [helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch", outputs])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()
         if name != "sides" or pairs])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def make_pack(folder: Path, cleaning: str = "minimal", texts: tuple = ("text",), labels: tuple | None = LABELS,
              max_length: int = 32, batch_size: int = 4) -> Path:
    """A folder that predict.py takes for one of pack.py's."""
    (folder / "onnx").mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    steps = PRESETS[cleaning]
    pairs = len(texts) == 2
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * pairs
    (folder / "preprocessing.json").write_text(json.dumps({
        "cleaning": cleaning, "steps": steps, "max_length": max_length, "inputs": inputs, "labels": labels,
        "pad_id": tokenizer.pad_token_id,
        "stop_words": sorted(stop_words(steps["KEEP_NEGATIONS"])) if steps["REMOVE_STOP_WORDS"] else []}))
    (folder / "task.json").write_text(json.dumps({
        "texts": texts, "labels": labels, "score": "macro_f1" if labels else "pearson", "answer": "label"}))
    write_model(folder / "onnx" / "model_quantized.onnx", len(tokenizer), len(labels or "1"),
                tokenizer.convert_tokens_to_ids(NO_NUMBER), pairs)
    (folder / "page").mkdir()
    for script in SCRIPTS:
        shutil.copy(ROOT / "deploy" / script, folder / script)
    write_manifest(folder, batch_size=batch_size)
    return folder


def write_manifest(folder: Path, **changed) -> None:
    """manifest.json of the files that are there, with some of its keys `changed`."""
    files = {path.relative_to(folder).as_posix(): {
        "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and "__pycache__" not in path.parts}
    manifest = {"format": 2, "model": "onnx/model_quantized.onnx", "batch_size": 4, "labels": LABELS, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest | changed, indent=2))


class Ended(NamedTuple):
    """What a shell sees of a command, its seconds of CPU, and the most memory it held."""

    status: int  # -9 after SIGKILL
    out: bytes
    err: str
    cpu_seconds: float
    peak_mb: float


class Child(NamedTuple):
    """A predict.py that runs."""

    pid: int
    scratch: Path


class Warm:
    """A process that has imported what predict.py imports, and forks for each run of it; see warm_predict.py."""

    def __init__(self, scratch: Path):
        self.scratch, self.count = scratch, 0
        self.server = subprocess.Popen([sys.executable, Path(__file__).with_name("warm_predict.py")], text=True,
                                       env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)

    def _ask(self, **request):
        self.server.stdin.write(json.dumps(request) + "\n")
        return json.loads(self.server.stdout.readline())

    def start(self, pack: Path, *flags, stdin=os.devnull, stdout="", stderr="", cwd=ROOT, before: str = "") -> Child:
        """`python predict.py flags…`; streams are paths, "closed", "broken" (a pipe that nobody reads) or "+path".

        `before` is Python that the forked child executes first.
        """
        self.count += 1
        scratch = self.scratch / str(self.count)
        scratch.mkdir()
        streams = [str(stdin), str(stdout or scratch / "out"), str(stderr or scratch / "err")]
        argv = [str(pack / "predict.py"), *(os.fsdecode(flag) if isinstance(flag, bytes) else str(flag)
                                            for flag in flags)]
        return Child(self._ask(argv=argv, streams=streams, cwd=str(cwd), before=before), scratch)

    def end(self, child: Child) -> Ended:
        """Wait for its end."""
        status, seconds, peak_mb = self._ask(wait=child.pid)
        out, err = (path.read_bytes() if path.exists() else b"" for path in (child.scratch / "out",
                                                                             child.scratch / "err"))
        return Ended(status, out, err.decode(errors="replace"), seconds, peak_mb)

    def __call__(self, *arguments, **streams) -> Ended:
        return self.end(self.start(*arguments, **streams))

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()
