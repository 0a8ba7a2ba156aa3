"""Stage 5 of 5: one HTML file to decide by: what to ship on this machine, the promises beside what was measured, why.

Reads   RESULTS/<experiment>/results.json   (run_ptq.py, run_qat.py)
        RESULTS/xai/<run>/what_it_reads.html  (xai/what_it_reads.py), to be linked, where there are any
Writes  RESULTS/report.html                 self-contained: pictures and styles are inside
"""
import base64
import io
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lowbit.measure.record import COULD_NOT_RUN, measured_files, metrics, task_of_results
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import claim, resolve, sha256, shown, write_text
from lowbit.pipeline.machine import integer_advice
from lowbit.pipeline.manifest import stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.ptq.advice import WANTED as KNOWN_WANTED
from lowbit.ptq.advice import recommend, target_rows
from lowbit.ptq.plots import draw, plots_of
from lowbit.ptq.results import columns, read_experiments, verdict

# ---- settings: edit here, or for one run: --results results/sample --------------------------------
RESULTS = "results"             # folder of the experiments' results, from the project's root
TITLE = "Which precision to ship"  # heading of the report
WANTED = "speed"                # what decides among files within the guard: speed (never slower than FP32), or size
# --------------------------------------------------------------------------------------------------

CAPTIONS = {
    "accuracy_size": "Test accuracy against the size of the file. The line joins the methods that no smaller file "
                     "beats; crosses are seen to lose more than the guard allows.",
    "accuracy_latency": "Test accuracy against median latency. The line joins the methods that no faster one beats.",
    "latency_distributions": "Every measured run of every file.",
    "f1_per_class": "F1 of each label; the dotted lines are FP32's.",
    "confusion_matrices": "Test labels: rows are true, columns predicted.",
    "predictions": "True and predicted number of each test text.",
}
DETAILS = ("mean_ms", "std_ms", "min_ms", "median_ms", "p95_ms", "max_ms", "eval_loss", "ece", "mean_absolute_error")
DEPENDENCE = ("batch_dependence.flips", "batch_dependence.texts", "batch_dependence.max_logit_difference")


def picture(name: str, results: dict, dark: bool) -> str:
    """One of the experiment's pictures as the address of an inlined SVG."""
    drawn = io.BytesIO()
    draw(name, results, drawn, "svg", dark)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"


def held(results: dict, keys: tuple[str, ...]) -> list:
    """Those of the named figures that FP32's record holds."""
    base = next(iter(results["files"].values()))
    return [metric for metric in metrics(*keys) if metric.value(base) is not None]


def section(results: dict, stages: dict) -> dict:
    """What the template shows of one experiment."""
    name, trained = results["experiment"]["name"], results["experiment"]["trained"]
    measured = measured_files(results)
    # an untrained head's accuracy advises nothing
    method, why = recommend(results, WANTED) if trained else (next(iter(measured)), "")
    advised = resolve(measured[method]["file"])
    if advised.exists() and sha256(advised) != measured[method]["sha256"]:
        raise UserError(f"{shown(advised)} is not the file that {name} measured: it was made anew since; "
                        f"run `python ptq/run_ptq.py {name}` again")
    return {
        "name": name, "results": results, "rows": measured, "base": next(iter(measured.values())), "trained": trained,
        "task": task_of_results(results), "columns": columns(results), "details": held(results, DETAILS),
        "dependence": held(results, DEPENDENCE), "verdicts": {row: verdict(row, results) for row in measured},
        "missing": {row: found["reason"] for row, found in results["files"].items()
                    if found["status"] == COULD_NOT_RUN},
        "method": method, "why": why, "best": measured[method],
        "targets": target_rows(results, method) if trained else [],
        "pictures": [(plot, CAPTIONS[plot], picture(plot, results, False), picture(plot, results, True))
                     for plot in plots_of(results)],
        "stages": sorted((made for made in stages.values() if "results.json" in made["writes"]),
                         key=lambda made: made["finished"]),
    }


def pages_of_words(results: Path) -> dict[str, str]:
    """Run -> address, from the report's folder, of its page of what the model reads."""
    return {path.parent.name: quote(path.relative_to(results).as_posix())
            for path in sorted(results.glob("xai/*/what_it_reads.html"))}


def main(settings):
    check(WANTED in KNOWN_WANTED, f"WANTED is {WANTED!r}; choose {' or '.join(KNOWN_WANTED)}")
    results = resolve(RESULTS)
    sections = [section(found, stages_of(results / found["experiment"]["name"]))
                for found in read_experiments(results)]
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
    first = sections[0]["results"]
    claim(results)
    write_text(results / "report.html", pages.get_template("report.html.jinja").render(
        title=TITLE, sections=sections, machine=first["machine"], advice=integer_advice(first["machine"]),
        versions=first["versions"], reads=pages_of_words(results)))
    chosen = next((part for part in sections if part["trained"]), None)
    if chosen:
        print(f"  {chosen['name']}: ship {chosen['method']}: {chosen['why']}")
    print(f"wrote {shown(results / 'report.html')}")


if __name__ == "__main__":
    run_stage(main, globals())
