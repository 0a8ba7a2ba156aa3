"""Stage 7 of 8: the files of several runs in one table, and what runs of one recipe with other seeds say together.

Reads   models/<RUN>/results_<runtime>.json (accuracy_evaluation.py), of every run of RUN_NAMES
Writes  RESULTS/comparison.md, comparison.csv
Next    generate_report.py
"""
from lowbit.measure.report import csv_text
from lowbit.pipeline.files import atomic_folder, claim, resolve, shown
from lowbit.pipeline.manifest import publish
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.vision.compare import markdown, over_seeds, read_runs, seed_lines
from lowbit.vision.evaluate import table_lines

# ---- settings: edit here, or for one run: --run-names c10-1,c10-2,c10-3 ---------------------------
RUN_NAMES = "vision"            # runs with commas; those of one network and recipe are also told as a mean over seeds
RESULTS = "results/vision"      # folder that is written
# --------------------------------------------------------------------------------------------------


def main(settings):
    found = read_runs(RUN_NAMES)
    for (name, runtime), results in found.items():
        print(f"  {name} in {runtime}", *table_lines(results), sep="\n")
    means = over_seeds(found)
    print(*seed_lines(means), sep="\n")
    folder = resolve(RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    with atomic_folder(folder) as scratch:
        (scratch / "comparison.md").write_text(markdown(found, means), encoding="utf-8")
        (scratch / "comparison.csv").write_text(csv_text(
            {(*key, name): row for key, results in found.items() for name, row in results["files"].items()},
            "run", "runtime", "file"), encoding="utf-8")
        names = publish(scratch)
    print(f"wrote {', '.join(names)} in {shown(folder)}")
    return next_command("vision/generate_report.py", settings, "RUN_NAMES", "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals())
