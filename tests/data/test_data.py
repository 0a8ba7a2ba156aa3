"""The TSV reader: everything well-formed reads back equal, everything else is named by file and line."""

import pandas
import pytest
from conftest import SAMPLE, SMSA, real_data
from hypothesis import assume, given
from hypothesis import strategies as st

from lowbit.data.task import SENTIMENT
from lowbit.data.tsv import count_shared, describe, read_split, read_tsv
from lowbit.data.tweets import read_tweets
from lowbit.pipeline.errors import UserError

LABELS = SENTIMENT.labels
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\t\n\0")).filter(str.strip)
labels = st.sampled_from(LABELS)
spellings = st.tuples(st.sampled_from((str, str.upper, str.title)), st.sampled_from(("{}", " {}", "{} ", " {}  ")))
GOOD = b"enak sekali\tpositive\nbiasa\tneutral\n"
# what stands in line 3 -> what the refusal says about it
BAD_ROWS = {
    "one column": (b"tanpa label", ("1 column", "tanpa label")),
    "three columns": (b"enak\tsekali\tpositive", ("3 columns", "enak")),
    "unknown label": (b"enak\tpositif", ("'positif'", *LABELS)),
    "label that is a number": (b"enak\t1", ("'1'", *LABELS)),
    "no label": (b"enak\t", ("''", *LABELS)),
    "no text": (b"\tpositive", ("empty text",)),
    "white text": (b" \xc2\xa0 \tpositive", ("empty text",)),
    "not UTF-8": (b"caf\xe9\tpositive", ("UTF-8", "byte 4")),
    "NUL": (b"en\0ak\tpositive", ("NUL",)),
    "blank line": (b"", ("1 column",)),
    "header in the middle": (b"text\tlabel", ("'label'",)),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A path that every test of this file writes anew."""
    return tmp_path_factory.mktemp("tsv") / "train.tsv"


def refusal(path) -> str:
    """The sentence with which reading `path` ends."""
    with pytest.raises(UserError) as caught:
        read_tsv(path)
    assert path.name in str(caught.value)
    return str(caught.value)


@given(rows=st.lists(st.tuples(texts, labels, spellings), min_size=1), bom=st.booleans(), header=st.booleans(),
       end=st.sampled_from(("\n", "\r\n")), last_end=st.booleans())
def test_what_is_written_reads_back_equal(file, rows, bom, header, end, last_end):
    """With or without BOM, header, carriage returns and a last line end; labels in any case, blanks around them."""
    assume(bom or header or not rows[0][0].startswith("\ufeff"))
    lines = ["text\tlabel"] * header + [f"{text}\t{form.format(case(label))}" for text, label, (case, form) in rows]
    content = end.join(lines) + end * last_end
    file.write_bytes(b"\xef\xbb\xbf" * bom + content.encode())
    assert read_tsv(file) == ([text.strip() for text, _, _ in rows], [LABELS.index(label) for _, label, _ in rows])


@given(rows=st.lists(st.tuples(texts, labels), min_size=1, max_size=3),
       bad=st.sampled_from([row for row, _ in BAD_ROWS.values()]), where=st.integers(0, 3))
def test_a_bad_row_is_named_wherever_it_stands(file, rows, bad, where):
    """The line number is the one an editor shows."""
    assume(not rows[0][0].startswith("\ufeff"))
    lines = [f"{text}\t{label}".encode() for text, label in rows]
    at = min(where, len(lines))
    assume(not (bad == b"text\tlabel" and at == 0))  # there it is the header
    lines.insert(at, bad)
    file.write_bytes(b"\n".join(lines) + b"\n")
    assert f"line {at + 1} " in refusal(file)


@pytest.mark.parametrize(("row", "said"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_each_kind_of_bad_row_is_explained(file, row, said):
    """File, line and reason stand in the sentence; good rows around it are not accused."""
    file.write_bytes(GOOD + row + b"\n" + GOOD)
    sentence = refusal(file)
    assert "line 3 " in sentence
    assert "1 bad row of 5" in sentence
    assert sentence.count("line ") == 1
    for words in said:
        assert words in sentence


def test_of_many_bad_rows_the_first_ten_and_the_total_are_told(file):
    """A file in a foreign format does not fill the screen."""
    file.write_bytes(GOOD + b"salah\n" * 25 + GOOD)
    sentence = refusal(file)
    assert "25 bad rows of 29" in sentence
    assert [number for number in range(1, 30) if f"line {number} " in sentence] == list(range(3, 13))
    assert "15 more" in sentence


@pytest.mark.parametrize("row", [b"salah " * 100_000, b"enak\t" + b"salah " * 100_000], ids=["no label", "a long one"])
def test_a_long_bad_row_does_not_fill_the_screen(file, row):
    """The reason and the row's beginning are told."""
    file.write_bytes(GOOD + row + b"\n")
    sentence = refusal(file)
    assert "line 3 has" in sentence and "salah salah" in sentence
    assert len(sentence) < 2000


def test_ten_bad_rows_are_all_told(file):
    """No row stands behind the dots."""
    file.write_bytes(GOOD + b"salah\n" * 10)
    assert "more" not in refusal(file)
    assert "line 12 " in refusal(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_refused(file, encoding):
    """With its mark it is named; without one every row holds NUL bytes."""
    file.write_bytes("enak\tpositive\n".encode(encoding))
    with pytest.raises(UserError, match="is UTF-16, as spreadsheets" if encoding == "utf-16" else "holds a NUL byte"):
        read_tsv(file)


def test_lines_that_end_with_cr_alone_are_refused(file):
    file.write_bytes(b"enak\tpositive\rburuk\tnegative\r")
    with pytest.raises(UserError, match="ends its lines with CR alone: save it with LF"):
        read_tsv(file)


def test_missing_file_says_where_to_put_it_and_how_to_get_one(tmp_path):
    """Both ways out stand in the sentence."""
    sentence = refusal(tmp_path / "train.tsv")
    assert str(tmp_path / "train.tsv") in sentence
    assert "data/download_smsa.py" in sentence


def test_folder_in_the_files_place_is_refused(tmp_path):
    """Not a traceback."""
    (tmp_path / "train.tsv").mkdir()
    refusal(tmp_path / "train.tsv")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"text\tlabel\n", b"\xef\xbb\xbftext\tlabel\r\n"])
def test_file_without_rows_is_refused(file, content):
    """Empty, or with no more than a header."""
    file.write_bytes(content)
    assert "empty" in refusal(file)


def test_split_with_one_label_is_refused(tmp_path):
    """Nothing can be learned from it or measured on it; the label is named."""
    (tmp_path / "valid.tsv").write_text("enak\tpositive\nsip\tpositive\n")
    with pytest.raises(UserError, match="valid.tsv.*positive"):
        read_split(tmp_path, "valid")
    (tmp_path / "valid.tsv").write_text("enak\tpositive\nburuk\tnegative\n")
    assert read_split(tmp_path, "valid") == (["enak", "buruk"], [0, 2])


def test_quotes_are_plain_characters(file):
    """An unpaired quote swallows no rows, a pair is not taken off."""
    file.write_text('"enak"\tpositive\n"buka saja\tnegative\nkata ""dia""\tneutral\n')
    assert read_tsv(file) == (['"enak"', '"buka saja', 'kata ""dia""'], [0, 2, 1])


def test_order_of_the_labels_is_the_models():
    """positive 0, neutral 1, negative 2, as the class line of every stage counts them."""
    assert describe("train", list("abcdef"), [0, 0, 0, 1, 2, 2]) == "train 6 texts (positive 3, neutral 1, negative 2)"


def test_shared_texts_are_counted_whatever_their_case_and_spacing():
    """The count that stage 1 prints."""
    assert count_shared(["Enak  sekali", "biasa"], ["enak sekali", "ENAK SEKALI ", "buruk"]) == 2


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_bundled_sample_is_usable(split):
    """Every label stands in every split of the sample, and no text of another split is in train."""
    found, ids = read_split(SAMPLE, split)
    assert set(ids) == {0, 1, 2}
    if split != "train":
        assert count_shared(read_split(SAMPLE, "train")[0], found) == 0


@real_data
def test_smsa_is_read_whole():
    """The published counts, and 14 validation texts that also stand in train."""
    splits = {name: read_split(SMSA, name) for name in ("train", "valid", "test")}
    assert {name: len(ids) for name, (_, ids) in splits.items()} == {"train": 11000, "valid": 1260, "test": 500}
    assert describe("train", *splits["train"]).endswith("(positive 6416, neutral 1148, negative 3436)")
    assert describe("test", *splits["test"]).endswith("(positive 208, neutral 88, negative 204)")
    assert count_shared(splits["train"][0], splits["valid"][0]) == 14
    assert count_shared(splits["train"][0], splits["test"][0]) == 0


TWEET_HEADER = "Date\tUser\tTweet\tsentiment"
BAD_TWEETS = {
    "three columns": ("2021\tu\tenak", ("3 columns",)),
    "five columns": ("2021\tu\tenak\tsekali\t0", ("5 columns",)),
    "no tweet": ("2021\tu\t \t0", ("empty tweet",)),
    "a word for a sentiment": ("2021\tu\tenak\tpositive", ("'positive'", "0 (positive)")),
    "an unknown sentiment": ("2021\tu\tenak\t3", ("'3'",)),
    "NUL": ("2021\tu\ten\0ak\t0", ("NUL",)),
}


def tweets_refusal(path, content: bytes) -> str:
    """The sentence with which reading `content` as tweets ends."""
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_tweets(path)
    assert path.name in str(caught.value)
    return str(caught.value)


@given(rows=st.lists(st.tuples(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r")).filter(
    str.strip), st.integers(0, 2)), min_size=1), bom=st.booleans(), end=st.sampled_from(("\n", "\r\n")))
def test_tweets_read_back_as_pandas_writes_them(file, rows, bom, end):
    """Tabs, line ends and quotes inside a tweet, which is then quoted; labels are the ids."""
    frame = pandas.DataFrame([("2021-07-01", "u", text, label) for text, label in rows],
                             columns=TWEET_HEADER.split("\t"))
    frame.to_csv(file, sep="\t", index=False, lineterminator=end, encoding="utf-8-sig" if bom else "utf-8")
    assert read_tweets(file) == ([text.strip() for text, _ in rows], [label for _, label in rows])


@pytest.mark.parametrize("name", BAD_TWEETS)
def test_a_bad_tweet_is_named_by_its_line(file, name):
    """Behind a tweet of two lines, the line is the one an editor shows."""
    row, said = BAD_TWEETS[name]
    text = tweets_refusal(file, f'{TWEET_HEADER}\n2021\tu\t"dua\nbaris"\t0\n{row}\n'.encode())
    assert "line 4 " in text
    assert all(words in text for words in said)


@pytest.mark.parametrize(("content", "said"), [
    (b"", ("line 1", "none")),
    (b"Tweet\tsentiment\nenak\t0\n", ("line 1", "Tweet, sentiment", "Date, User, Tweet, sentiment")),
    (b"Date,User,Tweet,sentiment\n2021,u,enak,0\n", ("line 1", "separated by tabs")),
    (TWEET_HEADER.encode() + b"\n", ("no tweet",)),
    (TWEET_HEADER.encode() + b"\n2021\tu\tcaf\xe9\t0\n", ("UTF-8",)),
    (TWEET_HEADER.encode() + b'\n2021\tu\t"enak\t0\n', ("line 2", "quot")),
    (TWEET_HEADER.encode() + b'\n2021\tu\t"enak" sekali\t0\n', ("line 2", "quot")),
])
def test_a_file_of_tweets_that_is_none_is_refused(file, content, said):
    """Empty, without its header, with other separators, encodings or quoting: one sentence."""
    text = tweets_refusal(file, content)
    assert all(words in text for words in said)


def test_absent_tweets_are_asked_for(tmp_path):
    """The sentence names the file, where it belongs and its columns."""
    with pytest.raises(UserError, match="put INA_TweetsPPKM_Labeled_Pure.csv there .*Date, User, Tweet, sentiment"):
        read_tweets(tmp_path / "tweets.csv")
