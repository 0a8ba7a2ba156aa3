"""What benchmarks beside another tool share: a Python of its own for that tool, so that its pins move none of ours."""

import json
import subprocess
import sys
from pathlib import Path

from lowbit.pipeline.files import ROOT, write_json

MODELOPT = ("torch==2.13.0", "transformers==5.23.0", "nvidia-modelopt==0.47.0", "requests==2.34.2", "onnx==1.23.2",
            "onnxscript==0.7.2")


def environment(name: str, needs: tuple[str, ...]) -> Path:
    """The Python of results/<name>-env, made if it is not there with what it `needs`."""
    folder = ROOT / "results" / f"{name}-env"
    made = folder / "made.json"
    if not (made.exists() and json.loads(made.read_text(encoding="utf-8")) == list(needs)):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *needs], check=True)
        write_json(made, list(needs))
    return folder / "bin" / "python"
