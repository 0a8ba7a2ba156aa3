"""A stage whose standard streams are closed, full or unread, or whose places are taken: no traceback, status 2."""

import subprocess
import sys

import pytest
from stage_runs import ROOT

SCRIPT = '''"""Stage 1 of 1: print and write a file."""
from pathlib import Path

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --fail ------------------------------------------------
FAIL = False                   # end in a sentence
# --------------------------------------------------------------------------------------------------


def main(settings):
    Path("made").mkdir(exist_ok=True)
    with open("made/made.txt", "w") as file:
        for number in range(2000):
            print("line", number, "." * 100, flush=True)  # more than a pipe holds
            file.write("x")
    if FAIL:
        raise UserError("nothing can be done: do something else")


if __name__ == "__main__":
    run_stage(main, globals())
'''
SENTENCES = {"| head -1": (2, "whatever read this output has ended"), ">/dev/full": (2, "no space is left on the disk")}


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full", "| head -1", ">/dev/full"])
@pytest.mark.parametrize("flags", ["", "--fail"])
def test_streams_that_are_closed_full_or_unread(tmp_path, streams, flags):
    """A file that the stage opens never takes a closed stream's place; what ends the stage is said in one sentence."""
    (tmp_path / "show.py").write_text(SCRIPT)
    command = f"set -o pipefail; {sys.executable} show.py {flags} {streams}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    status, said = SENTENCES.get(streams, (2, "nothing can be done") if flags else (0, ""))
    assert done.returncode == status
    if "2>" not in streams:
        assert said in done.stderr
        assert done.stderr.count("error: ") == (status == 2)
    if streams not in SENTENCES:
        assert (tmp_path / "made/made.txt").read_text() == "x" * 2000


@pytest.mark.parametrize(("taken", "said"), [("made", "a file of that name is in the way"),
                                             ("made/made.txt/x", "a folder of that name is in the way")])
def test_places_that_are_taken(tmp_path, taken, said):
    """A file where a folder is to be made, or a folder where a file is to be written: a sentence with its name."""
    place = tmp_path / taken
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    (tmp_path / "show.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "show.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert "made" in done.stderr
    assert place.read_text() == "mine"


def test_a_file_that_may_not_grow_is_said_as_a_library_says_it(tmp_path):
    """safetensors writes without Python's own open(): its error has no number of its own."""
    start, end = SCRIPT.split("def main(settings):")[0], SCRIPT[SCRIPT.index("if __name__"):]
    (tmp_path / "show.py").write_text(f"""{start}
def main(settings):
    import resource
    import torch
    from safetensors.torch import save_file
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    save_file({{"weight": torch.ones(10_000)}}, "made.safetensors")


{end}""")
    done = subprocess.run([sys.executable, "show.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "the file is larger than this system lets it be" in done.stderr and "Traceback" not in done.stderr
