"""Stage 1 of 4: explain a file of texts, in FP32 and in the file that ships, a line of JSON a text.

Reads   models/<RUN>/                       a run after its stages 1 to 3, or of ptq/finetune_fp32.py and run_ptq.py
        TEXTS                               a TSV as training reads it, or a .txt of a text a line
Writes  RESULTS/<RUN>/explanations.jsonl    continued by the same command after a kill
Next    drift.py
"""
import os
import time

from lowbit.pipeline.files import claim, resolve, run_dir, sha256, shown
from lowbit.pipeline.manifest import note, record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.xai.explain import Explainer
from lowbit.xai.many import (
    EXPLANATIONS,
    STAGE,
    UNFINISHED,
    cores,
    done_lines,
    head_of,
    made_before,
    read_texts,
    records,
    write_lines,
)

# ---- settings: edit here, or for one run: explain_tsv.py my-run data/test.tsv ---------------------
RUN = "indobert-qat-int8-smsa"  # folder under models/
TEXTS = "data/test.tsv"         # TSV of the run's task, or a .txt of a text a line; from the project's root
LIMIT = 200                     # texts from the start of the file; 0 = all
METHODS = ""                    # of shap, lime, occlusion, ig, attention, with commas; "" = all
FILES = ""                      # such as "fp32,int8"; "" = FP32 and the file that ships
REPLACE = "mask"                # where a word is left out: mask = [MASK] for each of its tokens, delete = nothing
SAMPLES = 80                    # lime: texts that lack words
ORDERS = 2                      # shap: orders in which words are added, each also reversed
STEPS = 20                      # ig: points on the line from the reference to the text
SEED = 42                       # of the orders and samples
FLOORS = True                   # also what another seed changes, and batches of 64 where batch-mates matter
WORKERS = 0                     # processes, of one thread each; 0 = one a core
RESULTS = "results/xai"         # folder of the explanations, from the project's root
# --------------------------------------------------------------------------------------------------

SETTINGS = ("METHODS", "FILES", "REPLACE", "SAMPLES", "ORDERS", "STEPS", "SEED", "FLOORS")  # what a line depends on


def main(settings):
    check(LIMIT >= 0, f"LIMIT is {LIMIT}; it must be 0 or more")
    check(WORKERS >= 0, f"WORKERS is {WORKERS}; it must be 0 or more")
    out, path = resolve(RESULTS) / RUN, resolve(TEXTS)
    explainer = Explainer(run_dir(RUN), settings, FLOORS, threads=1)
    texts, answers = read_texts(path, explainer.task)
    texts, answers = texts[: LIMIT or None], answers[: LIMIT or None]
    files = {name: {"file": shown(file.path), "sha256": sha256(file.path), "alone": file.alone}
             for name, file in explainer.files.items()}
    head = head_of(RUN, explainer, {name: settings[name] for name in SETTINGS}, files,
                   {"file": shown(path), "sha256": sha256(path), "count": len(texts)})
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    note(out, dict.fromkeys((UNFINISHED, EXPLANATIONS), ""))
    start, started = done_lines(out / UNFINISHED, head), time.monotonic()
    if start:
        print(f"  resuming after {start} of {len(texts)} texts")
    run, known = made_before(resolve(RESULTS), head)
    if known:
        print(f"  FP32 as explained for {run}: it is the same file")
    found = records(explainer, RUN, settings, texts[start:], known[start:] or [None] * len(texts[start:]),
                    WORKERS or cores())
    write_lines(out / UNFINISHED, head, found, start, answers, len(texts))
    seconds = time.monotonic() - started
    os.replace(out / UNFINISHED, out / EXPLANATIONS)
    record(out, STAGE, settings, [*(file.path for file in explainer.files.values()), path], [EXPLANATIONS])
    print(f"  {len(texts) - start} texts, {', '.join(files)}: {seconds:.0f} s")
    print(f"wrote {shown(out / EXPLANATIONS)}")
    return next_command("xai/drift.py", settings | {"RUNS": RUN}, "RUNS", "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals(), bare="RUN TEXTS")
