"""Benchmark: the server under load by wrk and hey, INT8 beside FP32 in turns, beside the bare session; memory.

Reads   models/<RUN>/, DIST/<RUN>/ (deploy/pack.py), DATA_DIR/test.tsv: its texts, in turn
Writes  results/serve_load.json
Needs   wrk, hey, pip install -r requirements-serve.txt

The bare session gets the same texts ready-made: as many at a time as a request holds, and sorted into batches of 1,024
tokens; with every core on one batch or with a batch a core, whichever is faster. The load client runs on the same cores
as the server, except beyond the capacity: there it has a core of its own, so that asking does not take away what is
asked for. CPU time is that of the process, threads that only wait for work included.
"""
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from load_client import at_rate, closed_loop, require
from packed_process import memory_mb
from served_process import label, serving

from lowbit.data.tsv import read_tsv
from lowbit.pipeline.files import ROOT, resolve, run_dir, sha256, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import recorded, shipped
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --run sample-learned ------------------------------------
RUN = "sample-learned"          # run under models/, packed in DIST
DIST = "dist"                   # folder that packed runs lie in
DATA_DIR = "data"               # folder of test.tsv
TEXTS = "1,16"                  # texts of a request, with commas
CLIENTS = "1,8,64"              # connections at a time, with commas
SECONDS = 5                     # s that each load lasts
ROUNDS = 3                      # turns that INT8 and FP32 take; 0 = none
REQUESTS = 200_000              # of one text each, over which memory is watched; 0 = not watched
OVERLOAD = 2.0                  # times the capacity, in requests a second; 0 = not measured
# --------------------------------------------------------------------------------------------------

BARE = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, sys.argv[1])
from predictor import Predictor, cores
texts, found = json.load(open(sys.argv[2])), {}
for threads, at_once in ((cores(), 1), (1, cores())):
    model = Predictor(sys.argv[1], threads)
    rows = model.encodings([model.clean(text) for text in texts])
    made = {f"{size} at a time": [model.batch(sorted(rows[i : i + size], key=lambda row: len(row.ids)))
                                  for i in range(0, len(rows), size)] for size in map(int, sys.argv[3].split(","))}
    made["sorted"] = [model.batch([rows[i] for i in group]) for group in model.groups([len(row.ids) for row in rows])]
    with ThreadPoolExecutor(at_once) as pool:
        for name, batches in made.items():
            run = lambda inputs: model.session.run(["logits"], inputs)
            list(pool.map(run, batches[:20]))
            started, spent, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - started < float(sys.argv[4]):
                list(pool.map(run, batches))
                count += len(rows)
            rate = count / (time.perf_counter() - started)
            before = found.get(name, {"texts_per_second": 0, "cpu_ms_a_text": float("inf")})
            found[name] = {"texts_per_second": max(rate, before["texts_per_second"]), "cpu_ms_a_text": min(
                1e3 * (time.process_time() - spent) / count, before["cpu_ms_a_text"])}
    del model
print(json.dumps(found))
"""


def fp32_folder(packed: Path, scratch: Path) -> Path:
    """The packed folder with the FP32 graph that its file was made of."""
    folder, target = run_dir(RUN), scratch / "fp32"
    source = recorded(folder, shipped(folder)["stages"]["export"], "model_qat.onnx")[0]
    shutil.copytree(packed, target)
    manifest = json.loads((target / "manifest.json").read_text())
    shutil.copyfile(source, target / manifest["model"])
    manifest["files"][manifest["model"]] = {"bytes": source.stat().st_size, "sha256": sha256(source)}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def take_turn(name: str, folder: Path, texts: list[str], scratch: Path) -> dict:
    """The bare session, then the server with every number of texts and clients."""
    (scratch / "texts.json").write_text(json.dumps(texts))
    done = subprocess.run([sys.executable, "-c", BARE, folder, scratch / "texts.json", TEXTS, str(SECONDS / 2)],
                          check=True, stdout=subprocess.PIPE, text=True)
    bare, loads = json.loads(done.stdout), []
    print(f"  {name}: bare session, texts/s: " + ", ".join(
        f"{key} {value['texts_per_second']:.0f} ({value['cpu_ms_a_text']:.3f} CPU ms a text)"
        for key, value in bare.items()), flush=True)
    with serving(folder) as (process, port, ready):
        used = psutil.Process(process.pid)
        for size in map(int, TEXTS.split(",")):
            for clients in map(int, CLIENTS.split(",")):
                before = sum(used.cpu_times()[:2])
                load = closed_loop(f"http://127.0.0.1:{port}/predict", scratch / f"{size}.txt", clients, SECONDS)
                load |= {"texts": size, "texts_per_second": size * (load["requests"] - load["refused"])
                         / load["requests"] * load["requests_per_second"]}
                same = bare[f"{size} at a time"]
                load["cpu_ms_a_text"] = 1e3 * (sum(used.cpu_times()[:2]) - before) / (
                    size * (load["requests"] - load["refused"]))
                load["of_bare"] = load["texts_per_second"] / same["texts_per_second"]
                load["of_bare_by_cpu"] = same["cpu_ms_a_text"] / load["cpu_ms_a_text"]
                loads.append(load)
                print(f"  {name}: {size:2} texts, {clients:2} clients: {load['requests_per_second']:.0f} requests/s, "
                      f"p50 {load['p50_ms']:.1f}, p95 {load['p95_ms']:.1f}, p99 {load['p99_ms']:.1f} ms, "
                      f"{load['refused']} refused; {load['texts_per_second']:.0f} texts/s, {load['of_bare']:.2f}x bare "
                      f"({load['cpu_ms_a_text']:.3f} CPU ms a text, {load['of_bare_by_cpu']:.2f}x)",
                      flush=True)
    return {"bare": bare, "loads": loads, "ready_s": ready}


@contextlib.contextmanager
def on_cores(cores: list[int]):
    """This process on these cores alone for a while, and for good the processes that it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def overload(folder: Path, texts: list[str], scratch: Path) -> dict:
    """At its capacity by one body, by wrk, and at OVERLOAD times of it, by hey; the two on different cores."""
    size = max(map(int, TEXTS.split(",")))
    body = scratch / "body.json"
    body.write_text(json.dumps({"texts": texts[:size]}))
    clients = 1024 // size  # as many as fill the queue
    *servers, last = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as held:
        with on_cores(servers or [last]):
            _, port, _ = held.enter_context(serving(folder))
        held.enter_context(on_cores([last]))
        url = f"http://127.0.0.1:{port}/predict"
        wanted = label(port, texts[:size])
        capacity = closed_loop(url, body, clients, SECONDS)
        found = at_rate(url, body, 4 * clients, OVERLOAD * capacity["requests_per_second"], 2 * SECONDS)
        if label(port, texts[:size]) != wanted:
            raise RuntimeError("the server labels otherwise after the load")
    print(f"  {size} texts at capacity: {capacity['requests_per_second']:.0f} requests/s, p99 {capacity['p99_ms']:.0f} "
          f"ms; asked for {found['asked_per_second']:.0f}/s: {found['accepted_per_second']:.0f}/s accepted, p99 "
          f"{found['p99_ms']:.0f} ms, {found['answered_429']} answered 429, {found['others']} otherwise", flush=True)
    return {"texts": size, "capacity": capacity, "overload": found}


def memory(folder: Path, scratch: Path) -> dict:
    """Resident MB of the server as it answers REQUESTS requests of one text."""
    seen, count = [], 0
    with serving(folder) as (process, port, _):
        started = time.perf_counter()
        while count < REQUESTS:
            count += closed_loop(f"http://127.0.0.1:{port}/predict", scratch / "1.txt", 64, SECONDS)["requests"]
            seen.append((count, memory_mb(process.pid, "VmRSS")))
        seconds, peak = time.perf_counter() - started, memory_mb(process.pid, "VmHWM")
    tenth = next(mb for done, mb in seen if done >= REQUESTS / 10)
    print(f"  memory: {tenth:.1f} MB after {REQUESTS // 10} requests, {seen[-1][1]:.1f} MB after {count}, {peak:.1f} "
          f"MB at most; {count / seconds:.0f} requests/s")
    return {"requests": count, "after_a_tenth_mb": tenth, "at_the_end_mb": seen[-1][1], "peak_mb": peak, "seen": seen}


def main(settings):
    require()
    texts = read_tsv(resolve(DATA_DIR) / "test.tsv")[0]
    packed, turns = resolve(DIST) / RUN, {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for size in {1, *map(int, TEXTS.split(","))}:
            parts = [[texts[(i * size + k) % len(texts)] for k in range(size)] for i in range(len(texts))]
            (scratch / f"{size}.txt").write_text("".join(json.dumps({"texts": part}) + "\n" for part in parts))
        files = {shipped(run_dir(RUN))["precision"]: packed, "fp32": fp32_folder(packed, scratch)}
        for _ in range(ROUNDS):
            for name, place in files.items():
                turns.setdefault(name, []).append(take_turn(name, place, texts, scratch))
        beyond = {name: overload(place, texts, scratch) for name, place in files.items()} if OVERLOAD else {}
        watched = memory(packed, scratch) if REQUESTS else None
    for name, taken in turns.items():
        print(f"  {name}, medians of {ROUNDS} turns; ready in {statistics.median(t['ready_s'] for t in taken):.2f} s")
        for same in zip(*(turn["loads"] for turn in taken), strict=True):
            middle = {key: statistics.median(load[key] for load in same) for key in same[0]}
            print(f"    {middle['texts']:.0f} texts, {middle['clients']:.0f} clients: "
                  f"{middle['requests_per_second']:.0f} requests/s, p50 {middle['p50_ms']:.1f}, p95 "
                  f"{middle['p95_ms']:.1f}, p99 {middle['p99_ms']:.1f} ms, {middle['of_bare']:.2f}x bare, "
                  f"{middle['of_bare_by_cpu']:.2f}x by CPU time")
    out = ROOT / "results" / "serve_load.json"
    write_json(out, {"machine": machine(), "versions": versions(), "settings": settings, "turns": turns,
                     "overload": beyond, "memory": watched})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
