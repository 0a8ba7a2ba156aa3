"""pack.py and score_ray.py among files of others: nothing of theirs is lost, every refusal is one sentence.

Ray itself is started once, for a damaged model; what a worker makes of a file is tested without it.
"""

import contextlib
import datetime
import decimal
import json
import os
import shutil
import subprocess
import sys

import pytest
from packs import Warm, make_pack
from stage_runs import ENVIRONMENT, ROOT, contents, run_stage_script

sys.path.insert(0, str(ROOT / "deploy"))


def pack(run: str, dist, *flags):
    """deploy/pack.py by path."""
    return run_stage_script("pack.py", "--run", run, "--dist", dist, *flags, folder="deploy")


@pytest.fixture
def packed(finished_run, tmp_path):
    """A packed folder of the tiny run, alone in its DIST."""
    done = pack(finished_run, tmp_path / "dist", "--force")
    assert done.returncode == 0, done.stderr
    return tmp_path / "dist" / finished_run


# ---- pack.py


def test_what_others_put_beside_a_pack_stays(finished_run, tmp_path):
    """DIST may be any folder: hidden ones that look like scratch folders are not the project's to delete."""
    (tmp_path / ".tmp-mine").mkdir()
    (tmp_path / ".tmp-mine" / "thesis.txt").write_text("mine")
    (tmp_path / ".tmp-notes").write_text("mine")
    pack(finished_run, tmp_path, "--force")
    assert (tmp_path / ".tmp-mine" / "thesis.txt").exists()
    assert (tmp_path / ".tmp-notes").read_text() == "mine"


def test_settings_that_were_edited_in_a_pack_are_not_lost(finished_run, packed):
    """predict.py says "edit here": packing again keeps what was edited, or refuses and says so."""
    script = packed / "predict.py"
    script.write_text(script.read_text().replace('COLUMN = "" ', 'COLUMN = "ulasan" '))
    run_flags = ("--max-drop", 100)  # without --force: the evaluation is not what is refused
    done = pack(finished_run, packed.parent, *run_flags)
    assert 'COLUMN = "ulasan"' in script.read_text(), done.stdout
    assert done.returncode == 0 or "predict.py" in done.error


def test_a_file_of_the_users_that_has_a_new_files_name_is_not_lost(finished_run, packed):
    """An older pack did not have rows.py, and the user has one: kept, or a refusal."""
    manifest = json.loads((packed / "manifest.json").read_text())
    del manifest["files"]["rows.py"]
    (packed / "manifest.json").write_text(json.dumps(manifest))
    (packed / "rows.py").write_text("mine")
    pack(finished_run, packed.parent, "--max-drop", 100)
    assert (packed / "rows.py").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "onnx"])
def test_what_is_in_the_way_is_one_sentence(finished_run, packed, name):
    """A folder of a file's name, or a file of a folder's: status 2, and nothing was replaced by halves."""
    if name == "onnx":
        shutil.rmtree(packed / name)
        (packed / name).write_text("mine")
    else:
        (packed / name).unlink()
        (packed / name).mkdir()
        (packed / name / "mine").write_text("mine")
    before = contents(packed)
    done = pack(finished_run, packed.parent, "--force")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2
    assert name in done.error
    assert contents(packed) == before


def test_dist_that_is_a_file(finished_run, tmp_path):
    """One sentence."""
    (tmp_path / "dist").write_text("mine")
    done = pack(finished_run, tmp_path / "dist", "--force")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2
    assert "dist" in done.error


def test_a_pack_that_is_replaced_is_the_old_or_the_new_or_refused(tmp_path):
    """kill -9 at each file of the replacement: predict.py labels as the old or the new does, or refuses; again: new."""
    import pack as pack_script

    old, new = make_pack(tmp_path / "old"), make_pack(tmp_path / "new", "documents", max_length=8)
    (new / "extra.json").write_text("{}")
    warm, text = Warm(tmp_path), "Enak, enak! tidak yang enak sekali; buruk buruk buruk buruk"
    answers = {warm(old, text).out, warm(new, text).out}
    assert len(answers) == 2
    found = []
    for at in range(1, len(contents(new)) + 1):
        target, made = shutil.copytree(old, tmp_path / f"target-{at}"), shutil.copytree(new, tmp_path / f"made-{at}")
        (target / "reviews.csv").write_text("mine")
        child = os.fork()
        if child == 0:
            replace, calls = os.replace, []

            def dying(*a, replace=replace, calls=calls, at=at):
                calls.append(a)
                os.kill(os.getpid(), 9) if len(calls) == at else replace(*a)
            os.replace = dying
            pack_script.replace(target, made)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        ended = warm(target, text)
        assert "Traceback" not in ended.err, ended.err
        assert ended.status == 2 or ended.out in answers
        found.append(ended.status)
        pack_script.replace(target, shutil.copytree(new, tmp_path / f"again-{at}"))
        assert contents(target) == contents(new) | {"reviews.csv": b"mine"}
    warm.close()
    assert {0, 2} <= set(found)


def test_two_packs_at_once(finished_run, tmp_path):
    """One packs, the other packs too or is refused; the folder is whole."""
    command = [sys.executable, ROOT / "deploy" / "pack.py", "--run", finished_run, "--dist", tmp_path, "--force"]
    two = [subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
           for _ in range(2)]
    said = [process.communicate()[1] for process in two]
    assert "Traceback" not in "".join(said), said
    assert 0 in [process.returncode for process in two]
    assert all(process.returncode == 0 or "another process" in text for process, text in zip(two, said, strict=True))
    check = subprocess.run([sys.executable, tmp_path / finished_run / "predict.py", "--check"], env=ENVIRONMENT)
    assert check.returncode == 0
    assert os.listdir(tmp_path) == [finished_run]


# ---- score_ray.py: a file


SETTINGS = {"THREADS": 1, "COLUMN": "", "KEEP": "", "SEPARATOR": "", "ENCODING": "utf-8",
            "WINDOW": 64, "TEXT_BYTES": 1_000_000}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_pack(tmp_path_factory.mktemp("model") / "pack")


def scored(model, path, **changed) -> tuple[dict, list[dict]]:
    """(what the worker reports of a Parquet file, its records); records are JSON as any reader takes it."""
    score_ray = pytest.importorskip("score_ray")
    target = path.with_name(f"{path.name}.jsonl")
    done = score_ray.ScoreFile(str(model), SETTINGS | changed)({"path": str(path), "target": str(target),
                                                                "force": False, "input": "1"})

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")
    lines = target.read_text().splitlines() if target.exists() else []
    return done, [json.loads(line, parse_constant=refuse) for line in lines]


def parquet(path, **columns):
    """A Parquet file."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("value", [datetime.datetime(2026, 1, 1), datetime.date(2026, 1, 1), decimal.Decimal("1.20"),
                                   b"\xff", float("nan"), {"a": [1]}], ids=str)
def test_a_kept_column_of_any_kind_costs_no_job(model, tmp_path, value):
    """A time, a decimal, bytes: written as text, or one refusal; never an exception that ends the other files."""
    done, records = scored(model, parquet(tmp_path / "a.parquet", text=["enak"], id=[value]), KEEP="id")
    assert done["refusal"] or (len(records) == 1 and "id" in records[0])


def test_what_python_cannot_hold_costs_no_job(model, tmp_path):
    """Two columns of one name, and a day beyond the year 9999: a refusal of that file, no exception."""
    pyarrow = pytest.importorskip("pyarrow")
    double = pyarrow.Table.from_arrays([pyarrow.array(["enak"])] * 2, names=["text", "text"])
    pytest.importorskip("pyarrow.parquet").write_table(double, tmp_path / "double.parquet")
    done, _ = scored(model, tmp_path / "double.parquet")
    assert "several columns of the name 'text'" in done["refusal"]
    day = pyarrow.array([4_000_000], pyarrow.int32()).cast(pyarrow.date32())
    done, _ = scored(model, parquet(tmp_path / "day.parquet", text=["enak"], id=day), KEEP="id")
    assert "cannot be read" in done["refusal"]


def test_names_and_separators_of_spreadsheets(model, tmp_path):
    """A.PARQUET is Parquet; `;` and a comma in a column's name are read as said; a txt has no columns to name."""
    done, records = scored(model, parquet(tmp_path / "A.PARQUET", text=["enak"]))
    assert (done["refusal"], len(records)) == ("", 1)
    (tmp_path / "a.csv").write_text('"Bagaimana, menurut Anda?";id\nenak, sekali;1\n')
    done, records = scored(model, tmp_path / "a.csv", SEPARATOR=";", COLUMN="Bagaimana, menurut Anda?", KEEP="id")
    assert (done["refusal"], records[0]["id"]) == ("", "1")
    (tmp_path / "a.txt").write_text("enak\n")
    done, _ = scored(model, tmp_path / "a.txt", COLUMN="ulasan")
    assert "has no columns" in done["refusal"]


def test_one_column_for_a_model_of_pairs_costs_no_job(tmp_path):
    """The refusal of predict.py, of each file."""
    (tmp_path / "a.csv").write_text("a,b\nenak,buruk\n")
    done, _ = scored(make_pack(tmp_path / "pairs", texts=("a", "b")), tmp_path / "a.csv", COLUMN="a")
    assert "COLUMN names 1 columns; this model reads 2" in done["refusal"]


def test_a_parquet_text_that_is_not_utf8_costs_no_job(model, tmp_path):
    """An error record, or one refusal."""
    pyarrow = pytest.importorskip("pyarrow")
    bad = pyarrow.StringArray.from_buffers(2, pyarrow.py_buffer(bytes((0, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0))),
                                           pyarrow.py_buffer(b"enakcaf\xe9"))
    done, records = scored(model, parquet(tmp_path / "a.parquet", text=bad))
    assert done["refusal"] or "error" in records[1]


@pytest.mark.parametrize("text", ["[]", "5", "null", '{"a.csv.jsonl": 5}', "{", "\0"])
def test_a_ledger_that_is_none(model, tmp_path, text):
    """scored.json of another making: one sentence, or scored as if it were not there."""
    score_ray = pytest.importorskip("score_ray")
    (tmp_path / "scored.json").write_text(text)
    task = {"path": str(tmp_path / "a.csv"), "target": str(tmp_path / "a.csv.jsonl"), "input": "1"}
    with contextlib.suppress(score_ray.UserError):
        assert score_ray.tasks_to_do([task], {"model": "1"}, tmp_path) == [task]


def score(model, source, output, *flags):
    """deploy/score_ray.py by path."""
    return subprocess.run([sys.executable, ROOT / "deploy" / "score_ray.py", "--model-dir", model, "--input", source,
                           "--output", output, *flags], env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture
def source(tmp_path):
    """A folder with one file of rows."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("enak\n")
    return tmp_path / "in"


def test_an_output_that_is_a_file(model, source, tmp_path):
    """One sentence."""
    pytest.importorskip("ray")
    (tmp_path / "out").write_text("mine")
    done = score(model, source, tmp_path / "out")
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2
    assert (tmp_path / "out").read_text() == "mine"


def test_what_others_have_in_the_output_folder_stays(model, source, tmp_path):
    """Hidden folders that look like the project's scratch."""
    pytest.importorskip("ray")
    (tmp_path / "out" / ".tmp-mine").mkdir(parents=True)
    (tmp_path / "out" / ".tmp-mine" / "thesis.txt").write_text("mine")
    (tmp_path / "out" / "scored.json").write_text("{")  # so that it ends before Ray is started
    assert score(model, source, tmp_path / "out").returncode == 2
    assert (tmp_path / "out" / ".tmp-mine" / "thesis.txt").exists()


def test_records_are_not_taken_for_rows(model, source):
    """OUTPUT = INPUT: the records of one run would be rows of the next, and so on for ever."""
    pytest.importorskip("ray")
    (source / "scored.json").write_text("{")
    done = score(model, source, source)
    assert done.returncode == 2
    assert "OUTPUT" in done.stderr and "INPUT" in done.stderr, done.stderr


def test_a_damaged_model_is_one_sentence(model, source, tmp_path):
    """Before a worker is started for it, or behind it."""
    pytest.importorskip("ray")
    damaged = shutil.copytree(model, tmp_path / "damaged")
    (damaged / "onnx" / "model_quantized.onnx").write_bytes(b"x")
    done = score(damaged, source, tmp_path / "out", "--workers", "1")
    assert "Traceback" not in done.stderr, done.stderr[-600:]
    assert done.returncode == 2
    assert "model_quantized.onnx (SHA-256" in done.stderr
