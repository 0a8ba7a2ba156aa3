"""Many files on a local Ray of two workers: the same records as predict.py, resumed, and whole after a worker died."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from stage_runs import ENVIRONMENT, ROOT, run_stage_script

pytest.importorskip("ray", reason="Ray is not installed: requirements-ray.txt")

SCRIPT = ROOT / "deploy" / "score_ray.py"
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def packed(finished_run, tmp_path_factory):
    """A packed folder of the tiny INT8 run."""
    dist = tmp_path_factory.mktemp("dist")
    done = run_stage_script("pack.py", "--run", finished_run, "--dist", dist, "--force", folder="deploy")
    assert done.returncode == 0, done.stderr
    return dist / finished_run


def texts(count: int, shift: int = 0) -> list[str]:
    """Short rows, every 50th of them empty."""
    return ["" if i % 50 == 7 else f"enak nomor {(i + shift) % 83} {'sekali ' * (i % 5)}" for i in range(count)]


@pytest.fixture(scope="module")
def incoming(tmp_path_factory):
    """A folder with one file of every kind, and a file that is none of them."""
    folder = tmp_path_factory.mktemp("incoming")
    (folder / "a.csv").write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts(300))))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(200, 1)))
    with gzip.open(folder / "c.tsv.gz", "wt") as handle:
        handle.write("text\n" + "".join(f"{text}\n" for text in texts(250, 2)))
    pyarrow.parquet.write_table(pyarrow.table({"id": range(220), "text": [*texts(219, 3), None]}), folder / "d.parquet")
    (folder / "readme.md").write_text("no rows")
    return folder


def command(packed: Path, source: Path, output: Path, *flags) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, ("--model-dir", packed, "--input", source, "--output", output,
                                                    "--window", 32, *flags))]


def score(packed: Path, source: Path, output: Path, *flags):
    """What a shell sees of score_ray.py on two workers."""
    return subprocess.run(command(packed, source, output, *flags), env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def scored(packed, incoming, tmp_path_factory):
    """(folder of the records, what the shell saw)."""
    output = tmp_path_factory.mktemp("scored")
    return output, score(packed, incoming, output)


def test_every_file_gets_the_records_of_the_predictor(packed, incoming, scored, tmp_path):
    """Byte for byte what predict.py writes of it; Parquet, which it does not read, as the same rows in JSONL."""
    output, done = scored
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in output.iterdir()) == [
        "a.csv.jsonl", "b.jsonl.jsonl", "c.tsv.gz.jsonl", "d.parquet.jsonl", "scored.json"]
    rows = pyarrow.parquet.read_table(incoming / "d.parquet")["text"].to_pylist()
    plain = tmp_path / "d.jsonl"
    plain.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    for path in (incoming / "a.csv", incoming / "b.jsonl", incoming / "c.tsv.gz", plain):
        alone = tmp_path / "alone.jsonl"
        subprocess.run([sys.executable, packed / "predict.py", "--input", path, "--output", alone, "--window", "32",
                        "--threads", "1", "--force"], env=ENVIRONMENT, capture_output=True)
        name = "d.parquet" if path is plain else path.name
        ours, theirs = (target.read_text().replace("has no text under the key 'text'", "has no text")
                        for target in (output / f"{name}.jsonl", alone))
        assert ours == theirs, name
    assert "970 rows" in done.stdout


def test_what_is_scored_is_not_scored_again(packed, incoming, scored, tmp_path):
    """A second run does the one file whose records are missing."""
    output = shutil.copytree(scored[0], tmp_path / "again")
    kept = (output / "a.csv.jsonl").stat().st_mtime_ns
    (output / "b.jsonl.jsonl").unlink()
    done = score(packed, incoming, output)
    assert done.returncode == 0, done.stderr
    assert "4 files, 3 scored before" in done.stdout
    assert (output / "b.jsonl.jsonl").read_bytes() == (scored[0] / "b.jsonl.jsonl").read_bytes()
    assert (output / "a.csv.jsonl").stat().st_mtime_ns == kept


def test_records_of_another_model_or_an_older_file_are_not_kept_silently(packed, incoming, scored, tmp_path):
    """They are refused by name, left as they are, and made anew with --force."""
    output, source = shutil.copytree(scored[0], tmp_path / "again"), tmp_path / "source"
    shutil.copytree(incoming, source, copy_function=shutil.copy2)
    with open(source / "a.csv", "a") as handle:
        handle.write("9999,enak\n")
    other = shutil.copytree(packed, tmp_path / "other-model")
    manifest = json.loads((other / "manifest.json").read_text())
    settings = json.loads((other / "preprocessing.json").read_text()) | {"max_length": 8}
    (other / "preprocessing.json").write_text(json.dumps(settings))
    manifest["files"]["preprocessing.json"]["sha256"] = hashlib.sha256(
        (other / "preprocessing.json").read_bytes()).hexdigest()
    (other / "manifest.json").write_text(json.dumps(manifest))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    for model, files, said in ((packed, source, "1 files"), (other, incoming, "4 files")):
        done = score(model, files, output)
        assert done.returncode == 2
        assert f"{said} in" in done.stderr
        assert "--force" in done.stderr
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    done = score(packed, source, output, "--force")
    assert done.returncode == 0, done.stderr
    assert "3 scored before" in done.stdout
    assert (output / "a.csv.jsonl").read_bytes().startswith(before["a.csv.jsonl"])
    assert score(packed, source, output).returncode == 0


def test_a_worker_that_is_killed_costs_no_row(packed, tmp_path):
    """kill -9 of a worker in mid-file: Ray starts another, which goes on; the records are those of a quiet run."""
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    output.mkdir()
    for number in (1, 2):
        (source / f"{number}.txt").write_text("".join(f"{text}\n" for text in texts(12_000, number)))
    process = subprocess.Popen(command(packed, source, output), env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    started, killed = time.monotonic(), None
    part = output / "1.txt.jsonl.part"
    while killed is None and process.poll() is None and time.monotonic() - started < PATIENCE_SECONDS:
        time.sleep(0.01)
        if part.exists() and part.stat().st_size > 50_000:
            for worker in psutil.Process(process.pid).children(recursive=True):
                if any(str(part) == opened.path for opened in worker.open_files()):
                    killed = worker.pid
                    worker.kill()
    said, complained = process.communicate(timeout=PATIENCE_SECONDS)
    assert killed, complained
    assert process.returncode == 0, complained
    for number in (1, 2):
        alone = tmp_path / f"{number}.jsonl"
        subprocess.run([sys.executable, packed / "predict.py", "--input", source / f"{number}.txt", "--output", alone,
                        "--window", "32", "--threads", "1"], env=ENVIRONMENT, capture_output=True)
        assert (output / f"{number}.txt.jsonl").read_bytes() == alone.read_bytes()
    assert "24000 rows" in said
    assert sorted(os.listdir(output)) == ["1.txt.jsonl", "2.txt.jsonl", "scored.json"]


def test_mistakes_are_one_sentence(packed, incoming, tmp_path):
    """No model, no files, a damaged file, a column that is not there."""
    done = score(tmp_path, incoming, tmp_path / "out")
    assert done.returncode == 2
    assert "pack.py" in done.stderr
    done = score(packed, tmp_path, tmp_path / "out")
    assert done.returncode == 2
    assert ".parquet" in done.stderr
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(incoming / "b.jsonl", source)
    shutil.copy(incoming / "a.csv", source / "good.csv")
    (source / "broken.csv.gz").write_bytes((incoming / "c.tsv.gz").read_bytes()[:200])
    (source / "other.csv").write_text("teks\nenak\n")
    (source / "broken.parquet").write_bytes((incoming / "d.parquet").read_bytes()[:-40])
    done = score(packed, source, tmp_path / "out")
    assert done.returncode == 2
    assert "3 files could not be scored" in done.stderr
    assert "broken.parquet cannot be read as Parquet" in done.stdout
    assert "'teks'" in done.stderr
    assert "breaks off" in done.stderr
    assert (tmp_path / "out" / "good.csv.jsonl").exists()
