"""Text cleaning: what each preset keeps, and that "documents" is Sastrawi's own removal."""

import functools

import pytest
from conftest import read_plain_rows, real_data
from hypothesis import given
from hypothesis import strategies as st
from Sastrawi.StopWordRemover.StopWordRemoverFactory import StopWordRemoverFactory

from lowbit.data.cleaning import PRESETS, clean, require_preset
from lowbit.pipeline.errors import UserError

NEGATIONS = ("tidak", "belum", "nggak", "tanpa", "tapi", "tetapi", "namun", "kecuali", "hanya", "agak", "bisa")
STOP_WORDS = sorted(StopWordRemoverFactory().get_stop_words())
WHITE_SPACE = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000"]

words = st.one_of(st.sampled_from(STOP_WORDS), st.sampled_from(("Makanan", "ENAK", "sekali", "bagus!", "3,5", "a_b")),
                  st.text(max_size=6))
spaced = st.lists(st.tuples(words, st.sampled_from(WHITE_SPACE))).map(lambda pairs: "".join(map("".join, pairs)))
presets = pytest.mark.parametrize("preset", PRESETS)


@functools.cache
def library_remover():
    return StopWordRemoverFactory().create_stop_word_remover()


def by_the_library(text: str) -> str:
    """Lower case, only letters, digits and white space, collapsed, then Sastrawi as it comes."""
    kept = "".join(c if c.isalnum() or c.isspace() else " " for c in text.lower())
    return library_remover().remove(" ".join(kept.split()))


@given(spaced)
def test_documents_preset_is_sastrawis_own_remover(text):
    """A user who follows the documents' recipe by hand gets the same text."""
    assert clean(text, "documents") == by_the_library(text)


@presets
@given(text=st.text())
def test_any_unicode_is_cleaned(preset, text):
    """No text of any script stops a preset, and none comes back with white space to trim or collapse."""
    cleaned = clean(text, preset)
    assert cleaned == " ".join(cleaned.split())


@presets
@given(pieces=st.lists(words.map(lambda word: "".join(word.split())).filter(bool), min_size=1), data=st.data())
def test_kind_of_white_space_does_not_matter(preset, pieces, data):
    """Tabs, line ends, no-break spaces and runs of blanks read as one blank."""
    gaps = data.draw(st.lists(st.sampled_from(WHITE_SPACE), min_size=len(pieces), max_size=len(pieces)))
    untidy = "".join(gap + piece for gap, piece in zip(gaps, pieces, strict=True)) + gaps[0]
    assert clean(untidy, preset) == clean(" ".join(pieces), preset)


@given(st.lists(st.one_of(st.sampled_from(NEGATIONS), st.sampled_from(STOP_WORDS), st.just("enak"))))
def test_negation_safe_keeps_every_negation(sentence):
    """As many negations and contrasts come out as went in, wherever they stand and however they are written."""
    cleaned = clean(" ".join(word.title() for word in sentence), "negation-safe").split()
    for word in NEGATIONS:
        assert cleaned.count(word) == sentence.count(word)


def test_negation_safe_still_removes_other_stop_words():
    """Words without polarity go, so that the preset is more than lower-casing."""
    assert clean("Makanan yang enak, tapi tidak untuk saya!", "negation-safe") == "makanan enak tapi tidak saya"


def test_documents_preset_turns_not_tasty_into_tasty():
    """The reason why it is not the default."""
    assert clean("Tidak enak.", "documents") == "enak"


@given(spaced)
def test_minimal_keeps_every_visible_character(text):
    """Punctuation, digits, emoji and stop words all stay; only case and white space change."""
    assert "".join(clean(text, "minimal").split()) == "".join(text.lower().split())


def test_minimal_keeps_punctuation():
    """A case to read."""
    assert clean("  Wah!!  TIDAK enak :( ", "minimal") == "wah!! tidak enak :("


def test_unknown_preset_is_refused_by_name():
    """The sentence holds what was given and what may be given."""
    with pytest.raises(UserError) as refusal:
        require_preset("dokuments")
    for word in ("CLEANING", "dokuments", *PRESETS):
        assert word in str(refusal.value)
    for preset in PRESETS:
        require_preset(preset)


@real_data
@presets
def test_every_smsa_training_text_is_cleaned(preset):
    """11,000 tweets go through; on a sample of 300 "documents" is what Sastrawi's slow remover gives."""
    texts = [text for text, _ in read_plain_rows("train")]
    cleaned = [clean(text, preset) for text in texts]
    assert len(cleaned) == 11000
    assert all(text == " ".join(text.split()) and text == text.lower() for text in cleaned)
    if preset == "documents":
        assert cleaned[::37] == [by_the_library(text) for text in texts[::37]]
    else:
        assert all(cleaned)
