"""What the benchmarks of a packed predictor share: predict.py as a process, its speed and its memory."""

import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path


def memory_mb(pid: int, key: str) -> float:
    """VmRSS or VmHWM of a process; 0 of one that has just ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), 0) * 1024 / 1e6


def predict(folder: Path, source: Path, target: Path) -> tuple[dict, list]:
    """(rows a second with start-up and without, shares of the time, as predict.py says; MB, peak MB every 0.5 s)."""
    started, seen = time.perf_counter(), []
    process = subprocess.Popen([sys.executable, folder / "predict.py", "--input", source, "--output", target,
                                "--force"], stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        seen.append((memory_mb(process.pid, "VmRSS"), memory_mb(process.pid, "VmHWM")))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    seen = [pair for pair in seen if pair[0]]
    said = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"predict.py ended with status {process.returncode}: {said}")
    rows, rate, shares = re.search(r"^(\d+) rows in [\d.]+ s, (\d+) rows/s: (.*)$", said, re.MULTILINE).groups()
    parts = {name.strip(): int(share) / 100 for name, share in re.findall(r"([a-z ]+?) (\d+) %", shares)}
    return {"rows": int(rows), "rows_per_second": int(rows) / (time.perf_counter() - started),
            "rows_per_second_loaded": int(rate), "shares": parts}, seen
