"""The HTTP server: answers as predict.py writes them, limits, a queue that does not grow, an end that loses nothing."""

import json
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import SAMPLE, read_plain_rows
from packs import NO_NUMBER, Warm, make_pack
from servers import PATIENCE, WITHOUT, Server, command
from stage_runs import ENVIRONMENT

pytest.importorskip("fastapi", reason="pip install -r requirements-serve.txt")
LIMITS = ("--texts", 8, "--text-bytes", 2000, "--body-bytes", 50_000, "--seconds", 2, "--queue", 64)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A packed folder whose answers do not depend on batch-mates, with the whole cleaning."""
    return make_pack(tmp_path_factory.mktemp("served") / "pack", "negation-safe")


@pytest.fixture(scope="module")
def server(pack):
    """A server with small limits."""
    made = Server(pack, *LIMITS)
    yield made
    assert made.end() == 0
    assert "Traceback" not in made.said()


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    warm = Warm(tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def texts():
    return [text for text, _ in read_plain_rows("test", SAMPLE)][:64]


def records(predict, pack, tmp_path, texts) -> list[dict]:
    """What predict.py says of the texts, without the place of the row."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = predict(pack, "--input", tmp_path / "a.jsonl", "--text-bytes", 2000)
    return [json.loads(line) | {"row": 0} for line in done.out.splitlines()]


HOSTILE_TEXTS = ["", " \u00a0 ", "en\0ak", "\ud800 enak", "!!!", "😀👩‍👩‍👧", "a" * 2000, "\u202eenak\u202c",
                 f"{NO_NUMBER} enak", "<script>alert(1)</script>", "\\u0000", "ﷺ", "yang di dan", "[SEP] [MASK]"]


@pytest.mark.parametrize("batch_size", (1, 128))
def test_answers_are_predicts_own(predict, tmp_path, texts, batch_size):
    """Records in order, errors and notes included, from sixteen clients at a time, whatever they are computed with."""
    pack = make_pack(tmp_path / "pack", "negation-safe", batch_size=batch_size)
    asked = texts + HOSTILE_TEXTS
    server = Server(pack, "--text-bytes", 2000)
    sizes = [1, 3, 2, 5, 1, 8]
    parts, at = [], 0
    while at < len(asked):
        parts.append(asked[at : at + sizes[len(parts) % len(sizes)]])
        at += len(parts[-1])
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(server.predict, parts))
    assert [status for status, _, _ in found] == [200] * len(parts)
    for part, (_, _, answer) in zip(parts, found, strict=True):
        assert [record["row"] for record in answer["results"]] == list(range(1, len(part) + 1))
    served = [record | {"row": 0} for _, _, answer in found for record in answer["results"]]
    for record, wanted in zip(served, records(predict, pack, tmp_path, asked), strict=True):
        assert record.pop("probabilities", {}) == pytest.approx(wanted.pop("probabilities", {}), abs=1e-5)
        assert record == wanted  # label, error, note
    assert server.end() == 0


def test_texts_are_computed_together_only_where_that_moves_no_answer(pack, tmp_path):
    """By the batches that the session gets, while many wait."""
    script = """
import asyncio, sys, time
sys.path.insert(0, sys.argv[1])
from predictor import Predictor
from waiting import Waiting
predictor, sizes = Predictor(sys.argv[1], 1), []
run = predictor.session.run
class Session:
    def run(self, names, inputs):
        sizes.append(len(inputs["input_ids"]))
        time.sleep(0.05)  # so that others come while it computes
        return run(names, inputs)
predictor.session = Session()
async def never(): return False
async def main():
    waiting = Waiting(predictor, 1, 100, 30)
    await asyncio.gather(*(waiting.answers([f"enak {i}"], never) for i in range(9)))
    await waiting.close()
asyncio.run(main())
print(max(sizes))
"""
    for size, wanted in ((128, range(5, 10)), (1, (1,))):
        folder = make_pack(tmp_path / str(size), batch_size=size)
        done = subprocess.run([command(pack)[0], "-c", script, folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) in wanted


def test_pairs_and_numbers(predict, tmp_path):
    """A model that reads two texts and gives a number."""
    folder = make_pack(tmp_path / "pairs", texts=("a", "b"), labels=None)
    server = Server(folder)
    status, _, answer = server.predict([["enak", "lezat"], ["enak", ""]])
    assert status == 200
    assert answer["results"][0]["value"] == json.loads(predict(folder, "enak", "lezat").out)["value"]
    assert answer["results"][1] == {"row": 2, "error": "has an empty text"}
    for wrong in ("enak", ["enak"], ["a", "b", "c"], ["a", 1]):
        status, _, answer = server.predict([["a", "b"], wrong])
        assert (status, answer) == (422, {"error": "texts[1] must be a list of two strings"})
    assert server.end() == 0


def test_what_is_told_of_itself(server, pack):
    """Health, readiness, metrics, OpenAPI, the page and the paths, with no host but its own."""
    assert server.get("/health")[0] == 200
    ready = json.loads(server.get("/ready")[2])
    assert ready["status"] == "ready"
    before = server.metric("lowbit_texts_total")
    server.predict(["enak", "", "!!!"])
    assert server.metric("lowbit_texts_total") == before + 3
    assert server.metric("lowbit_text_errors_total") >= 1
    assert server.metric("lowbit_empty_texts_total") >= 1
    assert server.metric("lowbit_labels_total") >= 2
    assert server.metric("lowbit_request_seconds_count") >= 1
    assert server.metric("lowbit_waiting_texts") == 0
    assert server.metric("process_resident_memory_bytes") > 1e6
    paths = json.loads(server.get("/openapi.json")[2])["paths"]
    assert set(paths) == {"/predict", "/health", "/ready", "/metrics"}
    for path in ("/", "/docs", "/page.css", "/page.js", "/ask.js", "/about.json"):
        status, headers, body = server.get(path)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"http://" not in body and b"https://" not in body and b'"//' not in body
        assert server.get(f"{path}?content=%3Cb%3E&headers=a&request=b")[1:] == (headers, body)


JSON = {"Content-Type": "application/json"}
POST = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
HOSTILE = {  # name -> (method, path, body, headers), status, part of the sentence
    "no body": (("POST", "/predict", b"", {}), 400, "no JSON"),
    "not JSON": (("POST", "/predict", b"enak", {}), 400, "no JSON"),
    "broken JSON": (("POST", "/predict", b'{"texts": ["enak"', JSON), 400, "at character"),
    "two bodies": (("POST", "/predict", b'{"texts": ["a"]}{"texts": ["a"]}', JSON), 400, "no JSON"),
    "a form": (("POST", "/predict", b"texts=enak", {"Content-Type": "application/x-www-form-urlencoded"}), 400,
               "no JSON"),
    "not UTF-8": (("POST", "/predict", b'{"texts": ["caf\xe9"]}', JSON), 400, "not UTF-8, at byte 15"),
    "UTF-16": (("POST", "/predict", '{"texts": ["a"]}'.encode("utf-16"), JSON), 400, "UTF-8"),
    "byte order mark": (("POST", "/predict", b'\xef\xbb\xbf{"texts": ["a"]}', JSON), 400, "no JSON"),
    "NUL": (("POST", "/predict", b"\0\0\0\0", JSON), 400, "no JSON"),
    "NUL in a string": (("POST", "/predict", b'{"texts": ["a\0b"]}', JSON), 400, "no JSON"),
    "nested deeply": (("POST", "/predict", b"[" * 40_000, JSON), 400, "nested"),
    "a number of many digits": (("POST", "/predict", b'{"texts": ' + b"9" * 9000 + b"}", JSON), 400, "no JSON"),
    "a list": (("POST", "/predict", b'["enak"]', JSON), 422, "a list; it must be an object"),
    "a string": (("POST", "/predict", b'"enak"', JSON), 422, "a string; it must be an object"),
    "null": (("POST", "/predict", b"null", JSON), 422, "null; it must be an object"),
    "NaN": (("POST", "/predict", b"NaN", JSON), 422, "a number"),
    "no texts": (("POST", "/predict", b'{"text": "enak"}', JSON), 422, "without the key texts"),
    "keys too many": (("POST", "/predict", b'{"texts": ["a"], "top_k": 3}', JSON), 422, "keys beside texts"),
    "texts is a string": (("POST", "/predict", b'{"texts": "enak"}', JSON), 422, "texts is a string"),
    "texts is an object": (("POST", "/predict", b'{"texts": {"a": "b"}}', JSON), 422, "texts is an object"),
    "texts is null": (("POST", "/predict", b'{"texts": null}', JSON), 422, "texts is null"),
    "texts is true": (("POST", "/predict", b'{"texts": true}', JSON), 422, "texts is true or false"),
    "texts is empty": (("POST", "/predict", b'{"texts": []}', JSON), 422, "texts is empty"),
    "a number among texts": (("POST", "/predict", b'{"texts": ["a", 5]}', JSON), 422, "texts[1] must be a string"),
    "null among texts": (("POST", "/predict", b'{"texts": [null]}', JSON), 422, "not null"),
    "NaN among texts": (("POST", "/predict", b'{"texts": [NaN]}', JSON), 422, "not a number"),
    "a list among texts": (("POST", "/predict", b'{"texts": [["a"]]}', JSON), 422, "not a list"),
    "too many texts": (("POST", "/predict", json.dumps({"texts": ["a"] * 9}).encode(), JSON), 422, "9 texts"),
    "a long text": (("POST", "/predict", json.dumps({"texts": ["a", "b" * 2001]}).encode(), JSON), 413, "texts[1]"),
    "a long text of emoji": (("POST", "/predict", json.dumps({"texts": ["😀" * 501]}).encode(), JSON), 413, "texts[0]"),
    "a body of 10 MB": (("POST", "/predict", b'{"texts": ["' + b"a" * 10_000_000 + b'"]}', JSON), 413, "BODY_BYTES"),
    "a gzip": (("POST", "/predict", b"\x1f\x8b\x08", {"Content-Encoding": "gzip"}), 415, "Content-Encoding"),
    "unknown path": (("GET", "/predicts", None, {}), 404, "no such path"),
    "slash behind": (("POST", "/predict/", b'{"texts": ["a"]}', JSON), 404, "no such path"),
    "path upwards": (("GET", "/../manifest.json", None, {}), 404, "no such path"),
    "path upwards, escaped": (("GET", "/%2e%2e/serve.py", None, {}), 404, "no such path"),
    "a file of the pack": (("GET", "/manifest.json", None, {}), 404, "no such path"),
    "a script of the pack": (("GET", "/serve.py", None, {}), 404, "no such path"),
    "double slash": (("GET", "//example.org/", None, {}), 404, "no such path"),
    "path with NUL": (("GET", "/%00", None, {}), 404, "no such path"),
    "path not UTF-8": (("GET", "/%ff%fe", None, {}), 404, "no such path"),
    "long path": (("GET", "/" + "a" * 20_000, None, {}), 404, "no such path"),
    "GET": (("GET", "/predict", None, {}), 405, "another method"),
    "PUT": (("PUT", "/predict", b'{"texts": ["a"]}', JSON), 405, "another method"),
    "DELETE": (("DELETE", "/predict", None, {}), 405, "another method"),
    "OPTIONS": (("OPTIONS", "/predict", None, {}), 405, "another method"),
    "TRACE": (("TRACE", "/health", None, {}), 405, "another method"),
    "POST to the page": (("POST", "/", b"enak", {}), 405, "another method"),
    "POST to metrics": (("POST", "/metrics", b"", {}), 405, "another method"),
}
RAW = {  # name -> what is sent, status, part of the sentence
    "no HTTP": (b"enak sekali\r\n\r\n", 400, "no HTTP"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)), 400, "no HTTP"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "no HTTP"),
    "NUL in a header": (POST + b"X: a\0b\r\nContent-Length: 0\r\n\r\n", 400, "no HTTP"),
    "length is a word": (POST + b"Content-Length: ten\r\n\r\n", 400, "no HTTP"),
    "length is negative": (POST + b"Content-Length: -1\r\n\r\n", 400, "no HTTP"),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "no HTTP"),
    "length and chunks": (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "no HTTP"),
    "a broken chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "no HTTP"),
    "headers without end": (POST + b"X: " + b"a" * 400_000, 431, "headers are longer"),
    "many headers": (POST + b"".join(b"X-%d: a\r\n" % i for i in range(40_000)), 431, "headers are longer"),
    "half a head": (POST, 408, "within 2 s"),
    "nothing": (b"", 408, "within 2 s"),
    "half a body": (POST + b"Content-Length: 50\r\n\r\n{", 408, "within 2 s"),
    "a large body announced": (POST + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n", 413,
                               "BODY_BYTES"),
    "a large body in chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n"
                               + (b"2000\r\n" + b"a" * 8192 + b"\r\n") * 20 + b"0\r\n\r\n", 413, "BODY_BYTES"),
}


def is_one_sentence(answer: bytes, part: str) -> None:
    """{"error": one sentence} with these words, and nothing of the inside."""
    said = json.loads(answer)
    assert list(said) == ["error"]
    assert part in said["error"]
    assert "\n" not in said["error"] and "Traceback" not in said["error"] and len(said["error"]) < 300


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests(server, name):
    """Status, one sentence, and the next request is answered."""
    request, status, part = HOSTILE[name]
    found, headers, body = server.request(*request)
    assert found == status
    assert headers["content-type"] == "application/json"
    is_one_sentence(body, part)
    assert server.is_ready()


@pytest.mark.parametrize("name", RAW)
def test_hostile_bytes(server, name):
    """What no HTTP library sends."""
    content, status, part = RAW[name]
    head, _, body = server.raw(content).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    is_one_sentence(body, part)
    assert server.is_ready()


def test_a_slow_client_keeps_nobody_waiting(server):
    """A byte every now and then, for head and body: it is answered with 408, and others go on meanwhile."""
    for begun in (POST + b"X: ", POST + b"Content-Length: 90\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
            client.sendall(begun)
            client.setblocking(False)
            found = b""
            while not found:
                try:
                    found = client.recv(65536)
                except BlockingIOError:
                    client.send(b"a")
                    assert server.predict(["enak"])[0] == 200
                    time.sleep(0.1)
            assert found.startswith(b"HTTP/1.1 408 ")


def test_requests_in_one_packet(server):
    """Each is answered in its turn, by the answer of its own; what is no request behind them closes the connection."""
    bodies = [json.dumps({"texts": texts}).encode() for texts in (["enak"] * 8, ["kotor"], [""])]
    requests = b"".join(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies)
    for behind in (b"", b"rubbish\r\n\r\n", b"X" * 100_000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
            client.sendall(requests + behind)
            found = b""
            while part := client.recv(65536):
                found += part
                if not behind and found.count(b'"results"') == 3:
                    break
        assert found.startswith(b"HTTP/1.1 200 ")
        answers = [json.loads(part.split(b"HTTP/1.1")[0]) for part in found.split(b"\r\n\r\n")[1:]]
        wanted = [json.loads(server.request("POST", "/predict", body)[2]) for body in bodies]
        answers = [answer for answer in answers if "results" in answer]
        assert answers == wanted[:len(answers)] and (behind or len(answers) == 3)


def test_clients_too_many(pack):
    """Are answered with 503 at once, and those that are connected go on."""
    server = Server(pack, "--connections", 3)
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) for _ in range(3)]
    time.sleep(0.2)
    head, _, body = server.raw(b"GET /health HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in head
    is_one_sentence(body, "3 connections are open")
    held[0].sendall(b"GET /health HTTP/1.1\r\n\r\n")
    assert held[0].recv(65536).startswith(b"HTTP/1.1 200 ")
    for client in held:
        client.close()
    assert server.end() == 0


def test_clients_that_hang_up(server):
    """In the head, in the body, and before the answer."""
    body = json.dumps({"texts": ["enak"] * 8}).encode()
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for cut in (1, 20, len(POST), len(whole) - 30, len(whole)):
        for _ in range(10):
            server.raw(whole[:cut], wait=False)
    deadline = time.monotonic() + PATIENCE
    while server.predict(["enak"])[0] != 200:  # 429 as long as what they asked for fills the queue
        assert time.monotonic() < deadline
    while server.metric("lowbit_waiting_texts"):
        assert time.monotonic() < deadline


def test_no_text_is_logged(server):
    """Not in what it says on standard error, nor in what it counts."""
    secret = "rahasia-sekali"
    server.predict([secret])
    server.request("POST", "/predict", b'{"texts": ["' + secret.encode(), JSON)
    server.get(f"/{secret}?text={secret}")
    assert secret not in server.said() + server.get("/metrics")[2].decode()


def test_a_key(pack):
    """Needed for texts and metrics, not for health; compared whole."""
    server = Server(pack, SERVE_KEY="kunci")
    for given in (None, "kunc", "kuncii", "", "k\u00fcnci"):
        headers = {} if given is None else {"Authorization": f"Bearer {given}".encode()}
        status, said, answer = server.predict(["enak"], headers)
        assert status == 401 and said["www-authenticate"] == "Bearer"
        assert "key is missing or wrong" in answer["error"]
    assert server.predict(["enak"], {"Authorization": "Basic kunci"})[0] == 401
    assert server.predict(["enak"], {"Authorization": "Bearer kunci"})[0] == 200
    assert server.get("/metrics")[0] == 401
    assert server.get("/metrics", Authorization="bearer kunci")[0] == 200
    assert server.get("/health")[0] == server.get("/")[0] == 200
    assert json.loads(server.get("/about.json")[2])["key"] is True
    assert server.end() == 0
    assert "kunci" not in server.said()


SLOW = """
import sys, time
sys.path.insert(0, {folder!r})
import predictor
answers = predictor.Predictor.answers
def slow(self, texts):
    time.sleep({seconds} * len(texts))
    return answers(self, texts)
predictor.Predictor.answers = slow
"""


def slowed(pack, seconds: float):
    """The pack, with a model that takes `seconds` for a text: serve.py is another file, so no hash is wrong."""
    script = pack / "serve.py"
    original = script.read_text()
    doc, _, code = original.partition('"""\nimport asyncio')
    script.write_text(f'{doc}"""\n{SLOW.format(folder=str(pack), seconds=seconds)}\nimport asyncio{code}')
    return pack


@pytest.fixture(scope="module")
def slow_pack(tmp_path_factory):
    return slowed(make_pack(tmp_path_factory.mktemp("slow") / "pack", batch_size=1), 0.05)


def test_more_than_it_can_do_is_refused_at_once(slow_pack):
    """429 with Retry-After; what was accepted is answered rightly; the queue stays within its bound."""
    server = Server(slow_pack, "--threads", 1, "--texts", 4, "--queue", 8)
    wanted = server.predict(["enak 1"])[2]["results"][0]["probabilities"]
    with ThreadPoolExecutor(24) as clients:
        found = list(clients.map(lambda _: server.predict(["enak 1", "enak 1"]), range(48)))
    statuses = [status for status, _, _ in found]
    assert set(statuses) == {200, 429}
    for status, headers, answer in found:
        if status == 429:
            assert 1 <= int(headers["retry-after"]) <= 61
            assert "come again later" in answer["error"]
        else:
            assert [record["probabilities"] for record in answer["results"]] == [wanted, wanted]
    assert server.metric("lowbit_waiting_texts") <= 8
    assert server.end() == 0


def test_a_request_that_waits_too_long_is_refused(slow_pack):
    """And what of it still waited is dropped."""
    server = Server(slow_pack, "--threads", 1, "--seconds", 1, "--texts", 100, "--queue", 100)
    status, headers, answer = server.predict(["enak"] * 100)
    assert status == 429 and "retry-after" in headers
    assert "within 1 s" in answer["error"]
    assert server.predict(["enak"])[0] == 200  # in far less than the 5 s that the others would have taken
    assert server.end() == 0


def test_who_hangs_up_is_not_computed(slow_pack):
    """The texts of a client that left are dropped from the queue."""
    server = Server(slow_pack, "--threads", 1, "--texts", 100, "--queue", 100)
    body = json.dumps({"texts": ["enak"] * 100}).encode()
    server.raw(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body, wait=False)
    deadline = time.monotonic() + PATIENCE
    while not server.metric("lowbit_hang_ups_total"):
        assert time.monotonic() < deadline
    assert server.predict(["enak"])[0] == 200
    assert server.metric("lowbit_texts_total") == 1
    assert server.end() == 0


def test_the_end_waits_for_what_was_accepted(slow_pack):
    """SIGTERM: requests that are being answered are answered rightly, new ones find no server, the status is 0."""
    server = Server(slow_pack, "--threads", 1)
    wanted = server.predict(["enak 1"])[2]["results"][0]["probabilities"]
    with ThreadPoolExecutor(8) as clients:
        found = [clients.submit(server.predict, ["enak 1"] * 3) for _ in range(8)]
        while server.metric("lowbit_waiting_texts") < 10:
            pass
        assert server.end() == 0
        for answer in found:
            status, _, said = answer.result()
            assert status == 200
            assert [record["probabilities"] for record in said["results"]] == [wanted] * 3
    with pytest.raises(OSError):
        server.get("/health")


def test_killed_and_started_again_on_the_same_port(slow_pack):
    """kill -9 under load: every answer that came is right, the rest are broken connections."""
    server = Server(slow_pack, "--threads", 1)
    wanted = server.predict(["enak 1"])[2]["results"][0]["probabilities"]
    found, broken = [], []

    def ask():
        try:
            while True:
                found.append(server.predict(["enak 1"]))
        except (OSError, EOFError, ValueError) as error:
            broken.append(error)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    while len(found) < 8:
        time.sleep(0.01)
    assert server.end(9) == -9
    for client in clients:
        client.join()
    assert len(broken) == 4
    for status, _, said in found:
        assert (status, said["results"][0]["probabilities"]) == (200, wanted)
    again = Server(slow_pack, "--port", server.port)
    assert again.port == server.port
    assert again.end(2) == 0  # Ctrl-C


REFUSED = {
    "unknown flag": (("--prot", 1), "unknown setting '--prot'; the nearest is --port"),
    "a text": (("enak",), "'enak' is no flag"),
    "port": (("--port", 70000), "PORT is 70000; it must be from 0 to 65535"),
    "queue": (("--queue", 5), "QUEUE is 5, less than TEXTS, 128"),
    "host": (("--host", "256.0.0.1"), "HOST 256.0.0.1 PORT 0 cannot be listened at"),
    "no pack": (("--model-dir", "/"), "holds no manifest.json"),
    "connections": (("--connections", 100000), None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_start(pack, name):
    """One sentence and status 2."""
    flags, wanted = REFUSED[name]
    if wanted is None:
        import resource
        if resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 100064:
            pytest.skip("this system lets a process open that many files")
        wanted = "raise the limit"
    done = subprocess.run(command(pack, "--port", 0, *flags), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert wanted in done.stderr


def test_changed_model_empty_key_and_a_taken_port(pack, tmp_path, server):
    """Refused before a request is taken."""
    broken = make_pack(tmp_path / "broken")
    (broken / "onnx" / "model_quantized.onnx").write_bytes(b"other")
    for folder, flags, environment, wanted in (
            (broken, (), {}, "is not the file that was packed"),
            (pack, (), {"SERVE_KEY": " "}, "SERVE_KEY is empty"),
            (pack, ("--port", server.port), {}, "cannot be listened at (Address already in use)")):
        done = subprocess.run(command(folder, "--port", 0, *flags), capture_output=True, text=True, check=False,
                              env=ENVIRONMENT | environment)
        assert (done.returncode, done.stdout) == (2, "")
        assert wanted in done.stderr and done.stderr.count("\n") == 1


def test_without_its_packages(pack):
    """A sentence that names the file to install."""
    blocked = command(pack)
    blocked[3] = ",".join((*WITHOUT, "fastapi"))
    done = subprocess.run(blocked, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install -r requirements-serve.txt" in done.stderr and done.stderr.count("\n") == 1
