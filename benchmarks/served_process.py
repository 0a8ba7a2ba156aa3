"""What the benchmarks of the server share: serve.py of a packed folder as a process, and requests to it."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = 60  # s


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """(status, body) of one request on a connection of its own."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        client.request(method, path, body)
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


def label(port: int, texts: list[str]) -> list[dict]:
    """The records of the texts; raises RuntimeError for a refusal."""
    status, body = ask(port, "POST", "/predict", json.dumps({"texts": texts}).encode())
    if status != 200:
        raise RuntimeError(f"the server answered {status}: {body.decode()}")
    return json.loads(body)["results"]


@contextlib.contextmanager
def serving(folder: Path, *flags):
    """(process, port, seconds from the start until /ready) of serve.py on a free port; ended by SIGTERM."""
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, folder / "serve.py", "--port", "0", *map(str, flags)], stderr=log)
        try:
            port = None
            while port is None:
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    log.seek(0)
                    raise RuntimeError(f"serve.py of {folder} did not start: {log.read()}")
                time.sleep(0.01)
                log.seek(0)
                found = re.search(r"http://[\d.]+:(\d+)", log.read())
                port = int(found[1]) if found else None
            while True:
                with contextlib.suppress(OSError):
                    if ask(port, "GET", "/ready")[0] == 200:
                        break
            yield process, port, time.perf_counter() - started
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
            process.wait(PATIENCE)
