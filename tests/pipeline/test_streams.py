"""What a stage does when standard input, output or error is closed, full or unread: no traceback, status 2 at most."""

import subprocess
import sys

import pytest
from stage_runs import ROOT

SCRIPT = '''"""Stage 1 of 1: print and write a file."""
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --fail ------------------------------------------------
FAIL = False                   # end in a sentence
# --------------------------------------------------------------------------------------------------


def main(settings):
    with open("made.txt", "w") as file:
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
        assert (tmp_path / "made.txt").read_text() == "x" * 2000
