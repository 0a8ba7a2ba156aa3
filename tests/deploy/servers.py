"""A packed folder's serve.py as a process, in a Python that lacks what a server lacks, and plain requests to it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from stage_runs import ENVIRONMENT

# the server has none of these
WITHOUT = ("torch", "transformers", "lowbit", "Sastrawi", "sklearn", "onnx", "datasets", "scipy", "pandas", "tqdm")
BLOCKED = "import runpy, sys\nfor name in sys.argv.pop(1).split(','): sys.modules[name] = None\n" \
          "sys.argv.pop(0)\nsys.path.insert(0, sys.argv[0].rpartition('/')[0])\n" \
          "runpy.run_path(sys.argv[0], run_name='__main__')"
PATIENCE = 30  # s


def command(pack: Path, *flags) -> list[str]:
    return [sys.executable, "-c", BLOCKED, ",".join(WITHOUT), str(pack / "serve.py"), *map(str, flags)]


class Server:
    """`python serve.py --port 0 flags…`; ready when it is made."""

    def __init__(self, pack: Path, *flags, **environment):
        self.log = pack.parent / f"{pack.name}-{time.monotonic_ns()}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command(pack, "--port", 0, *flags), stderr=log, stdin=subprocess.DEVNULL,
                                            env=ENVIRONMENT | environment)
        self.port = 0
        deadline = time.monotonic() + PATIENCE
        while not self.port and time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"http://[\d.]+:(\d+)", self.said())
            self.port = int(found[1]) if found else 0
            time.sleep(0.01)
        assert self.port, self.said()
        while not self.is_ready():
            assert time.monotonic() < deadline, self.said()

    def said(self) -> str:
        return self.log.read_text()

    def is_ready(self) -> bool:
        try:
            return self.get("/ready")[0] == 200
        except OSError:
            return False

    def request(self, method: str, path: str, body=None, headers=None) -> tuple[int, dict, bytes]:
        """(status, headers in lower case, body)."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            client.request(method, path, body, headers or {})
            answer = client.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            client.close()

    def get(self, path: str, **headers) -> tuple[int, dict, bytes]:
        return self.request("GET", path, None, headers)

    def predict(self, texts: list, headers=None) -> tuple[int, dict, dict]:
        status, head, body = self.request("POST", "/predict", json.dumps({"texts": texts}).encode(), headers)
        return status, head, json.loads(body)

    def raw(self, content: bytes, wait: bool = True) -> bytes:
        """What comes back for these bytes until the server closes, or answers and waits."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as client:
            client.sendall(content)
            found = b""
            while wait and not _whole(found) and (part := client.recv(65536)):
                found += part
            return found

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics")[2].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.split(r"[ {]", line)[0] == name)

    def end(self, sent: int = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        if self.process.poll() is None:
            os.kill(self.process.pid, sent)
        return self.process.wait(PATIENCE)


def _whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(found and length and len(body) >= int(length[1]))
