"""The READMEs' deployment snippets run as printed."""

import re
import subprocess
import sys

import pytest
from stage_runs import ROOT


def test_the_deployment_snippet_labels_three_texts(finished_run):
    """A user who copies the snippet gets one label and the text for each of its three sentences."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert '"models/sample-int8"' in snippet
    snippet = snippet.replace("models/sample-int8", f"models/{finished_run}")
    done = subprocess.run([sys.executable, "-c", snippet], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.split()[0] in ("positive", "neutral", "negative") for line in lines)


def test_the_openvino_snippet_gives_logits(finished_run):
    """The lines of the INT8 README, on a run's file, give three logits for the text they ask about."""
    pytest.importorskip("openvino", reason="openvino is not installed: requirements-openvino.txt")
    readme = (ROOT / "int8_eager" / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "models/sample-learned" in snippet
    snippet = snippet.replace("models/sample-learned", f"models/{finished_run}") + "\nprint(logits.shape)"
    done = subprocess.run([sys.executable, "-c", snippet], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 3)"
