"""A labelled data folder without the rows of train that meet valid or test."""

from pathlib import Path

from lowbit.data.heldout import HeldOut
from lowbit.data.task import SENTIMENT
from lowbit.data.tsv import SPLITS, read_split
from lowbit.pipeline.files import atomic_folder, claim, shown
from lowbit.pipeline.manifest import publish, record, stages_of
from lowbit.pipeline.settings import check


def checked_data(source: Path, out: Path, held: HeldOut, stage: str) -> list[str]:
    """Write and record the splits of `source` in `out`, refused rows of train left out; returns the files' names.

    `held` counts what it refused.
    """
    check(source != out, f"CHECKED and DATA_DIR are one folder, {shown(out)}: choose another CHECKED")
    texts = {}
    for split in SPLITS:
        rows = zip(*read_split(source, split), strict=True)
        texts[f"{split}.tsv"] = "".join(f"{text}\t{SENTIMENT.labels[int(label)]}\n" for text, label in rows
                                        if split != "train" or held.allows(str(text)))
    if stage in stages_of(out) and all((out / name).exists() and (out / name).read_bytes() == text.encode()
                                       for name, text in texts.items()):
        return sorted(texts)  # as it is: another training may be reading it
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    with atomic_folder(out) as scratch:
        for name, text in texts.items():
            (scratch / name).write_bytes(text.encode())
        names = publish(scratch)
    record(out, stage, {"DATA_DIR": str(source)}, [source / name for name in names], names)
    return names
