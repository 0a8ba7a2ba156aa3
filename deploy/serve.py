"""Answer HTTP requests with a packed model: POST /predict, a page at /, the paths at /docs, /health, /ready, /metrics.

Needs    the folder that pack.py made, and pip install -r requirements-serve.txt
Serves   the records that predict.py writes; SERVE_KEY in the environment is a key that clients must send
Status   0 after SIGTERM or Ctrl-C, when every accepted request is answered; 2 if it could not start
"""
import asyncio
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: os._exit(0))  # while libraries load: nothing was accepted

import logging
import resource
import socket

from flags import settings_of
from packed import Refusal
from predictor import Predictor, cores

try:
    import uvicorn
    from asked import Limits
    from connections import Draining, protocol
    from service import Service, application, say
except ModuleNotFoundError as absent:
    print(f"error: {absent.name} is not installed: pip install -r requirements-serve.txt", file=sys.stderr)
    sys.exit(2)

# ---- settings: edit here, or for one run: --port 8080 ---------------------------------------------
MODEL_DIR = ""                  # folder that pack.py made; "" = where this script lies
HOST = "127.0.0.1"              # address to listen at; 0.0.0.0 = every one of this machine
PORT = 8000                     # 0 = any free one
THREADS = 0                     # batches that are computed at once, a core each; 0 = every core
TEXTS = 128                     # texts of a request
TEXT_BYTES = 20_000             # bytes of a text
BODY_BYTES = 1_000_000          # bytes of a request
QUEUE = 1024                    # texts that may wait for the model; beyond it requests are answered with 429
SECONDS = 10                    # s that a request's headers, its body, and its answer may each take
CONNECTIONS = 1000              # clients at a time; beyond it they are answered with 503
DRAIN_SECONDS = 30              # s that accepted requests have after SIGTERM
# --------------------------------------------------------------------------------------------------

LIMITS = {"PORT": (0, 65535), "THREADS": (0, max(64, 2 * (os.cpu_count() or 1))), "TEXTS": (1, 4096),
          "TEXT_BYTES": (1, 10_000_000), "BODY_BYTES": (1, 1_000_000_000), "QUEUE": (1, 1_000_000),
          "SECONDS": (1, 3600), "CONNECTIONS": (1, 100_000),
          "DRAIN_SECONDS": (1, 3600)}
WARM_UP = ("enak", "tidak " * 20, "bagus sekali " * 200)  # texts of several lengths
KEY = "SERVE_KEY"
SWITCH_SECONDS = 0.001  # after which a thread gives way: five times as often as usual, for a session to start sooner
SPARE_FILES = 64  # descriptors beside those of connections


def listening(host: str, port: int) -> socket.socket:
    """A bound socket; raises Refusal."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        why = os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror  # a look-up's are below 0
        raise Refusal(f"HOST {host} PORT {port} cannot be listened at ({why}): name others with "
                      "--host and --port, or stop what listens there") from None


def allow_files(connections: int) -> None:
    """Let this process open a file a connection; raises Refusal where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise Refusal(f"CONNECTIONS is {connections}, but this process may open {hard} files: lower it, or raise the "
                      "limit (ulimit -n)")
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def warm(predictor: Predictor) -> None:
    """Label some texts, for the first one of a client to be as fast as the next."""
    for text in WARM_UP:
        for size in {1, min(predictor.batch_size, 8)}:
            predictor.answers([text if len(predictor.texts) == 1 else (text, text)] * size)


async def serve(server, service, listener: socket.socket) -> None:
    """Until a signal."""
    service.open()
    host, port = listener.getsockname()[:2]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    say(f"serving {service.predictor.manifest.get('run', 'a packed model')} at {where}, the paths at {where}/docs")
    await server.serve(sockets=[listener])
    await service.waiting.close()


def main(argv: list[str]) -> int:
    s, words = settings_of(globals(), argv, LIMITS, "no texts: clients send them")
    if words:
        raise Refusal(f"{words[0]!r} is no flag; see --help")
    if s["QUEUE"] < s["TEXTS"]:
        raise Refusal(f"QUEUE is {s['QUEUE']}, less than TEXTS, {s['TEXTS']}: a request with that many could never be "
                      "answered")
    key = os.environ.get(KEY)
    if key is not None and not key.strip().isascii() or key is not None and not key.strip():
        raise Refusal(f"{KEY} is empty or not ASCII: give it a value, or unset it to serve without a key")
    allow_files(s["CONNECTIONS"])
    folder = Path(s["MODEL_DIR"]) if s["MODEL_DIR"] else Path(__file__).resolve().parent
    predictor = Predictor(folder, 1)
    limits = Limits(s["TEXTS"], s["TEXT_BYTES"], s["BODY_BYTES"], s["SECONDS"], s["QUEUE"])
    service = Service(predictor, s["THREADS"] or cores(), limits, (key or "").strip())
    warm(predictor)
    listener = listening(s["HOST"], s["PORT"])

    def end():
        if not service.draining:
            say("ending: requests that were accepted are answered")
        service.draining = True

    sys.setswitchinterval(SWITCH_SECONDS)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # its tracebacks could hold a text
    config = uvicorn.Config(application(service), http=protocol(s["CONNECTIONS"], s["SECONDS"]), ws="none",
                            lifespan="off", log_config=None, access_log=False, proxy_headers=False,
                            server_header=False, timeout_graceful_shutdown=s["DRAIN_SECONDS"])
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(serve(Draining(config, end), service, listener))
    return 0


def status_of(argv: list[str]) -> int:
    """main() with a sentence for what is the user's to mend."""
    try:
        return main(argv)
    except Refusal as refusal:
        say(f"error: {refusal}")
    return 2


if __name__ == "__main__":
    sys.exit(status_of(sys.argv[1:]))
