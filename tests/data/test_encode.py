"""From texts to padded batches: cuts as the tokenizer's own, counts what it cut, pads to the longest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lowbit.data.tokens import TextReader, batches, pad

LONG = "makanan enak " * 100
lengths = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    """The tiny model's."""
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize("max_length", [3, 16, 128])
def test_long_texts_are_cut_as_the_tokenizer_cuts(tokenizer, max_length, capsys):
    """[CLS] first, [SEP] last, never longer than asked; how many were cut is told."""
    texts = [LONG, "enak", LONG.upper(), "tidak  ENAK !"]
    found = [row["input_ids"] for row in TextReader(tokenizer, "minimal", max_length).rows(texts)]
    clean = [" ".join(text.lower().split()) for text in texts]
    expected = tokenizer(clean, truncation=True, max_length=max_length)["input_ids"]
    assert found == expected
    assert max(map(len, found)) == max_length
    cut = sum(len(row) > max_length for row in tokenizer(clean)["input_ids"])
    assert f"{cut} of 4 texts cut to {max_length} tokens" in capsys.readouterr().out


def test_text_of_stop_words_alone_is_counted(tokenizer, capsys):
    """It stays a row of [CLS] and [SEP], so that no label loses its text."""
    rows = TextReader(tokenizer, "documents", 128).rows(["Yang ...", "enak"])
    assert rows[0] == {"input_ids": [tokenizer.cls_token_id, tokenizer.sep_token_id]}
    assert len(rows[1]["input_ids"]) > 2
    assert "1 empty after cleaning" in capsys.readouterr().out


def test_nothing_is_told_when_nothing_was_cut(tokenizer, capsys):
    """No line without a fact."""
    TextReader(tokenizer, "minimal", 128).rows(["enak", "biasa saja"])
    assert capsys.readouterr().out == ""


@given(lengths=lengths, pad_id=st.integers(0, 9), extra=st.integers(0, 40))
def test_padding_is_masked_and_nothing_else(lengths, pad_id, extra):
    """Every token stays in its place; behind it stand pad_id and mask 0, up to the longest row or the length asked."""
    rows = [list(range(100, 100 + length)) for length in lengths]
    batch = pad([{"input_ids": row} for row in rows], pad_id, extra)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (len(rows), max(*lengths, extra))
    assert ids.dtype == mask.dtype == np.int64
    for row, its_ids, its_mask in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        rest = len(its_ids) - len(row)
        assert its_ids == row + [pad_id] * rest
        assert its_mask == [1] * len(row) + [0] * rest


@given(lengths=lengths, size=st.integers(1, 8), sort=st.booleans())
def test_every_row_is_in_one_batch(lengths, size, sort):
    """In the file's order, or from short to long."""
    rows = [{"input_ids": [0] * length} for length in lengths]
    made = batches(rows, size, sort)
    order = [i for group in made for i in group]
    assert sorted(order) == list(range(len(rows)))
    assert all(len(group) == size for group in made[:-1])
    if sort:
        assert [lengths[i] for i in order] == sorted(lengths)
    else:
        assert order == sorted(order)
