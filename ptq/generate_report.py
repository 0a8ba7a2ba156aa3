"""Stage 5 of 5: one HTML file to decide by: what to ship on this machine, the promises beside what was measured, why.

Reads   RESULTS/<experiment>/results.json   (run_ptq.py, run_qat.py)
Writes  RESULTS/report.html                 self-contained: pictures and styles are inside
"""
import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import remove_leftovers, resolve, sha256, shown, write_text
from lowbit.pipeline.machine import integer_advice
from lowbit.pipeline.manifest import read_manifest
from lowbit.pipeline.stage import run_stage
from lowbit.ptq.advice import recommend, target_rows
from lowbit.ptq.matrix import MEASURED
from lowbit.ptq.plots import PLOTS, draw
from lowbit.ptq.results import read_experiments

# ---- settings: edit here, or for one run: --results results/sample --------------------------------
RESULTS = "results"             # folder of the experiments' results, from the project's root
TITLE = "Which precision to ship"  # heading of the report
# --------------------------------------------------------------------------------------------------

CAPTIONS = {
    "accuracy_size": "Test accuracy against the size of the file. The line joins the methods that no smaller file "
                     "beats; crosses lose more than the guard allows.",
    "accuracy_latency": "Test accuracy against median latency. The line joins the methods that no faster one beats.",
    "latency_distributions": "Every measured run of every file.",
    "f1_per_class": "F1 of each label; the dotted lines are FP32's.",
    "confusion_matrices": "Test labels: rows are true, columns predicted.",
}


def picture(name: str, rows: dict, dark: bool) -> str:
    """One of PLOTS as the address of an inlined SVG."""
    drawn = io.BytesIO()
    draw(name, rows, drawn, "svg", dark)
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"


def section(experiment: str, rows: dict, manifest: dict) -> dict:
    """What the template shows of one experiment."""
    measured = {method: row for method, row in rows.items() if row["status"] == MEASURED}
    trained = not experiment.startswith("original")  # an untrained head's accuracy advises nothing
    method, why = recommend(rows) if trained else ("fp32", "")
    advised = resolve(measured[method]["file"])
    if advised.exists() and sha256(advised) != measured[method]["sha256"]:
        raise UserError(f"{shown(advised)} is not the file that {experiment} measured: it was made anew since; "
                        f"run `python ptq/run_ptq.py {experiment}` again")
    return {
        "name": experiment, "rows": measured, "base": measured["fp32"], "trained": trained,
        "missing": {name: row["reason"] for name, row in rows.items() if row["status"] != MEASURED},
        "method": method, "why": why, "best": measured[method],
        "targets": target_rows(rows, method) if trained else [],
        "pictures": [(name, CAPTIONS[name], picture(name, measured, False), picture(name, measured, True))
                     for name in PLOTS],
        "stages": sorted((made for made in manifest.values() if "results.json" in made["writes"]),
                         key=lambda made: made["finished"]),
    }


def main(settings):
    results = resolve(RESULTS)
    sections = [section(name, rows, read_manifest(results / name)) for name, rows in read_experiments(results).items()]
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
    here = sections[0]["stages"][-1]["machine"]
    remove_leftovers(results)
    write_text(results / "report.html", pages.get_template("report.html.jinja").render(
        title=TITLE, sections=sections, machine=here, advice=integer_advice(here),
        versions=sections[0]["stages"][-1]["versions"]))
    chosen = next((part for part in sections if part["trained"]), None)
    if chosen:
        print(f"  {chosen['name']}: ship {chosen['method']}: {chosen['why']}")
    print(f"wrote {shown(results / 'report.html')}")


if __name__ == "__main__":
    run_stage(main, globals())
