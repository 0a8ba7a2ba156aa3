"""Stage 2 of 4: does a low-bit file still decide for the same reasons as FP32: drift of values beside its noise floors.

Reads   RESULTS/<run>/explanations.jsonl    (explain_tsv.py), of one or more runs
Writes  RESULTS/                            drift.json, drift.md, drift.png
Next    faithfulness.py
"""
from pathlib import Path

from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir, shown, write_json
from lowbit.pipeline.manifest import publish, record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.xai.drift import drift_of
from lowbit.xai.explain import FORMAT
from lowbit.xai.files import FP32
from lowbit.xai.many import EXPLANATIONS, read_explanations
from lowbit.xai.tables import drift_lines, drift_markdown, plot_drift

# ---- settings: edit here, or for one run: drift.py run-a,run-b ------------------------------------
RUNS = "indobert-qat-int8-smsa"  # runs that explain_tsv.py has explained, with commas
RESULTS = "results/xai"         # folder of the explanations, from the project's root
# --------------------------------------------------------------------------------------------------

STAGE = "xai/drift.py"


def main(settings):
    runs = [name.strip() for name in RUNS.split(",") if name.strip()]
    check(bool(runs), "RUNS is empty: name the runs that explain_tsv.py has explained")
    out, rows, sources, reads = resolve(RESULTS), {}, {}, []
    for run in dict.fromkeys(runs):
        folder = out / run_dir(run, "RUNS").name
        head, records = read_explanations(folder)
        reads.append(folder / EXPLANATIONS)
        sources[run] = {name: head[name] for name in ("files", "texts", "settings")}
        for name in head["files"]:
            if name != FP32:
                rows[f"{run}/{name}"] = drift_of(records, name)
    check(bool(rows), f"{', '.join(runs)} was explained in FP32 alone: explain it again with --files")
    results = {"format": FORMAT, "sources": sources, "files": rows}
    claim(out)
    with atomic_folder(out) as scratch:
        write_json(scratch / "drift.json", results)
        (scratch / "drift.md").write_text(drift_markdown(results), encoding="utf-8")
        plot_drift(results, Path(scratch / "drift.png"))
        names = publish(scratch)
    record(out, STAGE, settings, reads, names)
    print(*drift_lines(results), sep="\n")
    print(f"wrote {', '.join(names)} in {shown(out)}")
    return next_command("xai/faithfulness.py", settings | {"RUN": runs[0]}, "RUN", "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals(), bare="RUNS")
