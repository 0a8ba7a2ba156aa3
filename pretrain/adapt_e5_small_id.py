"""Adapt the pretrained 12-layer encoder to Indonesian reviews and comments by masked-language modelling.

Reads   models/<ENCODER>/                   fetch_e5_small_id.py; or this: an adapted encoder can be adapted further
        CORPUS_DIRS/*.txt.gz                one document a line (pretrain/README.md names sources and licences)
        DATA_DIR/{valid,test}.tsv           whose texts, and texts that share 10 words in a row, are left out
Writes  models/<RUN>/                       model.safetensors, config.json, tokenizer files, pretraining.json
Next    train_teachers.py
"""
import shutil

import torch
from transformers import AutoConfig, AutoTokenizer, BertForMaskedLM, BertForSequenceClassification
from transformers.utils import logging

from lowbit.data.heldout import held_out
from lowbit.data.tokens import TOKENIZER_FILES
from lowbit.pipeline.files import atomic_folder, resolve, run_dir, sha256, shown, write_json
from lowbit.pipeline.machine import machine
from lowbit.pipeline.manifest import begin_run, digests, publish, record, stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.pretrain.corpus import Corpus, read_weights
from lowbit.pretrain.mlm import CHECKPOINT, Vocabulary, check_settings, train_masked
from lowbit.pretrain.runs import made_by
from lowbit.pretrain.stream import TOKENS, left_out, marks_of, phases_of, tokenize
from lowbit.pretrain.unigram import SPACE
from lowbit.training.encoder import PRETRAINING

# ---- settings: edit here, or for one run: --num-steps 100 ----------------------------------------
ENCODER = "e5-small-id"         # folder under models/ of the encoder to adapt, or of an earlier RUN to go on from
RUN = "e5-small-id-adapted"     # folder under models/ for the result
CORPUS_DIRS = "data/corpus_id,data/corpus_id_large"  # folders of gzipped text files, one document a line
DATA_DIR = "data"               # folder of valid.tsv and test.tsv, whose texts are kept out
TEXT = ("reviews:1,social:1,news:1,speech:0.2,indonlu_casa_hoasa_emot_wrete:2,"
        "indonlu_smsa_train:2")  # file:passes, of those in CORPUS_DIRS
LOWER_CASE = True               # small letters only: every text cleaning of the project makes them
LENGTH = 128                    # tokens a packed sequence
TOKENS_PER_STEP = 4_096         # tokens a step
NUM_STEPS = 2_000               # optimiser steps
LEARNING_RATE = 3e-4            # peak after WARMUP_STEPS, then linear to zero
WARMUP_STEPS = 150              # optimiser steps until the peak
WEIGHT_DECAY = 0.01             # AdamW, on matrices only
MASK_PROBABILITY = 0.15         # share of whole words to predict
COMPILE = False                 # torch.compile: slower here, the heads of this encoder are 32 wide
CHECKPOINT_STEPS = 100          # steps between checkpoints; a killed run goes on from the last one
SEED = 1                        # of masks and order
# --------------------------------------------------------------------------------------------------

STAGE, FETCH = "pretrain/adapt_e5_small_id.py", "pretrain/fetch_e5_small_id.py"


def main(settings):
    check_settings(settings)
    source, out = run_dir(ENCODER, "ENCODER"), run_dir(RUN)
    check(source.resolve() != out.resolve(), f"RUN is {RUN!r}, the encoder itself: choose another name")
    begin_run(out, STAGE, TOKENS, CHECKPOINT)
    maker = STAGE if STAGE in stages_of(source) or (source / TOKENS).exists() else FETCH  # it may be unfinished
    read = made_by(maker, source, "ENCODER", "model.safetensors", "config.json", *TOKENIZER_FILES)
    longest = AutoConfig.from_pretrained(source).max_position_embeddings
    check(1 < LENGTH <= longest, f"LENGTH is {LENGTH}; it must be from 2 to {longest}, which {shown(source)} can read")
    logging.disable_progress_bar()  # of a second's work
    logging.set_verbosity_error()  # the heads are new, as they should be
    corpus = Corpus(CORPUS_DIRS, held_out(resolve(DATA_DIR)), LOWER_CASE)
    weights = read_weights(TEXT, corpus.files, "TEXT")
    tokenizer = AutoTokenizer.from_pretrained(source)
    digest = f"{sha256(source / 'tokenizer.json')}, small letters {LOWER_CASE}"
    streams = {name: tokenize(corpus, name, tokenizer.backend_tokenizer, out / TOKENS / name, digest)
               for name in weights}
    marks = marks_of(out / TOKENS, streams)
    phases = phases_of(streams, ((weights, LENGTH, NUM_STEPS),), tokenizer.cls_token_id, tokenizer.sep_token_id, SEED)
    tokens = phases[0].mixture.tokens()
    print(f"  {NUM_STEPS * TOKENS_PER_STEP / tokens:.1f} passes over {tokens / 1e6:.2f} M tokens; documents left out "
          f"for valid and test: {left_out(marks)}", flush=True)
    torch.manual_seed(SEED)
    model = BertForMaskedLM.from_pretrained(source, dtype=torch.float32, hidden_dropout_prob=0.0,
                                            attention_probs_dropout_prob=0.0)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    vocabulary = Vocabulary(torch.tensor([piece.startswith(SPACE) for piece in pieces], dtype=torch.long),
                            tokenizer.unk_token_id + 1, tokenizer.mask_token_id)
    history = train_masked(model, phases, vocabulary, settings | {"TEXT": marks, "READ": digests(out, read)}, out)
    encoder = BertForSequenceClassification.from_pretrained(source, dtype=torch.float32)  # with its pooler
    encoder.bert.load_state_dict(model.bert.state_dict(), strict=False)
    with atomic_folder(out) as scratch:
        # the classifier is left out: an encoder's task is not chosen yet
        encoder.save_pretrained(scratch, state_dict={name: tensor for name, tensor in encoder.state_dict().items()
                                                     if not name.startswith("classifier")})
        tokenizer.save_pretrained(scratch)
        write_json(scratch / PRETRAINING,
                   {"history": history, "left_out": left_out(marks), "machine": machine()})
        names = publish(scratch)
    record(out, STAGE, settings, [*read, *(corpus.files[name] for name in weights)], names)
    (out / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(out / TOKENS)
    print(f"wrote {shown(out)}")
    return next_command("pretrain/train_teachers.py", settings | {"ENCODER": RUN}, "ENCODER", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
