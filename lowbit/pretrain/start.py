"""A new compact BERT that does not start from nothing: words from vectors, the output bias from frequencies."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification

from lowbit.data.task import SENTIMENT
from lowbit.pipeline.files import run_dir, shown
from lowbit.pipeline.manifest import recorded, stages_of
from lowbit.pipeline.settings import check
from lowbit.pretrain.runs import is_packed
from lowbit.pretrain.vectors import corpus_vectors, projected_vectors
from lowbit.training.encoder import load_pretrained

SPREAD = 0.04  # standard deviation the word vectors are scaled to; BERT draws its own with 0.02
HEAD_WIDTH = 64  # of each attention head; 32 is an order of magnitude slower in BF16 on the CPU
TABLE = "bert.embeddings.word_embeddings.weight"  # where a sequence classifier of BERT's family keeps its words
WEIGHTS = "model.safetensors"
VECTORS = ("corpus", "encoder", "both", "none")


def check_start(s: dict, stage: str) -> list[Path]:
    """Refuse sizes that make no encoder, and vectors that are not there, each with one sentence.

    Returns the files of START, made by `stage`, that are read.
    """
    check(s["VECTORS"] in VECTORS, f"VECTORS is {s['VECTORS']!r}; choose {', '.join(VECTORS)}")
    check(s["HIDDEN_SIZE"] > 0 and s["HIDDEN_SIZE"] % HEAD_WIDTH == 0,
          f"HIDDEN_SIZE is {s['HIDDEN_SIZE']}; it must be a multiple of {HEAD_WIDTH}, the width of a head")
    check(s["NUM_LAYERS"] > 0, f"NUM_LAYERS is {s['NUM_LAYERS']}; it must be above 0")
    check(1 < s["SHORT_LENGTH"] <= s["LONG_LENGTH"], f"SHORT_LENGTH is {s['SHORT_LENGTH']}; it must be from 2 to "
          f"LONG_LENGTH, which is {s['LONG_LENGTH']}")
    if s["START"]:
        return check_earlier(s, stage)
    if s["VECTORS"] in ("encoder", "both"):
        path = run_dir(s["WORD_VECTORS_OF"], "WORD_VECTORS_OF") / WEIGHTS
        check(path.exists(), f"WORD_VECTORS_OF: {shown(path.parent)} holds no encoder: run "
              "`python pretrain/fetch_e5_small_id.py`, or set VECTORS to corpus")
        with safe_open(path, "pt") as tensors:
            check(TABLE in tensors.keys(), f"WORD_VECTORS_OF: {shown(path)} is no BERT with a classifier: name "  # noqa: SIM118
                  "the folder that fetch_e5_small_id.py makes")
    return []


def check_earlier(s: dict, stage: str) -> list[Path]:
    """The files of START, a run of `stage` or a packed model; raises UserError otherwise.

    Also if it was changed since, is RUN itself, or has other sizes.
    """
    folder = run_dir(s["START"], "START")
    check(folder.resolve() != run_dir(s["RUN"]).resolve(),
          f"START and RUN are both {s['RUN']}: give the new run a name of its own")
    names = (WEIGHTS, "config.json", "tokenizer.json")
    if is_packed(folder):
        load_pretrained(shown(folder), "", SENTIMENT, "START")  # it may be damaged
        read = [folder / name for name in names]
    else:
        check(stage in stages_of(folder), f"START: {shown(folder)} holds no encoder with its word pieces: name a "
              "finished run of this script, or a packed model such as bert-mini-id")
        read = recorded(folder, stage, *names)
    config, pieces = AutoConfig.from_pretrained(folder), len(AutoTokenizer.from_pretrained(folder))
    check(pieces == config.vocab_size, f"START: {shown(folder)} has {pieces} pieces in its tokenizer.json, and its "
          f"config.json says {config.vocab_size}: take a whole copy")
    heads = config.hidden_size // HEAD_WIDTH
    check(config.num_attention_heads == heads, f"START: {shown(folder)} has {config.num_attention_heads} heads of "
          f"attention, and this script makes heads of {HEAD_WIDTH}, here {heads}")
    found = {"VOCAB_SIZE": config.vocab_size, "NUM_LAYERS": config.num_hidden_layers,
             "HIDDEN_SIZE": config.hidden_size, "LONG_LENGTH": config.max_position_embeddings}
    for name, value in found.items():
        check(s[name] == value, f"START: {shown(folder)} has {name} {value}, and the setting says {s[name]}: "
              f"set it to {value}")
    return read


def first_vectors(stream: np.ndarray, words: list[str], special: int, s: dict) -> np.ndarray:
    """Unit vectors [words, HIDDEN_SIZE] that VECTORS names; zero rows where nothing is known.

    `both` gives one half of the width to the corpus's own vectors and one to those of the encoder WORD_VECTORS_OF.
    """
    width, parts = s["HIDDEN_SIZE"] // (2 if s["VECTORS"] == "both" else 1), []
    if s["VECTORS"] in ("corpus", "both"):
        check(len(words) > width, f"VECTORS is {s['VECTORS']!r}, but {len(words)} word pieces give no vectors of width "
              f"{width}: add text, raise VOCAB_SIZE, or set VECTORS to none")
        parts.append(corpus_vectors(stream, len(words), special, width, s["SEED"]))
    if s["VECTORS"] in ("encoder", "both"):
        folder = run_dir(s["WORD_VECTORS_OF"])
        with safe_open(folder / WEIGHTS, "pt") as tensors:
            table = tensors.get_tensor(TABLE)
        parts.append(projected_vectors(words, AutoTokenizer.from_pretrained(folder), table, width))
    vectors = np.concatenate(parts, axis=1)
    vectors[:special] = 0
    return vectors


def new_masked_lm(stream: np.ndarray, words: list[str], special: int, s: dict) -> BertForMaskedLM:
    """A BERT of the settings' sizes for the vocabulary `words`, of which the first `special` are no words.

    `stream` is a sample of the corpus as token ids: frequencies and word vectors are counted on it. With START, every
    weight but the prediction head's, which no encoder keeps, is that run's.
    """
    torch.manual_seed(s["SEED"])
    model = BertForMaskedLM(BertConfig(
        vocab_size=len(words), hidden_size=s["HIDDEN_SIZE"], num_hidden_layers=s["NUM_LAYERS"],
        num_attention_heads=s["HIDDEN_SIZE"] // HEAD_WIDTH, intermediate_size=4 * s["HIDDEN_SIZE"],
        max_position_embeddings=s["LONG_LENGTH"], hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0))  # few passes: nothing to regularise yet
    with torch.no_grad():
        if s["START"]:
            earlier = BertForSequenceClassification.from_pretrained(run_dir(s["START"]), dtype=torch.float32).bert
            model.bert.load_state_dict({name: value for name, value in earlier.state_dict().items()
                                        if not name.startswith("pooler.")})
        elif s["VECTORS"] != "none":
            vectors = torch.tensor(first_vectors(stream, words, special, s), dtype=torch.float32)
            seen = vectors.abs().sum(1) > 0
            model.bert.embeddings.word_embeddings.weight[seen] = vectors[seen] / vectors[seen].std() * SPREAD
        frequency = torch.tensor(np.bincount(stream, minlength=len(words)) + 1.0).log()
        model.cls.predictions.bias.copy_(frequency - frequency.mean())
    return model


def as_classifier(model: BertForMaskedLM, seed: int) -> BertForSequenceClassification:
    """The encoder with a new pooler and classifier: fine-tuned from one such point, several seeds can be averaged."""
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1
    model.config.num_labels = len(SENTIMENT.labels)
    torch.manual_seed(seed)
    encoder = BertForSequenceClassification(model.config)
    encoder.bert.load_state_dict(model.bert.state_dict(), strict=False)  # all but the pooler
    return encoder
