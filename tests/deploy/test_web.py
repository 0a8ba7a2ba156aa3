"""The page inside the browser: JavaScript cleans and tokenizes as Python does; labels are those of predict.py."""

import functools
import http.server
import json
import random
import shutil
import subprocess
import sys
import threading
import unicodedata

import numpy as np
import pytest
from conftest import SAMPLE, read_plain_rows
from packs import make_pack
from servers import Server
from stage_runs import ENVIRONMENT, ROOT

from lowbit.data.cleaning import PRESETS, stop_words

sys.path.insert(0, str(ROOT / "deploy"))
import predictor  # noqa: E402
from web_tables import python_tables, tokenizer_tables  # noqa: E402

WEB = ROOT / "deploy" / "web"
NODE = shutil.which("node")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RUNTIME = WEB / "node_modules" / "onnxruntime-web"
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"
needs_node = pytest.mark.skipif(NODE is None, reason="no Node.js on this machine")
needs_runtime = pytest.mark.skipif(BROWSER is None or not RUNTIME.is_dir(),
                                   reason="no Chromium, or no deploy/web/node_modules (make .venv/web)")
ASK_NODE = """
import fs from "fs";
const { Cleaner } = await import(process.argv[1] + "/clean.js");
const { WordPiece } = await import(process.argv[1] + "/wordpiece.js");
const asked = JSON.parse(fs.readFileSync(0, "utf8"));
const tokenizer = new WordPiece(asked.tokenizer, asked.wordpiece), found = {};
for (const [name, { steps, stop_words }] of Object.entries(asked.cleanings)) {
  const cleaner = new Cleaner(asked.characters, steps, stop_words);
  found[name] = asked.texts.map((text) => {
    const cleaned = cleaner.clean(text);
    return [cleaned, tokenizer.encode(cleaned).ids];
  });
}
found.plain = asked.texts.map((text) => tokenizer.encode(text).ids);
found.problems = asked.bad.map((text) => new Cleaner(asked.characters, {}, []).problem(text));
console.log(JSON.stringify(found));
"""
CHARACTERS = [char for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000 for char in (chr(point),)
              if point % 97 == 0 or unicodedata.category(char) not in ("Cn", "Co")  # of the large blocks a few
              and not unicodedata.name(char, "").startswith(("CJK UNIFIED", "HANGUL SYLLABLE"))]
MARKS = [char for char in CHARACTERS if unicodedata.category(char)[0] == "M"]
ODD = "ΣσςAb.'’\u0301\u00ad \u200d1İIıß가각힣\u1100\u1161\u11a8中\u3000\u00a0_-!?[]PADSEP#ﷺ\u2028\x1c\x85"


def hostile_texts() -> list[str]:
    """Every character in a word, before and behind a capital sigma; marks in disorder; stop words; long words."""
    chance, words = random.Random(0), sorted(stop_words(False))
    texts = [" ".join(f"a{char}bΣ{char}" for char in CHARACTERS[i : i + 16]) for i in range(0, len(CHARACTERS), 16)]
    for _ in range(1500):
        texts += ["a" + "".join(chance.choices(MARKS, k=8)) + chance.choice(CHARACTERS),
                  " ".join(chance.choice(words) if chance.random() < 0.7 else chance.choice(CHARACTERS)
                           for _ in range(15)),
                  "".join(chance.choices(ODD, k=20))]
    return texts + ["", " ", "a" * 100, "a" * 101, "😀" * 101, "baik " * 500, "yang yang yang di yang", "Σ",
                    "ΑΣ", "'Σ'"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return make_pack(tmp_path_factory.mktemp("web") / "pack", "negation-safe", max_length=128)


@needs_node
def test_javascript_cleans_and_tokenizes_as_python(pack):
    """To the letter and to the id: every character of Unicode, each preset, also text that was not cleaned."""
    model = predictor.Predictor(pack, 1)
    stored = json.loads((pack / "tokenizer.json").read_text())["model"]
    texts, bad = hostile_texts(), ["", " \u00a0\x1c", "a\0b", "\ud800", "a\udc00\ud800", "😀", "\ufeff", "\u200b"]
    asked = {"texts": texts, "bad": bad, "characters": python_tables(), "tokenizer": tokenizer_tables(model.tokenizer),
             "wordpiece": {"vocabulary": stored["vocab"], "prefix": "##", "unknown": stored["vocab"]["[UNK]"],
                           "most": 100, "first": stored["vocab"]["[CLS]"], "last": stored["vocab"]["[SEP]"],
                           "maxLength": 128},
             "cleanings": {name: {"steps": steps, "stop_words": sorted(stop_words(steps["KEEP_NEGATIONS"]))}
                           for name, steps in PRESETS.items()}}
    done = subprocess.run([NODE, "--input-type=module", "-e", ASK_NODE, str(WEB)], input=json.dumps(asked),
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    plain = [tokens.ids for tokens in model.encodings([text.replace("[", "(") for text in texts])]
    plain = {i: ids for i, ids in enumerate(plain) if "[" not in texts[i]}  # special tokens are looked for in raw text
    assert len(plain) > 4000
    for i, ids in plain.items():
        assert found["plain"][i] == ids, ascii(texts[i])
    for name, steps in PRESETS.items():
        cleaned = [predictor.clean(text, steps, stop_words(steps["KEEP_NEGATIONS"])) for text in texts]
        ids = [tokens.ids for tokens in model.encodings(cleaned)]
        for i, text in enumerate(texts):
            assert found[name][i] == [cleaned[i], ids[i]], (name, ascii(text))
    assert [bool(problem) for problem in found["problems"]] == [True] * 5 + [False] * 3
    from rows import row_of
    assert found["problems"] == [row_of((text,), [], 1000).error for text in bad]


def make_web(*flags):
    return subprocess.run([sys.executable, ROOT / "deploy" / "make_web.py", *map(str, flags)], capture_output=True,
                          text=True, env=ENVIRONMENT, check=False)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def static(pack, tmp_path_factory):
    """Address of a static host with the page of two models."""
    second = make_pack(tmp_path_factory.mktemp("second") / "other", labels=None)
    out = tmp_path_factory.mktemp("made") / "web"
    done = make_web("--model-dirs", f"{pack},{second}", "--out", out)
    assert done.returncode == 0, done.stderr
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=out))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser, url: str, **options):
    """(page, what went wrong in it, the hosts that it asked)."""
    page, wrong, hosts = browser.new_page(**options), [], set()
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "//" in request.url else None)
    page.goto(url)
    page.wait_for_selector("#send:enabled")
    return page, wrong, hosts


@needs_runtime
def test_the_browser_labels_as_predict(browser, static, pack):
    """Every text of the sample's test split, errors and notes; through the form and a keyboard for one of them."""
    texts = [text for text, _ in read_plain_rows("test", SAMPLE)][:60] + ["!!!", "😀 enak"]
    page, wrong, hosts = opened(browser, static)
    found = page.evaluate("""async (texts) => {
      const { ask } = await import("./ask.js"), found = [];
      for (const text of texts) found.push((await ask([text])).record);
      return found;
    }""", texts)
    wanted = predictor.Predictor(pack, 1).probabilities(texts)
    for record, row in zip(found, wanted, strict=True):
        assert record["label"] == ("positive", "neutral", "negative")[int(row.argmax())]
        assert list(record["probabilities"].values()) == pytest.approx(row, abs=1e-5)
    assert found[-2]["note"] == "nothing is left of the text after cleaning"
    page.keyboard.press("Tab")
    page.focus("textarea")
    page.keyboard.type(texts[0])
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#answer .label")
    assert page.inner_text("#answer .label") == found[0]["label"]
    page.fill("textarea", "\0")
    page.click("#send")
    page.wait_for_selector("#answer .error")
    assert page.inner_text("#answer .error") == "This text holds a NUL byte."
    page.select_option("#model", "1")
    page.wait_for_selector("#send:enabled")
    page.fill("textarea", "enak")
    page.click("#send")
    page.wait_for_selector("#answer .label")
    assert np.isfinite(float(page.inner_text("#answer .label")))
    assert wrong == []
    assert hosts == {static.split("/")[2]}
    page.close()


@needs_runtime
@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_pages_are_accessible(browser, static, pack, scheme):
    """By axe, with an answer on the page, on a phone's width, in both colour schemes."""
    if not AXE.exists():
        pytest.skip("no axe-core in deploy/web/node_modules")
    server = Server(pack)
    address = f"http://127.0.0.1:{server.port}/"
    for url in (static, address, f"{address}docs"):
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme, bypass_csp=True)
        page.goto(url)
        if not url.endswith("docs"):
            page.wait_for_selector("#send:enabled")
            page.fill("textarea", "enak sekali")
            page.click("#send")
            page.wait_for_selector("#answer .label")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")
        assert found["passes"]
        assert [(one["id"], one["impact"]) for one in found["violations"]] == []
        page.close()
    assert server.end() == 0


@needs_runtime
def test_the_servers_page_shows_what_it_says(browser, tmp_path):
    """A label, a refusal for want of the key, a text with an error."""
    server = Server(make_pack(tmp_path / "pack"), SERVE_KEY="kunci")
    page, wrong, hosts = opened(browser, f"http://127.0.0.1:{server.port}/")
    page.fill("textarea", "enak")
    page.click("#send")
    page.wait_for_selector("#answer .error")
    assert page.inner_text("#answer .error").startswith("The key is missing or wrong")
    assert page.get_attribute("#key", "type") == "password"
    page.fill("#key", "kunci")
    page.click("#send")
    page.wait_for_selector("#answer .label")
    label = page.inner_text("#answer .label")
    assert label == server.predict(["enak"], {"Authorization": "Bearer kunci"})[2]["results"][0]["label"]
    page.fill("textarea", "   ")
    page.click("#send")
    page.wait_for_selector("#answer .error")
    assert page.inner_text("#answer .error") == "This text has an empty text."
    assert hosts == {f"127.0.0.1:{server.port}"}
    assert all("401" in line for line in wrong)
    assert server.end() == 0
    page.fill("textarea", "enak")
    page.click("#send")
    page.wait_for_selector("#answer >> text=does not answer")  # not wait_for_function: the page's policy forbids eval
    page.close()


@pytest.mark.parametrize("flags, wanted", [
    (lambda pack, out: ("--model-dirs", out), "holds no manifest.json"),
    (lambda pack, out: ("--model-dirs", f"{pack},{pack}"), "two folders of one name"),
    (lambda pack, out: ("--model-dirs", pack, "--out", ROOT), "is there already"),
])
@needs_runtime
def test_what_cannot_be_made(pack, tmp_path, flags, wanted):
    """One sentence and status 2, and nothing is left of it."""
    done = make_web("--out", tmp_path / "out", *flags(pack, tmp_path))
    assert done.returncode == 2
    assert wanted in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_runtime
def test_pairs_are_refused(tmp_path):
    done = make_web("--model-dirs", make_pack(tmp_path / "pairs", texts=("a", "b")), "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "reads pairs" in done.stderr
