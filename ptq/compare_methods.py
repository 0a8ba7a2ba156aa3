"""Stage 4 of 5: all experiments and methods in one table, and pictures of each experiment.

Reads   RESULTS/<experiment>/results.json   (run_ptq.py, run_qat.py)
Writes  RESULTS/comparison/                 comparison.csv, comparison.md, <experiment>_<picture>.png
Next    generate_report.py
"""
from lowbit.pipeline.files import atomic_folder, publish, remove_leftovers, resolve, shown
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.matrix import MEASURED
from lowbit.ptq.plots import PLOTS, draw
from lowbit.ptq.results import csv_text, lost, read_experiments, table_lines

# ---- settings: edit here, or for one run: --results results/sample --------------------------------
RESULTS = "results"             # folder of the experiments' results, from the project's root
# --------------------------------------------------------------------------------------------------

HEADS = ("method", "accuracy, %", "macro-F1, %", "lost on test, points", "lost on valid", "MB", "median ms", "speed-up",
         "peak MB", "flips (McNemar p)")


def comparison_csv(experiments: dict[str, dict]) -> str:
    """The results.csv of all experiments under one head, the experiment in a column of its own."""
    tables = {experiment: csv_text(rows).splitlines() for experiment, rows in experiments.items()}
    head = next(iter(tables.values()))[0]
    return "\n".join([f"experiment,{head}", *(f"{experiment},{line}" for experiment, lines in tables.items()
                                              for line in lines[1:])]) + "\n"


def comparison_markdown(experiments: dict[str, dict]) -> str:
    """One table an experiment."""
    lines = []
    for experiment, rows in experiments.items():
        base = next(iter(rows.values()))
        lines += [f"## {experiment}", "", f"{base['samples']} test texts; {base['protocol']['BATCH_SIZE']} × "
                  f"{base['protocol']['TOKENS']} tokens a timed batch.", "",
                  "| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
        for method, row in rows.items():
            if row["status"] != MEASURED:
                lines.append(f"| {method} | {row['reason']}" + " |" * (len(HEADS) - 1))
                continue
            paired = row["against_fp32"]
            mark = "" if row["within_max_drop"] else " **loses too much**"
            lines.append(f"| {method}{mark} | {100 * row['accuracy']:.2f} | {100 * row['f1']:.2f} | "
                         f"{lost(row, 'test')} | {lost(row, 'valid')} | {row['model_size']:.1f} | "
                         f"{row['median_ms']:.2f} | {row['speedup']:.2f}x | {row['peak_memory_mb']:.0f} | "
                         f"{paired['flips']} ({paired['mcnemar_p']:.2f}) |")
        lines.append("")
    return "\n".join(lines)


def main(settings):
    results = resolve(RESULTS)
    experiments = read_experiments(results)
    remove_leftovers(results / "comparison")
    with atomic_folder(results / "comparison") as scratch:
        (scratch / "comparison.csv").write_text(comparison_csv(experiments), encoding="utf-8")
        (scratch / "comparison.md").write_text(comparison_markdown(experiments), encoding="utf-8")
        for experiment, rows in experiments.items():
            measured = {method: row for method, row in rows.items() if row["status"] == MEASURED}
            for name in PLOTS:
                draw(name, measured, scratch / f"{experiment}_{name}.png", "png")
        names = publish(scratch)
    for experiment, rows in experiments.items():
        print(experiment, *table_lines(rows), sep="\n")
    print(f"wrote {', '.join(names)} in {shown(results / 'comparison')}")
    return next_command("ptq/generate_report.py", settings, "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals())
