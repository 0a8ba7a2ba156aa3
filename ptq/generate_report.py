"""Stage 5 of 5: one HTML file to decide by: what to ship on this machine, the promises beside what was measured, why.

Reads   RESULTS/<experiment>/results.json   (run_ptq.py, run_qat.py)
        RESULTS/xai/<run>/what_it_reads.html  (xai/what_it_reads.py), to be linked, where there are any
Writes  RESULTS/report.html                 self-contained: pictures and styles are inside
"""
from pathlib import Path
from urllib.parse import quote

from lowbit.measure.record import measured_files
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import claim, resolve, sha256, shown
from lowbit.pipeline.manifest import publish_text, stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.ptq import page
from lowbit.ptq.advice import WANTED as KNOWN_WANTED
from lowbit.ptq.advice import recommend
from lowbit.ptq.results import columns, read_experiments

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
    return page.section(results, stages, columns(results), CAPTIONS, method, why, trained)


def pages_of_words(results: Path) -> dict[str, str]:
    """Run -> address, from the report's folder, of its page of what the model reads."""
    return {path.parent.name: quote(path.relative_to(results).as_posix())
            for path in sorted(results.glob("xai/*/what_it_reads.html"))}


def main(settings):
    check(WANTED in KNOWN_WANTED, f"WANTED is {WANTED!r}; choose {' or '.join(KNOWN_WANTED)}")
    results = resolve(RESULTS)
    sections = [section(found, stages_of(results / found["experiment"]["name"]))
                for found in read_experiments(results)]
    claim(results)
    publish_text(results / "report.html", page.page(TITLE, sections, pages_of_words(results)))
    chosen = next((part for part in sections if part["trained"]), None)
    if chosen:
        print(f"  {chosen['name']}: ship {chosen['method']}: {chosen['why']}")
    print(f"wrote {shown(results / 'report.html')}")


if __name__ == "__main__":
    run_stage(main, globals())
