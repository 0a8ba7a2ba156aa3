"""Stage 8 of 8: one HTML file: every file of the runs, the targets beside what was measured in each runtime.

Reads   models/<RUN>/results_<runtime>.json (accuracy_evaluation.py), of every run of RUN_NAMES
Writes  RESULTS/report.html                 self-contained: pictures and styles are inside
"""
from pathlib import Path

from lowbit.measure.html import filled
from lowbit.pipeline.files import claim, resolve, shown
from lowbit.pipeline.manifest import publish_text
from lowbit.pipeline.stage import run_stage
from lowbit.vision.compare import over_seeds, read_runs, seed_lines
from lowbit.vision.report import section

# ---- settings: edit here, or for one run: --run-names c10-1,c10-2,c10-3 ---------------------------
RUN_NAMES = "vision"            # runs with commas
RESULTS = "results/vision"      # folder that is written
TITLE = "Convolutional networks to INT8"  # heading of the report
# --------------------------------------------------------------------------------------------------


def main(settings):
    found = read_runs(RUN_NAMES)
    first = next(iter(found.values()))
    folder = resolve(RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    publish_text(folder / "report.html", filled(
        Path(__file__).with_name("report.html.jinja"), title=TITLE,
        sections=[section(*key, results) for key, results in found.items()],
        seeds=[line.strip() for line in seed_lines(over_seeds(found))], machine=first["machine"],
        versions=first["versions"]))
    print(f"wrote {shown(folder / 'report.html')}")


if __name__ == "__main__":
    run_stage(main, globals())
