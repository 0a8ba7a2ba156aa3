"""What the server shows to people: the page to type a text, and the paths with their forms. No host but this one."""

import html
import json
from pathlib import Path

from fastapi import Response

FOLDER = Path(__file__).with_name("page")
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".js": "text/javascript; charset=utf-8", ".json": "application/json"}
SAFE = {"content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
                                   "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}


def headers_of(name: str) -> dict[str, str]:
    return SAFE | {"content-type": TYPES[Path(name).suffix]}


def about(service) -> dict:
    """What the page must know of the model and the server."""
    manifest, predictor = service.predictor.manifest, service.predictor
    return {"texts": predictor.texts, "key": bool(service.key), "models": [{
        "run": manifest.get("run", "a packed model"), "precision": manifest.get("precision", ""),
        "bytes": manifest["files"][manifest["model"]].get("bytes")}]}


def page_files(service) -> dict[str, tuple[bytes, dict]]:
    """Path -> (content, headers) of the page, read once."""
    files = {f"/{path.name}": (path.read_bytes(), headers_of(path.name)) for path in sorted(FOLDER.iterdir())
             if path.suffix in TYPES}
    return {"/" if name == "/index.html" else name: file for name, file in files.items()} | {
        "/about.json": (json.dumps(about(service)).encode(), headers_of("about.json"))}


def described(predictor, limits) -> dict:
    """What OpenAPI says of /predict."""
    pairs = len(predictor.texts) == 2
    text = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2} if pairs else {"type": "string"}
    example = {"texts": [["teks satu", "teks dua"]] if pairs else ["Kamarnya bersih!"]}
    answer = {"label": {"type": "string", "enum": predictor.labels}, "probabilities": {
        "type": "object", "properties": {label: {"type": "number"} for label in predictor.labels}}
    } if predictor.labels else {"value": {"type": "number"}}
    record = {"type": "object", "required": ["row"], "properties": {
        "row": {"type": "integer", "description": "place of the text, from 1"}, **answer,
        "error": {"type": "string", "description": "why this text was not labelled"},
        "note": {"type": "string", "description": "why to look at it"}}}
    refusal = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}
    said = {400: "The body is no JSON", 401: "The key is missing or wrong", 408: "The body came too slowly",
            413: f"A text is longer than {limits.text_bytes} bytes, or the body than {limits.body_bytes}",
            415: "The body is compressed",
            422: f"The body has another form, or more than {limits.texts} texts",
            429: "Too many texts wait; Retry-After says for how many seconds", 500: "The model failed"}
    return {
        "summary": "Label texts", "description": "A record a text, in order, as predict.py writes it.",
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": {
            "type": "object", "required": ["texts"], "additionalProperties": False, "example": example,
            "properties": {"texts": {
                "type": "array", "minItems": 1, "maxItems": limits.texts, "items": text}}}}}}},
        "responses": {200: {"description": "A record of each text", "content": {"application/json": {"schema": {
            "type": "object", "properties": {"results": {"type": "array", "items": record}}}}}},
            **{status: {"description": words, "content": refusal} for status, words in said.items()}}}


def document(openapi: dict) -> Response:
    """The paths as a page of HTML."""
    title = html.escape(openapi["info"]["title"])
    parts = [f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: paths</title>'
             '<meta name="viewport" content="width=device-width, initial-scale=1">'
             '<link rel="icon" href="data:,">'
             f'<link rel="stylesheet" href="page.css"></head><body><main><h1>{title}</h1>'
             f'<p>Model {html.escape(openapi["info"]["version"])}. The same as <a href="openapi.json">OpenAPI</a>, for '
             'programs; <a href="./">the page</a>, for a text.</p>']
    for path, methods in openapi["paths"].items():
        for method, what in methods.items():
            parts.append(f'<h2><code>{method.upper()} {html.escape(path)}</code></h2>'
                         f'<p>{html.escape(what["summary"])}. {html.escape(what.get("description", ""))}</p>')
            if "requestBody" in what:
                schema = what["requestBody"]["content"]["application/json"]["schema"]
                call = f"curl ADDRESS{path} -d '{json.dumps(schema['example'], ensure_ascii=False)}'"
                parts.append(f"<p>For example</p>{_code(call)}<p>Body</p>{_code(schema)}")
            rows = "".join(f"<tr><td>{status}</td><td>{html.escape(answer['description'])}</td></tr>"
                           for status, answer in what["responses"].items())
            parts.append(f"<table><thead><tr><th>status</th><th>meaning</th></tr></thead><tbody>{rows}</tbody></table>")
            schema = what["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema")
            if schema and "properties" in schema:
                parts.append(f"<p>Answer</p>{_code(schema)}")
    return Response("".join([*parts, "</main></body></html>"]), 200, headers_of("docs.html"))


def _code(content: dict | str) -> str:
    """A box that a keyboard can scroll."""
    text = content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False)
    return f'<pre tabindex="0">{html.escape(text)}</pre>'
