"""The rules of the house: who may import whom, how a stage looks, which constants stages must agree on."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stage_runs import ROOT

from lowbit.pipeline.settings import read_constants

FOUNDATION = {  # room -> the rooms below it that it may import
    "pipeline": (), "data": ("pipeline",), "measure": ("data", "pipeline"),
    "training": ("measure", "data", "pipeline"), "graph": ("training", "data", "pipeline")}
PRECISIONS = ("int8", "fp16", "int4", "vision")
METHODS = ("ptq", "mixed", "distill", "xai", "pretrain")
PACKAGE = ROOT / "lowbit"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
STAGE_FOLDERS = ("int8_eager", "fp16_eager", "int4_eager", "ptq", "mixed", "xai", "tinybert", "vision", "pretrain",
                 "deploy", "data", "benchmarks")
# scripts with a settings block; predict.py and serve.py are copied to servers and read theirs by themselves
SCRIPTS = sorted(path for folder in STAGE_FOLDERS for path in (ROOT / folder).glob("*.py")
                 if re.search("^# ---- settings", path.read_text(encoding="utf-8"), re.MULTILINE))
STAGES = [path for path in SCRIPTS if path.parent.name in (
    "int8_eager", "fp16_eager", "int4_eager", "ptq", "mixed", "xai", "tinybert", "vision", "pretrain")]
BY_NAME = {"ids": lambda path: path.relative_to(ROOT).as_posix()}
COPIED = ("predict.py", "serve.py")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where a name comes from"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms_of(path: Path) -> set[str]:
    """The rooms of the package that a file imports from."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("lowbit.")}


@pytest.mark.parametrize("path", MODULES, **BY_NAME)
def test_imports_go_one_way(path):
    """Foundation below, wings above; a precision wing leaves the other ones alone; no stage is imported."""
    room, used = path.relative_to(PACKAGE).parts[0], rooms_of(path)
    assert room in (*FOUNDATION, *PRECISIONS, *METHODS), f"a room that the house does not know: {room}"
    if room in FOUNDATION:
        assert used <= {room, *FOUNDATION[room]}
    elif room in PRECISIONS:
        assert used <= {room, *FOUNDATION}
    stages = {folder for folder in STAGE_FOLDERS if folder != "data"}
    assert not {name.split(".")[0] for name in imports_of(path)} & stages


@pytest.mark.parametrize("path", SCRIPTS, **BY_NAME)
def test_stages_import_no_stage(path):
    """They talk through files; benchmarks share bert_base.py, what is copied to a server its neighbours."""
    names = {name.split(".")[0] for name in imports_of(path)}
    siblings = {other.stem for other in SCRIPTS if other.parent == path.parent} - {path.stem}
    if path.parent.name == "benchmarks":
        siblings.discard("bert_base")
    if path.parent.name == "deploy":
        siblings -= {name.removesuffix(".py") for name in COPIED}  # score_ray.py labels as predict.py does
    assert not names & siblings


def test_inits_are_empty():
    """The module's path is its name: nothing is exported again."""
    assert [path for path in PACKAGE.rglob("__init__.py") if path.read_text().strip()] == []


UNCHANGED = """
import contextlib, csv, importlib, json, logging, os, signal, sys, warnings
ours, libraries = (names.split() for names in sys.argv[1:])
for name in libraries:  # what they do to the process is theirs
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module(name)
import matplotlib, numpy, torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.utils import logging as hub
def state():
    loggers = {name: logging.getLogger(name).level for name in ("", "torch", "transformers", "onnxruntime", "datasets")}
    return {"environment": dict(os.environ), "path": list(sys.path), "folder": os.getcwd(), "filters": list(
        map(str, warnings.filters)), "signals": [str(signal.getsignal(n)) for n in (2, 13, 15)], "loggers": loggers,
        "bar": hub.is_progress_bar_enabled(), "attention": sorted(AttentionInterface._global_mapping),
        "masks": sorted(AttentionMaskInterface._global_mapping), "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()), "gradients": torch.is_grad_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32, "seed": torch.initial_seed(),
        "backend": matplotlib.rcParams._get_backend_or_none() if hasattr(matplotlib.rcParams, "_get_backend_or_none")
        else None, "csv": csv.field_size_limit(), "errors": str(numpy.geterr())}
before = state()
for name in ours:
    importlib.import_module(name)
after = state()
print(json.dumps({key: [str(before[key]), str(after[key])] for key in before if before[key] != after[key]}))
"""


def test_importing_changes_nothing_in_the_process():
    """No setting of a library, no logger, no signal, no attention registered, nothing printed."""
    ours = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    libraries = {name for path in MODULES for name in imports_of(path) if not name.startswith("lowbit")}
    done = subprocess.run([sys.executable, "-c", UNCHANGED, " ".join(ours), " ".join(sorted(libraries))],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}
    assert done.stderr == ""


@pytest.mark.parametrize("path", MODULES, **BY_NAME)
def test_modules_are_short(path):
    """One subject, about 250 lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 260
    assert lines[0].startswith('"""')


@pytest.mark.parametrize("path", SCRIPTS, **BY_NAME)
def test_every_constant_is_commented(path):
    """Meaning, and unit where it has one, in the comment behind it: it is what --help prints."""
    constants = read_constants(path.read_text(encoding="utf-8"))
    assert constants
    assert [name for name, (_, comment) in constants.items() if len(comment) < 8] == []


@pytest.mark.parametrize("path", STAGES, **BY_NAME)
def test_a_stage_says_where_it_stands(path):
    """`Stage N of M: …`, with what it reads and writes, and what comes next unless it is the last."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if path.parent.name in ("pretrain", "vision", "xai") and not doc.startswith("Stage"):
        return  # a tool of its own, such as what fetches an encoder
    number, of = map(int, re.match(r"Stage (\d) of (\d): [a-z]", doc).groups())
    assert 1 <= number <= of
    assert re.search(r"^Reads   ", doc, re.MULTILINE)
    assert re.search(r"^Writes  ", doc, re.MULTILINE)
    assert (re.search(r"^Next    ", doc, re.MULTILINE) is None) == (number == of)


def constants_of(path: Path) -> dict[str, object]:
    return {name: value for name, (value, _) in read_constants(path.read_text(encoding="utf-8")).items()}


@pytest.mark.parametrize("folder", ["int8_eager", "fp16_eager", "int4_eager", "vision"])
def test_the_stages_of_a_folder_agree(folder):
    """A user who edits nothing runs four stages on one run and one arithmetic."""
    stages = [path for path in STAGES if path.parent.name == folder]
    if not stages:
        pytest.skip(f"no {folder}/ yet")
    seen = {}
    for path in stages:
        for name, value in constants_of(path).items():
            if name not in ("BATCH_SIZE", "THREADS"):  # of a training step, of a measured batch
                assert seen.setdefault(name, value) == value, f"{path.name}: {name}"


def test_the_folders_agree():
    """What every training stage has in common is one default: a table compares precisions, not recipes."""
    training = [constants_of(ROOT / path) for path in (
        "int8_eager/train_qat_int8.py", "fp16_eager/train_qat_fp16.py", "ptq/finetune_fp32.py")]
    for name in ("MODEL_NAME", "MODEL_REVISION", "DATA_DIR", "CLEANING", "MAX_LENGTH", "NUM_LABELS", "NUM_EPOCHS",
                 "BATCH_SIZE", "LEARNING_RATE", "WARMUP_RATIO", "WEIGHT_DECAY", "SEED"):
        assert len({constants[name] for constants in training}) == 1, name
    few = constants_of(ROOT / "int4_eager/train_qat_int4.py")  # from a fine-tuned model, by a recipe of its own
    for name in ("MODEL_REVISION", "DATA_DIR", "CLEANING", "MAX_LENGTH", "NUM_LABELS", "WARMUP_RATIO", "WEIGHT_DECAY",
                 "SEED"):
        assert few[name] == training[0][name], name
    assert few["MODEL_NAME"] == f"models/{training[2]['RUN']}"
    matrix, qat = constants_of(ROOT / "ptq/run_ptq.py"), constants_of(ROOT / "ptq/run_qat.py")
    assert {name: value for name, value in qat.items() if name in matrix} == {
        name: value for name, value in matrix.items() if name in qat}
    assert constants_of(ROOT / "ptq/finetune_fp32.py")["RUN"] == matrix["RUN"]


ASK_ALL = """
import contextlib, io, json, os, runpy, sys
said = {}
for path in sys.argv[1:]:
    sys.argv, sys.path[0], out = [path, "--help"], os.path.dirname(path), io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as ended:
        said[path] = [ended.code, out.getvalue()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helps():
    """Script -> (exit status, what --help prints), all asked in one process: each imports what it needs."""
    scripts = [str(path) for path in SCRIPTS if path.name not in COPIED]
    done = subprocess.run([sys.executable, "-c", ASK_ALL, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name not in COPIED], **BY_NAME)
def test_every_script_answers_help(helps, path):
    """With its first line and a flag for each constant."""
    status, said = helps[str(path)]
    assert status == 0
    words = " ".join(said.split())
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0] in words
    for name in constants_of(path):
        assert f"--{name.lower().replace('_', '-')}" in words


def file_map() -> str:
    """FILES.md: each script and module with the first line of its docstring."""
    folders = [ROOT / name for name in STAGE_FOLDERS if (ROOT / name).is_dir()] + sorted({p.parent for p in MODULES})
    lines = ["# Every file", "", "The first line of each, by folder. `python tests/test_house.py` writes this anew."]
    for folder in folders:
        lines += ["", f"## {folder.relative_to(ROOT).as_posix()}/", "", "| file | what it is |", "|---|---|"]
        for path in sorted(path for path in folder.glob("*.py") if path.name != "__init__.py"):
            first = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
            lines.append(f"| `{path.name}` | {first} |")
    return "\n".join(lines) + "\n"


def test_the_file_map_says_what_the_files_say():
    assert (ROOT / "FILES.md").read_text(encoding="utf-8") == file_map(), "python tests/test_house.py writes it anew"


if __name__ == "__main__":
    (ROOT / "FILES.md").write_text(file_map(), encoding="utf-8")
