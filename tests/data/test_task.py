"""task.json: what a data set asks, read or refused in a sentence; rows of pairs and numbers."""

import json

import pytest
from conftest import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertTokenizerFast, RobertaConfig

from lowbit.data.task import SENTIMENT, Task, read_task, task_of_run
from lowbit.data.tokens import TextReader, input_names, pad
from lowbit.data.tsv import count_conflicting, count_shared, describe, read_split, read_tsv
from lowbit.pipeline.errors import UserError

EMOTIONS = {"texts": ["text"], "labels": ["marah", "senang", "takut"], "score": "accuracy"}
PAIRS = {"texts": ["kalimat1", "kalimat2"], "labels": ["ya", "tidak"], "score": "f1"}
NUMBERS = {"texts": ["a", "b"], "labels": None, "score": "pearson"}


def written(folder, task) -> None:
    (folder / "task.json").write_text(task if isinstance(task, str) else json.dumps(task))


def test_without_a_task_it_is_sentiment(tmp_path):
    """As every run was before there were others."""
    assert read_task(tmp_path) == SENTIMENT == Task(("text",), ("positive", "neutral", "negative"), "macro_f1")


@pytest.mark.parametrize(("given", "outputs", "pairs"), [(EMOTIONS, 3, False), (PAIRS, 2, True), (NUMBERS, 1, True)])
def test_a_task_is_read_and_written_back(tmp_path, given, outputs, pairs):
    """What as_json() gives reads back equal."""
    written(tmp_path, given)
    task = read_task(tmp_path)
    assert (task.outputs, task.pairs) == (outputs, pairs)
    written(tmp_path, task.as_json())
    assert read_task(tmp_path) == task


WRONG = {
    "no JSON": ("{", "cannot be read as JSON"),
    "no object": ([1], "instead of an object"),
    "unknown key": (EMOTIONS | {"label": ["a"]}, "unknown key 'label'; the nearest is 'labels'"),
    "no score": ({"texts": ["text"], "labels": ["a", "b"]}, "lacks the key 'score'"),
    "three texts": (EMOTIONS | {"texts": ["a", "b", "c"]}, "names 3 texts"),
    "no text": (EMOTIONS | {"texts": []}, "names 0 texts"),
    "a text twice": (PAIRS | {"texts": ["a", "A"]}, "twice"),
    "texts is a word": (EMOTIONS | {"texts": "text"}, "'texts' that is not a list"),
    "one label": (EMOTIONS | {"labels": ["a"]}, "at least two are needed"),
    "a label twice": (EMOTIONS | {"labels": ["Ya", "ya "]}, "twice"),
    "a label with a tab": (EMOTIONS | {"labels": ["a\tb", "c"]}, "tabs or line ends"),
    "an empty label": (EMOTIONS | {"labels": ["", "c"]}, "must not be empty"),
    "a number as label": (EMOTIONS | {"labels": [0, 1]}, "'labels' that is not a list of texts"),
    "a score of numbers": (EMOTIONS | {"score": "pearson"}, "for labels choose accuracy, macro_f1, f1, matthews"),
    "a score of labels": (NUMBERS | {"score": "accuracy"}, "for a number choose pearson, spearman"),
    "f1 of three": (EMOTIONS | {"score": "f1"}, "that of the second of two labels, but 3"),
    "answer is a text": (PAIRS | {"answer": "kalimat1"}, "as a text and as the answer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_model_could_be_trained_for_is_refused(tmp_path, name):
    """File, key, and where the form is explained."""
    given, said = WRONG[name]
    written(tmp_path, given)
    with pytest.raises(UserError) as caught:
        read_task(tmp_path)
    assert "task.json" in str(caught.value)
    assert said in str(caught.value)
    assert "data/README.md" in str(caught.value)


def test_data_of_another_task_is_refused(tmp_path):
    """A run is measured on what it was trained for; data without a task.json takes the run's."""
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir()
    data.mkdir()
    written(run, PAIRS)
    assert task_of_run(run, data) == read_task(run)
    written(data, EMOTIONS)
    with pytest.raises(UserError, match="asks something else than .*run was trained for"):
        task_of_run(run, data)


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\t\n\0\r\ufeff")).filter(str.strip)


@given(rows=st.lists(st.tuples(texts, texts, st.integers(0, 1)), min_size=1, max_size=8), header=st.booleans(),
       swapped=st.booleans())
def test_pairs_are_read_by_header_or_by_order(tmp_path_factory, rows, header, swapped):
    """With a header the columns may stand in any order beside others; without one they are text, text, label."""
    folder = tmp_path_factory.mktemp("pairs")
    written(folder, PAIRS)
    task = read_task(folder)
    if header and swapped:
        lines = ["id\tLABEL\tkalimat2\tkalimat1", *(f"{i}\t{task.labels[label]}\t{b}\t{a}"
                                                   for i, (a, b, label) in enumerate(rows))]
    else:
        lines = ["kalimat1\tkalimat2\tlabel"] * header + [f"{a}\t{b}\t{task.labels[label].upper()}"
                                                          for a, b, label in rows]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_tsv(folder / "train.tsv", task) == (
        [(a.strip(), b.strip()) for a, b, _ in rows], [label for _, _, label in rows])


@pytest.mark.parametrize(("line", "said"), [
    ("satu\tdua", "2 columns instead of a<TAB>b<TAB>label"), ("satu\t \t1", "empty text"),
    ("satu\tdua\ttiga", "'tiga' instead of a number"), ("satu\tdua\tnan", "'nan' instead of a number"),
    ("satu\tdua\tinf", "'inf' instead of a number"),
    ("satu\tdua\t1e300", "'1e300', a number beyond 1e+15")])
def test_a_bad_row_of_numbers_is_named(tmp_path, line, said):
    """By its line and with what is wrong."""
    written(tmp_path, NUMBERS)
    (tmp_path / "train.tsv").write_text(f"x\ty\t1.5\n{line}\n")
    with pytest.raises(UserError) as caught:
        read_tsv(tmp_path / "train.tsv", read_task(tmp_path))
    assert "line 2 " in str(caught.value)
    assert said in str(caught.value)


def test_numbers_are_read_and_described(tmp_path):
    """As they stand; a split of one number alone is refused, as nothing correlates with it."""
    written(tmp_path, NUMBERS)
    task = read_task(tmp_path)
    (tmp_path / "train.tsv").write_text("b\ta\tlabel\nx\ty\t-1\nz\tw\t2.5e0\n")
    found = read_split(tmp_path, "train", task)
    assert found == ([("y", "x"), ("w", "z")], [-1.0, 2.5])
    assert describe("train", *found, task) == "train 2 pairs (numbers from -1 to 2.5, mean 0.75)"
    (tmp_path / "train.tsv").write_text("x\ty\t1\nz\tw\t1\n")
    with pytest.raises(UserError, match="holds only the number 1: at least two different numbers"):
        read_split(tmp_path, "train", task)


def test_a_column_named_twice_is_refused(tmp_path):
    """Which of them is meant cannot be known."""
    (tmp_path / "train.tsv").write_text("text\tlabel\ttext\nenak\tpositive\tburuk\n")
    with pytest.raises(UserError, match="line 1 names the column 'text' twice"):
        read_tsv(tmp_path / "train.tsv")


def test_texts_with_several_labels_are_counted():
    """One text, two labels, whatever its case and spacing: said where the data is described."""
    texts = ["Enak  sekali", "enak sekali", "biasa", "biasa", "buruk"]
    assert count_conflicting(texts, [0, 2, 1, 1, 2]) == 1
    assert describe("valid", texts, [0, 2, 1, 1, 2]).endswith("), 1 of them with several labels")
    assert count_shared([("A", "b")], [("a", "B"), ("b", "a")]) == 1


# ---- token rows of pairs


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT tokenizer with token types over the tiny vocabulary."""
    folder = tmp_path_factory.mktemp("bert")
    vocab = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("\n".join(word for word, _ in vocab) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)


@pytest.mark.parametrize("max_length", [8, 16, 128])
def test_pairs_are_cut_and_typed_as_the_tokenizer_does(bert, max_length):
    """The longer text gives way; token_type_ids tell the two apart, and padding carries neither."""
    texts = [("makanan enak " * 9, "buruk"), ("enak", "makanan buruk sekali " * 9), ("a", "b")]
    reader = TextReader(bert, "minimal", max_length, input_names(BertConfig(), pairs=True))
    rows = reader.rows(texts)
    assert bert._tokenizer.truncation is None  # it is saved with the model: as it came
    wanted = bert([" ".join(a.split()) for a, _ in texts], [" ".join(b.split()) for _, b in texts], truncation=True,
                  max_length=max_length)
    for i, row in enumerate(rows):
        assert row == {"input_ids": wanted["input_ids"][i], "token_type_ids": wanted["token_type_ids"][i]}
    batch = pad(rows, reader.pad_id)
    expected = bert.pad({name: wanted[name] for name in batch}, return_tensors="np")
    for name, values in batch.items():
        assert (values == expected[name]).all(), name


def test_single_texts_carry_no_types(bert):
    """Present files keep their two inputs; so do models that know one type."""
    for config, pairs in ((BertConfig(), False), (RobertaConfig(type_vocab_size=1), True)):
        assert input_names(config, pairs) == ("input_ids", "attention_mask")
    assert list(TextReader(bert, "minimal", 16).rows(["enak"])[0]) == ["input_ids"]
