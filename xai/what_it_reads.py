"""Stage 4 of 4: one page of what a model reads: its words for and against each label, its most confident mistakes.

Reads   RESULTS/<RUN>/explanations.jsonl    (explain_tsv.py); drift.json and faithfulness.json where they are
Writes  RESULTS/<RUN>/what_it_reads.html    self-contained; ptq/generate_report.py links it
"""
import json
from pathlib import Path

from lowbit.data.task import task_of
from lowbit.measure.html import filled
from lowbit.pipeline.files import claim, resolve, run_dir, sha256, shown
from lowbit.pipeline.manifest import publish_text, record, recorded, stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.xai import shown as view
from lowbit.xai.files import FP32
from lowbit.xai.many import EXPLANATIONS, read_explanations
from lowbit.xai.sample import mistakes, words_by_label
from lowbit.xai.tables import drift_table, faithfulness_rows

# ---- settings: edit here, or for one run: what_it_reads.py my-run ---------------------------------
RUN = "indobert-qat-int8-smsa"  # a run that explain_tsv.py has explained
METHOD = "shap"                 # whose values are shown: shap, lime, occlusion or ig
LEAST_TEXTS = 3                 # texts with the label that a word must stand in
WORDS = 15                      # words for, and against, each label
MISTAKES = 20                   # texts that it answers wrongly, the most confident first
RESULTS = "results/xai"         # folder of the explanations, from the project's root
# --------------------------------------------------------------------------------------------------

STAGE, PAGE = "xai/what_it_reads.py", "what_it_reads.html"


def made(folder: Path, stage: str, name: str, explanations: Path) -> dict | None:
    """What another stage made of these explanations; None, and a line says why, where it has not done so."""
    reads = stages_of(folder).get(stage, {}).get("reads", {})
    if sha256(explanations) not in reads.values():
        print(f"  without {name}: {stage} has not read these explanations")
        return None
    return json.loads(recorded(folder, stage, name)[0].read_text(encoding="utf-8"))


def main(settings):
    known = [method for method in view.NAMES if method not in view.UNSIGNED]
    check(METHOD in known, f"METHOD is {METHOD!r}; choose {', '.join(known)}")
    for name in ("LEAST_TEXTS", "WORDS"):
        check(settings[name] > 0, f"{name} is {settings[name]}; it must be above 0")
    check(MISTAKES >= 0, f"MISTAKES is {MISTAKES}; it must be 0 or more")
    results, out = resolve(RESULTS), resolve(RESULTS) / run_dir(RUN).name
    head, records = read_explanations(out)
    explained = [found for found in records if "refused" not in found]
    file = next((name for name in head["files"] if name != FP32 and any(
        METHOD in found["files"][name]["methods"] for found in explained)), FP32)
    check(any(METHOD in found["files"][file]["methods"] for found in explained),
          f"{shown(out / EXPLANATIONS)} holds no values of {METHOD}: name another METHOD, or explain again with it")
    task = task_of(head["task"])
    drift = made(results, "xai/drift.py", "drift.json", out / EXPLANATIONS)
    own = drift and {name: found for name, found in drift["files"].items() if name.rpartition("/")[0] == RUN}
    faithful = made(out, "xai/faithfulness.py", "faithfulness.json", out / EXPLANATIONS)
    claim(out)
    publish_text(out / PAGE, filled(
        Path(__file__).with_name("what_it_reads.html.jinja"), run=RUN,
        task=task, head=head, file=file, method=METHOD, least=LEAST_TEXTS, count=WORDS, records=records,
        explained=explained, words=words_by_label(explained, file, METHOD, LEAST_TEXTS),
        mistakes=mistakes(explained, file, task, MISTAKES), drift=drift_table({"files": own}) if own else None,
        faithful=faithfulness_rows(faithful) if faithful else None, view=view))
    record(out, STAGE, settings, [out / EXPLANATIONS], [PAGE])
    print(f"wrote {shown(out / PAGE)}")


if __name__ == "__main__":
    run_stage(main, globals(), bare="RUN")
