"""From a picture's pixels to what a network takes; training, calibration and evaluation share it.

    pixels = centre crop of SIZE x SIZE from the picture with its shorter side resized to RESIZE (bilinear)
    input = (pixels / 255 - mean) / std                                         [batch, 3, SIZE, SIZE], float32
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown
from lowbit.pipeline.settings import check

PREPROCESSING = "preprocessing.json"
MOST_SIDE = 1024  # pixels of an input


@dataclass(frozen=True)
class Preprocessing:
    """Sides in pixels; mean and standard deviation of each colour as shares of 255."""

    size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def crop(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [height, width, 3] as uint8 -> [size, size, 3] as uint8."""
        image = Image.fromarray(pixels)
        shorter = min(image.size)
        if shorter != self.resize:
            sides = [max(self.resize, round(side * self.resize / shorter)) for side in image.size]
            image = image.resize(sides, Image.Resampling.BILINEAR)
        left, top = ((side - self.size) // 2 for side in image.size)
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def inputs(self, crops: np.ndarray) -> np.ndarray:
        """uint8 [batch, size, size, 3] -> float32 [batch, 3, size, size]."""
        shares = crops.astype(np.float32) / np.float32(255)
        scaled = (shares - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def as_json(self) -> dict:
        """What preprocessing.json holds."""
        return {"kind": "pictures", **asdict(self)}


def three_numbers(text: str, setting: str) -> tuple[float, float, float]:
    """The three numbers of a setting such as 0.5,0.5,0.5."""
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{setting} is {text!r}; write three numbers with commas: 0.485,0.456,0.406") from None
    return red, green, blue


def from_settings(s: dict) -> Preprocessing:
    """The preprocessing that SIZE, RESIZE, MEAN and STD ask for; raises UserError for what cannot work."""
    check(8 <= s["SIZE"] <= MOST_SIDE, f"SIZE is {s['SIZE']}; it must be from 8 to {MOST_SIDE}")
    check(s["SIZE"] <= s["RESIZE"] <= 4 * MOST_SIDE,
          f"RESIZE is {s['RESIZE']}; it must be at least SIZE, {s['SIZE']}, and at most {4 * MOST_SIDE}")
    mean, std = three_numbers(s["MEAN"], "MEAN"), three_numbers(s["STD"], "STD")
    check(all(value > 0 for value in std), f"STD is {s['STD']!r}; its numbers must be above 0")
    return Preprocessing(s["SIZE"], s["RESIZE"], mean, std)


def read_preprocessing(folder: Path) -> Preprocessing:
    """The preprocessing of a run."""
    path = folder / PREPROCESSING
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Preprocessing(held["size"], held["resize"], tuple(held["mean"]), tuple(held["std"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown(path)} cannot be read ({error}): run `python vision/calibration_dataset.py`") from None
