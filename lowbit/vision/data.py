"""A run's pictures as arrays: train and valid to learn and choose on, test once, the calibration draw."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lowbit.data.task import read_task
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown
from lowbit.vision.calibration_set import CALIBRATION, read_calibration
from lowbit.vision.pictures import classes_of, decode_all, pictures_of
from lowbit.vision.preprocessing import read_preprocessing

Split = tuple[np.ndarray, np.ndarray]


def read_splits(run: Path, data_dir: Path, splits: Iterable[str], skip_bad: bool) -> dict[str, Split]:
    """Split -> (crops uint8 [n, size, size, 3], labels [n]).

    Raises UserError if the folder has other classes than the run, or pictures that cannot be used.
    """
    classes, wanted = classes_of(data_dir), read_task(run).labels
    if classes != wanted:
        raise UserError(f"{shown(data_dir)} has the classes {', '.join(classes)}, but {shown(run)} was made for "
                        f"{', '.join(wanted)}: name its pictures with --data-dir")
    crop, found = read_preprocessing(run).crop, {}
    for split in splits:
        crops, labels, _ = decode_all(pictures_of(data_dir, split, classes), crop, skip_bad)
        found[split] = crops, labels
    return found


def calibration_crops(run: Path, data_dir: Path, most: int) -> np.ndarray:
    """The first `most` pictures of the run's draw (0: all), mixed."""
    crops = read_calibration(run / CALIBRATION, data_dir, read_preprocessing(run))
    return crops[:most] if most else crops
