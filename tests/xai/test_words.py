"""Every word that a model reads is found in the text as it was written, and nothing else is."""

import pytest
from conftest import SMSA, read_plain_rows, real_data, tiny_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lowbit.data.cleaning import PRESETS, clean
from lowbit.data.tokens import INPUT_NAMES, PAIR_INPUT, TextReader
from lowbit.xai.words import CLEANED, CUT, read


@pytest.fixture(scope="module")
def readers():
    """Preset -> how a run of the tiny model reads."""
    tokenizer = tiny_tokenizer()
    return {preset: TextReader(tokenizer, preset, 128) for preset in PRESETS}


def words_of(reading) -> list[str]:
    return [reading.word(place) for place in range(len(reading.words))]


def check(reader, text):
    """What must hold of any text: the row, its tokens, every character once, words in order, the cleaned text."""
    reading = read(reader, text)
    assert reading.row == reader.rows([text])[0]
    places = sorted(place for word in reading.words for place in word.tokens)
    assert places == list(range(1, len(reading.row["input_ids"]) - 1))  # all but [CLS] and [SEP]
    assert all(one.end <= two.start for one, two in zip(reading.words, reading.words[1:], strict=False))
    held = [place for part in (*reading.words, *reading.gaps) for place in range(part.start, part.end)]
    assert len(held) == len(set(held))
    assert set(held) >= {place for place, character in enumerate(text) if not character.isspace()}
    return reading


TEXT = st.text(st.sampled_from("aAbI tidak\n\t.!_éİßΣς😡م你\u0307\u200b0") | st.characters(codec="utf-8"), max_size=60)


@given(TEXT)
@example("İSTANBUL ΣΑΣ ß ﬁ")
@example("\u0307")
def test_any_text(readers, text):
    for reader in readers.values():
        check(reader, text)


@given(st.lists(st.sampled_from(["yang", "dan", "tidak", "Dan", "enak", "hotel", "di"]), max_size=12))
def test_stop_words_are_those_that_sastrawi_removes(readers, words):
    """An independent walk over places: it deletes the first equal word and skips the word behind it."""
    from lowbit.data.cleaning import stop_words
    for preset in ("documents", "negation-safe"):
        left, at = list(enumerate(words)), 0
        while at < len(left):
            word = left[at][1].lower()
            if word in stop_words(PRESETS[preset]["KEEP_NEGATIONS"]):
                left.pop(next(i for i, (_, other) in enumerate(left) if other.lower() == word))
            at += 1
        text, starts = " ".join(words), [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
        assert [word.start for word in read(readers[preset], text).words] == [starts[i] for i, _ in left]


def test_the_first_equal_word_goes_and_its_neighbour_stays(readers):
    """"yang" is walked over and removed, "dan" behind it skipped; the second "dan" then removes the first."""
    reading = read(readers["documents"], "yang dan enak dan")
    assert [(word.start, word.end) for word in reading.words] == [(9, 13), (14, 17)]
    assert words_of(reading) == ["enak", "dan"]
    assert [(gap.start, gap.end, gap.why) for gap in reading.gaps] == [(0, 4, CLEANED), (5, 8, CLEANED)]


def test_repeated_words_stay_apart(readers):
    reading = check(readers["negation-safe"], "enak, enak! ENAK")
    assert [(word.start, word.end) for word in reading.words] == [(0, 4), (6, 10), (12, 16)]


def test_a_long_text_ends_in_a_gap(readers):
    text = "kamar bagus " * 100
    reading = check(readers["minimal"], text)
    assert {gap.why for gap in reading.gaps} == {CUT}
    assert reading.words[-1].end <= reading.gaps[0].start
    assert sum(len(word.tokens) for word in reading.words) == 126


def test_both_texts_of_a_pair(readers):
    tokenizer = readers["minimal"].tokenizer
    reader = TextReader(tokenizer, "documents", 128, (*INPUT_NAMES, PAIR_INPUT))
    reading = read(reader, ("Kamar yang bersih", "tidak kotor!"))
    assert reading.row == reader.rows([("Kamar yang bersih", "tidak kotor!")])[0]
    assert [(word.part, reading.word(place)) for place, word in enumerate(reading.words)] == [
        (0, "Kamar"), (0, "bersih"), (1, "kotor")]


def test_pieces_of_sentencepiece_make_words(readers):
    """A leading space belongs to no word, and a lone one goes with the word behind it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(split=False), decoders.Metaspace()
    tokenizer.train_from_iterator(["kamar bagus", "hotel bersih sekali", "bagus sekali"] * 20, trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<s>", "</s>", "<unk>", "<mask>"], unk_token="<unk>", show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    reader = TextReader(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<s>", unk_token="<unk>",
                                                mask_token="<mask>"), "minimal", 128)
    assert words_of(check(reader, "  Kamar  xyz bagus sekali")) == ["Kamar", "xyz", "bagus", "sekali"]


@real_data
@pytest.mark.parametrize("preset", PRESETS)
def test_every_text_of_smsa_valid_and_test(readers, preset):
    """The words as written, lower-cased and joined, are the cleaned text, up to where it was cut."""
    reader = readers[preset]
    for text, _ in read_plain_rows("valid", SMSA) + read_plain_rows("test", SMSA):
        reading = read(reader, text)
        wanted = clean(text, preset).replace(" ", "")
        found = "".join(words_of(reading)).lower()
        cut = any(gap.why == CUT for gap in reading.gaps)
        assert wanted.startswith(found) if cut else wanted == found
