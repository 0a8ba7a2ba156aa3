"""The HTTP service over a packed model: its paths and its refusals. Texts are never logged.

An answer is the record that predict.py writes. A refusal is {"error": one sentence} with the status that fits.
"""
import asyncio
import contextlib
import hmac
import json
import sys
import time
import traceback

import numpy as np
from asked import Limits, Problem, body_of, texts_of
from fastapi import FastAPI, Request, Response
from metrics import Metrics
from packed import identity
from pages import described, document, page_files
from predictor import Predictor
from prometheus_client import CONTENT_TYPE_LATEST
from records import Form
from rows import Row, row_of
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from waiting import Failed, Full, Gone, Late, Waiting

PAUSE = 0.1  # s before a client is told that the queue is full: one that asks again at once would slow the others
JSON = {"content-type": "application/json"}
NO_PATH = {404: "there is no such path: /docs lists them", 405: "this path takes another method: /docs lists them"}


def say(text: str) -> None:
    """A line of the log, on standard error; whether somebody reads it changes nothing."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


def refuse(problem: Problem) -> Response:
    return Response(json.dumps({"error": str(problem)}, ensure_ascii=False), problem.status, JSON | problem.headers)


def trace_of(error: BaseException) -> str:
    """Where an error was raised, without its message: that may hold a text."""
    error = error.__cause__ or error
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))


class Service:
    """Requests to a Predictor, within limits; `key` (or "") is what a client must know."""

    def __init__(self, predictor: Predictor, threads: int, limits: Limits, key: str):
        self.predictor, self.limits, self.key = predictor, limits, key.encode()
        self.form, self.threads = Form("jsonl", predictor.labels, []), threads
        self.waiting: Waiting | None = None
        self.draining = False
        self.metrics = Metrics(predictor.labels, lambda: len(self.waiting.queue))

    def open(self) -> None:
        """Start the threads, on the event loop."""
        self.waiting = Waiting(self.predictor, self.threads, self.limits.places, self.limits.seconds)

    def check_key(self, request: Request) -> None:
        """Raises Problem unless no key is set, or the request has it."""
        if not self.key:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key):
            raise Problem(401, "the key is missing or wrong: send it as Authorization: Bearer KEY",
                          www_authenticate="Bearer")

    async def records(self, rows: list[Row], has_gone) -> str:
        """A record of each row, as JSON with commas between; raises what Waiting raises."""
        found = await self.waiting.answers([row.text for row in rows if not row.error], has_gone)
        answers, lines, counted = iter(found), [], self.metrics
        for number, row in enumerate(rows, 1):
            answer, empty = (None, False) if row.error else next(answers)
            if answer is not None and not np.isfinite(answer).all():
                answer, empty, row = None, False, row._replace(error="the model's answer is no number")
            lines.append(self.form.line(number, row, answer, empty).rstrip())
            if answer is None:
                counted.errors.inc()
            elif self.form.labels:
                counted.of_label[self.form.kind_of(answer)].inc()
            if empty:
                counted.empty.inc()
        counted.texts.inc(len(rows))
        return ", ".join(lines)

    async def labelled(self, request: Request) -> Response:
        """The answer to a good request; raises Problem, and what Waiting raises."""
        started = time.perf_counter()
        self.check_key(request)
        if self.waiting.full():  # before the body is read: a refusal must cost little
            raise Full
        texts = texts_of(await body_of(request, self.limits), self.limits, len(self.predictor.texts) == 2)
        rows = [row_of(parts, [], self.limits.text_bytes) for parts in texts]
        answer = Response(f'{{"results": [{await self.records(rows, request.is_disconnected)}]}}', 200, JSON)
        self.metrics.seconds.observe(time.perf_counter() - started)
        return answer

    async def predict(self, request: Request) -> Response:
        """The answer to a request, whatever it is."""
        try:
            answer = await self.labelled(request)
        except Problem as problem:
            answer = refuse(problem)
        except Full:
            await asyncio.sleep(PAUSE)
            answer = refuse(Problem(429, f"{self.limits.places} texts may wait, and these are too many more: come "
                                    "again later", retry_after=self.waiting.retry_after()))
        except Late:
            answer = refuse(Problem(429, f"not answered within {self.limits.seconds:g} s: come again later",
                                    retry_after=self.waiting.retry_after()))
        except (Gone, ClientDisconnect):
            self.metrics.hung_up.inc()
            return Response(status_code=499)  # nobody reads it
        except Failed as error:
            say(f"error: the model failed: {trace_of(error)}")
            answer = refuse(Problem(500, "the model failed on this request: the log says where"))
        self.metrics.requests.labels(answer.status_code).inc()
        return answer

    async def ready(self) -> Response:
        """Whether it takes requests."""
        if self.draining or not self.waiting.alive():
            return refuse(Problem(503, "not ready: it is ending" if self.draining else "not ready: a thread has died",
                                  retry_after=1))
        manifest = self.predictor.manifest
        return Response(json.dumps({"status": "ready", "model": identity(manifest), "run": manifest.get("run")}), 200,
                        JSON)

    async def exposed(self, request: Request) -> Response:
        """The metrics, to who has the key."""
        try:
            self.check_key(request)
        except Problem as problem:
            return refuse(problem)
        return Response(self.metrics.expose(), 200, {"content-type": CONTENT_TYPE_LATEST})


async def no_path(request: Request, error: HTTPException) -> Response:
    headers = {name.replace("-", "_"): value for name, value in (error.headers or {}).items()}
    return refuse(Problem(error.status_code, NO_PATH.get(error.status_code, str(error.detail)), **headers))


async def failed(request: Request, error: Exception) -> Response:
    say(f"error: {trace_of(error)}")
    return refuse(Problem(500, "an error of the server: the log says where"))


def shown(content: bytes, headers: dict):
    """A route that answers with a file."""
    async def show(request: Request) -> Response:
        return Response(content, 200, headers)
    return show


def application(service: Service) -> FastAPI:
    """The paths of a service."""
    predictor = service.predictor
    app = FastAPI(title=f"lowbit: {predictor.manifest.get('run', 'a packed model')}",
                  version=identity(predictor.manifest), docs_url=None, redoc_url=None, redirect_slashes=False,
                  exception_handlers={HTTPException: no_path, Exception: failed})

    @app.post("/predict", **described(predictor, service.limits))
    async def predict(request: Request) -> Response:
        return await service.predict(request)

    @app.get("/health", summary="The process lives")
    async def health() -> dict:
        return {"status": "ok"}

    @app.get("/ready", summary="It takes requests: the model's hash was checked, and it has labelled texts",
             responses={503: {"description": "It is ending, or a thread has died"}})
    async def ready() -> Response:
        return await service.ready()

    @app.get("/metrics", summary="For Prometheus", responses={401: {"description": "The key is missing or wrong"}})
    async def metrics(request: Request) -> Response:
        return await service.exposed(request)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return document(app.openapi())

    for path, file in page_files(service).items():
        app.add_route(path, shown(*file))
    return app
