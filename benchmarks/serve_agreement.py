"""Benchmark: a labelled split through the server, its page, and the page that runs in the browser, beside predict.py.

Reads   MODEL_DIRS (deploy/pack.py), WEB (deploy/make_web.py), DATA_DIR/test.tsv
Writes  results/serve_agreement.json
Needs   Chromium, pip install -r requirements-serve.txt
"""
import functools
import http.server
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from playwright.sync_api import sync_playwright
from served_process import label, serving

from lowbit.data.tsv import read_tsv
from lowbit.pipeline.files import ROOT, resolve, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --model-dirs dist/sample-int8 ---------------------------
MODEL_DIRS = "dist/sample-learned,dist/sample-int8"  # folders that pack.py made, with commas
WEB = "dist/web"                # folder that make_web.py made of the same folders
DATA_DIR = "data"               # folder of test.tsv
CONCURRENCY = 16                # clients of the server at a time
# --------------------------------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
IN_BROWSER = """async (texts) => {
  const { ask } = await import(new URL("ask.js", document.baseURI)), found = [];
  for (const text of texts) found.push(await ask([text], ""));
  return found;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, *words):
        pass


def by_predict(folder: Path, texts: list[str]) -> list[dict]:
    """The records that predict.py writes."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "texts.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        done = subprocess.run([sys.executable, folder / "predict.py", "--input", source], check=True,
                              capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def compared(name: str, wanted: list[dict], found: list[dict], **more) -> dict:
    """How many labels are the same, and the largest difference of a probability."""
    same = sum(a.get("label") == b.get("label") for a, b in zip(wanted, found, strict=True))
    apart = max(abs(value - b["probabilities"][key]) for a, b in zip(wanted, found, strict=True) if "label" in a
                for key, value in a["probabilities"].items())
    print(f"  {name}: {same} of {len(wanted)} labels as predict.py, probabilities differ by {apart:.1e} at most"
          + "".join(f", {key.replace('_', ' ')} {value:.1f}" for key, value in more.items()), flush=True)
    return {"texts": len(wanted), "same_label": same, "max_probability_difference": apart, **more}


def through_page(browser, url: str, place: int, texts: list[str]) -> tuple[list[dict], dict]:
    """(records, milliseconds of a text and what was loaded) of a page, asked as it asks itself."""
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector("#send:enabled", timeout=60_000)
    if place:
        page.select_option("#model", str(place))
        page.wait_for_selector("#send:enabled", timeout=60_000)
    page.fill("textarea", texts[0])
    page.click("#send")
    page.wait_for_selector("#answer .label")
    shown_label = page.inner_text("#answer .label")
    answers = page.evaluate(IN_BROWSER, texts)
    if answers[0]["record"]["label"] != shown_label:
        raise RuntimeError(f"the page shows {shown_label!r}")
    print(f"  {page.inner_text('#where')}")
    page.close()
    return [answer["record"] for answer in answers], {
        "median_ms_a_text": statistics.median(answer["milliseconds"] for answer in answers)}


def main(settings):
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    check(path is not None, "no Chromium on this machine: on Debian, apt-get install chromium")
    texts = read_tsv(resolve(DATA_DIR) / "test.tsv")[0]
    web, result = resolve(WEB), {}
    models = [model["folder"] for model in json.loads((web / "about.json").read_text())["models"]]
    static = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=web))
    threading.Thread(target=static.serve_forever, daemon=True).start()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for folder in [resolve(name.strip()) for name in MODEL_DIRS.split(",")]:
            print(f"  {folder.name}")
            check(folder.name in models, f"{shown(web)} does not hold {folder.name}: make it of the same MODEL_DIRS")
            wanted, found = by_predict(folder, texts), {}
            with serving(folder) as (_, port, _), ThreadPoolExecutor(CONCURRENCY) as clients:
                records = [answer[0] for answer in clients.map(lambda text, at=port: label(at, [text]), texts)]
                found["server"] = compared(f"server, {CONCURRENCY} clients", wanted, records)
                records, more = through_page(browser, f"http://127.0.0.1:{port}/", 0, texts)
                found["page"] = compared("page of the server", wanted, records, **more)
            records, more = through_page(browser, f"http://127.0.0.1:{static.server_port}/",
                                         models.index(folder.name), texts)
            found["browser"] = compared("page in the browser", wanted, records, **more)
            result[folder.name] = found
        browser_version = browser.version
        browser.close()
    out = ROOT / "results" / "serve_agreement.json"
    write_json(out, {"machine": machine(), "versions": versions() | {"chromium": browser_version},
                     "settings": settings, "agreement": result})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
