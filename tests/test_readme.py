"""The README's deployment snippet runs as printed."""

import re
import subprocess
import sys

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
