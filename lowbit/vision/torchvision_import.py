"""torchvision, and the other packages of requirements-vision.txt, from the folder that they are installed in.

PyPI's torchvision 0.28.0 is built against PyPI's torch; beside a CPU build of torch its library of operators does not
load. Importing it then stops with "operator torchvision::nms does not exist", as two of its functions belong to
operators that nothing has declared; so does importing transformers, which looks for torchvision. Therefore it is
installed in a folder of its own, and the two operators are declared here before it is imported. No network used here
calls either. Where torchvision imports by itself, nothing is touched.
"""

import importlib
import sys
from types import ModuleType

import torch

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT

FOLDER = ROOT / ".venv" / "torchvision"  # where the Makefile installs it
ASKED_FOR = {  # as torchvision's own C++ declares them
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # an operator is forgotten with the library that declared it


def package(name: str) -> ModuleType:
    """A module of requirements-vision.txt; raises UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if FOLDER.is_dir() and str(FOLDER) not in sys.path:
            sys.path.append(str(FOLDER))  # last: it hides nothing
            importlib.invalidate_caches()
            return package(name)
        raise UserError(f"{name} is not installed: `pip install --no-deps --target .venv/torchvision "
                        "-r requirements-vision.txt`") from None


def torchvision_models() -> ModuleType:
    """The module torchvision.models."""
    try:
        return package("torchvision.models")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in ASKED_FOR.items():
        library.define(name + schema)
    _declared.append(library)
    return package("torchvision.models")
