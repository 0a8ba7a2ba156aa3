"""Texts without labels: how files are read, what is left out, what is refused, and that the draw is seeded."""

import gzip

import pytest

from lowbit.data.heldout import HeldOut
from lowbit.data.task import SENTIMENT, Task
from lowbit.data.unlabelled import draw_unlabelled, read_lines
from lowbit.pipeline.errors import UserError

PAIRS = Task(("premise", "hypothesis"), ("yes", "no"), "accuracy")


def written(tmp_path, content: bytes, name: str = "texts.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("ending", ["txt", "txt.gz"])
def test_lines_are_texts(tmp_path, ending):
    """With or without BOM, LF or CRLF, a last line end or none; empty lines say nothing, a tab is white space."""
    content = "\ufeffkamar bersih\r\n\n  \r\nkopi \t pahit".encode()
    path = written(tmp_path, gzip.compress(content) if ending.endswith("gz") else content, f"a.{ending}")
    assert read_lines(path, SENTIMENT) == ["kamar bersih", "kopi pahit"]


def test_a_pair_is_two_texts(tmp_path):
    assert read_lines(written(tmp_path, b"a b\tc\n"), PAIRS) == [("a b", "c")]
    with pytest.raises(UserError, match="line 2 has 1 texts instead of <TAB>-separated premise and hypothesis"):
        read_lines(written(tmp_path, b"a b\tc\nalone\n"), PAIRS)


@pytest.mark.parametrize(("content", "name", "said"), [
    (b"baik\n\xff\xfe\n", "a.txt", "line 2 is not UTF-8"),
    (b"ba\0ik\n", "a.txt", "line 1 holds a NUL byte"),
    (gzip.compress(b"baik", mtime=0)[:-4], "a.gz", "cannot be unpacked"),
    (b"baik\n", "a.gz", "cannot be unpacked"),
    (b"baik\rburuk\r", "a.txt", "ends its lines with CR alone"),
    ("baik".encode("utf-16"), "a.txt", "is UTF-16"),
    (b"kopi\tpahit\nbaik sekali\tPositive\n", "a.txt", "line 2 ends in 'Positive' after a tab"),
], ids=["encoding", "nul", "cut short", "not gzip", "cr", "utf-16", "labelled"])
def test_file_that_is_refused(tmp_path, content, name, said):
    with pytest.raises(UserError, match=said):
        read_lines(written(tmp_path, content, name), SENTIMENT)


def test_the_draw(tmp_path, capsys):
    """None of train, none twice, none of valid or test, the same for the same seed, from all files."""
    one = written(tmp_path, b"\n".join(b"teks nomor %d" % i for i in range(40)), "one.txt")
    two = written(tmp_path, b"teks lain\nTEKS  lain\nteks nomor 0\nkamar bersih\nsudah dinilai\n", "two.txt")
    train, held = ["kamar  Bersih"], HeldOut(["Sudah dinilai"])
    every = draw_unlabelled(f"{one}, {two}", 0, 1, SENTIMENT, train, held)
    assert len(every) == 41
    assert every[-1] == "teks lain"
    assert "41 of 45 texts; left out for valid and test: 1 exact" in capsys.readouterr().out
    drawn = [draw_unlabelled(f"{one},{two}", 10, seed, SENTIMENT, train, held) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10
    assert set(drawn[0]) <= set(every)


def test_pairs_that_are_held_out_are_left_out(tmp_path):
    path = written(tmp_path, b"kopi\tpahit sekali hari ini\nteh\tmanis\n")
    held = HeldOut([("Kopi", "pahit sekali hari ini")])
    assert draw_unlabelled(str(path), 0, 1, PAIRS, [], held) == [("teh", "manis")]
