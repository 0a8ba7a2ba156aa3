"""Load on an HTTP server by programs that this project did not write: wrk (closed loop) and hey (at a rate)."""

import csv
import io
import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

from lowbit.pipeline.settings import check

PARTS = 16  # processes of hey
# wrk sends the lines of a file in turn, and tells what it saw as JSON; latencies are in microseconds
LUA = """
local bodies, at = {}, 0
init = function(arguments)
  for line in io.lines(arguments[1]) do bodies[#bodies + 1] = line end
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end
request = function()
  at = at % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[at])
end
done = function(summary, latency, requests)
  local broken = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('\\n{"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50": %d, ' ..
    '"p95": %d, "p99": %d}\\n', summary.requests, summary.duration, summary.errors.status, broken,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""


def require() -> None:
    """Raises UserError without the two programs."""
    absent = [name for name in ("wrk", "hey") if not shutil.which(name)]
    check(not absent, f"{' and '.join(absent)} not found: on Debian, apt-get install wrk hey")


def closed_loop(url: str, bodies: Path, clients: int, seconds: int) -> dict:
    """What wrk saw of `clients` connections that each send the next body as soon as they are answered."""
    script = bodies.with_name("wrk.lua")
    script.write_text(LUA)
    done = subprocess.run(["wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{seconds}s",
                           "--timeout", "30s", "--script", script, url, "--", bodies], check=True,
                          capture_output=True, text=True)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return {"clients": clients, "requests": said["requests"], "refused": said["refused"], "broken": said["broken"],
            "requests_per_second": said["requests"] / said["microseconds"] * 1e6,
            **{f"{key}_ms": said[key] / 1e3 for key in ("p50", "p95", "p99")}}


def at_rate(url: str, body: Path, clients: int, rate: float, seconds: int) -> dict:
    """What hey saw of about `clients` at `rate` requests a second: how many of each status, latencies of those of 200.

    All connections of one hey send at the same moment and then none of them: so PARTS of it share the time between.
    """
    each = max(1, clients // PARTS)
    clients = each * PARTS
    command = ["hey", "-z", f"{seconds}s", "-c", str(each), "-q", f"{rate / clients:.6f}", "-t", "30", "-m", "POST",
               "-T", "application/json", "-D", body, "-o", "csv", url]
    running = []
    for _ in range(PARTS):
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        time.sleep(clients / rate / PARTS)
    said = [process.communicate()[0] for process in running]
    check(not any(process.returncode for process in running), "hey ended with an error: what it said stands above")
    rows = [row for part in said for row in csv.DictReader(io.StringIO(part))]
    statuses = [row["status-code"] for row in rows]
    accepted = [float(row["response-time"]) * 1e3 for row in rows if row["status-code"] == "200"]
    percentiles = np.percentile(accepted, (50, 95, 99)).tolist() if accepted else [None] * 3
    return {"clients": clients, "asked_per_second": rate, "sent_per_second": len(rows) / seconds,
            "answered_200": len(accepted), "answered_429": statuses.count("429"),
            "others": len(rows) - len(accepted) - statuses.count("429"), "accepted_per_second": len(accepted) / seconds,
            **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True))}
