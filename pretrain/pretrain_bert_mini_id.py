"""Stage 1 of 2: pretrain a compact Indonesian BERT by masked-language modelling, from plain text to encoder.

Reads   CORPUS_DIR/*.txt.gz                 one document a line (see pretrain/README.md for sources and licences)
Writes  models/<RUN>/                       model.safetensors, config.json, tokenizer files, results.json
Next    finetune_bert_mini_id.py
"""
# ---- settings: edit here, or for one run: --num-steps 500 -----------------------------------------
CORPUS_DIR = "../shared/data/corpus_id"  # folder of gzipped text files, relative to the project's root
RUN = "bert-mini-id-mlm"        # folder under models/ for the encoder and its checkpoint
VOCAB_SIZE = 12_000             # WordPiece entries, lower-cased
NUM_LAYERS = 4                  # transformer layers
HIDDEN_SIZE = 256               # width; heads of 64, feed-forward of four times the width
SEQUENCE_LENGTH = 128           # tokens a packed sequence, and the encoder's longest input
BATCH_SIZE = 32                 # packed sequences a step
NUM_STEPS = 6_000               # optimiser steps
DOMAIN_FILES = "indonlu_smsa_train,indonlu_casa_hoasa_emot_wrete"  # reviews and tweets: the last steps see only these
DOMAIN_FRACTION = 0.4           # share of the steps, at the end, spent on DOMAIN_FILES alone
LEARNING_RATE = 1.5e-3          # peak, after WARMUP_STEPS, then linear to zero
WARMUP_STEPS = 200              # steps
WEIGHT_DECAY = 0.01             # AdamW
MASK_PROBABILITY = 0.2          # share of whole words to predict
SVD_INIT = True                 # start word embeddings from the corpus's own PPMI word vectors
COMPILE = True                  # torch.compile: a fifth to two fifths faster on 2 cores, needs a C++ compiler
SEED = 1                        # of weights, masks and order
# --------------------------------------------------------------------------------------------------
