"""The pictures that scales are calibrated on: a seeded draw of each class of train, none of which test holds too."""

import json
import random
from pathlib import Path

import numpy as np

from lowbit.data.task import Task
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown
from lowbit.vision.pictures import BadPicture, classes_of, decode, digest, pictures_of, refuse_bad
from lowbit.vision.preprocessing import Preprocessing

CALIBRATION = "calibration.json"
STAGE = "vision/calibration_dataset.py"


def task_of_classes(classes: tuple[str, ...]) -> Task:
    """What a picture folder asks: its classes, judged by accuracy."""
    return Task(("picture",), classes, "accuracy", "class")


def draw(data_dir: Path, count: int, seed: int, skip_bad: bool) -> dict:
    """What calibration.json holds: `pictures` of train with class and digest, the same share of each class.

    `in_test` and `twice` name those that were passed over as test, or the draw itself, holds the same pixels. Raises
    UserError, naming the files, for pictures that cannot be used, unless they are to be left out.
    """
    classes = classes_of(data_dir)
    if count < len(classes):
        raise UserError(f"PICTURES is {count}, fewer than the {len(classes)} classes: at least one of each is drawn")
    bad, known = {}, {}

    def digest_of(path):
        try:
            return digest(decode(path))
        except BadPicture as error:
            bad[path] = str(error)

    tested = {digest_of(picture.path) for picture in pictures_of(data_dir, "test", classes)}
    found = {"pictures": [], "in_test": [], "twice": []}
    by_class = {name: [] for name in classes}
    for picture in pictures_of(data_dir, "train", classes):
        by_class[classes[picture.label]].append(picture.path)
    for place, (name, paths) in enumerate(by_class.items()):
        wanted = count // len(classes) + (place < count % len(classes))
        random.Random(f"{seed}/{name}").shuffle(paths)
        for path in paths:
            if wanted == 0:
                break
            pixels, where = digest_of(path), path.relative_to(data_dir).as_posix()
            if pixels is None:
                continue
            if pixels in tested or pixels in known:
                found["in_test" if pixels in tested else "twice"].append(where)
                continue
            known[pixels] = where
            found["pictures"].append({"file": where, "class": name, "pixels": pixels})
            wanted -= 1
    refuse_bad(bad, skip_bad)
    if not found["pictures"]:
        raise UserError(f"{shown(data_dir / 'train')} has no picture that test does not hold too")
    return {"classes": list(classes), "seed": seed, **found,
            "left_out": {path.relative_to(data_dir).as_posix(): said for path, said in bad.items()}}


def read_calibration(path: Path, data_dir: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Crops uint8 [n, size, size, 3] of the drawn pictures, in an order that mixes the classes.

    Raises UserError if one is missing or has other pixels than when it was drawn.
    """
    held = json.loads(path.read_text(encoding="utf-8"))
    again = "run `python vision/calibration_dataset.py` again"
    crops = []
    for entry in random.Random(0).sample(held["pictures"], len(held["pictures"])):
        file = data_dir / entry["file"]
        if not file.is_file():
            raise UserError(f"{shown(file)}, a picture of {shown(path)}, is not there: name its folder with "
                            f"--data-dir, or {again}")
        try:
            pixels = decode(file)
        except BadPicture as error:
            raise UserError(f"{shown(file)} {error}: {again}") from None
        if digest(pixels) != entry["pixels"]:
            raise UserError(f"{shown(file)} is not the picture that was drawn: {again}")
        crops.append(preprocessing.crop(pixels))
    return np.stack(crops)
