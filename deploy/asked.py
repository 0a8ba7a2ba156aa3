"""What a request asks for: its body within limits, its texts in the form that the model reads, or a refusal."""

import asyncio
import json
from typing import NamedTuple

from fastapi import Request

DROPPED = 64_000_000  # bytes of a body too large that are read and dropped, so that the client sees the answer
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


async def body_of(request: Request, limits: Limits) -> bytes:
    """The whole body; raises Problem where it is too large or comes too slowly."""
    most, size, parts = limits.body_bytes, 0, []
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "the body has a Content-Encoding: send it plain", connection="close")
    announced = int(request.headers.get("content-length") or 0)
    refused = announced > DROPPED or "expect" in request.headers and announced > most  # it waits for leave to send
    try:
        async with asyncio.timeout(limits.seconds):
            if not refused:
                async for part in request.stream():
                    size += len(part)
                    refused = size > most
                    parts = [] if refused else [*parts, part]
                    if size > DROPPED:
                        break
    except TimeoutError:
        raise Problem(408, f"the body did not come within {limits.seconds:g} s: send it at once",
                      connection="close") from None
    if refused:
        raise Problem(413, f"the body is longer than BODY_BYTES, {most} bytes: send fewer texts a request",
                      connection="close")
    return b"".join(parts)


def texts_of(body: bytes, limits: Limits, pairs: bool) -> list[tuple[str, ...]]:
    """The texts of a body, a tuple each of one or two strings; raises Problem."""
    try:
        asked = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8, at byte {error.start}") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None
    except ValueError as error:
        where = f", at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Problem(400, f'the body is no JSON{where}: send {{"texts": ["teksnya"]}}') from None
    wanted = "pairs, each a list of two strings" if pairs else "strings"
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
    if len(texts) > limits.texts:
        raise Problem(422, f"{len(texts)} texts are more than TEXTS, {limits.texts}: send several requests")
    return [_parts_of(place, text, limits.text_bytes, pairs) for place, text in enumerate(texts)]


def _parts_of(place: int, text, most: int, pairs: bool) -> tuple[str, ...]:
    parts = tuple(text) if pairs and isinstance(text, list) else (text,)
    if len(parts) != 1 + pairs or not all(isinstance(part, str) for part in parts):
        raise Problem(422, f"texts[{place}] must be "
                      + ("a list of two strings" if pairs else f"a string, not {KINDS[type(text)]}"))
    if any(4 * len(part) > most and len(part.encode("utf-8", "surrogatepass")) > most for part in parts):
        raise Problem(413, f"texts[{place}] is longer than TEXT_BYTES, {most} bytes: cut it")
    return parts
