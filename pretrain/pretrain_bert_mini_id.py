"""Stage 1 of 4: pretrain a compact Indonesian BERT by masked-language modelling, from plain text to encoder.

Reads   CORPUS_DIRS/*.txt.gz                one document a line (pretrain/README.md names sources and licences)
        DATA_DIR/{valid,test}.tsv           whose texts, and texts that share 10 words in a row, are left out
        models/<WORD_VECTORS_OF>/           the encoder whose word vectors the embeddings start from
        models/<START>/                     an earlier run or packed model to go on from, where one is named
Writes  models/<RUN>/                       model.safetensors, config.json, tokenizer files, pretraining.json
Next    train_teachers.py
"""
import json
import re
import shutil

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast
from transformers.utils import logging

from lowbit.data.heldout import held_out
from lowbit.pipeline.files import atomic_folder, resolve, run_dir, sha256, shown, write_json, write_text
from lowbit.pipeline.machine import machine
from lowbit.pipeline.manifest import begin_run, digests, publish, record
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.pretrain.corpus import Corpus, read_weights
from lowbit.pretrain.mlm import CHECKPOINT, Vocabulary, check_settings, train_masked
from lowbit.pretrain.start import as_classifier, check_start, new_masked_lm
from lowbit.pretrain.stream import TOKENS, left_out, marks_of, phases_of, sample, tokenize
from lowbit.training.encoder import PRETRAINING

# ---- settings: edit here, or for one run: --domain-steps 500 ----------------------------------------
CORPUS_DIRS = "data/corpus_id,data/corpus_id_large"  # folders of gzipped text files, one document a line
DATA_DIR = "data"               # folder of valid.tsv and test.tsv, whose texts are kept out
RUN = "bert-mini-id-mlm"        # folder under models/ for the encoder
GENERAL = ("wiki:1,legal:0.1,news:2,speech:2,reviews:2,social:2,indonli:1,ud_pud_gsd:1,indonlu_facqa:1,"
           "indonlu_token_tasks:1,indonlu_casa_hoasa_emot_wrete:3,indonlu_smsa_train:3")  # first phase: file:passes
DOMAIN = ("reviews:1,social:1,news:1,indonlu_casa_hoasa_emot_wrete:3,"
          "indonlu_smsa_train:3")  # second phase: the texts that are most like those to be labelled
VOCAB_SIZE = 16_000             # WordPiece entries, lower-cased
NUM_LAYERS = 4                  # transformer layers
HIDDEN_SIZE = 256               # width; heads of 64, feed-forward of four times the width
SHORT_LENGTH = 64               # tokens a packed sequence in the first phase
LONG_LENGTH = 128               # tokens a packed sequence in the second phase, and the encoder's longest input
TOKENS_PER_STEP = 8_192         # tokens a step in either phase
GENERAL_STEPS = 8_000           # optimiser steps of the first phase
DOMAIN_STEPS = 4_000            # optimiser steps of the second phase
LEARNING_RATE = 1.5e-3          # from WARMUP_STEPS to the end of the first phase, then linear to zero
WARMUP_STEPS = 300              # optimiser steps until the peak
WEIGHT_DECAY = 0.01             # AdamW, on matrices only
MASK_PROBABILITY = 0.2          # share of whole words to predict
VECTORS = "both"                # word embeddings start from: corpus, encoder, both (half of the width each), none
WORD_VECTORS_OF = "e5-small-id"  # folder under models/ of that encoder (fetch_e5_small_id.py)
START = ""                      # run or packed model under models/ to go on from, with its pieces; empty: none
COMPILE = True                  # torch.compile: a fifth faster on 2 cores, needs a C++ compiler
CHECKPOINT_STEPS = 500          # steps between checkpoints; a killed run goes on from the last one
SEED = 1                        # of weights, masks and order
# --------------------------------------------------------------------------------------------------

STAGE = "pretrain/pretrain_bert_mini_id.py"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
CLS, SEP, MASK = 2, 3, 4
TOO_LONG = re.compile(r"\w{101,}")  # WordPiece reads such a word as unknown, and making pieces takes its length squared
VOCAB, VOCAB_MARK = "vocab.txt", "vocab.json"  # the word pieces, and what they were made of


def write_pieces(vocab: dict[str, int], out) -> None:
    """The pieces of a vocabulary, one a line in the order of their ids."""
    write_text(out / VOCAB, "\n".join(sorted(vocab, key=vocab.get)) + "\n")


def make_tokenizer(corpus, weights, out) -> BertWordPieceTokenizer:
    """A WordPiece vocabulary of the corpus, written into `out`; START's, or one that was made of the same, is taken.

    Made anew it would differ: of equally frequent pieces, the library takes one or another.
    """
    mark = out / VOCAB_MARK
    if START:
        mark.unlink(missing_ok=True)  # what lay here was made otherwise, and is written over
        write_pieces(BertTokenizerFast.from_pretrained(run_dir(START)).get_vocab(), out)
        return BertWordPieceTokenizer(str(out / VOCAB), lowercase=True)
    made = {"VOCAB_SIZE": VOCAB_SIZE, "SEED": SEED, "weights": weights, "held_out": corpus.held_out.digest,
            "sources": {source: sha256(corpus.files[source]) for source in weights}}
    if not (mark.exists() and json.loads(mark.read_text(encoding="utf-8")) == made and (out / VOCAB).exists()):
        mark.unlink(missing_ok=True)
        tokenizer = BertWordPieceTokenizer(lowercase=True)
        tokenizer.train_from_iterator((TOO_LONG.sub(" ", text) for text in corpus.weighted(weights, SEED)),
                                      vocab_size=VOCAB_SIZE, min_frequency=2, special_tokens=list(SPECIAL),
                                      show_progress=False)
        write_pieces(tokenizer.get_vocab(), out)
        write_json(mark, made)
    return BertWordPieceTokenizer(str(out / VOCAB), lowercase=True)


def main(settings):
    check_settings(settings)
    earlier = check_start(settings, STAGE)
    logging.disable_progress_bar()  # of a second's work
    out = run_dir(RUN)
    begin_run(out, STAGE, TOKENS, VOCAB, VOCAB_MARK, CHECKPOINT)
    (out / TOKENS).mkdir(exist_ok=True)
    corpus = Corpus(CORPUS_DIRS, held_out(resolve(DATA_DIR)))
    parts = [(read_weights(DOMAIN, corpus.files, "DOMAIN"), LONG_LENGTH, DOMAIN_STEPS)]
    general = read_weights(GENERAL, corpus.files, "GENERAL") if GENERAL_STEPS or not START else {}
    if GENERAL_STEPS:
        parts.insert(0, (general, SHORT_LENGTH, GENERAL_STEPS))
    tokenizer = make_tokenizer(corpus, general, out)
    vocab = tokenizer.get_vocab()
    words = sorted(vocab, key=vocab.get)
    streams = {source: tokenize(corpus, source, tokenizer, out / TOKENS / source, sha256(out / VOCAB))
               for source in corpus.files if any(source in weights for weights, _, _ in parts)}
    marks = marks_of(out / TOKENS, streams)
    print(f"  {len(words)} word pieces, {sum(len(stream.ids) for stream in streams.values()) / 1e6:.2f} M tokens; "
          f"documents left out for valid and test: {left_out(marks)}", flush=True)
    phases = phases_of(streams, parts, CLS, SEP, SEED)
    for phase in phases:
        print(f"  {phase.steps} steps of {TOKENS_PER_STEP} tokens in rows of {phase.length}: "
              f"{phase.steps * TOKENS_PER_STEP / phase.mixture.tokens():.1f} passes over "
              f"{phase.mixture.tokens() / 1e6:.2f} M tokens", flush=True)
    resumed = {"VECTORS": "none", "START": ""} if (out / CHECKPOINT).exists() else {}  # would be overwritten at once
    model = new_masked_lm(sample(phases[0].mixture, SHORT_LENGTH), words, MASK + 1, settings | resumed)
    starts_word = torch.tensor([not word.startswith("##") for word in words], dtype=torch.long)
    history = train_masked(model, phases, Vocabulary(starts_word, MASK + 1, MASK),
                           settings | {"TEXT": marks, "READ": digests(out, earlier)}, out)
    with atomic_folder(out) as scratch:
        as_classifier(model, SEED).save_pretrained(scratch)
        BertTokenizerFast(vocab=str(out / VOCAB), do_lower_case=True,
                          model_max_length=LONG_LENGTH).save_pretrained(scratch)
        write_json(scratch / PRETRAINING,
                   {"history": history, "left_out": left_out(marks), "machine": machine()})
        names = publish(scratch)
    read = [path for source, path in corpus.files.items() if source in streams or source in general]
    record(out, STAGE, settings, [*read, *earlier], names)
    (out / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / TOKENS)
    print(f"wrote {shown(out)}")
    return next_command("pretrain/train_teachers.py", settings, "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
