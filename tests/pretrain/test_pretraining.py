"""Pretraining on a tiny corpus: it starts, goes on after a kill unchanged, and reads no held-out text."""

import gzip
import json
import resource
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SAMPLE, read_plain_rows
from safetensors.torch import load_file, save_file
from stage_runs import copy_of, new_run, run_folder, run_stage_script
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lowbit.data.heldout import EXACT, SAME_LETTERS, SHARED_RUN, HeldOut
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.manifest import note
from lowbit.pretrain.corpus import Corpus, read_weights
from lowbit.pretrain.masking import mask_words, predicted_positions
from lowbit.pretrain.mlm import rate
from lowbit.pretrain.stream import Mixture, phases_of, tokenize

STAGE = "pretrain_bert_mini_id.py"
TINY = ("--general", "wiki:1,reviews:2", "--domain", "reviews:1", "--vocab-size", 300, "--num-layers", 1,
        "--hidden-size", 64, "--short-length", 16, "--long-length", 32, "--tokens-per-step", 1024, "--warmup-steps", 4,
        "--general-steps", 20, "--domain-steps", 12, "--learning-rate", 5e-3, "--vectors", "corpus",
        "--checkpoint-steps", 4, "--no-compile")


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """Two files of the bundled sample's train texts; one also holds a text of valid and a part of one of test."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [text for text, _ in read_plain_rows("train", SAMPLE)]
    valid = read_plain_rows("valid", SAMPLE)[0][0]
    test = next(text for text, _ in read_plain_rows("test", SAMPLE) if len(text.split()) > 14)
    parts = {"wiki": texts[::2], "reviews": [*texts[1::2], valid.upper(), f"katanya {test} begitulah ceritanya"]}
    for name, lines in parts.items():
        with gzip.open(folder / f"{name}.txt.gz", "wt", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for line in lines)
    return folder


def pretrain(run: str, corpus, *flags, **how):
    return run_stage_script(STAGE, "--run", run, "--corpus-dirs", corpus, "--data-dir", SAMPLE, *TINY, *flags,
                            folder="pretrain", **how)


@pytest.fixture(scope="module")
def pretrained(corpus_folder):
    """Folder of an encoder that was pretrained without a break."""
    run = new_run()
    done = pretrain(run, corpus_folder)
    assert done.returncode == 0, done.stderr
    return run_folder(run)


def test_encoder_is_whole(pretrained):
    """It loads as a classifier with its tokenizer, learned something, and its checkpoint and tokens are gone."""
    model = AutoModelForSequenceClassification.from_pretrained(pretrained)
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert model(**tokenizer("makanan nya enak", return_tensors="pt")).logits.shape == (1, 3)
    history = json.loads((pretrained / "pretraining.json").read_text())["history"]
    assert [entry["step"] for entry in history] == list(range(4, 33, 4))
    assert history[-1]["held_out"][1] < history[0]["held_out"][1]
    assert not list(pretrained.glob("checkpoint*")) and not (pretrained / "tokens").exists()


def test_held_out_texts_are_left_out_and_counted(pretrained):
    """The text of valid and the one that holds a part of test stand in no training text, and the record says so."""
    counts = json.loads((pretrained / "pretraining.json").read_text())["left_out"]
    assert counts == {"reviews": {EXACT: 1, SHARED_RUN: 1}}


@pytest.mark.parametrize("step", [8, 24])
def test_killed_run_goes_on_as_if_nothing_had_been(pretrained, corpus_folder, step):
    """Killed in either phase and started again, it ends with the same weights, bit for bit."""
    run = new_run()
    folder = run_folder(run)
    note(folder, dict.fromkeys(("tokens", "vocab.txt", "vocab.json"), ""))
    (folder / "tokens").mkdir()
    for name in ("vocab.txt", "vocab.json"):  # of equally frequent pieces, which one is taken differs by the run
        shutil.copy(pretrained / name, folder)

    def reached():
        try:
            return torch.load(folder / "checkpoint.pt", weights_only=True)["step"] >= step
        except (FileNotFoundError, EOFError, RuntimeError):
            return False

    killed = pretrain(run, corpus_folder, kill_when=reached)
    assert killed.returncode == -9, killed.stderr
    done = pretrain(run, corpus_folder)
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stdout
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, pretrained))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_checkpoint_of_other_settings_is_refused(corpus_folder):
    """A longer first phase may go on from a checkpoint in it; another rate may not."""
    run = new_run()
    killed = pretrain(run, corpus_folder, kill_when=(run_folder(run) / "checkpoint.pt").exists)
    assert killed.returncode == -9, killed.stderr
    refused = pretrain(run, corpus_folder, "--learning-rate", 1e-3)
    assert refused.returncode == 2
    assert "checkpoint.pt was made with other settings" in refused.error
    longer = pretrain(run, corpus_folder, "--general-steps", 24)
    assert longer.returncode == 0, longer.stderr
    assert "resuming from step 4" in longer.stdout


def test_checkpoint_of_another_start_is_refused(pretrained, corpus_folder):
    """START's folder holds other weights than those that the checkpoint began with."""
    run, start = new_run(), copy_of(pretrained.name)
    flags = ("--start", start, "--vocab-size", len(AutoTokenizer.from_pretrained(pretrained)))
    killed = pretrain(run, corpus_folder, *flags, kill_when=(run_folder(run) / "checkpoint.pt").exists)
    assert killed.returncode == -9, killed.stderr
    shutil.rmtree(run_folder(start))
    shutil.copytree(ROOT / "models" / "bert-mini-id", run_folder(start))
    path = run_folder(start) / "model.safetensors"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pretrained / name, run_folder(start))
    save_file({name: tensor * 1.01 for name, tensor in load_file(pretrained / path.name).items()}, path,
              {"format": "pt"})
    refused = pretrain(run, corpus_folder, *flags)
    assert refused.returncode == 2
    assert "checkpoint.pt was made with other settings, text or weights" in refused.error


@pytest.mark.parametrize("ours, said", [(False, "checkpoint.pt is in the way: no stage wrote it"),
                                        (True, "checkpoint.pt does not load as a checkpoint (")])
def test_checkpoint_that_is_none(corpus_folder, ours, said):
    """A file of the user's of that name stays; one of ours that was damaged is named."""
    run = new_run()
    path = run_folder(run) / "checkpoint.pt"
    path.parent.mkdir()
    if ours:
        note(path.parent, {"checkpoint.pt": ""})
    path.write_text("mine")
    refused = pretrain(run, corpus_folder)
    assert refused.returncode == 2
    assert said in refused.error
    assert path.read_text() == "mine"


def test_start_that_does_not_fit_itself_is_refused(corpus_folder):
    """Fewer pieces in the tokenizer than in the configuration; another number of heads."""
    for name, change, said in (("tokenizer.json", lambda held: held["model"]["vocab"].popitem(), "pieces in its tok"),
                               ("config.json", lambda held: held.update(num_attention_heads=8), "has 8 heads of")):
        start, run = new_run(), new_run()
        shutil.copytree(ROOT / "models" / "bert-mini-id", run_folder(start))
        held = json.loads((run_folder(start) / name).read_text(encoding="utf-8"))
        change(held)
        (run_folder(start) / name).write_text(json.dumps(held), encoding="utf-8")
        refused = pretrain(run, corpus_folder, "--start", start)
        assert refused.returncode == 2
        assert said in refused.error
        assert not run_folder(run).exists()


@pytest.mark.parametrize("setting", ["--start", "--word-vectors-of"])
def test_name_outside_models_is_refused_by_its_setting(corpus_folder, setting):
    refused = pretrain(new_run(), corpus_folder, "--vectors", "both", setting, "../x")
    assert refused.returncode == 2
    assert f"{setting[2:].upper().replace('-', '_')} is '../x'; use one plain folder name" in refused.error


def test_word_that_is_too_long_makes_no_pieces(corpus_folder, tmp_path):
    """A line of one endless word: the encoder would read it as unknown, so nothing is learned from it."""
    for path in corpus_folder.glob("*.txt.gz"):
        (tmp_path / path.name).write_bytes(path.read_bytes() + gzip.compress(b"x" * 20_000 + b"\n"))
    run = new_run()
    done = pretrain(run, tmp_path, "--general-steps", 1, "--domain-steps", 1)
    assert done.returncode == 0, done.stderr
    assert "xxxx" not in (run_folder(run) / "vocab.txt").read_text(encoding="utf-8")


def test_vocabulary_of_other_settings_is_made_anew(pretrained, corpus_folder):
    """A finished run's vocabulary is taken again by the same settings, and not by a smaller VOCAB_SIZE."""
    run, before = new_run(), (pretrained / "vocab.txt").read_text(encoding="utf-8")
    shutil.copytree(pretrained, run_folder(run))
    short = ("--general-steps", 1, "--domain-steps", 1)
    for flags, same in ((short, True), ((*short, "--vocab-size", 200), False)):
        done = pretrain(run, corpus_folder, *flags)
        assert done.returncode == 0, done.stderr
        assert ((run_folder(run) / "vocab.txt").read_text(encoding="utf-8") == before) == same
    assert len(AutoTokenizer.from_pretrained(run_folder(run))) <= 200


def test_run_goes_on_from_an_earlier_one(pretrained, corpus_folder):
    """It has that one's pieces and weights: what it has learned is there after a step, and its record names it."""
    run = new_run()
    note(run_folder(run), {"tokens": "", "vocab.json": ""})
    (run_folder(run) / "tokens").mkdir()  # as a kill leaves it after a vocabulary of its own
    (run_folder(run) / "vocab.json").write_text("{}")
    short = ("--general-steps", 0, "--domain-steps", 1, "--learning-rate", 1e-6)
    done = pretrain(run, corpus_folder, *short, "--start", pretrained.name, "--vocab-size",
                    len(AutoTokenizer.from_pretrained(pretrained)))
    assert done.returncode == 0, done.stderr
    assert (run_folder(run) / "vocab.txt").read_bytes() == (pretrained / "vocab.txt").read_bytes()
    assert not (run_folder(run) / "vocab.json").exists()  # it would say that these pieces are those of the corpus
    before, after = (load_file(folder / "model.safetensors") for folder in (pretrained, run_folder(run)))
    for name in before:
        if not name.startswith(("bert.pooler", "classifier")):  # those are new in every run
            assert torch.allclose(before[name], after[name], atol=1e-5), name
    reads = json.loads((run_folder(run) / "manifest.json").read_text())["stages"][f"pretrain/{STAGE}"]["reads"]
    assert any(name.endswith(f"{pretrained.name}/model.safetensors") for name in reads)
    assert any(name.endswith("reviews.txt.gz") for name in reads)
    assert not any(name.endswith("wiki.txt.gz") for name in reads), "a phase without steps needs no text"


def test_run_goes_on_from_a_packed_model(corpus_folder):
    """From the bundled model, which no stage's record names: its pieces and weights, and the record names its file."""
    run, bundled = new_run(), ROOT / "models" / "bert-mini-id"
    done = pretrain(run, corpus_folder, "--start", "bert-mini-id", "--vocab-size", 12_000, "--num-layers", 4,
                    "--hidden-size", 256, "--long-length", 128, "--general-steps", 0, "--domain-steps", 1,
                    "--learning-rate", 1e-6)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (bundled, run_folder(run)))
    for name in before:
        if not name.startswith(("bert.pooler", "classifier")):
            assert torch.allclose(before[name].float(), after[name], atol=1e-5), name
    pieces = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (bundled, run_folder(run))]
    assert pieces[0] == pieces[1]
    reads = json.loads((run_folder(run) / "manifest.json").read_text())["stages"][f"pretrain/{STAGE}"]["reads"]
    assert any(name.endswith("bert-mini-id/model.safetensors") for name in reads)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_packed_start_that_is_cut_short_is_refused(corpus_folder, name):
    start, run = new_run(), new_run()
    shutil.copytree(ROOT / "models" / "bert-mini-id", run_folder(start))
    (run_folder(start) / name).write_bytes((run_folder(start) / name).read_bytes()[:100])
    refused = pretrain(run, corpus_folder, "--start", start)
    assert refused.returncode == 2
    assert f"START 'models/{start}': models/{start} does not load as a sequence classifier (" in refused.error
    assert not run_folder(run).exists()


def test_start_of_another_size_is_refused(pretrained, corpus_folder):
    refused = pretrain(new_run(), corpus_folder, "--start", pretrained.name, "--num-layers", 2, "--vocab-size",
                       len(AutoTokenizer.from_pretrained(pretrained)))
    assert refused.returncode == 2
    assert "has NUM_LAYERS 1, and the setting says 2: set it to 1" in refused.error


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_start_that_was_changed_is_refused(pretrained, corpus_folder, name):
    """A weight file cut short, or another's pieces: one sentence, and nothing is begun."""
    start, run = run_folder(new_run()), new_run()
    shutil.copytree(pretrained, start)
    (start / name).write_bytes((pretrained / name).read_bytes()[:1000])
    refused = pretrain(run, corpus_folder, "--start", start.name)
    assert refused.returncode == 2
    assert f"{name} (SHA-256 " in refused.error and "it was changed, cut short or copied" in refused.error
    assert not run_folder(run).exists()


@pytest.mark.parametrize("flags, said", [
    (("--start", "nowhere"), "holds no encoder with its word pieces"),
    (("--run", "pretraining-again", "--start", "pretraining-again"), "START and RUN are both pretraining-again"),
    (("--general", "wiki:1,tweets:1"), "GENERAL names 'tweets'; CORPUS_DIRS hold"),
    (("--domain", "wiki:much"), "DOMAIN weighs wiki with 'much'"),
    (("--vectors", "word2vec"), "VECTORS is 'word2vec'; choose corpus, encoder, both, none"),
    (("--hidden-size", 100), "HIDDEN_SIZE is 100; it must be a multiple of 64"),
    (("--vectors", "encoder", "--word-vectors-of", "nowhere"), "run `python pretrain/fetch_e5_small_id.py`"),
    (("--corpus-dirs", SAMPLE), "holds no .txt.gz file"),
    (("--domain", "wiki:0"), "DOMAIN is 'wiki:0'; give at least one file a weight above 0"),
    (("--domain-steps", 0), "DOMAIN_STEPS is 0; it must be above 0"),
    (("--short-length", 64), "SHORT_LENGTH is 64; it must be from 2 to LONG_LENGTH, which is 32"),
])
def test_settings_that_cannot_work_end_in_one_sentence(corpus_folder, flags, said):
    refused = pretrain(new_run(), corpus_folder, *flags)
    assert refused.returncode == 2
    assert said in refused.error


# ---- the parts


def test_held_out_kinds():
    """Each kind of likeness is found, and ordinary neighbours are not."""
    ten = "satu dua tiga empat lima enam tujuh delapan sembilan sepuluh"
    held = HeldOut(["Kamar  nya bersih sekali !", f"awal {ten} akhir"])
    assert held.kind_of("kamar nya bersih  sekali !") == EXACT
    assert held.kind_of("kamarnya bersih, sekali") == SAME_LETTERS
    assert held.kind_of(f"lain {ten.upper()} lagi") == held.kind_of(f"lain {ten}") == SHARED_RUN
    assert held.kind_of(f"mula {ten.rsplit(' ', 1)[0]} tujuh") is None
    assert held.kind_of("kamar nya kotor sekali !") is None
    assert [held.allows(text) for text in ("kamar nya bersih sekali !", "lain")] == [False, True]
    assert held.found == {EXACT: 1}


def test_corpus_leaves_links_and_names_out(tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as out:
        out.write("baik - nya saja\nlihat https://x.id\n@budi halo\nkata @user begitu\n\n")
    assert list(Corpus(str(tmp_path)).documents("a")) == ["baik nya saja", "kata @user begitu"]
    assert list(Corpus(str(tmp_path), lower=True).weighted({"a": 2.0}, 0))[1] == "baik nya saja"


def test_corpus_that_is_not_gzipped_text_is_named(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"satu\ndua\n")[:-6])
    with pytest.raises(UserError, match="a.txt.gz is not gzipped UTF-8 text"):
        list(Corpus(str(tmp_path)).documents("a"))


def test_text_is_tokenized_again_when_other_texts_are_held_out(tmp_path, letters):
    """Ids on disk are taken again only if the same texts were left out of them: a new test set is never trained on."""
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as out:
        out.write("abc\nabd\nabe\n")
    held = [HeldOut(["abc"]), HeldOut(["abc"]), HeldOut(["abd", "abe"])]
    counts = [len(tokenize(Corpus(str(tmp_path), one), "a", letters, tmp_path / "ids", "letters")) for one in held]
    assert counts == [2, 2, 1]
    assert held[0].found == {EXACT: 1} and held[1].found == {}


def test_tokens_of_a_full_disk_are_not_taken_for_whole(tmp_path, letters):
    """The first write beyond the end is an error; the next run writes all of them, also if ids were cut short."""
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as out:
        out.write("abc\n" * 3000)
    corpus, limit = Corpus(str(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        with pytest.raises(OSError, match="File too large"):
            tokenize(corpus, "a", letters, tmp_path / "ids", "letters")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    for _ in range(2):
        stream = tokenize(corpus, "a", letters, tmp_path / "ids", "letters")
        assert len(stream) == 3000 and len(stream.ids) == 9000
        (tmp_path / "ids" / "ids.uint16").write_bytes(b"1234")


def test_source_without_a_document_is_refused(tmp_path, letters):
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as out:
        out.write("\n" * 9)
    with pytest.raises(UserError, match="a.txt.gz holds no document to train on"):
        tokenize(Corpus(str(tmp_path)), "a", letters, tmp_path / "ids", "letters")


def test_small_corpora_and_large_vocabularies_are_refused(tmp_path, letters):
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as out:
        out.write("abc\n" * 8)
    stream = tokenize(Corpus(str(tmp_path)), "a", letters, tmp_path / "ids", "letters")
    with pytest.raises(UserError, match="the corpus is too small"):
        phases_of({"a": stream}, (({"a": 1.0}, 16, 2),), 2, 3, 0)
    letters.size = 2**16 + 1
    with pytest.raises(UserError, match="has 65537 pieces; at most 65536"):
        tokenize(Corpus(str(tmp_path)), "a", letters, tmp_path / "ids", "more")


def test_weights_are_read_in_the_corpus_order():
    assert read_weights("b:0.5, a:2", ["a", "b", "c"], "TEXT") == {"a": 2.0, "b": 0.5}


class Letters:
    """A tokenizer of small letters: a is 5, b is 6."""

    size = 31

    def get_vocab_size(self):
        return self.size

    def encode_batch(self, texts, add_special_tokens):
        return [SimpleNamespace(ids=[5 + ord(letter) - ord("a") for letter in text]) for text in texts]


@pytest.fixture
def letters():
    return Letters()


@pytest.fixture
def mixture(tmp_path, letters):
    """30 documents of three tokens in one stream and 20 in another, mixed 2 to 1."""
    for name, first, count in (("x", "a", 30), ("y", "m", 20)):
        with gzip.open(tmp_path / f"{name}.txt.gz", "wt", encoding="utf-8") as out:
            out.writelines(first * 3 + "\n" for _ in range(count))
    corpus = Corpus(str(tmp_path))
    streams = {name: tokenize(corpus, name, letters, tmp_path / name, "letters") for name in corpus.files}
    return Mixture(streams, {"x": 2.0, "y": 0.5}, first=2, last=3, seed=1)


def test_mixture_keeps_its_proportions_and_documents_whole(mixture):
    """2 passes over x, half of y; each document ends with the separator and each row opens with the first token."""
    assert Counter(mixture.order(0)[:, 0].tolist()) == {0: 60, 1: 10}
    rows = np.concatenate(list(mixture.rows(9, 0)))
    assert (rows[:, 0] == 2).all()
    flat = rows[:, 1:].ravel()
    assert (flat[3::4] == 3).all()
    assert (flat[0::4] == flat[1::4]).all() and (flat[0::4] == flat[2::4]).all()


def test_held_out_rows_read_no_position_that_is_not_trained_yet(mixture):
    """Those of a later phase, whose rows are longer, are as long as the first phase's."""
    phases = phases_of(mixture.streams, ((mixture.weights, 5, 3), (mixture.weights, 9, 3)), 2, 3, 1)
    assert [phase.held_out.shape[1] for phase in phases] == [5, 5]
    assert [phase.length for phase in phases] == [5, 9]


def test_batches_start_anywhere(mixture):
    """Batch 7 on is the same whether the ones before were taken or skipped, over the end of a pass as well."""
    whole, later = mixture.batches(9, 4), mixture.batches(9, 4, start=12)
    taken = [next(whole) for _ in range(15)]
    for batch in taken[12:]:
        assert np.array_equal(batch, next(later))


def test_whole_words_are_masked():
    """Every piece of a chosen word and no special token; about the share that was asked for."""
    starts = torch.ones(50, dtype=torch.long)
    starts[40:] = 0  # pieces inside a word
    ids = torch.randint(5, 40, (200, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 2::3] = 40 + ids[:, 2::3] % 10
    ids[:, 0] = 2
    masked, chosen = mask_words(ids, starts, 5, 4, 0.2, torch.Generator().manual_seed(0))
    assert not chosen[:, 0].any()
    inside = (starts[ids[:, 1:]] == 0) & (ids[:, :-1] >= 5)
    assert torch.equal(chosen[:, 1:][inside], chosen[:, :-1][inside])
    assert 0.15 < chosen[:, 1:].float().mean() < 0.25
    assert torch.equal(masked[~chosen], ids[~chosen])
    assert 0.7 < (masked[chosen] == 4).float().mean() < 0.9
    positions = predicted_positions(chosen, 100, torch.Generator().manual_seed(0))
    assert len(positions) == 100 and chosen.view(-1)[positions].all()


def test_rate_is_constant_until_the_last_phase():
    assert [rate(step, 4, 8, 1) for step in range(8)] == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]
