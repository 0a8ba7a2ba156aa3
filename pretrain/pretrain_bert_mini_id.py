"""Stage 1 of 2: pretrain a compact Indonesian BERT by masked-language modelling, from plain text to encoder.

Reads   CORPUS_DIR/*.txt.gz                 one document a line (pretrain/README.md names sources and licences)
Writes  models/<RUN>/                       model.safetensors, config.json, tokenizer files, pretraining.json
Next    finetune_bert_mini_id.py
"""
import gzip
import re
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizerFast

from lowbit.data.task import SENTIMENT
from lowbit.pipeline.files import atomic_folder, claim, publish, resolve, run_dir, shown, write_json
from lowbit.pipeline.machine import machine
from lowbit.pipeline.manifest import record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.fine_tune import autocast_dtype

# ---- settings: edit here, or for one run: --num-steps 500 ----------------------------------------
CORPUS_DIR = "data/corpus_id"  # folder of gzipped text files, one document a line
RUN = "bert-mini-id-mlm"        # folder under models/ for the encoder
VOCAB_SIZE = 12_000             # WordPiece entries, lower-cased
NUM_LAYERS = 4                  # transformer layers
HIDDEN_SIZE = 256               # width; heads of 64, feed-forward of four times the width
SHORT_LENGTH = 64               # tokens a packed sequence in the first phase, on the whole corpus
LONG_LENGTH = 128               # tokens a packed sequence in the second phase, and the encoder's longest input
TOKENS_PER_STEP = 4_096         # tokens a step in either phase
NUM_STEPS = 5_000               # optimiser steps
DOMAIN_FILES = "indonlu_smsa_train,indonlu_casa_hoasa_emot_wrete"  # reviews and tweets: all of the second phase
DOMAIN_FRACTION = 0.4           # share of the steps in the second phase
LEARNING_RATE = 1.5e-3          # peak after WARMUP_STEPS, then linear to zero
WARMUP_STEPS = 200              # optimiser steps until the peak
WEIGHT_DECAY = 0.01             # AdamW, on matrices only
MASK_PROBABILITY = 0.2          # share of whole words to predict
SVD_INIT = True                 # start word embeddings from word vectors of the corpus itself
COMPILE = True                  # torch.compile: a fifth faster on 2 cores, needs a C++ compiler
CHECKPOINT_STEPS = 500          # steps between checkpoints; a killed run goes on from the last one
SEED = 1                        # of weights, masks and order
# --------------------------------------------------------------------------------------------------

STAGE = "pretrain/pretrain_bert_mini_id.py"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
PAD, UNK, CLS, SEP, MASK = range(5)
WINDOW = 4           # neighbours counted on each side for the word vectors
VECTOR_SPREAD = 0.04  # standard deviation the word vectors are scaled to; BERT draws its own with 0.02
HELD_OUT = 600       # documents kept from training, for the loss that is reported


def read_corpus(folder: Path) -> dict[str, list[str]]:
    """File name -> documents. ' - nya', a habit of one source's tokenizer, becomes ' nya', the habit of the others."""
    files = sorted(folder.glob("*.txt.gz"))
    check(bool(files), f"CORPUS_DIR {shown(folder)} holds no .txt.gz file: name the folder of the corpus")
    texts = {}
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts[path.name.removesuffix(".txt.gz")] = [
                re.sub(r" - nya\b", " nya", line.strip()) for line in lines if line.strip()]
    return texts


def word_vectors(ids: np.ndarray, vocab_size: int, width: int) -> np.ndarray:
    """Unit vectors [vocab_size, width] of a token stream; zero rows for unseen tokens.

    Truncated SVD of positive pointwise mutual information with context smoothing 0.75 (Levy, Goldberg, Dagan 2015).
    """
    counts = sp.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        left, right = ids[:-distance], ids[distance:]
        words = (left > MASK) & (right > MASK)
        weights = np.full(words.sum(), 1 / distance, np.float32)
        counts += sp.csr_matrix((weights, (left[words], right[words])), shape=counts.shape)
    counts = (counts + counts.T).tocoo()
    totals = np.asarray(counts.sum(1)).ravel()
    context = totals**0.75 / (totals**0.75).sum()
    pmi = np.log(counts.data / (totals[counts.row] * context[counts.col]))
    seen = pmi > 0
    matrix = sp.csr_matrix((pmi[seen], (counts.row[seen], counts.col[seen])), shape=counts.shape)
    left, strengths, _ = svds(matrix, k=width, random_state=SEED)
    vectors = left * np.sqrt(strengths)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def pack(documents: list[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffled documents, each closed by [SEP], cut into rows [n, length] that open with [CLS]."""
    flat = np.concatenate([np.append(documents[i], SEP) for i in rng.permutation(len(documents))])
    rows = flat[: len(flat) // (length - 1) * (length - 1)].reshape(-1, length - 1)
    return np.concatenate([np.full((len(rows), 1), CLS), rows], axis=1)


def mask_words(ids: torch.Tensor, starts_word: torch.Tensor, probability: float, generator: torch.Generator):
    """(input, chosen): whole words chosen with `probability`; of their tokens 80 % [MASK], 10 % random, 10 % kept."""
    word = starts_word[ids].cumsum(1)
    chosen = torch.rand(ids.shape[0], ids.shape[1] + 1, generator=generator).gather(1, word) < probability
    chosen &= ids > MASK
    kind = torch.rand(ids.shape, generator=generator)
    masked = ids.clone()
    masked[chosen & (kind < 0.8)] = MASK
    noise = chosen & (kind >= 0.9)
    masked[noise] = torch.randint(MASK + 1, len(starts_word), (int(noise.sum()),), generator=generator)
    return masked, chosen


def build_model(stream: np.ndarray, vocab_size: int) -> BertForMaskedLM:
    """A new BERT whose embeddings and output bias start from the corpus's own statistics."""
    model = BertForMaskedLM(BertConfig(
        vocab_size=vocab_size, hidden_size=HIDDEN_SIZE, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=HIDDEN_SIZE // 64, intermediate_size=4 * HIDDEN_SIZE, max_position_embeddings=LONG_LENGTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))  # few passes: nothing to regularise yet
    with torch.no_grad():
        if SVD_INIT:
            vectors = torch.tensor(word_vectors(stream, vocab_size, HIDDEN_SIZE), dtype=torch.float32)
            seen = vectors.abs().sum(1) > 0
            model.bert.embeddings.word_embeddings.weight[seen] = vectors[seen] / vectors[seen].std() * VECTOR_SPREAD
        frequency = torch.tensor(np.bincount(stream, minlength=vocab_size) + 1.0).log()
        model.cls.predictions.bias.copy_(frequency - frequency.mean())
    return model


def main(settings):
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = run_dir(RUN)
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    texts = read_corpus(resolve(CORPUS_DIR))
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator([text for group in texts.values() for text in group], vocab_size=VOCAB_SIZE,
                                min_frequency=2, special_tokens=list(SPECIAL), show_progress=False)
    documents = {name: [np.array(row.ids) for row in trainer.encode_batch(group, add_special_tokens=False)]
                 for name, group in texts.items()}
    domain = {id(row) for name in DOMAIN_FILES.split(",") for row in documents[name]}
    rng = np.random.default_rng(SEED)
    everything = [row for group in documents.values() for row in group]
    rng.shuffle(everything)
    held_out, everything = everything[:HELD_OUT], everything[HELD_OUT:]
    phases = ((SHORT_LENGTH, everything), (LONG_LENGTH, [row for row in everything if id(row) in domain]))
    print(f"  {len(everything)} documents, {sum(map(len, everything)) / 1e6:.2f} M tokens; second phase "
          f"{len(phases[1][1])} documents, {sum(map(len, phases[1][1])) / 1e6:.2f} M tokens")

    vocab = trainer.get_vocab()
    starts_word = torch.ones(len(vocab), dtype=torch.long)
    starts_word[[i for token, i in vocab.items() if token.startswith("##")]] = 0
    model = build_model(np.concatenate([np.append(row, SEP) for row in everything]), len(vocab)).to(device).train()
    optimiser = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
         {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}],
        LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(
        (step + 1) / WARMUP_STEPS, max(0.0, (NUM_STEPS - step) / (NUM_STEPS - WARMUP_STEPS))))

    def loss_of(masked, ids, positions):
        # the vocabulary product is a third of the work: only for the tokens that are predicted
        with torch.autocast(device, autocast_dtype() or torch.bfloat16, enabled=autocast_dtype() is not None):
            hidden = model.bert(input_ids=masked).last_hidden_state.view(-1, HIDDEN_SIZE)[positions]
            logits = model.cls(hidden)
        return torch.nn.functional.cross_entropy(logits.float(), ids.view(-1)[positions])

    compiled = torch.compile(loss_of) if COMPILE else loss_of
    checks = []  # the held-out documents at both lengths, masked once and for all
    for length, _ in phases:
        ids = torch.from_numpy(pack(held_out, length, np.random.default_rng(0)))
        checks.append((ids, *mask_words(ids, starts_word, 0.15, torch.Generator().manual_seed(0))))
    generator = torch.Generator().manual_seed(SEED)
    switch = round(NUM_STEPS * (1 - DOMAIN_FRACTION))
    predicted = int(TOKENS_PER_STEP * MASK_PROBABILITY)  # a fixed count, so that compiled shapes stay fixed
    checkpoint, step, history, rows, started = out / "checkpoint.pt", 0, [], [], time.monotonic()
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        check(saved["settings"] == settings, f"{shown(checkpoint)} was made with other settings: delete it to start "
                                             "again, or set them back to go on")
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        step, history = saved["step"], saved["history"]
        generator.manual_seed(SEED + step)
        rng = np.random.default_rng(SEED + step)
        print(f"resuming from step {step}")
    losses, bar = [], tqdm(total=NUM_STEPS, initial=step, unit="step")
    while step < NUM_STEPS:
        length, source = phases[step >= switch]
        if not len(rows) or step == switch:
            rows = torch.from_numpy(pack(source, length, rng))
        ids, rows = rows[: TOKENS_PER_STEP // length], rows[TOKENS_PER_STEP // length:]
        if len(ids) < TOKENS_PER_STEP // length:
            continue  # the last, smaller batch of a pass: the next pass shuffles anew
        masked, chosen = mask_words(ids, starts_word, MASK_PROBABILITY, generator)
        positions = chosen.view(-1).nonzero().squeeze(1)
        positions = positions[torch.randperm(len(positions), generator=generator)].repeat(2)[:predicted]
        loss = compiled(masked.to(device), ids.to(device), positions.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        losses.append(loss.detach())
        step += 1
        bar.update()
        if step % CHECKPOINT_STEPS == 0 or step == NUM_STEPS:
            model.eval()
            with torch.no_grad():
                held = [loss_of(masked.to(device), ids.to(device), chosen.view(-1).nonzero().squeeze(1).to(device))
                        .item() for ids, masked, chosen in checks]
            model.train()
            history.append({"step": step, "loss": torch.stack(losses).mean().item(),
                            f"held_out_{SHORT_LENGTH}": held[0], f"held_out_{LONG_LENGTH}": held[1]})
            losses.clear()
            tqdm.write(f"step {step}/{NUM_STEPS}  loss {history[-1]['loss']:.4f}  held-out {held[0]:.4f} at "
                       f"{SHORT_LENGTH} tokens, {held[1]:.4f} at {LONG_LENGTH}  {time.monotonic() - started:.0f} s")
            with atomic_folder(out) as scratch:
                torch.save({"settings": settings, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                            "schedule": schedule.state_dict(), "step": step, "history": history},
                           scratch / checkpoint.name)
                publish(scratch)
    bar.close()

    # saved with the first weights of a classifier: fine-tuned from one point, seeds can be averaged
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1
    model.config.num_labels = len(SENTIMENT.labels)
    torch.manual_seed(SEED)
    encoder = BertForSequenceClassification(model.config)
    encoder.bert.load_state_dict(model.bert.state_dict(), strict=False)  # all but the pooler, which is new
    with atomic_folder(out) as scratch:
        encoder.save_pretrained(scratch)
        trainer.save_model(str(scratch))
        BertTokenizerFast(vocab=str(scratch / "vocab.txt"), do_lower_case=True,
                          model_max_length=LONG_LENGTH).save_pretrained(scratch)
        write_json(scratch / "pretraining.json", {"history": history, "machine": machine()})
        names = publish(scratch)
    record(out, STAGE, settings, sorted(resolve(CORPUS_DIR).glob("*.txt.gz")), names)
    checkpoint.unlink()
    return next_command("pretrain/finetune_bert_mini_id.py", settings, "RUN")


if __name__ == "__main__":
    run_stage(main, globals())
