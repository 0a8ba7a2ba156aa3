"""data/download_smsa.py: three files that are SMSA, or one sentence and nothing written."""

import contextlib
import functools
import hashlib
import http.server
import importlib.util
import os
import socket
import subprocess
import sys
import threading

import pytest

from lowbit.data.tsv import SPLITS
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT
from lowbit.pipeline.settings import parse_flags

SCRIPT = ROOT / "data" / "download_smsa.py"
SMSA = ROOT.parent / "shared" / "data" / "smsa"
FAKES = {
    "train": "enak sekali\tpositive\nbiasa saja\tneutral\ntidak enak\tnegative\n",
    "valid": "enak  Sekali\tpositive\nkurang bersih\tnegative\n",
    "test": "mahal\tnegative\nramah\tpositive\n",
}
needs_smsa = pytest.mark.skipif(not SMSA.is_dir(), reason="the SMSA files are not in ../shared/data/smsa")


def put_fakes(folder, pattern="{}_preprocess.tsv"):
    """Write the three fake files into `folder`, made if need be; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in FAKES.items():
        (folder / pattern.format(split)).write_bytes(text.encode())
    return folder


@pytest.fixture
def module(monkeypatch):
    """The script as a module that takes the fake files for SMSA."""
    spec = importlib.util.spec_from_file_location("download_smsa", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    sums = {split: (hashlib.sha256(text.encode()).hexdigest(), len(text.encode())) for split, text in FAKES.items()}
    monkeypatch.setattr(loaded, "FILES", sums)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return loaded


def settings_with(*flags):
    """The script's settings with `flags` laid over them."""
    return parse_flags(str(SCRIPT), "", [str(flag) for flag in flags])


def script(*flags, cwd=ROOT):
    """Run the script itself, from `cwd`."""
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, flags)], cwd=cwd, capture_output=True, text=True,
                          timeout=60, env={**os.environ, "no_proxy": "127.0.0.1"})


def the_sentence(finished):
    """The one line on stderr of a refused run."""
    assert finished.returncode == 2, finished.stderr
    lines = finished.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), finished.stderr
    return lines[0]


def written(folder):
    """Split -> bytes of what stands in `folder`, which must hold the three files and nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{split}.tsv" for split in SPLITS)
    return {split: (folder / f"{split}.tsv").read_bytes() for split in SPLITS}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder, handler=_Quiet):
    """A web server for `folder` on this machine; gives its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


FAKE_BYTES = {split: text.encode() for split, text in FAKES.items()}


@pytest.mark.parametrize("pattern", ["{}.tsv", "{}_preprocess.tsv"])
def test_files_of_a_folder_are_taken_under_either_name(module, tmp_path, capsys, pattern):
    source, out = put_fakes(tmp_path / "source", pattern), tmp_path / "out"
    following = module.main(settings_with("--source-dir", source, "--out-dir", out))
    assert written(out) == FAKE_BYTES
    assert following == f"python int8_eager/train_qat_int8.py --data-dir {out}"
    printed = capsys.readouterr().out
    assert f"{len(FAKE_BYTES['train'])} bytes  train 3 texts (positive 1, neutral 1, negative 1)" in printed
    assert "1 of 2 validation texts also stand in train" in printed
    assert "Apache-2.0" in printed and "IndoNLU" in printed


def test_indonlus_own_name_wins_over_a_users_file_beside_it(module, tmp_path):
    source = put_fakes(tmp_path / "source")
    (source / "train.tsv").write_text("punya saya\tneutral\n", encoding="utf-8")
    module.main(settings_with("--source-dir", source, "--out-dir", tmp_path / "out"))
    assert written(tmp_path / "out") == FAKE_BYTES


def test_files_come_over_http_from_the_commits_path(module, tmp_path):
    put_fakes(tmp_path / "site" / "abc123" / "dataset" / "smsa_doc-sentiment-prosa")
    with serving(tmp_path / "site") as address:
        module.main(settings_with("--base-url", address, "--commit", "abc123", "--out-dir", tmp_path / "out"))
    assert written(tmp_path / "out") == FAKE_BYTES


def test_one_wrong_file_of_three_leaves_nothing_behind(module, tmp_path):
    source, out = put_fakes(tmp_path / "source"), tmp_path / "out"
    (source / "test_preprocess.tsv").write_bytes(FAKE_BYTES["test"].replace(b"\n", b"\r\n"))
    found = hashlib.sha256((source / "test_preprocess.tsv").read_bytes()).hexdigest()
    with pytest.raises(UserError) as caught:
        module.main(settings_with("--source-dir", source, "--out-dir", out))
    sentence = str(caught.value)
    assert str(source / "test_preprocess.tsv") in sentence
    assert module.FILES["test"][0] in sentence and found in sentence
    assert not out.exists()


def test_a_wrong_file_over_http_leaves_the_old_files_alone(module, tmp_path):
    site, out = put_fakes(tmp_path / "site" / "abc123" / "dataset" / "smsa_doc-sentiment-prosa"), tmp_path / "out"
    (site / "valid_preprocess.tsv").write_bytes(FAKE_BYTES["valid"][:-3])
    out.mkdir()
    (out / "train.tsv").write_text("punya saya\tneutral\n", encoding="utf-8")
    flags = "--commit", "abc123", "--out-dir", out, "--overwrite"
    with serving(tmp_path / "site") as address, pytest.raises(UserError, match="valid_preprocess.tsv is not the valid"):
        module.main(settings_with("--base-url", address, *flags))
    assert [path.name for path in out.iterdir()] == ["train.tsv"]
    assert (out / "train.tsv").read_text(encoding="utf-8") == "punya saya\tneutral\n"


def test_an_answer_cut_short_is_refused(module, tmp_path):
    class CutShort(_Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"enak")

    with serving(tmp_path, CutShort) as address, pytest.raises(UserError, match=r"/train_preprocess\.tsv "):
        module.main(settings_with("--base-url", address, "--out-dir", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_files_already_there_are_left_as_they_are(module, tmp_path, capsys):
    out = put_fakes(tmp_path / "out", "{}.tsv")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    module.main(settings_with("--source-dir", tmp_path / "nowhere", "--out-dir", out))
    assert "already holds the three files" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_only_the_missing_file_is_fetched(module, tmp_path):
    source, out = put_fakes(tmp_path / "source"), put_fakes(tmp_path / "out", "{}.tsv")
    (out / "valid.tsv").unlink()
    (source / "train_preprocess.tsv").unlink()
    module.main(settings_with("--source-dir", source, "--out-dir", out))
    assert written(out) == FAKE_BYTES


def test_overwrite_replaces_a_users_file(module, tmp_path):
    source, out = put_fakes(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    (out / "valid.tsv").write_text("punya saya\tneutral\n", encoding="utf-8")
    module.main(settings_with("--source-dir", source, "--out-dir", out, "--overwrite"))
    assert written(out) == FAKE_BYTES


def test_a_users_file_is_not_replaced(tmp_path):
    (tmp_path / "train.tsv").write_text("punya saya\tneutral\n", encoding="utf-8")
    sentence = the_sentence(script("--source-dir", tmp_path, "--out-dir", tmp_path))
    assert f"{tmp_path / 'train.tsv'} differs" in sentence and "--overwrite" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["train.tsv"]
    assert (tmp_path / "train.tsv").read_text(encoding="utf-8") == "punya saya\tneutral\n"


def test_a_folder_in_the_place_of_a_file_is_named(module, tmp_path):
    (tmp_path / "out" / "test.tsv").mkdir(parents=True)
    with pytest.raises(UserError, match="test.tsv is a folder"):
        module.main(settings_with("--out-dir", tmp_path / "out", "--overwrite"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        module.main(settings_with("--out-dir", tmp_path / "file"))


def test_a_missing_source_folder_is_named(tmp_path):
    sentence = the_sentence(script("--source-dir", tmp_path / "nowhere", "--out-dir", tmp_path / "out"))
    assert str(tmp_path / "nowhere") in sentence
    assert not (tmp_path / "out").exists()


def test_a_missing_source_file_is_named(module, tmp_path):
    source = put_fakes(tmp_path / "source")
    (source / "valid_preprocess.tsv").unlink()
    with pytest.raises(UserError, match=r"neither valid_preprocess\.tsv nor valid\.tsv"):
        module.main(settings_with("--source-dir", source, "--out-dir", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_source_folder_may_be_counted_from_the_shells_folder(tmp_path):
    """The fakes are found there, and refused by the real checksums."""
    put_fakes(tmp_path / "fakes")
    sentence = the_sentence(script("--source-dir", "fakes", "--out-dir", tmp_path / "out", cwd=tmp_path))
    assert str(tmp_path / "fakes" / "train_preprocess.tsv") in sentence
    assert "50f38ceed9b31521bf1581e126620532cc9b790712938159a2cdcf6906977a9b" in sentence
    assert hashlib.sha256(FAKE_BYTES["train"]).hexdigest() in sentence
    assert not (tmp_path / "out").exists()


def test_http_404_is_one_sentence(tmp_path):
    with serving(tmp_path) as address:
        sentence = the_sentence(script("--base-url", address, "--out-dir", tmp_path / "out"))
    assert "HTTP 404" in sentence and address in sentence and "--source-dir" in sentence
    assert not (tmp_path / "out").exists()


def test_no_network_is_one_sentence(tmp_path):
    with socket.socket() as unused:  # bound but not listening: every connection is refused
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        sentence = the_sentence(script("--base-url", address, "--out-dir", tmp_path / "out"))
    assert "refused" in sentence and "--source-dir" in sentence
    assert not (tmp_path / "out").exists()


def test_a_silent_server_and_a_malformed_address_are_sentences(module, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        flags = "--base-url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", 1
        with pytest.raises(UserError, match="no answer within 1 s.*--source-dir"):
            module.main(settings_with(*flags, "--out-dir", tmp_path / "out"))
    for address in ("raw.githubusercontent.com", "http://127.0.0.1:port", "http://127.0.0.1:1/a b"):
        with pytest.raises(UserError, match="could not be fetched"):
            module.main(settings_with("--base-url", address, "--out-dir", tmp_path / "out"))
    with pytest.raises(UserError, match="TIMEOUT is 0"):
        module.main(settings_with("--timeout", 0, "--out-dir", tmp_path / "out"))


@pytest.mark.real_data
@needs_smsa
@pytest.mark.parametrize("cwd", [ROOT, ROOT / "data"], ids=["root", "data"])
def test_smsa_itself_is_accepted(tmp_path, cwd):
    finished = script("--source-dir", os.path.relpath(SMSA, cwd), "--out-dir", tmp_path / "out", cwd=cwd)
    assert finished.returncode == 0, finished.stderr
    assert written(tmp_path / "out") == {split: (SMSA / f"{split}.tsv").read_bytes() for split in SPLITS}
    assert "2186718 bytes  train 11000 texts (positive 6416, neutral 1148, negative 3436)" in finished.stdout
    assert "246974 bytes  valid 1260 texts (positive 735, neutral 131, negative 394)" in finished.stdout
    assert "75949 bytes  test 500 texts (positive 208, neutral 88, negative 204)" in finished.stdout
    assert "14 of 1260 validation texts also stand in train" in finished.stdout


@pytest.mark.real_data
@needs_smsa
def test_smsa_itself_comes_over_http(tmp_path):
    site = tmp_path / "site" / settings_with()["COMMIT"] / "dataset" / "smsa_doc-sentiment-prosa"
    site.mkdir(parents=True)
    for split in SPLITS:
        (site / f"{split}_preprocess.tsv").symlink_to(SMSA / f"{split}.tsv")
    with serving(tmp_path / "site") as address:
        finished = script("--base-url", address, "--out-dir", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    assert written(tmp_path / "out") == {split: (SMSA / f"{split}.tsv").read_bytes() for split in SPLITS}
