"""The report as a reader meets it: in headless Chromium, in light and dark, on a phone, on paper."""

import shutil

import numpy as np
import pytest
from stage_runs import run_stage_script

from lowbit.data.task import SENTIMENT
from lowbit.measure.evaluate import record_of
from lowbit.measure.record import COULD_NOT_RUN, FORMAT
from lowbit.pipeline.files import write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import record

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
METHODS = ("fp32", "int8_dynamic", "int8_static_qdq_u8s8_minmax", "int4_rtn_sym_block32")
TABLES_AN_EXPERIMENT = ("accuracy", "mean ms", "Linear, integer", "labels that change", "seconds")


def results_of(name: str, folder) -> dict:
    """Results as run_ptq.py writes them, made by its own record_of() of made-up outputs and times.

    Each method is smaller and faster than the one before; the last gives wrong labels for a fifth of the texts.
    """
    truth = {"valid": [i % 3 for i in range(300)], "test": [i % 3 for i in range(200)]}
    data = {split: ([str(i) for i in range(len(labels))], labels) for split, labels in truth.items()}
    noise = np.random.default_rng(0)
    right = {split: 4 * np.eye(3)[labels] + noise.normal(0, 1, (len(labels), 3)) for split, labels in truth.items()}
    files, turns = {}, {}
    for number, method in enumerate(METHODS):
        files[method] = folder / f"<b>{method}.onnx"
        files[method].write_bytes(bytes(100_000 // (number + 1)))
        turns[method] = [{"ms": {"1x128": [(9 + run + turn) / (number + 1) for run in range(2)]},
                          "peak_memory_mb": 100.0 - number, "load_ms": 20.0} for turn in range(2)]
    records = {}
    for number, method in enumerate(METHODS):
        outputs = {split: values.copy() for split, values in right.items()}
        if number == 3:
            outputs = {split: np.where(np.arange(len(values))[:, None] % 5 == 0, -values, values)
                       for split, values in outputs.items()}
        records[method] = record_of(files[method], outputs, right, data, SENTIMENT, turns[method], turns["fp32"],
                                    ["1x128"], files["fp32"])
        records[method] |= {
            "recipe": {"kind": "dynamic" if number else "fp32"},
            "making": {"seconds": 1.0, "peak_memory_mb": 100.0} if number else {},
            "census": {kind: {"integer": number, "float": 2} for kind in ("linear", "attention", "embedding")},
            "linear_weights_mb": 10.0,
            "batch_dependence": {"texts": 100, "batch_size": 16, "flips": 1, "max_logit_difference": 0.1}}
    records["int4_hqq_sym_block32"] = {"recipe": {}, "status": COULD_NOT_RUN, "reason": "it has <no> symmetric form"}
    return {"format": FORMAT, "experiment": {"name": name, "trained": name.startswith("finetuned")},
            "task": SENTIMENT.as_json(), "max_drop": 1.0, "fp32_sha256": "", "circumstances": "",
            "protocol": {"PROVIDER": "CPUExecutionProvider", "THREADS": 0, "ROUNDS": 2, "RUNS": 2, "WARMUP": 5,
                         "SHAPES": ["1x128"]}, "machine": machine(), "versions": versions(), "files": records}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Address of the report of two experiments of four methods; the fastest loses too much, one could not run."""
    folder = tmp_path_factory.mktemp("results")
    files = tmp_path_factory.mktemp("files")
    for experiment in ("finetuned_smsa", "original_smsa"):
        (folder / experiment).mkdir()
        write_json(folder / experiment / "results.json", results_of(experiment, files))
        record(folder / experiment, "ptq/run_ptq.py", {}, [], ["results.json"])
    (folder / "xai" / "run #1").mkdir(parents=True)
    (folder / "xai" / "run #1" / "what_it_reads.html").write_text("<title>words</title>")
    done = run_stage_script("generate_report.py", "--results", folder, folder="ptq")
    assert done.returncode == 0, done.stderr
    assert "ship int8_static_qdq_u8s8_minmax" in done.stdout
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, driven by playwright."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine (on Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, report, request):
    """The report opened; the test fails on anything that the console says or that is asked of a network."""
    said, asked = [], []
    opened = browser.new_page(**getattr(request, "param", {}))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda wanted: asked.append(wanted.url[:60]))
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert not said
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []


PAGES = [{"color_scheme": "light"}, {"color_scheme": "dark"},
         {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}]


@pytest.mark.parametrize("page", PAGES, ids=("light", "dark", "phone"), indirect=True)
def test_every_table_and_picture_is_there(page):
    """Five tables and five pictures an experiment with a row a method; nothing wider than the window."""
    for experiment in ("finetuned_smsa", "original_smsa"):
        heads = page.locator(f"#{experiment} table.sortable thead").all_inner_texts()
        assert all(any(words in head for head in heads) for words in TABLES_AN_EXPERIMENT)
        for words in TABLES_AN_EXPERIMENT[:3]:
            table = page.locator(f"#{experiment} table.sortable").filter(has_text=words).first
            found = table.locator("tbody td:first-child code").all_inner_texts()
            assert found == list(METHODS)
        widths = page.locator(f"#{experiment} img").evaluate_all("list => list.map(one => one.naturalWidth)")
        assert len(widths) == 5
        assert all(width > 100 for width in widths)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("page", PAGES[:1], indirect=True)
def test_pages_of_what_a_model_reads_are_linked(page):
    page.locator("#reads a").click()
    page.wait_for_url("**/xai/run%20%231/what_it_reads.html")
    assert page.title() == "words"


@pytest.mark.parametrize("page", PAGES[:1], indirect=True)
def test_the_advice_and_the_guard_can_be_read(page):
    """The method to ship, the fastest one marked as losing too much, the reason of the row that could not run."""
    advice = page.locator("#finetuned_smsa .advice")
    assert "Ship int8_static_qdq_u8s8_minmax on this machine" in advice.inner_text()
    assert page.locator("#original_smsa .advice").count() == 0
    marked = page.locator("#finetuned_smsa tr").filter(has_text="loses too much").first.inner_text()
    assert marked.startswith("int4_rtn_sym_block32")
    assert page.get_by_text("it has <no> symmetric form").count() == 2
    assert "VNNI" in page.locator("#processor").inner_text()
    assert "onnxruntime" in page.locator("#made-with").inner_text()
    assert "python ptq/run_ptq.py" in page.locator("#made-with").inner_text()


@pytest.mark.parametrize("page", [{"viewport": {"width": 1200, "height": 800}}], indirect=True)
def test_the_columns_that_decide_are_seen_without_scrolling(page):
    """At a window of 1,200 pixels quality, loss, size and speed of each method stand inside it."""
    table = page.locator("#finetuned_smsa table.sortable").first
    for head in ("macro-F1, %", "test lost", "MB", "median ms", "speed-up", "peak MB"):
        box = table.locator("th").filter(has_text=head).first.bounding_box()
        frame = table.locator("xpath=..").bounding_box()
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] <= 1200, head


@pytest.mark.parametrize("page", PAGES[:2], indirect=True)
def test_the_pictures_follow_the_page(page):
    """Dark pages get the pictures drawn for them."""
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    chosen, light = page.locator("#finetuned_smsa img").first.evaluate("one => [one.currentSrc, one.src]")
    assert (chosen != light) == dark


@pytest.mark.parametrize("page", PAGES[:1], indirect=True)
def test_a_click_on_a_head_sorts(page):
    """Numbers as numbers, up and then down; the head says which."""
    table = page.locator("#finetuned_smsa table.sortable").first
    head = table.locator("th").filter(has_text="MB").first
    orders = {}
    for direction in ("ascending", "descending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        orders[direction] = table.locator("tbody td:first-child code").all_inner_texts()
    assert orders["ascending"] == list(reversed(METHODS))
    assert orders["descending"] == list(METHODS)


@pytest.mark.parametrize("page", PAGES[1:2], indirect=True)
def test_paper_is_white(page):
    """Printed from a dark page, the ground is white, and the light pictures are taken."""
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    chosen, light = page.locator("#finetuned_smsa img").first.evaluate("one => [one.currentSrc, one.src]")
    assert chosen == light
    assert page.pdf().startswith(b"%PDF")


def test_the_report_is_one_file(report):
    """Nothing beside it is needed: no address but those of what it holds."""
    text = report.read_text(encoding="utf-8")
    assert "http:" not in text.replace("http://www.w3.org", "")
    assert "https:" not in text
    assert {path.name for path in report.parent.iterdir() if path.is_file()} == {"report.html", "manifest.json"}
