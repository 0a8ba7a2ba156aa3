"""However long a text: the tokenizer gets no more of it than matters, and memory stays below 400 MB."""

import platform
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from packs import Warm, make_pack
from stage_runs import ROOT

sys.path.insert(0, str(ROOT / "deploy"))
import predictor  # noqa: E402  (deploy/ is no package: its files are copied to servers)

MOST_MB = 400
LENGTHS = (8, 103, 128)  # longest inputs, in tokens; 128 is what the project trains with
A_WORD = 100  # characters of the longest word that the tokenizer looks up


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """(longest input, texts a row) -> packed folder."""
    base = tmp_path_factory.mktemp("bounds")
    return {(length, len(texts)): make_pack(base / f"{length}-{len(texts)}", max_length=length, texts=texts)
            for length in LENGTHS for texts in (("text",), ("a", "b"))}


@pytest.fixture(scope="module")
def predictors(packs):
    """The same, loaded."""
    return {kind: predictor.Predictor(folder) for kind, folder in packs.items()}


def same_tokens(found: predictor.Predictor, text) -> None:
    """The encoding of what head() leaves is the encoding of the whole."""
    cleaned = found.clean(text)
    whole = found.tokenizer.encode(*((cleaned,) if isinstance(cleaned, str) else cleaned))
    ours = found.encodings([cleaned])[0]
    assert (ours.ids, ours.type_ids) == (whole.ids, whole.type_ids)


pieces = st.one_of(
    st.tuples(st.sampled_from(("enak", "tidak", "x", "jelek!", "!", "a.b", "q" * 99, "q" * 100, "q" * 101, "中",
                               "é" * 30, "[SEP]", "[MASK]", "😀", "\u0301", "a\u200b", "##x", "ﷺ")),
              st.integers(1, 400)),
    st.tuples(st.text(max_size=8), st.integers(1, 100)))


@given(st.lists(st.tuples(pieces, st.sampled_from((" ", "", "\n"))), max_size=12), st.sampled_from(LENGTHS))
def test_the_head_of_a_text_has_the_tokens_of_the_whole(predictors, parts, length):
    """Texts of words, of no words, of characters that the tokenizer splits, drops or joins."""
    same_tokens(predictors[length, 1], "".join(between.join([piece] * times) + between
                                               for (piece, times), between in parts))


@given(st.sampled_from(LENGTHS), st.sampled_from(("x", "7", "xj", "!")), st.integers(0, A_WORD + 2),
       st.integers(0, 300), st.sampled_from((101, 130, 250)))
def test_a_word_that_is_cut_through_is_not_taken_for_a_shorter_one(predictors, length, letters, before, behind, filler):
    """A word that goes on behind the place where a text is first cut: [UNK] as a whole, but not its beginning."""
    room = 32 * length - before
    words = [("x" * filler)[: max(left - 1, 1)] for left in range(room, 0, -filler - 1)]
    if len(words) > 1 and len(words[-1]) <= A_WORD:  # a short one would be tokens of its own
        words[-2:] = [words[-2] + "x" + words[-1]]
    word = (letters * (before + behind))[: before + behind]
    same_tokens(predictors[length, 1], f"{' '.join(words)} {word} {'enak sekali ' * 300}")


@examples(max_examples=60)
@given(st.tuples(*[st.tuples(st.sampled_from(("enak", "x", "bagus sekali", "!", "q" * 120)), st.integers(0, 260))] * 2))
def test_the_heads_of_a_pair_have_the_tokens_of_the_whole(predictors, pair):
    """Which of the two is cut, and by how much, follows from the lengths of both."""
    same_tokens(predictors[8, 2], tuple(" ".join([word] * times) for word, times in pair))


def test_a_text_is_no_list_of_texts(predictors):
    """Nor one text a pair: a server that calls it so is told."""
    for kind, texts in (((128, 1), "enak"), ((128, 1), [("enak", "buruk")]), ((128, 2), ["enak"])):
        with pytest.raises(TypeError, match="must be a list of"):
            predictors[kind].probabilities(texts)


# ---- memory


def repeated(piece: bytes, count: int):
    """The same piece again and again, a few MB at a time."""
    many = max(1, (1 << 22) // len(piece))
    while count > 0:
        yield piece * min(many, count)
        count -= many


MB = 1_000_000
OBJECTS = b'{"":' * 900 + b"1" + b"}" * 900 + b","  # 4.5 kB of JSON that take 170 kB
INPUTS = {  # name of the file, its parts, flags, status, packed folder
    "a line of 200 MB": ("a.txt", lambda: repeated(b"enak sekali ", 200 * MB // 12), (), 1, 1),
    "400 rows of 104 kB": ("a.txt", lambda: repeated(b"enak sekali " * 8666 + b"\n", 400), (), 0, 1),
    "100 MB behind a quote": ("a.csv", lambda: (b'text\nenak\n"buruk\n', *repeated(b"enak sekali\n", 100 * MB // 12)),
                              (), 2, 1),
    "200 rows of a megabyte": ("a.txt", lambda: repeated(b"enak " * 199_999 + b"\n", 200), (), 0, 1),
    "a megabyte of single tokens": ("a.txt", lambda: repeated(b"!" * 999_999 + b"\n", 6), (), 0, 1),
    "a JSON line of 50 MB": ("a.jsonl", lambda: (b'{"text": "enak", "x": [', *repeated(b"[[[]]],", 50 * MB // 7),
                                                 b"1]}\n"), (), 1, 1),
    "a JSON line of 50 MB, deep": ("a.jsonl", lambda: (b'{"text": "enak", "x": ', *repeated(b"[", 25 * MB),
                                                       *repeated(b"]", 25 * MB), b"}\n"), (), 1, 1),
    "JSON objects in objects": ("a.jsonl", lambda: (b'{"text": "enak", "x": [' + OBJECTS * 850 + b"1]}\n",) * 2,
                                (), 0, 1),
    "JSON that is kept": ("a.jsonl", lambda: (b'{"text": "enak", "x": [' + b'{"":{}},' * 480_000 + b"1]}\n",) * 2,
                          ("--keep", "x"), 0, 1),
    "columns that are kept": ("a.csv", lambda: (b"id,text\n", *repeated(b"i" * MB + b",enak\n", 150)),
                              ("--keep", "id"), 0, 1),
    "many columns": ("a.tsv", lambda: repeated(b"text\t" + b"aa\t" * 2_600_000 + b"\n", 3), (), 2, 1),
    "texts of single tokens": ("a.txt", lambda: repeated(b"!" * 4000 + b"\n", 1000), (), 0, 1),
    "pairs of long texts": ("a.tsv", lambda: (b"a\tb\n", *repeated((b"!" * 4000 + b"\t") * 2 + b"\n", 6)), (), None, 2),
}


@pytest.mark.parametrize("name", INPUTS)
def test_memory(packs, tmp_path, name):
    """The most that a process of its own held."""
    file, parts, flags, status, texts = INPUTS[name]
    with open(tmp_path / file, "wb") as handle:
        handle.writelines(parts())
    warm = Warm(tmp_path)
    ended = warm(packs[128, texts], "--input", tmp_path / file, *flags, stdout="/dev/null",
                 before="import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))")
    warm.close()
    (tmp_path / file).unlink()
    assert "Traceback" not in ended.err, ended.err
    assert status in (None, ended.status), ended
    assert ended.peak_mb < MOST_MB, ended


HELD = """
import sys
sys.path.insert(0, sys.argv[1])
from predictor import give_back_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

blocks = [bytearray(100_000) for _ in range(2_000)]  # small enough to come from the heap, which keeps what is freed
kept = blocks[-1]
del blocks
before = resident()
give_back_memory()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or "glibc" not in platform.libc_ver(), reason="glibc's heap")
def test_freed_memory_goes_back_to_the_system():
    """Of 200 MB that were freed below a block in use, which glibc keeps, at least three quarters."""
    done = subprocess.run([sys.executable, "-c", HELD, ROOT / "deploy"], capture_output=True, text=True)
    assert float(done.stdout) > 150, done
