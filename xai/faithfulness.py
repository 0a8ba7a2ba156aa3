"""Stage 3 of 4: are the named words those that the file reads: words taken away and put back, beside random orders.

Reads   RESULTS/<RUN>/explanations.jsonl    (explain_tsv.py), models/<RUN>/
Writes  RESULTS/<RUN>/                      faithfulness.json, faithfulness.md, faithfulness.png
Next    what_it_reads.py
"""
import time

from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir, shown, write_json
from lowbit.pipeline.manifest import publish, record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.xai.explain import FORMAT, Explainer
from lowbit.xai.faithfulness import faithfulness_of, judge_text
from lowbit.xai.many import EXPLANATIONS, read_explanations, refuse_other_files
from lowbit.xai.tables import aligned, faithfulness_rows, markdown, plot_curves
from lowbit.xai.variants import AT_ONCE

# ---- settings: edit here, or for one run: faithfulness.py my-run ----------------------------------
RUN = "indobert-qat-int8-smsa"  # a run that explain_tsv.py has explained
RANDOM_ORDERS = 10              # random orders a text
SEED = 42                       # of these orders
THREADS = 0                     # threads of each session; 0 = every core
RESULTS = "results/xai"         # folder of the explanations, from the project's root
# --------------------------------------------------------------------------------------------------

STAGE = "xai/faithfulness.py"


def main(settings):
    check(0 < RANDOM_ORDERS <= 1000, f"RANDOM_ORDERS is {RANDOM_ORDERS}; it must be from 1 to 1000")
    check(0 <= SEED < 2**32, f"SEED is {SEED}; it must be from 0 to 4294967295")
    folder, out = run_dir(RUN), resolve(RESULTS) / RUN
    head, records = read_explanations(out)
    claim(out)
    started, files = time.monotonic(), {}
    asking = head["settings"] | {"METHODS": "shap", "FILES": ",".join(head["files"])}
    with Explainer(folder, asking, floors=False, threads=THREADS) as explainer:
        refuse_other_files(head, explainer)
        for name, file in explainer.files.items():
            texts = [judge_text(explainer.asked(file, explainer.read(given), 1 if file.alone else AT_ONCE), found,
                                name, RANDOM_ORDERS, SEED)
                     for found in records if "refused" not in found
                     for given in [found["texts"][0] if len(found["texts"]) == 1 else tuple(found["texts"])]]
            judged = [text for text in texts if text]
            check(bool(judged), f"no text of {shown(out / EXPLANATIONS)} has two words: there is no order to judge")
            files[name] = faithfulness_of(judged)
            print(f"  {name}: {len(judged)} texts of two words or more, {time.monotonic() - started:.0f} s", flush=True)
    results = {"format": FORMAT, "run": RUN, "labels": explainer.task.labels, "settings": settings,
               "explained": head["settings"], "source": head["texts"], "files": files}
    heads, rows = faithfulness_rows(results)
    with atomic_folder(out) as scratch:
        write_json(scratch / "faithfulness.json", results)
        (scratch / "faithfulness.md").write_text("\n".join([*markdown(heads, rows), ""]), encoding="utf-8")
        plot_curves(results, scratch / "faithfulness.png")
        names = publish(scratch)
    record(out, STAGE, settings, [out / EXPLANATIONS], names)
    print(*aligned([heads, *rows]), sep="\n")
    print(f"wrote {', '.join(names)} in {shown(out)}")
    return next_command("xai/what_it_reads.py", settings, "RUN", "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals(), bare="RUN")
