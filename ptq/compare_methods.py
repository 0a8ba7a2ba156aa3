"""Stage 4 of 5: all experiments and methods in one table, and pictures of each experiment.

Reads   RESULTS/<experiment>/results.json   (run_ptq.py, run_qat.py)
Writes  RESULTS/comparison/                 comparison.csv, comparison.md, <experiment>_<picture>.png
Next    generate_report.py
"""
from lowbit.measure.record import MEASURED
from lowbit.measure.report import csv_text
from lowbit.pipeline.files import atomic_folder, claim, resolve, shown
from lowbit.pipeline.manifest import publish
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.plots import draw, plots_of
from lowbit.ptq.results import columns, read_experiments, table_lines, verdict

# ---- settings: edit here, or for one run: --results results/sample --------------------------------
RESULTS = "results"             # folder of the experiments' results, from the project's root
# --------------------------------------------------------------------------------------------------


def comparison_csv(experiments: list[dict]) -> str:
    """Every record of all experiments under one head."""
    rows = {(results["experiment"]["name"], method): row for results in experiments
            for method, row in results["files"].items()}
    return csv_text(rows, "experiment", "method")


def comparison_markdown(experiments: list[dict]) -> str:
    """One table an experiment."""
    lines = []
    for results in experiments:
        shown_columns = columns(results)
        base = next(iter(results["files"].values()))
        lines += [f"## {results['experiment']['name']}", "",
                  f"{base['samples']} test texts; {results['protocol']['SHAPES'][-1].replace('x', ' × ')} tokens a "
                  "timed batch.", "",
                  "| " + " | ".join(["method", *(metric.heading for metric in shown_columns)]) + " |",
                  "|---" * (len(shown_columns) + 1) + "|"]
        for method, row in results["files"].items():
            if row["status"] != MEASURED:
                lines.append(f"| {method} | {row['reason']}" + " |" * len(shown_columns))
                continue
            said = verdict(method, results)
            lines.append("| " + " | ".join([f"{method} **{said}**" if said else method,
                                            *(metric.show(row) for metric in shown_columns)]) + " |")
        lines.append("")
    return "\n".join(lines)


def main(settings):
    results = resolve(RESULTS)
    experiments = read_experiments(results)
    out = results / "comparison"
    out.mkdir(exist_ok=True)
    claim(out)
    with atomic_folder(out) as scratch:
        (scratch / "comparison.csv").write_text(comparison_csv(experiments), encoding="utf-8")
        (scratch / "comparison.md").write_text(comparison_markdown(experiments), encoding="utf-8")
        for found in experiments:
            for name in plots_of(found):
                draw(name, found, scratch / f"{found['experiment']['name']}_{name}.png", "png")
        names = publish(scratch)
    for found in experiments:
        print(found["experiment"]["name"], *table_lines(found), sep="\n")
    print(f"wrote {', '.join(names)} in {shown(out)}")
    return next_command("ptq/generate_report.py", settings, "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals())
