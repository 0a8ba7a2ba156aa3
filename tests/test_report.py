"""The report as a reader meets it: in headless Chromium, in light and dark, on a phone, on paper."""

import json
import shutil

import pytest
from stage_runs import run_stage_script

from lowbit.pipeline.manifest import record
from lowbit.ptq.matrix import MEASURED

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LABELS = ("positive", "neutral", "negative")
METHODS = ("fp32", "int8_dynamic", "int8_static_qdq_u8s8_minmax", "int4_rtn_sym_block32")
TABLES_AN_EXPERIMENT = ("accuracy", "mean ms", "Linear, integer", "labels that change", "seconds")


def measured(number: int, accuracy: float, drop: float) -> dict:
    """A whole row as run_ptq.py writes it; the figures are made up."""
    share = dict.fromkeys(LABELS, accuracy)
    return {
        "status": MEASURED, "file": "models/x/<b>.onnx", "sha256": "", "samples": 200,
        "accuracy": accuracy, "f1": accuracy,
        "eval_loss": 0.4, "ece": 0.05, "f1_per_class": share, "confusion_matrix": [[70, 5, 5], [4, 30, 6], [3, 7, 70]],
        "valid": {"accuracy": accuracy}, "accuracy_drop": {"valid": drop, "test": drop}, "max_drop": 1.0,
        "within_max_drop": drop <= 1, "against_fp32": {"flips": number, "mcnemar_p": 0.5},
        "model_size": 100 / (number + 1), "compression": number + 1.0, "mean_ms": 10 / (number + 1),
        "std_ms": 0.1, "min_ms": 9 / (number + 1), "max_ms": 11 / (number + 1), "median_ms": 10 / (number + 1),
        "speedup": number + 1.0, "round_speedups": [number + 1.0], "runs_ms": [9 / (number + 1), 11 / (number + 1)],
        "peak_memory_mb": 100.0, "memory_saving": 0.1,
        "batch_dependence": {"texts": 100, "batch_size": 16, "flips": 1, "max_logit_difference": 0.1},
        "census": {kind: {"integer": number, "float": 2} for kind in ("linear", "attention", "embedding")},
        "linear_weights_mb": 10.0, "making": {"seconds": 1.0, "peak_memory_mb": 100.0} if number else {},
        "protocol": {"PROVIDER": "CPUExecutionProvider", "THREADS": 0, "BATCH_SIZE": 1, "TOKENS": 128, "ROUNDS": 1,
                     "RUNS": 2, "WARMUP": 5}, "recipe": {}}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Address of the report of two experiments of four methods; the fastest loses too much, one could not run."""
    folder = tmp_path_factory.mktemp("results")
    rows = {name: measured(number, 0.9 - 0.05 * (number == 3), 5.0 * (number == 3))
            for number, name in enumerate(METHODS)}
    rows["int4_hqq_sym_block32"] = {"status": "could not run", "reason": "it has <no> symmetric form"}
    for experiment in ("finetuned_smsa", "original_smsa"):
        (folder / experiment).mkdir()
        (folder / experiment / "results.json").write_text(json.dumps(rows))
        record(folder / experiment, "ptq/run_ptq.py", {}, [], ["results.json"])
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
    assert [path.name for path in report.parent.iterdir() if path.is_file()] == ["report.html"]
