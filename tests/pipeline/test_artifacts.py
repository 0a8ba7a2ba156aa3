"""What stages hand over: whole files or none, and nothing that is not what the manifest says it is."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from stage_runs import ROOT

from lowbit.pipeline import files as artifacts
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir, write_json, write_text
from lowbit.pipeline.machine import machine
from lowbit.pipeline.manifest import (
    FORMAT,
    MANIFEST,
    begin_run,
    publish,
    publish_text,
    record,
    recorded,
    settings_of,
    shipped,
    stages_of,
)

FIRST, SECOND, THIRD = "stages/first.py", "stages/second.py", "stages/third.py"


def write_stage(folder, stage: str, files: dict[str, bytes], reads=()) -> None:
    """What a stage does at its end."""
    with atomic_folder(folder) as scratch:
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        names = publish(scratch)
    record(folder, stage, {"SEED": 1}, [folder / name for name in reads], names)


def write_chain(folder, content: bytes = b"weights"):
    """A run of three stages; returns its folder."""
    write_stage(folder, FIRST, {"one.bin": content, "one.json": b"{}"})
    write_stage(folder, SECOND, {"two.bin": content + b" as a graph"}, ["one.bin"])
    write_stage(folder, THIRD, {"three.bin": content + b" in eight bits"}, ["two.bin"])
    return folder


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Folder of a whole run of three stages; whoever changes a file of it puts it back."""
    return write_chain(tmp_path_factory.mktemp("runs") / "my-run")


def test_others_read_what_the_umask_lets_them(tmp_path):
    """Also a file that its library made for its owner alone, as safetensors does; the umask stays."""
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path) as scratch:
            save_file({"a": torch.zeros(1)}, scratch / "model.safetensors")
            publish(scratch)
        assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640
    finally:
        assert os.umask(before) == 0o027


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(whole_run, tmp_path / "my-run")


@contextlib.contextmanager
def replaced(path, content: bytes):
    """The file at `path` holds `content` for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def refusal(folder, stage: str, *names: str) -> str:
    """The sentence with which `recorded` ends; always with the command that helps."""
    with pytest.raises(UserError) as caught:
        recorded(folder, stage, *names)
    assert "python stages/" in str(caught.value)
    assert f"--run {folder.name}" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leftovers(folder) -> list[str]:
    """Names of scratch folders."""
    return [path.name for path in folder.rglob(".tmp-*")]


def test_whole_chain_is_accepted(run):
    """Each stage finds the files of the one before, with their paths and settings."""
    assert recorded(run, FIRST, "one.bin", "one.json") == [run / "one.bin", run / "one.json"]
    assert recorded(run, SECOND, "two.bin") == [run / "two.bin"]
    assert recorded(run, THIRD, "three.bin") == [run / "three.bin"]
    assert settings_of(run, THIRD) == {"SEED": 1}


def test_moved_run_is_accepted(run):
    """A folder may be renamed or copied as a whole."""
    moved = shutil.copytree(run, run.with_name("copied"))
    assert recorded(moved, THIRD, "three.bin") == [moved / "three.bin"]


def test_missing_file_names_the_script_that_makes_it(run):
    """The way out is a command to paste."""
    (run / "two.bin").unlink()
    sentence = refusal(run, SECOND, "two.bin")
    assert "my-run/two.bin is missing" in sentence
    assert f"python {SECOND} --run my-run" in sentence


def test_run_that_was_never_made_names_the_script(tmp_path):
    """No folder, no manifest: the same sentence, no traceback."""
    assert f"python {FIRST} --run nothing" in refusal(tmp_path / "nothing", FIRST, "one.bin")


def test_file_without_a_record_is_refused(run):
    """A file that somebody put there, or that a killed stage published before it could record it."""
    (run / "four.bin").write_bytes(b"from elsewhere")
    assert "four.bin is not recorded" in refusal(run, THIRD, "four.bin")
    (run / MANIFEST).unlink()
    assert "not recorded" in refusal(run, THIRD, "three.bin")


@given(data=st.data())
def test_any_edited_byte_is_refused(whole_run, data):
    """One bit anywhere in a file, or its end cut off, or a byte too many."""
    path = whole_run / "two.bin"
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(("flip", "cut", "add")))
    flipped = content[:at] + bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))]) + content[at + 1:]
    with replaced(path, {"flip": flipped, "cut": content[:at], "add": content + b"\0"}[change]):
        sentence = refusal(whole_run, SECOND, "two.bin")
    assert "my-run/two.bin" in sentence
    assert SECOND in sentence


def test_file_of_another_run_is_refused(run, tmp_path):
    """Both digests stand in the sentence."""
    other = write_chain(tmp_path / "other", b"other weights")
    shutil.copy(other / "two.bin", run / "two.bin")
    sentence = refusal(run, SECOND, "two.bin")
    for folder in (run, other):
        assert stages_of(folder)[SECOND]["writes"]["two.bin"]["sha256"][:8] in sentence


def test_file_and_record_of_another_run_are_refused(run, tmp_path):
    """Copying the manifest along does not help: the first stage's file is still this run's."""
    other = write_chain(tmp_path / "other", b"other weights")
    for name in ("two.bin", "three.bin", MANIFEST):
        shutil.copy(other / name, run / name)
    for stage, name in ((SECOND, "two.bin"), (THIRD, "three.bin")):
        assert "one.bin" in refusal(run, stage, name)


@pytest.mark.parametrize(("stage", "name"), [(SECOND, "two.bin"), (THIRD, "three.bin")])
def test_predecessor_made_again_refuses_what_came_after(run, stage, name):
    """After a second training the old graph does not pass for the new one's, however far down the chain."""
    write_stage(run, FIRST, {"one.bin": b"trained again", "one.json": b"{}"})
    sentence = refusal(run, stage, name)
    assert "one.bin" in sentence
    assert FIRST in sentence


def test_predecessor_made_again_with_the_same_bytes_changes_nothing(run):
    """The same training gives the same file: what came of it still fits."""
    write_stage(run, FIRST, {"one.bin": b"weights", "one.json": b"{}"})
    assert recorded(run, THIRD, "three.bin")


def test_change_two_stages_back_is_noticed(run):
    """The third stage's file was made from a second that was made from a first that is not there any more."""
    (run / "one.bin").write_bytes(b"edited weights")
    assert "one.bin" in refusal(run, THIRD, "three.bin")


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe{}", b"{}\0", b"[1, 2]",
    b'{"format": 2}', b'{"format": 2, "stages": 1}',
    *(b'{"format": 2, "stages": {"a": ' + entry + b"}}" for entry in (
        b"1", b"{}", b"[]", b'{"writes": []}', b'{"writes": {"one.bin": 3}, "reads": {}}',
        b'{"writes": {"one.bin": {}}, "reads": {}}', b'{"writes": {}, "reads": []}'))])
def test_broken_manifest_is_refused(run, content):
    """Named as the file to delete, whatever became of it."""
    (run / MANIFEST).write_bytes(content.replace(b'"a"', b'"' + FIRST.encode() + b'"'))
    with pytest.raises(UserError, match=MANIFEST):
        recorded(run, FIRST, "one.bin")


@given(share=st.floats(0, 1, exclude_max=True))
def test_manifest_cut_short_is_refused(whole_run, share):
    """At any byte."""
    content = (whole_run / MANIFEST).read_bytes().rstrip()
    short = content[: int(share * len(content))]
    with replaced(whole_run / MANIFEST, short), pytest.raises(UserError, match=MANIFEST):
        recorded(whole_run, FIRST, "one.bin")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/a", "a/", "../a", ".hidden", "a/../b", "-a", 300 * "r",
                                  101 * "é"])
def test_run_name_that_leaves_its_folder_is_refused(name):
    """A run is one plain folder under models/."""
    with pytest.raises(UserError, match="RUN"):
        run_dir(name)


def test_plain_run_name_is_a_folder_under_models():
    """Whatever the shell's folder is."""
    assert run_dir("my-run_2.0") == ROOT / "models" / "my-run_2.0"


def test_paths_count_from_the_projects_root(monkeypatch, tmp_path):
    """data means the project's data, also from inside a folder of stages; an absolute path is itself."""
    monkeypatch.chdir(tmp_path)
    assert resolve("data") == ROOT / "data"
    assert resolve("../elsewhere") == ROOT.parent / "elsewhere"
    assert resolve(str(tmp_path)) == tmp_path


def test_writer_that_fails_leaves_the_old_files(run):
    """An exception half-way through writing: the files of before, whole, and no scratch folder."""
    def fail():
        with atomic_folder(run) as scratch:
            (scratch / "two.bin").write_bytes(b"half of a ne")
            raise ValueError("no more")

    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ValueError, match="no more"):
        fail()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_rename_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
    """A full disk at the last moment."""
    path = tmp_path / "results.json"
    write_text(path, "old")
    monkeypatch.setattr(artifacts.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_published_files_replace_and_leave_nothing_behind(run):
    """Just the files of the run, nothing hidden."""
    write_stage(run, SECOND, {"two.bin": b"made again"}, ["one.bin"])
    assert (run / "two.bin").read_bytes() == b"made again"
    names = ["manifest.json", "one.bin", "one.json", "three.bin", "two.bin"]
    assert sorted(path.name for path in run.iterdir()) == names


@pytest.mark.parametrize("name", ["two.onnx", "two.onnx.data"])
def test_a_file_that_no_stage_wrote_is_not_replaced(run, name):
    """A user's model under the name of a later stage's, or where its external data would lie: nothing is moved."""
    (run / name).write_bytes(b"the user's")
    before = (run / MANIFEST).read_bytes()
    with pytest.raises(UserError, match=rf"{name} is in the way: .* move it to another folder"):
        write_stage(run, SECOND, {"aaa.bin": b"new", "two.onnx": b"new"}, ["one.bin"])
    assert (run / name).read_bytes() == b"the user's"
    assert not (run / "aaa.bin").exists()
    assert (run / MANIFEST).read_bytes() == before
    assert leftovers(run) == []
    (run / name).unlink()
    (run / "two.onnx").symlink_to(run / "on-a-disk-that-is-not-there.onnx")
    with pytest.raises(UserError, match="two.onnx is in the way"):
        write_stage(run, SECOND, {"aaa.bin": b"new", "two.onnx": b"new"}, ["one.bin"])
    (run / "two.onnx").unlink()
    write_stage(run, SECOND, {"aaa.bin": b"new", "two.onnx": b"new"}, ["one.bin"])
    assert recorded(run, SECOND, "two.onnx") == [run / "two.onnx"]


def test_what_a_killed_stage_published_is_replaced(run, monkeypatch):
    """Killed between two files, or before it could record them: the next try is not refused."""
    replace = os.replace
    monkeypatch.setattr(artifacts.os, "replace", lambda old, new: (
        (_ for _ in ()).throw(KeyboardInterrupt()) if str(new).endswith("five.bin") else replace(old, new)))
    with pytest.raises(KeyboardInterrupt):
        write_stage(run, SECOND, {"aaa.bin": b"new", "five.bin": b"new"}, ["one.bin"])
    assert (run / "aaa.bin").exists()
    monkeypatch.undo()
    write_stage(run, SECOND, {"aaa.bin": b"newer", "five.bin": b"newer"}, ["one.bin"])
    assert recorded(run, SECOND, "aaa.bin", "five.bin")[0].read_bytes() == b"newer"


@pytest.mark.parametrize("name", ["two.bin", "five.bin"])
def test_what_a_user_put_in_place_of_a_written_file_is_kept(run, name, capsys):
    """Under another name, in words, each time: recorded, or published by a stage that could not record it."""
    with atomic_folder(run) as scratch:
        (scratch / "five.bin").write_bytes(b"five")
        publish(scratch)
    for mine in (b"trained for hours", b"and for hours more"):
        (run / name).write_bytes(mine)
        write_stage(run, SECOND, {name: b"made again"}, ["one.bin"])
        assert recorded(run, SECOND, name)[0].read_bytes() == b"made again"
    assert (run / f"{name}.changed-1").read_bytes() == b"trained for hours"
    assert (run / f"{name}.changed-2").read_bytes() == b"and for hours more"
    assert f"{name} was changed since a stage wrote it: kept as {name}.changed-2" in capsys.readouterr().out
    write_stage(run, SECOND, {name: b"made again"}, ["one.bin"])
    assert not (run / f"{name}.changed-3").exists()


def test_a_published_text_that_a_user_changed_is_kept(tmp_path):
    """A report with notes in it; a second report takes the place of the first, not of the notes."""
    for text in ("old", "new"):
        publish_text(tmp_path / "report.html", text)
    (tmp_path / "report.html").write_text("with notes")
    publish_text(tmp_path / "report.html", "newer")
    assert (tmp_path / "report.html").read_text() == "newer"
    assert [path.read_text() for path in tmp_path.glob("*.changed-*")] == ["with notes"]


def test_names_that_an_older_manifest_published_are_still_ours(run):
    """Names alone, without what was written: replaced as they were then."""
    manifest = json.loads((run / MANIFEST).read_text()) | {"published": ["six.bin"]}
    (run / MANIFEST).write_text(json.dumps(manifest))
    (run / "six.bin").write_bytes(b"half")
    write_stage(run, SECOND, {"six.bin": b"whole"}, ["one.bin"])
    assert recorded(run, SECOND, "six.bin")[0].read_bytes() == b"whole"


def test_json_keeps_letters_and_numbers(tmp_path):
    """Readable by people: indented, é as é."""
    write_json(tmp_path / "sub" / "a.json", {"teks": "é", "n": 0.1})
    assert (tmp_path / "sub" / "a.json").read_text(encoding="utf-8") == '{\n  "teks": "é",\n  "n": 0.1\n}\n'


def test_leftovers_of_a_killed_run_are_removed(run):
    """Scratch folders go, files stay, and so do hidden ones of other names."""
    (run / ".tmp-mine").mkdir()
    (run / ".tmp-abc-lowbit").mkdir()
    (run / ".tmp-abc-lowbit" / "two.bin").write_bytes(b"half")
    claim(run)
    assert leftovers(run) == [".tmp-mine"]
    assert recorded(run, THIRD, "three.bin")


@pytest.mark.parametrize("number", [None, 1, 3, "2"])
def test_manifest_of_another_format_is_refused(run, number):
    """An older or newer one is not guessed at: both numbers and the way out stand in the sentence."""
    manifest = json.loads((run / MANIFEST).read_text()) | {"format": number}
    if number is None:
        manifest = manifest["stages"]  # as format 1 was
    (run / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"has format {number or 1}, this version reads {FORMAT}.*from the first"):
        recorded(run, FIRST, "one.bin")


def test_what_a_run_is_stands_in_the_manifest(run):
    """Once a stage has said what ships; until then a sentence says which stages are missing."""
    with pytest.raises(UserError, match="holds no low-bit file: run the four stages.*--run my-run"):
        shipped(run)
    ships = {"precision": "int8", "file": "three.bin"}
    record(run, THIRD, {}, [], ["three.bin"], ships)
    assert shipped(run) == ships
    record(run, FIRST, {}, [], ["one.bin"])
    assert shipped(run) == ships


def test_a_folder_belongs_to_one_process_at_a_time(run):
    """A second one is refused in a sentence, and its scratch folder is left alone; the end of the first frees it."""
    claim(run)
    claim(run)  # the same process may ask again
    script = "\n".join(("from pathlib import Path", "from lowbit.pipeline.files import claim",
                        f"claim(Path({str(run)!r}))", "print('claimed', flush=True)", "input()"))
    refused = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, input="")
    assert "another process is working on" in refused.stderr
    (other := run.with_name("other")).mkdir()
    script = script.replace(str(run), str(other))
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"claimed\n"
        (other / ".tmp-of-the-first-lowbit").mkdir()
        with pytest.raises(UserError, match="another process is working on .*other"):
            claim(other)
        assert (other / ".tmp-of-the-first-lowbit").exists()
        first.kill()
    claim(other)
    assert not (other / ".tmp-of-the-first-lowbit").exists()


def test_a_run_is_begun_only_where_nothing_of_others_lies(run, tmp_path):
    """Again by its own stage, or where that was killed; not in another's run, not beside files of the user's."""
    begin_run(run, FIRST)
    with pytest.raises(UserError, match="holds another model, which stages/first.py began"):
        begin_run(run, "other/first.py")
    begin_run(tmp_path / "new", FIRST)
    assert (tmp_path / "new").is_dir()
    (tmp_path / "of-a-user").mkdir()
    (tmp_path / "of-a-user" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="of-a-user holds config.json, which no stage recorded"):
        begin_run(tmp_path / "of-a-user", FIRST, "checkpoints")
    (tmp_path / "work" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="work/checkpoints is in the way"):
        begin_run(tmp_path / "work", FIRST, "checkpoints")
    for number in range(2):  # killed before anything was recorded, and begun again
        begin_run(tmp_path / "killed", FIRST, "checkpoints")
        (tmp_path / "killed" / "checkpoints").mkdir(exist_ok=True)
        with atomic_folder(tmp_path / "killed") as scratch:
            (scratch / "config.json").write_text(str(number))
            publish(scratch)
    assert (tmp_path / "killed" / "config.json").read_text() == "1"
    with atomic_folder(tmp_path / "of-a-user") as scratch, pytest.raises(UserError, match="config.json is in the way"):
        (scratch / "config.json").write_text("2")
        publish(scratch)
    assert (tmp_path / "of-a-user" / "config.json").read_text() == "{}"


def test_manifest_tells_what_was_written_when_and_with_what(run):
    """Bytes and digests of files, settings, versions, machine, command: enough to make it again."""
    entry = json.loads((run / MANIFEST).read_text())["stages"][SECOND]
    assert entry["writes"]["two.bin"]["bytes"] == len(b"weights as a graph")
    assert list(entry["reads"]) == ["one.bin"]
    assert entry["settings"] == {"SEED": 1}
    assert {"python", "torch", "onnxruntime", "transformers"} <= set(entry["versions"])
    assert entry["machine"]["cores"] >= 1
    assert entry["command"].startswith(f"python {SECOND}")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("rename", [1, 2, 3, 4])
def test_kill_at_any_rename_leaves_old_or_nothing(tmp_path, rename, moment):
    """A stage killed between any two of its renames: its files are accepted all old or all new, or refused.

    The manifest that announces them, two files and the manifest that records them are renamed; the process dies right
    before or right after one of these.
    """
    folder = tmp_path / "my-run"
    old, new = ({name: state + name.encode() for name in ("a.bin", "b.bin")} for state in (b"old ", b"new "))
    write_stage(folder, FIRST, old)
    machine()  # asked once here, so that the child asks nobody
    child = os.fork()
    if child == 0:
        calls = 0
        plain = os.replace

        def replace(*paths):
            nonlocal calls
            calls += 1
            if calls == rename and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            plain(*paths)
            if calls == rename:
                os.kill(os.getpid(), signal.SIGKILL)

        artifacts.os.replace = replace
        write_stage(folder, FIRST, new)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = {name: (folder / name).read_bytes() for name in old}
    if found in (old, new) and (rename, moment) in ((1, "before"), (1, "after"), (2, "before"), (4, "after")):
        recorded(folder, FIRST, *old)
    else:
        with pytest.raises(UserError, match=FIRST):
            recorded(folder, FIRST, *old)
    claim(folder)
    write_stage(folder, FIRST, new)
    recorded(folder, FIRST, *new)
    assert leftovers(folder) == [] and not list(folder.glob("*.changed-*"))
