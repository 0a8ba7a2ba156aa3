"""predict.py stopped at any moment: the output is that of an undisturbed run, byte for byte, or there is a refusal.

200 times `kill -9` (half at a random time, half at one of the calls that touch a file), 20 full disks, 20 Ctrl-C, 20
double starts, over every format of the input, plain and gzip, and of the output. Each ends with `--resume`.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from packs import Warm, make_pack

KILLS, FULL_DISKS, INTERRUPTIONS, DOUBLE_STARTS = 200, 20, 20, 20
ROWS, WINDOW = 400, 16
INPUTS = tuple(f"{form}{ends}" for form in ("txt", "tsv", "csv", "jsonl") for ends in ("", ".gz"))
KINDS = tuple(itertools.product(INPUTS, ("jsonl", "tsv")))  # 16 of input and output
PAGE = 4096  # bytes in which a tmpfs counts
REFUSALS = ("another process is writing", "exists already", "go on with --resume", "has appeared meanwhile")

# kill -9 right before or behind the n-th call that touches a file, however long it takes to come there
KILL_AT = """
import io, os
calls = 0
def counted(call):
    def step():
        global calls
        calls += 1
        if calls == {number}:
            os.kill(os.getpid(), 9)
    def counting(*a, **k):
        if call is not opened or "w" in a[1:2]:
            step()
            found = call(*a, **k)
            step()
            return found
        return call(*a, **k)
    return counting
opened = io.open
io.open = counted(opened)
for name in ("open", "write", "ftruncate", "fsync", "replace", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
"""
# the same, but only counting them
COUNT = KILL_AT.replace("if calls == {number}:\n            os.kill(os.getpid(), 9)",
                        'print(calls, file=opened({path!r}, "w"))')


def texts() -> list[str]:
    """Rows of many lengths, some of them errors."""
    return ["" if i % 41 == 7 else f"enak nomor {i} {'sekali buruk ' * (i * 7 % 11)}".strip() for i in range(ROWS)]


def write_input(folder: Path, name: str) -> Path:
    """a.<name> of the texts, with an id where the format has columns."""
    form = name.removesuffix(".gz")
    if form == "csv":
        made = io.StringIO()
        csv.writer(made).writerows([("id", "text"), *((i, f'{text}\n"ya"' if i % 5 == 0 and text else text)
                                                      for i, text in enumerate(texts()))])
        content = made.getvalue()
    else:
        lines = {"txt": texts(), "tsv": ["id\ttext", *(f"{i}\t{text}" for i, text in enumerate(texts()))],
                 "jsonl": [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts())]}[form]
        content = "".join(f"{line}\n" for line in lines)
    path = folder / f"a.{name}"
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


class Bench:
    """Undisturbed runs of every kind, and a folder for each disturbed one."""

    def __init__(self, base: Path):
        self.base, self.warm, self.pack = base, Warm(base), make_pack(base / "pack")
        self.numbers, self.sources, self.whole = itertools.count(), {}, {}
        self.seconds, self.calls, self.said = {}, {}, {}
        for name in INPUTS:
            self.sources[name] = write_input(base, name)
        for kind in KINDS:
            folder = self.folder()
            counted = folder / "calls"
            done = self.end(self.start(kind, folder, before=COUNT.replace("{path!r}", repr(str(counted)))))
            assert done.status == 1, done
            self.calls[kind] = int(counted.read_text())
            self.whole[kind], self.said[kind] = self.output(kind, folder).read_bytes(), done.err.splitlines()[-1]
            self.output(kind, folder).unlink()
            started = time.monotonic()
            done = self.end(self.start(kind, folder))
            self.seconds[kind] = time.monotonic() - started
            assert (done.status, self.output(kind, folder).read_bytes()) == (1, self.whole[kind])

    def folder(self) -> Path:
        """A new folder."""
        folder = self.base / f"run-{next(self.numbers)}"
        folder.mkdir()
        return folder

    def output(self, kind, folder: Path) -> Path:
        return folder / f"o.{kind[1]}"

    def start(self, kind, folder: Path, *flags, before: str = ""):
        """A run of this kind, that is not waited for."""
        keep = () if kind[0].startswith("txt") else ("--keep", "id")
        return self.warm.start(self.pack, "--input", self.sources[kind[0]], "--output", self.output(kind, folder),
                               "--window", WINDOW, "--threads", 1, *keep, *flags, before=before)

    def end(self, child):
        """What a shell sees of it."""
        return self.warm.end(child)

    def finish(self, kind, folder: Path) -> str:
        """`--resume` to the end: "resumed", "begun again" or "finished before"; asserts that the output is whole."""
        done = self.end(self.start(kind, folder, "--resume"))
        assert "Traceback" not in done.err, done.err
        output = self.output(kind, folder)
        if "is finished already" in done.err:
            outcome = "finished before"
            assert done.status == 0, done
        else:
            outcome = "resumed" if "resuming behind row" in done.err else "begun again"
            assert done.status == 1, done
            assert done.err.splitlines()[-1] == self.said[kind]
        assert output.read_bytes() == self.whole[kind], f"{folder}: another file than that of an undisturbed run"
        return outcome


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("faults"))
    yield made
    made.warm.close()


def moments(count: int, seed: int):
    """(number, kind, random source) of each fault; all kinds in turn."""
    for number in range(count):
        yield number, KINDS[number % len(KINDS)], random.Random(f"{seed}-{number}")


def left_over(folder: Path, output: Path) -> list[str]:
    """What a finished run left beside its output."""
    return sorted(path.name for path in folder.iterdir() if path != output)


def show(capsys, name: str, counts: Counter) -> None:
    with capsys.disabled():
        print(f"\n{name}: {counts.total()}  ", ", ".join(f"{what} {count}" for what, count in sorted(counts.items())))


def test_kill(bench, capsys):
    """kill -9, every third run twice: the resumed output is that of an undisturbed run."""
    counts, then = Counter(), Counter()
    for number, kind, chance in moments(KILLS, 1):
        folder = bench.folder()
        for flags in ((), ("--resume",))[: 1 + (number % 3 == 0)]:
            if number % 2:
                child = bench.start(kind, folder, *flags)
                time.sleep(chance.uniform(0, 0.9 * bench.seconds[kind]))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
            else:  # the first and the last calls oftener than those between: each of them is another state of the files
                calls = bench.calls[kind]
                at = chance.choice((chance.randint(1, 12), chance.randint(calls - 12, calls), chance.randint(1, calls)))
                child = bench.start(kind, folder, *flags, before=KILL_AT.replace("{number}", str(at)))
            ended = bench.end(child)
            assert "Traceback" not in ended.err, ended.err
            assert ended.status in (-9, 0, 1), ended
            counts["killed" if ended.status == -9 else "came too late"] += 1
        then[bench.finish(kind, folder)] += 1
    show(capsys, "runs to be killed", counts)
    show(capsys, "outputs, byte for byte", then)
    assert counts["killed"] >= 0.9 * KILLS


def test_kill_at_the_very_end_leaves_nothing(bench):
    """Between the output's name and the end of its notes: `--resume` finds it finished, and clears away."""
    kind, found = KINDS[0], set()
    for at in range(bench.calls[kind] - 8, bench.calls[kind] + 1):
        folder = bench.folder()
        bench.end(bench.start(kind, folder, before=KILL_AT.replace("{number}", str(at))))
        found.add(bench.finish(kind, folder))
        assert left_over(folder, bench.output(kind, folder)) == [], at
    assert found == {"resumed", "finished before"}


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """A file system of `size` bytes in the place of a folder."""
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
                                           capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root and mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_disk(bench, tmp_path, capsys):
    """Status 2 and one sentence; again while it is still full; --resume once there is room."""
    counts = Counter()
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        for number, kind, chance in moments(FULL_DISKS, 2):
            folder = disk / str(number)
            folder.mkdir()
            free = os.statvfs(disk).f_bavail
            wanted = len(bench.whole[kind]) // PAGE + 2
            (disk / "filler").write_bytes(bytes((free - chance.randint(0, wanted)) * PAGE))
            for flags in ((), ("--resume",)):
                ended = bench.end(bench.start(kind, folder, *flags))
                assert ended.status == 2, ended
                assert ended.err.count("error: ") == 1, ended.err
                assert "no space is left" in ended.err, ended.err
                assert not bench.output(kind, folder).exists()
                counts["full"] += 1
            (disk / "filler").unlink()
            counts[bench.finish(kind, folder)] += 1
            shutil.rmtree(folder)
    show(capsys, "full disks", counts)
    assert counts["resumed"] >= FULL_DISKS // 3


def test_read_only_disk(bench, tmp_path):
    """One sentence, status 2, and what was there stays."""
    kind = KINDS[0]
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        bench.end(bench.start(kind, disk, before=KILL_AT.replace("{number}", str(bench.calls[kind] // 2))))
        before = {path.name: path.read_bytes() for path in disk.iterdir()}
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for flags in ((), ("--resume",), ("--force",)):
            ended = bench.end(bench.start(kind, disk, *flags))
            assert ended.status == 2, ended
            assert ended.err.count("error: ") == 1, ended.err
            assert "Traceback" not in ended.err, ended.err
        assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert bench.finish(kind, disk) == "resumed"


def test_ctrl_c(bench, capsys):
    """A sentence that names --resume; and so it is."""
    counts = Counter()
    for _, kind, chance in moments(INTERRUPTIONS, 3):
        folder, started = bench.folder(), time.monotonic()
        child = bench.start(kind, folder)
        part = folder / f"o.{kind[1]}.part"
        while not part.exists() and time.monotonic() - started < 10:  # before, libraries are loaded: see test_hostile
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, max(bench.seconds[kind] - (time.monotonic() - started), 0.01)))
        os.kill(child.pid, signal.SIGINT)
        ended = bench.end(child)
        assert "Traceback" not in ended.err, ended.err
        if ended.status == 130:
            assert "--resume" in ended.err
        else:
            assert ended.status == 1, ended
        counts[f"status {ended.status}"] += 1
        counts[bench.finish(kind, folder)] += 1
    show(capsys, "Ctrl-C", counts)
    assert counts["status 130"] >= INTERRUPTIONS // 4


def test_two_at_once(bench, capsys):
    """One of them writes, the other is refused or finds it finished: never a mixed file."""
    counts = Counter()
    choices = ((), ("--resume",), ("--force",), ("--resume", "--force"))
    for _, kind, chance in moments(DOUBLE_STARTS, 4):
        folder = bench.folder()
        first = bench.start(kind, folder, *chance.choice(choices))
        time.sleep(chance.choice((0, chance.uniform(0, 1.1 * bench.seconds[kind]))))
        second = bench.start(kind, folder, *chance.choice(choices))
        for ended in (bench.end(first), bench.end(second)):
            assert "Traceback" not in ended.err, ended.err
            assert ended.status in (0, 1, 2), ended
            if ended.status == 2:
                assert any(words in ended.err for words in REFUSALS), ended.err
                counts["refused"] += 1
            else:
                assert ended.status == 1 or "is finished already" in ended.err, ended.err
                counts["whole" if ended.status else "found it finished"] += 1
        counts[f"then {bench.finish(kind, folder)}"] += 1
        assert left_over(folder, bench.output(kind, folder)) in ([], [f"o.{kind[1]}.part"])
    show(capsys, "double starts", counts)
    assert counts["refused"] + counts["found it finished"] >= DOUBLE_STARTS // 2


# ---- what others do to the files while it runs


class Fed:
    """A run that reads standard input, a line a window, as slowly as the test gives it lines."""

    def __init__(self, bench: Bench, folder: Path, name: str, *flags, before: str = ""):
        self.bench, self.part, pipe = bench, folder / "o.jsonl.part", bench.base / f"pipe-{name}"
        os.mkfifo(pipe)
        self.writing = os.open(pipe, os.O_RDWR)  # so that neither side waits for the other
        self.child = bench.warm.start(bench.pack, "--output", folder / "o.jsonl", "--window", 1, *flags, stdin=pipe,
                                      before=before)

    def give(self, *lines: str, behind: int) -> None:
        """Lines, and wait until the part holds `behind` records."""
        os.write(self.writing, "".join(f"{line}\n" for line in lines).encode())
        until(lambda: self.part.exists() and self.part.read_text().count("\n") == behind)

    def end(self):
        """The end of its input, and of itself."""
        os.close(self.writing)
        return self.bench.end(self.child)


def until(true, seconds: float = 10) -> None:
    """Wait for a condition."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "it did not come"
        time.sleep(0.002)


def refused(ended) -> bool:
    """Whether it ended with status 2 and one sentence; fails for a traceback."""
    assert "Traceback" not in ended.err, ended.err
    return ended.status == 2 and ended.err.count("error: ") == 1


def test_a_part_that_was_deleted_and_begun_anew_is_not_taken_for_its_own(bench, tmp_path):
    """`rm o.jsonl.part` while a run is on, and a second run: the first must not give the second's part its name."""
    first = Fed(bench, tmp_path, "first")
    first.give("enak", "buruk", behind=2)
    (tmp_path / "o.jsonl.part").unlink()
    second = Fed(bench, tmp_path, "second", "--force")
    second.give("bagus", behind=1)
    ended = first.end()
    assert refused(ended) or (tmp_path / "o.jsonl").read_bytes().count(b"\n") == 2, (ended, os.listdir(tmp_path))
    second.give("lumayan", "jelek", behind=3)
    ended = second.end()
    assert refused(ended) or (ended.status == 0 and (tmp_path / "o.jsonl").read_bytes().count(b"\n") == 3), ended


@pytest.mark.parametrize("name", ["o.jsonl.part", "o.jsonl.part.json", "."])
def test_files_that_vanish_while_it_runs(bench, tmp_path, name):
    """The part, its notes, or the whole folder: one sentence, or the whole output."""
    folder = tmp_path / "out"
    folder.mkdir()
    run = Fed(bench, folder, f"vanish-{name}")
    run.give("enak", "buruk", behind=2)
    shutil.rmtree(folder) if name == "." else (folder / name).unlink()
    ended = run.end()
    assert refused(ended) or (ended.status == 0 and (folder / "o.jsonl").read_bytes().count(b"\n") == 2), ended


def test_an_output_that_appears_meanwhile_is_left_alone(bench, tmp_path):
    """Somebody else's file of the name: refused at the end, and the labels are not lost."""
    run = Fed(bench, tmp_path, "appears")
    run.give("enak", "buruk", behind=2)
    (tmp_path / "o.jsonl").write_text("mine")
    ended = run.end()
    assert refused(ended)
    assert "has appeared meanwhile" in ended.err
    assert (tmp_path / "o.jsonl").read_text() == "mine"
    assert (tmp_path / "o.jsonl.part").read_bytes().count(b"\n") == 2


SLOW_END = """
import os, time
replace = os.replace
def slow(source, target):
    replace(source, target)
    if str(target).endswith(".jsonl"):
        time.sleep(0.5)
os.replace = slow
"""


def test_two_that_replace_at_the_same_moment(bench, tmp_path):
    """--force twice, the second begun while the first clears away: both end, and neither takes the other's notes."""
    first = Fed(bench, tmp_path, "slow", "--force", before=SLOW_END)
    first.give("enak", behind=1)
    os.close(first.writing)
    until((tmp_path / "o.jsonl").exists)
    second = Fed(bench, tmp_path, "quick", "--force")
    second.give("bagus", "buruk", behind=2)
    ended = bench.end(first.child)
    assert refused(ended) or ended.status == 0, ended
    assert (tmp_path / "o.jsonl.part.json").exists(), "the notes of the second are gone"
    ended = second.end()
    assert ended.status == 0, ended
    assert (tmp_path / "o.jsonl").read_bytes().count(b"\n") == 2
    assert left_over(tmp_path, tmp_path / "o.jsonl") == []


SLOW_START = """
import os, time
opened = os.open
def slow(path, *a, **k):
    if str(path).endswith(".part"):
        open({went!r}, "w").close()
        while not os.path.exists({go!r}):
            time.sleep(0.002)
    return opened(path, *a, **k)
os.open = slow
"""


@pytest.mark.parametrize("flag", ["--resume", ""])
def test_one_that_starts_while_another_finishes(bench, tmp_path, flag):
    """It looked when there was no output yet, and opens its part when there is: it does not label all over again."""
    kind, folder = ("txt", "jsonl"), tmp_path / "out"
    folder.mkdir()
    went, go = tmp_path / "went", tmp_path / "go"
    child = bench.start(kind, folder, *([flag] if flag else []), before=SLOW_START.replace(
        "{went!r}", repr(str(went))).replace("{go!r}", repr(str(go))))
    until(went.exists)
    assert bench.end(bench.start(kind, folder)).status == 1
    go.touch()
    ended = bench.end(child)
    assert refused(ended) or ended.status == 0, ended
    assert "is finished already" in ended.err or "exists already" in ended.err, ended.err
    assert bench.output(kind, folder).read_bytes() == bench.whole[kind]
    assert not any(path.stat().st_size for path in folder.iterdir() if path.name.endswith(".part"))


def test_an_input_that_grew_is_gone_on_with_as_if_it_had_been_so(bench, tmp_path):
    """A gzip that broke off in mid-window, then fetched whole: --resume gives what an undisturbed run gives."""
    kind, folder = ("txt.gz", "jsonl"), tmp_path / "out"
    folder.mkdir()
    whole = bench.sources["txt.gz"].read_bytes()
    broken = tmp_path / "a.txt.gz"
    flags = ("--input", broken, "--batch-size", 5)
    broken.write_bytes(whole[: len(whole) // 2])
    ended = bench.end(bench.start(kind, folder, *flags))
    assert refused(ended), ended
    broken.write_bytes(whole)
    assert bench.end(bench.start(kind, folder, *flags, "--resume")).status == 1
    (folder / "o.jsonl").rename(tmp_path / "resumed.jsonl")
    assert bench.end(bench.start(kind, folder, *flags)).status == 1
    assert (folder / "o.jsonl").read_bytes() == (tmp_path / "resumed.jsonl").read_bytes()
