"""A labelled data folder without the rows of train that meet valid or test."""

from pathlib import Path

from lowbit.data.task import SENTIMENT
from lowbit.data.tsv import SPLITS, read_split
from lowbit.pipeline.files import atomic_folder, claim, shown
from lowbit.pipeline.manifest import publish, record
from lowbit.pipeline.settings import check
from lowbit.pretrain.heldout import HeldOut


def checked_data(source: Path, out: Path, held: HeldOut, stage: str) -> list[str]:
    """Write and record the splits of `source` in `out`, refused rows of train left out; returns the files' names.

    `held` counts what it refused.
    """
    check(source != out, f"CHECKED and DATA_DIR are one folder, {shown(out)}: choose another CHECKED")
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    with atomic_folder(out) as scratch:
        for split in SPLITS:
            texts, labels = read_split(source, split)
            lines = [f"{text}\t{SENTIMENT.labels[int(label)]}\n" for text, label in zip(texts, labels, strict=True)
                     if split != "train" or held.allows(str(text))]
            (scratch / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
        names = publish(scratch)
    record(out, stage, {"DATA_DIR": str(source)}, [source / name for name in names], names)
    return names
