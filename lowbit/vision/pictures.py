"""Folders of pictures, `<split>/<class>/<file>`: what stands in them, a picture's pixels, or what is wrong with it."""

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SPLITS = ("train", "valid", "test")
COLOURS = ("RGB", "L")  # what becomes RGB without a choice; a palette, transparency and CMYK do not
LEAST_SIDE = 8  # pixels
MOST_PIXELS = 50_000_000  # a picture of more takes more than 150 MB as it is decoded
SHOWN = 5  # bad pictures named in one sentence


class Picture(NamedTuple):
    """A file and the number of its class."""

    path: Path
    label: int


class BadPicture(Exception):
    """What is wrong with a picture, as the end of a sentence that starts with its name."""


def classes_of(data_dir: Path) -> tuple[str, ...]:
    """Names of the class folders of train, sorted; raises UserError unless all splits have the same.

    A class's place is its number.
    """
    if not data_dir.is_dir():
        raise UserError(f"DATA_DIR {shown(data_dir)} is no folder: it holds train/, valid/ and test/, each with a "
                        "folder of pictures for each class (python data/draw_pictures.py makes a small one)")
    found = {}
    for split in SPLITS:
        if not (data_dir / split).is_dir():
            raise UserError(f"{shown(data_dir)} has no folder {split}/")
        found[split] = {path.name for path in (data_dir / split).iterdir()
                        if path.is_dir() and not path.name.startswith(".")}
    if len(found["train"]) < 2:
        raise UserError(f"{shown(data_dir / 'train')} has {len(found['train'])} class folders; at least 2 are needed")
    for split in SPLITS[1:]:
        for name in sorted(found["train"] - found[split]):
            raise UserError(f"{shown(data_dir / split)} has no folder {name}/, which train has: add it, or take "
                            "the class out of every split")
        for name in sorted(found[split] - found["train"]):
            raise UserError(f"{shown(data_dir / split)} has a folder {name}/, which train lacks: no model learns it")
    return tuple(sorted(found["train"]))


def pictures_of(data_dir: Path, split: str, classes: tuple[str, ...]) -> list[Picture]:
    """The pictures of a split, class by class, sorted by name; raises UserError for a class without any."""
    found = []
    for label, name in enumerate(classes):
        folder = data_dir / split / name
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
        if not paths:
            raise UserError(f"{shown(folder)} holds no picture ({', '.join(ENDINGS)})")
        found += [Picture(path, label) for path in paths]
    return found


def decode(path: Path) -> np.ndarray:
    """Pixels [height, width, 3] as uint8, upright; raises BadPicture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures: they are refused below, before they are decoded
            with Image.open(path) as image:
                _refuse_by_header(image)
                image.load()
                upright = ImageOps.exif_transpose(image)
                return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError:
        raise BadPicture("is no picture that can be read") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise BadPicture(f"has more than {MOST_PIXELS // 1_000_000} million pixels; make it smaller") from None
        if isinstance(error, OSError) and error.errno:
            raise
        raise BadPicture(f"is cut short or damaged ({str(error).splitlines()[0] if str(error) else 'unreadable'})"
                         ) from None


def _refuse_by_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BadPicture(f"has {width} x {height} pixels, more than {MOST_PIXELS // 1_000_000} million; "
                         "make it smaller")
    if min(width, height) < LEAST_SIDE:
        raise BadPicture(f"has {width} x {height} pixels; at least {LEAST_SIDE} a side are needed")
    if image.mode not in COLOURS:
        raise BadPicture(f"is {image.mode}, not RGB or greyscale; convert it, as its colours can be read in several "
                         "ways")
    if getattr(image, "n_frames", 1) > 1:
        raise BadPicture("holds several pictures; keep one")


def digest(pixels: np.ndarray) -> str:
    """SHA-256 of a picture's size and pixels: equal for equal pictures in different files."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def refuse_bad(bad: dict[Path, str], skip: bool) -> None:
    """Raise UserError that names the bad pictures, or print them if they are to be left out."""
    if not bad:
        return
    named = "; ".join(f"{shown(path)} {said}" for path, said in list(bad.items())[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    if not skip:
        raise UserError(f"{len(bad)} picture{'s' * (len(bad) > 1)} cannot be used: {named}{more}. Repair or take them "
                        "away, or leave them out with --skip-bad")
    print(f"  left out {len(bad)} pictures: {named}{more}")


def decode_all(pictures: Iterable[Picture], prepare, skip: bool) -> tuple[np.ndarray, np.ndarray, list[Path]]:
    """(prepare(pixels) of each stacked, labels, paths) of those pictures that can be used."""
    made, labels, paths, bad = [], [], [], {}
    for picture in pictures:
        try:
            made.append(prepare(decode(picture.path)))
            labels.append(picture.label)
            paths.append(picture.path)
        except BadPicture as error:
            bad[picture.path] = str(error)
    refuse_bad(bad, skip)
    if not made:
        raise UserError("no picture of the split can be used")
    return np.stack(made), np.array(labels), paths
