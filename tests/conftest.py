"""A two-layer BERT with a vocabulary of its own, a small data folder, and one run of all four stages on them."""

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings
from stage_runs import (
    EVALUATE,
    EXPORT,
    QUANTIZE,
    ROOT,
    TRAIN,
    ended_well,
    new_run,
    remove_runs,
    run_folder,
    run_stage_script,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

# the same examples every time, however slow the machine is
settings.register_profile("suite", deadline=None, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

SAMPLE = ROOT / "data" / "sample"
# as data/download_smsa.py leaves it, or beside the checkout
SMSA = next((folder for folder in (ROOT / "data", ROOT.parent / "shared" / "data" / "smsa")
             if (folder / "test.tsv").exists()), ROOT / "data")
ROWS_A_LABEL = {"train": 16, "valid": 5, "test": 5}


def real_data(test):
    """Mark a test that reads the SMSA files; skipped where they are not."""
    absent = pytest.mark.skipif(not (SMSA / "train.tsv").exists(), reason=f"no SMSA files in {SMSA}")
    return pytest.mark.real_data(absent(test))


def read_plain_rows(split: str, folder: Path = SMSA) -> list[tuple[str, str]]:
    """(text, label) of a well-formed file, read without the project's own reader."""
    rows = [tuple(line.split("\t")) for line in (folder / f"{split}.tsv").read_text(encoding="utf-8").split("\n")]
    return [row for row in rows if len(row) == 2 and row != ("text", "label")]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of 600 pieces: special ones, characters, the sample's most frequent words.

    The library's own trainer draws among equally frequent pieces, anew in each process.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text, _ in read_plain_rows("train", SAMPLE)
                    for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    pieces = [*special, *characters, *(f"##{character}" for character in characters), *frequent][:600]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]",
                                   cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def pytest_collection_modifyitems(items):
    """Mark what starts a stage: `make check` leaves it out."""
    for item in items:
        if hasattr(item.module, "run_stage_script") or hasattr(item.module, "Warm") or "pipeline" in item.fixturenames:
            item.add_marker("stages")


@pytest.fixture(scope="session", autouse=True)
def clean_end():
    """Few threads while the tests run, no folder left under models/ when they end."""
    torch.set_num_threads(1)
    yield
    remove_runs()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of an untrained BERT: 2 layers of 32, 2 heads, 128 positions, weights large enough to tell texts apart."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=128, initializer_range=0.2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Folder of train, valid and test of 48, 15 and 15 rows, the labels in equal shares, from the bundled sample."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in ROWS_A_LABEL.items():
        rows = read_plain_rows(split, SAMPLE)
        chosen = [row for label in ("positive", "neutral", "negative")
                  for row in [row for row in rows if row[1] == label][:count]]
        (folder / f"{split}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in chosen), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def train_flags(tiny_model, small_data):
    """Flags with which stage 1 trains the tiny model for two short epochs; add --run."""
    return ("--model-name", tiny_model, "--data-dir", small_data, "--num-epochs", 2, "--learning-rate", 1e-3,
            "--cleaning", "minimal")


@pytest.fixture(scope="session")
def finetuned(train_flags):
    """Folder of the tiny model, fine-tuned in FP32 by ptq/finetune_fp32.py; tests leave it as it is."""
    run = new_run()
    done = run_stage_script("finetune_fp32.py", "--run", run, *train_flags, folder="ptq")
    assert done.returncode == 0, done.stderr
    return run_folder(run)


@pytest.fixture(scope="session")
def eval_flags(small_data):
    """Flags with which stage 4 measures in seconds, on the threads that tests ask a file with; add --run."""
    return ("--data-dir", small_data, "--rounds", 2, "--runs", 3, "--threads", 1)


@pytest.fixture(scope="session")
def pipeline(train_flags, eval_flags):
    """(run name, stage -> Finished): all four stages once, each in a new interpreter, one from its own folder."""
    run = new_run()
    flags = {TRAIN: train_flags, EXPORT: (), QUANTIZE: (), EVALUATE: eval_flags}
    inside = {EXPORT: ROOT / "int8_eager"}
    return run, {name: run_stage_script(name, "--run", run, *more, cwd=inside.get(name, ROOT), fresh=True)
                 for name, more in flags.items()}


@pytest.fixture(scope="session")
def finished_run(pipeline):
    """Name of a run that went through all four stages; tests copy it and leave it as it is."""
    return ended_well(*pipeline)


@pytest.fixture(scope="session")
def finished_folder(finished_run):
    """Folder of finished_run."""
    return run_folder(finished_run)
