"""The HTTP service over a packed model: its paths, its refusals, its metrics. Texts are never logged.

An answer is the record that predict.py writes. A refusal is {"error": one sentence} with the status that fits.
"""
import asyncio
import hmac
import json
import sys
import time
import traceback
from typing import NamedTuple

import numpy as np
from fastapi import FastAPI, Request, Response
from pages import described, document, page_files
from packed import identity
from predictor import Predictor
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from records import Form
from rows import Row, row_of
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from waiting import Failed, Full, Gone, Late, Waiting

DROPPED = 64_000_000  # bytes of a body too large that are read and dropped, so that the client sees the answer
PAUSE = 0.1  # s before a client is told that the queue is full: one that asks again at once would slow the others
BUCKETS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)  # seconds
JSON = {"content-type": "application/json"}
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number",
         type(None): "null"}


class Limits(NamedTuple):
    """What a request may ask for; beyond it is a refusal."""

    texts: int  # a request
    text_bytes: int
    body_bytes: int
    seconds: float  # for the body, and again until the answer
    places: int  # texts that may wait


class Problem(Exception):
    """A refusal: status, one sentence, headers."""

    def __init__(self, status: int, sentence: str, **headers):
        super().__init__(sentence)
        self.status, self.headers = status, {name.replace("_", "-"): str(value) for name, value in headers.items()}


def say(text: str) -> None:
    """A line of the log, on standard error; whether somebody reads it changes nothing."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        pass


def refuse(problem: Problem) -> Response:
    return Response(json.dumps({"error": str(problem)}, ensure_ascii=False), problem.status, JSON | problem.headers)


def trace_of(error: BaseException) -> str:
    """Where an error was raised, without its message: that may hold a text."""
    error = error.__cause__ or error
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))


class Metrics:
    """What /metrics tells, in a registry of its own."""

    def __init__(self, waiting):
        """`waiting`: a function that returns how many texts wait."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.requests = Counter("lowbit_requests", "Requests to /predict that were answered", ["status"],
                                registry=registry)
        self.texts = Counter("lowbit_texts", "Texts of answered requests", registry=registry)
        self.errors = Counter("lowbit_text_errors", "Texts that were answered with an error", registry=registry)
        self.empty = Counter("lowbit_empty_texts", "Texts of which cleaning left nothing", registry=registry)
        self.labels = Counter("lowbit_labels", "Texts by the label they were given", ["label"], registry=registry)
        self.hung_up = Counter("lowbit_hang_ups", "Requests whose client left before the answer", registry=registry)
        self.seconds = Histogram("lowbit_request_seconds", "From the first byte of the body to the answer of a request "
                                 "that was labelled", buckets=BUCKETS, registry=registry)
        Gauge("lowbit_waiting_texts", "Texts that wait for the model", registry=registry).set_function(waiting)

    def expose(self) -> bytes:
        return generate_latest(self.registry)


class Service:
    """Requests to a Predictor, within limits; `key` (or "") is what a client must know."""

    def __init__(self, predictor: Predictor, threads: int, limits: Limits, key: str):
        self.predictor, self.limits, self.key = predictor, limits, key.encode()
        self.form, self.threads = Form("jsonl", predictor.labels, []), threads
        self.waiting: Waiting | None = None  # made by open(), on the event loop
        self.draining = False
        self.metrics = Metrics(lambda: len(self.waiting.queue) if self.waiting else 0)
        for label in predictor.labels or ():
            self.metrics.labels.labels(label)  # counted from 0
        self.pairs = len(predictor.texts) == 2

    def open(self) -> None:
        self.waiting = Waiting(self.predictor, self.threads, self.limits.places, self.limits.seconds)

    def check_key(self, request: Request) -> None:
        """Raises Problem unless no key is set, or the request has it."""
        if not self.key:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key):
            raise Problem(401, "the key is missing or wrong: send it as Authorization: Bearer KEY",
                          www_authenticate="Bearer")

    async def body(self, request: Request) -> bytes:
        """The whole body; raises Problem where it is too large or comes too slowly."""
        most, size, parts, refused = self.limits.body_bytes, 0, [], False
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "the body has a Content-Encoding: send it plain", connection="close")
        expected = int(request.headers.get("content-length") or 0)
        if "expect" in request.headers and expected > most:  # the client waits for leave to send
            refused = True
        try:
            async with asyncio.timeout(self.limits.seconds):
                if not refused:
                    async for part in request.stream():
                        size += len(part)
                        refused = size > most
                        parts = [] if refused else [*parts, part]
                        if size > DROPPED:
                            break
        except TimeoutError:
            raise Problem(408, f"the body did not come within {self.limits.seconds:g} s: send it at once",
                          connection="close") from None
        if refused:
            raise Problem(413, f"the body is longer than BODY_BYTES, {most} bytes: send fewer texts a request",
                          connection="close")
        return b"".join(parts)

    def texts(self, body: bytes) -> list:
        """The texts of a body; raises Problem."""
        try:
            asked = json.loads(body.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Problem(400, f"the body is not UTF-8, at byte {error.start}") from None
        except RecursionError:
            raise Problem(400, "the body is nested too deeply") from None
        except ValueError as error:
            where = f", at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
            raise Problem(400, f'the body is no JSON{where}: send {{"texts": ["teksnya"]}}') from None
        wanted = "pairs, each a list of two strings" if self.pairs else "strings"
        if not isinstance(asked, dict) or "texts" not in asked:
            kind = "an object without the key texts" if isinstance(asked, dict) else KINDS[type(asked)]
            raise Problem(422, f"the body is {kind}; it must be an object whose key texts is a list of {wanted}")
        if len(asked) > 1:
            raise Problem(422, "the body has keys beside texts: they would change nothing, leave them out")
        texts = asked["texts"]
        if not isinstance(texts, list):
            raise Problem(422, f"texts is {KINDS[type(texts)]}; it must be a list of {wanted}")
        if not texts:
            raise Problem(422, "texts is empty: send at least one")
        if len(texts) > self.limits.texts:
            raise Problem(422, f"{len(texts)} texts are more than TEXTS, {self.limits.texts}: send several requests")
        return [self.checked(place, text) for place, text in enumerate(texts)]

    def checked(self, place: int, text) -> tuple[str, ...]:
        """A text, or a pair, as a tuple; raises Problem for what is none, or is too long."""
        parts = tuple(text) if self.pairs and isinstance(text, list) else (text,)
        if len(parts) != len(self.predictor.texts) or not all(isinstance(part, str) for part in parts):
            raise Problem(422, f"texts[{place}] must be "
                          + ("a list of two strings" if self.pairs else f"a string, not {KINDS[type(text)]}"))
        most = self.limits.text_bytes
        if any(4 * len(part) > most and len(part.encode("utf-8", "surrogatepass")) > most for part in parts):
            raise Problem(413, f"texts[{place}] is longer than TEXT_BYTES, {most} bytes: cut it")
        return parts

    async def results(self, rows: list[Row], has_gone) -> list[str]:
        """A record of each row, as JSON; raises what Waiting raises."""
        found = await self.waiting.answers([row.text for row in rows if not row.error], has_gone)
        answers, lines = iter(found), []
        for number, row in enumerate(rows, 1):
            answer, empty = (None, False) if row.error else next(answers)
            if answer is not None and not np.isfinite(answer).all():
                answer, empty, row = None, False, row._replace(error="the model's answer is no number")
            lines.append(self.form.line(number, row, answer, empty))
            if answer is None:
                self.metrics.errors.inc()
            elif self.form.labels:
                self.metrics.labels.labels(self.form.kind_of(answer)).inc()
            if empty:
                self.metrics.empty.inc()
        self.metrics.texts.inc(len(rows))
        return lines

    async def predict(self, request: Request) -> Response:
        """The answer to a request, whatever it is."""
        started = time.perf_counter()
        try:
            self.check_key(request)
            if self.waiting.full():  # before the body is read: a refusal must cost little
                raise Full
            texts = self.texts(await self.body(request))
            rows = [row_of(parts, [], self.limits.text_bytes) for parts in texts]
            lines = await self.results(rows, request.is_disconnected)
            answer = Response(f'{{"results": [{", ".join(map(str.rstrip, lines))}]}}', 200, JSON)
            self.metrics.seconds.observe(time.perf_counter() - started)
        except Problem as problem:
            answer = refuse(problem)
        except Full:
            await asyncio.sleep(PAUSE)
            answer = refuse(Problem(429, f"{self.limits.places} texts may wait, and these are too many more: come again "
                                    "later", retry_after=self.waiting.retry_after()))
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


def application(service: Service) -> FastAPI:
    """The paths of a service."""
    manifest, predictor = service.predictor.manifest, service.predictor
    app = FastAPI(title=f"lowbit: {manifest.get('run', 'a packed model')}", version=identity(manifest), docs_url=None,
                  redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False)
    files = page_files(service)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        said = {404: "there is no such path: /docs lists them",
                405: "this path takes another method: /docs lists them"}
        return refuse(Problem(error.status_code, said.get(error.status_code, str(error.detail)), **{
            name.replace("-", "_"): value for name, value in (error.headers or {}).items()}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        say(f"error: {trace_of(error)}")
        return refuse(Problem(500, "an error of the server: the log says where"))

    @app.post("/predict", **described(predictor, service.limits))
    async def predict(request: Request) -> Response:
        return await service.predict(request)

    @app.get("/health", summary="The process lives")
    async def health() -> dict:
        return {"status": "ok"}

    @app.get("/ready", summary="It takes requests: the model's hash was checked, and it has labelled a text",
             responses={503: {"description": "it is ending, or a thread has died"}})
    async def ready() -> Response:
        if service.draining or not service.waiting.alive():
            return refuse(Problem(503, "not ready: it is ending" if service.draining else "not ready: a thread died",
                                  retry_after=1))
        return Response(json.dumps({"status": "ready", "model": identity(manifest), "run": manifest.get("run")}), 200,
                        JSON)

    @app.get("/metrics", summary="For Prometheus")
    async def metrics(request: Request) -> Response:
        try:
            service.check_key(request)
        except Problem as problem:
            return refuse(problem)
        return Response(service.metrics.expose(), 200, {"content-type": CONTENT_TYPE_LATEST})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return document(app.openapi())

    for path, (content, headers) in files.items():
        app.add_api_route(path, lambda content=content, headers=headers: Response(content, 200, headers),
                          include_in_schema=False)
    return app
