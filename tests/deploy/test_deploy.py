"""From a run to a server: the packed folder, the predictor, hostile input, killed runs."""

import csv
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import SMSA, read_plain_rows, real_data
from hypothesis import given
from hypothesis import strategies as st
from servers import BLOCKED, WITHOUT
from stage_runs import ENVIRONMENT, ROOT, changed_manifest, copy_of, run_folder, run_stage_script

from lowbit.data.cleaning import PRESETS, clean, stop_words
from lowbit.data.tokens import load_reader
from lowbit.measure.session import Session

sys.path.insert(0, str(ROOT / "deploy"))
import predict as predict_script  # noqa: E402
import predictor  # noqa: E402  (deploy/ is no package: its files are copied to servers)

LABELS = ("positive", "neutral", "negative")


def pack(run: str, dist, *flags):
    """deploy/pack.py by path."""
    return run_stage_script("pack.py", "--run", run, "--dist", dist, *flags, folder="deploy")


@pytest.fixture(scope="module")
def packed(finished_run, tmp_path_factory):
    """A packed folder of the tiny INT8 run."""
    dist = tmp_path_factory.mktemp("dist")
    done = pack(finished_run, dist, "--force")
    assert done.returncode == 0, done.stderr
    return dist / finished_run


def command(packed, *flags) -> list[str]:
    """predict.py of the packed folder, in a Python that lacks what a server lacks."""
    return [sys.executable, "-c", BLOCKED, ",".join(WITHOUT), str(packed / "predict.py"), *map(str, flags)]


def predict(packed, *flags, stdin: bytes = b""):
    """What a shell sees of predict.py; stdout and stderr are bytes."""
    return subprocess.run(command(packed, *flags), input=stdin, capture_output=True, env=ENVIRONMENT, check=False)


def records(content: bytes) -> list[dict]:
    """Lines of JSON."""
    return [json.loads(line) for line in content.splitlines()]


words = st.one_of(st.sampled_from(sorted(stop_words(False))),
                  st.sampled_from(("enak", "Buruk!", "a_b", "😀", "ß", "ﷺ")), st.text(max_size=6))


@given(st.lists(words, max_size=25), st.sampled_from(sorted(PRESETS)), st.sampled_from((" ", "  ", "\n", "\u00a0")))
def test_the_server_cleans_as_training_did(parts, preset, between):
    """Every preset, Sastrawi's habits included, from the packed word list alone."""
    text, steps = between.join(parts), PRESETS[preset]
    assert predictor.clean(text, steps, stop_words(steps["KEEP_NEGATIONS"])) == clean(text, preset)


def evaluated(run: str, texts: list[str]) -> np.ndarray:
    """Probabilities as the evaluation stage has them: its own tokens, its own session, at batch 1."""
    reader = load_reader(run_folder(run))
    with Session(run_folder(run) / "model_qat_int8.onnx", "CPUExecutionProvider", 1) as session:
        logits = session.logits(reader.rows(texts), reader.pad_id).astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def agrees(found: list[dict], expected: np.ndarray) -> None:
    """Rows in order, labels exactly, probabilities to the last digit written."""
    assert [record["row"] for record in found] == list(range(1, len(expected) + 1))
    assert [record["label"] for record in found] == [LABELS[i] for i in expected.argmax(1)]
    chances = np.array([[record["probabilities"][label] for label in LABELS] for record in found])
    assert np.abs(chances - expected).max() <= 1e-6


def test_labels_and_probabilities_are_the_evaluations(packed, finished_run, small_data):
    """On the test split, with a window smaller than it, from a file without a header."""
    texts = [text for text, _ in read_plain_rows("test", small_data)]
    done = predict(packed, "--input", small_data / "test.tsv", "--column", 1, "--window", 4, "--threads", 1)
    assert done.returncode == 0, done.stderr
    agrees(records(done.stdout), evaluated(finished_run, texts))
    assert b"15 rows" in done.stderr


@pytest.mark.parametrize("threads", (1, 3))
def test_batches_at_once_change_no_bit(packed, small_data, threads):
    """However many are computed at the same time, and in whatever order they end."""
    texts = [text for split in ("train", "valid", "test") for text, _ in read_plain_rows(split, small_data)]
    one = predictor.Predictor(packed, threads).probabilities(texts)
    many = predictor.Predictor(packed, threads, batches_at_once=True).probabilities(texts)
    np.testing.assert_array_equal(one, many)


def test_an_error_in_a_batch_is_raised(packed, monkeypatch):
    """And not lost in the thread that computed it."""
    model = predictor.Predictor(packed, batches_at_once=True)
    model.session = None
    with pytest.raises(AttributeError):
        model.probabilities(["enak", "kotor"])


@pytest.mark.parametrize("lengths, size, tokens, wanted", [
    ([5, 3, 4], 128, 1024, [[1, 2, 0]]),
    ([5, 3, 4], 2, 1024, [[1, 2], [0]]),
    ([5, 3, 4], 128, 8, [[1, 2], [0]]),
    ([5, 3, 4], 128, 7, [[1], [2], [0]]),
    ([2000, 1, 1], 128, 1024, [[1, 2], [0]]),  # longer than a batch may be: alone
    ([600, 600], 16, 0, [[0, 1]]),  # a BATCH_SIZE of one's own
    ([3, 3], 1, 1024, [[0], [1]]),
    ([], 4, 1024, []),
])
def test_batches_hold_texts_and_tokens(packed, lengths, size, tokens, wanted):
    """Padding counts: a batch has as many tokens as texts times its longest."""
    model = predictor.Predictor(packed)
    model.batch_size, model.batch_tokens = size, tokens
    assert list(model.groups(lengths)) == wanted


@real_data
def test_all_of_smsas_test_split_agrees(packed, finished_run):
    """Five hundred real texts."""
    texts = [text for text, _ in read_plain_rows("test")]
    done = predict(packed, "--input", SMSA / "test.tsv", "--column", 1, "--threads", 1)
    assert done.returncode == 0, done.stderr
    agrees(records(done.stdout), evaluated(finished_run, texts))


TEXTS = ["enak sekali", "rapat, besok", 'katanya "bagus"', "baris\nkedua", "  buruk  "]


def test_every_format_gives_the_same(packed, tmp_path):
    """Arguments, standard input, tsv, csv, jsonl, txt, each file also as gzip, by name or by FORMAT."""
    flat = [text.replace("\n", " ") for text in TEXTS]
    (tmp_path / "a.txt").write_text("\n".join(flat), encoding="utf-8-sig")
    (tmp_path / "a.tsv").write_text("id\ttext\n" + "".join(f"{i}\t{text}\r\n" for i, text in enumerate(flat)))
    with open(tmp_path / "a.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([("text", "id"), *((text, i) for i, text in enumerate(TEXTS))])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS))
    wanted = records(predict(packed, *flat).stdout)
    assert len(wanted) == 5
    assert records(predict(packed, stdin="\n".join(flat).encode()).stdout) == wanted
    for suffix in ("txt", "tsv", "csv", "jsonl"):
        path = tmp_path / f"a.{suffix}"
        with gzip.open(f"{path}.gz", "wb") as handle:
            handle.write(path.read_bytes())
        shutil.copy(path, tmp_path / "plain")
        for flags in ((path,), (f"{path}.gz",), (tmp_path / "plain", "--format", suffix)):
            done = predict(packed, "--input", *flags)
            assert records(done.stdout) == wanted, (flags, done.stderr)


def test_tsv_output_says_the_same_as_jsonl(packed, tmp_path):
    """A head, a line a row; errors in a column of their own."""
    (tmp_path / "a.txt").write_text("enak\n\nburuk\n")
    for form in ("jsonl", "tsv"):
        done = predict(packed, "--input", tmp_path / "a.txt", "--output", tmp_path / f"o.{form}")
        assert done.returncode == 1
    with open(tmp_path / "o.tsv", newline="") as lines:
        table = list(csv.DictReader(lines, delimiter="\t"))
    for line, record in zip(table, records((tmp_path / "o.jsonl").read_bytes()), strict=True):
        assert int(line["row"]) == record["row"]
        assert line["error"] == record.get("error", "")
        assert line["label"] == record.get("label", "")
        for label, value in record.get("probabilities", {}).items():
            assert float(line[label]) == value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "o.jsonl", "o.tsv"]


HOSTILE = {
    "empty": (b"", "empty text"),
    "white": (b" \xc2\xa0 ", "empty text"),
    "NUL": (b"en\0ak", "NUL"),
    "not UTF-8": (b"caf\xe9 enak", "UTF-8"),
    "a megabyte": (b"tidak enak sekali " * 55_000, None),
    "more than a megabyte": (b"tidak enak sekali " * 56_000, "TEXT_BYTES"),
    "a megabyte of one word": (b"a" * 1_000_000, None),
    "emoji": ("😀😀👩‍👩‍👧".encode(), None),
    "right to left": ("هذا مطعم رائع".encode(), None),
    "a lone carriage return": (b"enak\rsekali", None),
    "markup": (b'<script>alert("x")</script>', None),
    "only stop words": (b"yang di dan", None),
}


@pytest.mark.parametrize("suffix", ("txt", "tsv", "jsonl", "csv"))
def test_hostile_rows_are_records_of_their_own(packed, tmp_path, suffix):
    """Each is labelled or an error with its number; the rows around them are as if alone; the status says so."""
    rows = [b"enak sekali", *(content for content, _ in HOSTILE.values()), b"enak sekali"]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        lines = [b'{"text": ' + json.dumps(row.decode("utf-8", "surrogateescape"), ensure_ascii=False).encode(
            "utf-8", "surrogateescape") + b"}" for row in rows]
    elif suffix == "csv":
        lines = [b"text", *(b'"' + row.replace(b'"', b'""') + b'"' for row in rows)]
    else:
        lines = [b"text"] * (suffix == "tsv") + rows
    path.write_bytes(b"\n".join(lines) + b"\n")
    done = predict(packed, "--input", path)
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    found = records(done.stdout)
    assert [record["row"] for record in found] == list(range(1, len(rows) + 1))
    for record, (name, (_, said)) in zip(found[1:-1], HOSTILE.items(), strict=True):
        assert ("error" in record) == (said is not None), (name, record)
        assert said is None or said in record["error"]
    assert found[0]["probabilities"] == found[-1]["probabilities"]
    assert b"5 errors" in done.stderr


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.jsonl", b'{"text": 5}\n{"x": 1}\n[1]\n{"text"\n{"text": null}\n',
     ("no text", "no key 'text'", "no JSON object", "no JSON", "no text")),
    ("a.tsv", b"id\ttext\n1\n2\tenak\n", ("1 columns", None)),
    ("a.csv", b"id,text\n1\n2,enak\n", ("1 columns", None)),
])
def test_rows_without_a_text_are_errors(packed, tmp_path, name, content, said):
    """Named by what they lack; the others are labelled."""
    (tmp_path / name).write_bytes(content)
    done = predict(packed, "--input", tmp_path / name)
    assert done.returncode == 1, done.stderr
    for record, words in zip(records(done.stdout), said, strict=True):
        assert (words is None and "label" in record) or words in record["error"]


def test_the_name_of_a_file_behind_the_command_is_labelled_with_a_note(packed, tmp_path):
    """As a text, which it may be; who meant the file reads how to name it."""
    (tmp_path / "a.txt").write_text("enak\n")
    done = predict(packed, tmp_path / "a.txt", "x" * 5000)
    assert done.returncode == 0 and len(records(done.stdout)) == 2
    assert f"a.txt is a file, but its name is labelled here: for what is in it, --input {tmp_path}" in (
        done.stderr.decode())


def test_what_cannot_be_done_is_one_sentence(packed, tmp_path):
    """Status 2, no traceback, and what to do."""
    (tmp_path / "a.tsv").write_text("teks\tid\nenak\t1\n")
    (tmp_path / "a.xls").write_text("enak")
    cases = {
        ("--input", tmp_path / "a.tsv"): ("'text'", "'teks', 'id'", "--column"),
        ("--input", tmp_path / "none.tsv"): ("none.tsv", "No such file"),
        ("--input", tmp_path / "a.xls"): ("FORMAT", "'xls'", "jsonl"),
        ("--model-dir", tmp_path, "enak"): ("manifest.json", "pack.py"),
        ("--output", tmp_path / "o.json", "enak"): (".jsonl or .tsv",),
        ("--output", tmp_path / "no" / "o.tsv", "enak"): ("there is no folder",),
        ("--window", "0", "enak"): ("WINDOW is 0",),
        ("--bach-size", "4"): ("--bach-size",),
    }
    for flags, said in cases.items():
        done = predict(packed, *flags)
        assert done.returncode == 2, (flags, done.stderr)
        text = done.stderr.decode()
        assert "Traceback" not in text
        assert all(words in text for words in said), text


def test_a_gzip_that_was_cut_short_loses_no_row_before(packed, tmp_path):
    """The rows that can be read are labelled; the sentence says where the input breaks off."""
    random = np.random.default_rng(0)
    lines = [f"enak {' '.join(map(str, random.integers(0, 10**9, 8)))}" for _ in range(400)]
    whole = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    done = predict(packed, "--input", tmp_path / "a.txt.gz", "--window", 16)
    assert done.returncode == 2
    found = records(done.stdout)
    assert 100 < len(found) < 400
    assert f"breaks off behind line {len(found)}" in done.stderr.decode()
    (tmp_path / "b.txt.gz").write_bytes(b"no gzip")
    assert b"is no gzip" in predict(packed, "--input", tmp_path / "b.txt.gz").stderr


def test_a_damaged_model_is_named_with_its_hash(packed, tmp_path):
    """Before anything is labelled, and by --check, which looks at every file."""
    folder = shutil.copytree(packed, tmp_path / "copy")
    assert predict(folder, "--check").returncode == 0
    with open(folder / "onnx" / "model_quantized.onnx", "r+b") as handle:
        handle.seek(1000)
        handle.write(b"\xff" * 8)
    for flags in (("enak",), ("--check",)):
        done = predict(folder, *flags)
        assert done.returncode == 2
        assert b"model_quantized.onnx (SHA-256 " in done.stderr
        assert done.stdout == b""
    folder = shutil.copytree(packed, tmp_path / "other")
    (folder / "config.json").unlink()
    assert b"config.json is missing" in predict(folder, "--check").stderr


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """A file of 3,000 short rows, some of them errors."""
    path = tmp_path_factory.mktemp("long") / "a.txt"
    rows = ("" if i % 97 == 0 else f"enak nomor {i % 61} {'sekali ' * (i % 7)}" for i in range(3000))
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


@pytest.mark.parametrize("form", ("jsonl", "tsv"))
@pytest.mark.parametrize("batch_size", (1, 8))
def test_a_killed_run_resumes_to_the_same_file(packed, long_file, tmp_path, form, batch_size):
    """kill -9 in mid-file, twice; then --resume: byte for byte the undisturbed run's output, with its status."""
    flags = ("--input", long_file, "--window", 64, "--threads", 1, "--batch-size", batch_size)
    whole = predict(packed, *flags, "--output", tmp_path / f"whole.{form}")
    assert whole.returncode == 1
    target = tmp_path / f"killed.{form}"
    part = target.with_name(f"{target.name}.part")
    for number in (1, 2):
        size = part.stat().st_size if part.exists() else 0
        process = subprocess.Popen(command(packed, *flags, "--output", target, "--resume"), env=ENVIRONMENT,
                                   stderr=subprocess.DEVNULL)
        while process.poll() is None and not (part.exists() and part.stat().st_size > size + 10_000):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -9, f"kill {number} came too late"
        with open(part, "ab") as handle:  # a line that the kill cut in two
            handle.write(b'{"row": 99999, "la')
    done = predict(packed, *flags, "--output", target, "--resume")
    assert done.returncode == 1, done.stderr
    assert target.read_bytes() == (tmp_path / f"whole.{form}").read_bytes()
    assert done.stderr.splitlines()[-1] == whole.stderr.splitlines()[-1]
    assert b"resuming behind row " in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"killed.{form}", f"whole.{form}"]


def test_another_input_does_not_resume(packed, long_file, tmp_path):
    """A begun output belongs to its input, model and settings."""
    target, part = tmp_path / "o.jsonl", tmp_path / "o.jsonl.part"
    flags = ("--input", long_file, "--output", target, "--window", 64)
    process = subprocess.Popen(command(packed, *flags), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (part.exists() and part.stat().st_size > 20_000):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9
    before = part.read_bytes()
    other = tmp_path / "other.txt"
    other.write_text(long_file.read_text().replace("nomor 3 ", "nomor 4 ", 1))
    longer = tmp_path / "longer.txt"
    longer.write_text(long_file.read_text() + "enak\n")
    for more, said in ((("--window", 32), b"begun with another window (64, now 32)"),
                       (("--batch-size", 3), b"begun with another batch_size (1, now 3)"),
                       (("--input", other), b"the input has changed since its first")):
        done = predict(packed, *flags, *more, "--resume")
        assert done.returncode == 2
        assert said in done.stderr
        assert not target.exists()
        assert part.read_bytes()[:10_000] == before[:10_000]  # nothing of the work is lost
    done = predict(packed, *flags, "--input", longer, "--resume")  # one that has grown is gone on with
    assert done.returncode == 1, done.stderr
    assert b"resuming behind row" in done.stderr
    assert len(records(target.read_bytes())) == 3001


def test_a_closed_pipe_ends_quietly(packed, long_file):
    """`predict.py | head -2`: two records, no complaint."""
    process = subprocess.Popen(command(packed, "--input", long_file, "--window", 16), env=ENVIRONMENT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert [json.loads(process.stdout.readline())["row"] for _ in range(2)] == [1, 2]
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    process.stderr.close()


def test_pack_refuses_what_should_not_be_shipped(finished_run, tmp_path):
    """Not evaluated, loses too much, changed since, not there: a sentence each; --force packs the first two."""
    run = copy_of(finished_run)
    results = run_folder(run) / "results.json"
    with changed_manifest(run) as manifest:
        record = manifest["stages"].pop("int8_eager/eval_onnx_int8.py")
    done = pack(run, tmp_path)
    assert done.returncode == 2
    assert "eval_onnx_int8.py" in done.error
    assert "--force" in done.error
    assert pack(run, tmp_path, "--force").returncode == 0

    def lose(low: float, high: float) -> None:
        found = json.loads(results.read_text())
        found["files"]["INT8"]["loss"] = {"points": (low + high) / 2, "low": low, "high": high, "texts": 30}
        results.write_text(json.dumps(found))
        record["writes"]["results.json"]["sha256"] = hashlib.sha256(results.read_bytes()).hexdigest()
        with changed_manifest(run) as manifest:
            manifest["stages"]["int8_eager/eval_onnx_int8.py"] = record

    lose(1.5, 2.5)
    done = pack(run, tmp_path)
    assert done.returncode == 2
    assert "loses 2.00 points" in done.error
    assert pack(run, tmp_path, "--max-drop", 2).returncode == 0
    assert pack(run, tmp_path, "--force").returncode == 0
    lose(-1, 5)
    done = pack(run, tmp_path)
    assert done.returncode == 0  # 2 points that may be none are said, not refused
    assert "30 texts are too few to tell whether it loses more than 1 points" in done.stdout

    with open(run_folder(run) / "model_qat_int8.onnx", "ab") as handle:
        handle.write(b"x")
    assert "is not the file that" in pack(run, tmp_path, "--force").error
    assert "run the four stages" in pack("no-such-run", tmp_path).error
    assert [path.name for path in tmp_path.iterdir()] == [run]


def test_the_packed_folder_is_what_a_server_needs(packed, finished_folder):
    """Three packages, no path of this machine, every file in the manifest with its hash, the config of the model."""
    requirements = (packed / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in requirements] == ["numpy", "onnxruntime", "tokenizers"]
    manifest = json.loads((packed / "manifest.json").read_text())
    files = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"} - {name for name in files if "__pycache__" in name}
    assert "VNNI" in manifest["cpu_advice"]
    assert manifest["labels"] == list(LABELS)
    assert 0 <= manifest["measured"]["accuracy"] <= 1
    assert (packed / "config.json").read_bytes() == (finished_folder / "config.json").read_bytes()
    assert not any(str(ROOT) in path.read_text(errors="replace") for path in packed.rglob("*.json"))
    assert not os.path.exists(packed / "lowbit")


@pytest.mark.parametrize("first, status", [(KeyboardInterrupt, 130), (ValueError, None)])
def test_ctrl_c_while_a_lock_is_let_go(monkeypatch, capsys, first, status):
    """Python's lock then fails with an error of its own: an interruption all the same. Other errors are none."""
    def main(argv):
        try:
            raise first
        finally:
            raise RuntimeError("cannot release un-acquired lock")
    monkeypatch.setattr(predict_script, "main", main)
    if status is None:
        with pytest.raises(RuntimeError, match="un-acquired"):
            predict_script.status_of([])
    else:
        assert predict_script.status_of([]) == status
        assert capsys.readouterr().err == "error: interrupted; with --output, go on with --resume\n"
