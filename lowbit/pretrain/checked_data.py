"""A labelled data folder without the rows of train that meet valid or test."""

from pathlib import Path

from lowbit.data.task import SENTIMENT
from lowbit.data.tsv import SPLITS, read_split
from lowbit.pipeline.files import atomic_folder, publish
from lowbit.pretrain.heldout import HeldOut


def checked_data(source: Path, out: Path, held: HeldOut) -> Path:
    """Write train.tsv, valid.tsv and test.tsv of `source` into `out`, refused rows of train left out; returns `out`.

    `held` counts what it refused.
    """
    out.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as scratch:
        for split in SPLITS:
            rows = zip(*read_split(source, split), strict=True)
            lines = [f"{text}\t{SENTIMENT.labels[label]}\n" for text, label in rows
                     if split != "train" or held.allows(text)]
            (scratch / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
        publish(scratch)
    return out
