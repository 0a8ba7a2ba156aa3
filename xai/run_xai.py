"""Explain one text: which of its words make the label, in FP32 and in the file that ships, by several methods.

Reads   models/<RUN>/                       a run after its stages 1 to 3, or of ptq/finetune_fp32.py and run_ptq.py
Writes  RESULTS/<RUN>/                      explanation.html (self-contained), explanation.json, explanation.png
Next    explain_tsv.py, for a file of texts
"""
import time
from pathlib import Path

from lowbit.measure.html import filled
from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir, sha256, shown, write_json
from lowbit.pipeline.manifest import publish, record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.xai import shown as view
from lowbit.xai.explain import FORMAT, Explainer
from lowbit.xai.words import CUT

# ---- settings: edit here, or for one run: run_xai.py my-run "teksnya" -----------------------------
RUN = "indobert-qat-int8-smsa"  # folder under models/
TEXT = ""                       # the text to explain
TEXT2 = ""                      # the second text, of a model of pairs
METHODS = ""                    # of shap, lime, occlusion, ig, attention, with commas; "" = all
FILES = ""                      # such as "fp32,int8"; "" = FP32 and the file that ships
REPLACE = "mask"                # where a word is left out: mask = [MASK] for each of its tokens, delete = nothing
SAMPLES = 1000                  # lime: texts that lack words
ORDERS = 25                     # shap: orders in which words are added, each also reversed
STEPS = 20                      # ig: points on the line from the reference to the text
SEED = 42                       # of the orders and samples
TOP = 5                         # words a line on the terminal
THREADS = 0                     # threads of each session; 0 = every core
RESULTS = "results/xai"         # folder of the explanations, from the project's root
# --------------------------------------------------------------------------------------------------

STAGE = "xai/run_xai.py"


def lines(found: dict, explainer: Explainer) -> list[str]:
    """What the terminal shows: a line a file with its answer, a line a method and file with its words."""
    said, width = [], max(map(len, found["files"]))
    for name, held in found["files"].items():
        said.append(f"  {name:{width}}  {view.answer_of(held, explainer.task, found['label'])}; "
                    f"f(text) {held['value']:+.3f}, f(no word) {held['reference']:+.3f}")
    for method in view.methods_of(found):
        for name, held in found["files"].items():
            if method in held["methods"]:
                gap = f"  (gap {100 * held['gap']:.2g} %)" if method == "ig" else ""
                said.append(f"  {method:9}  {name:{width}}  {view.top_words(found, held['methods'][method], TOP)}{gap}")
    left = sum(end - start for _, start, end, why in found["gaps"] if why == CUT)
    if left:
        said.append(f"  the text is longer than {explainer.reader.max_length} tokens: its last {left} characters are "
                    "not read")
    return said


def main(settings):
    check(TEXT.strip() != "", "TEXT is empty: `python xai/run_xai.py RUN \"teksnya\"`")
    check((TEXT + TEXT2).encode("utf-8", "ignore").decode() == TEXT + TEXT2,
          "TEXT is not UTF-8: the shell passed bytes that are no letters")
    check(TOP > 0, f"TOP is {TOP}; it must be above 0")
    folder, out = run_dir(RUN), resolve(RESULTS) / RUN
    with Explainer(folder, settings, floors=False, threads=THREADS) as explainer:
        started = time.monotonic()
        found = explainer.record((TEXT, TEXT2) if TEXT2 else TEXT)
        seconds = time.monotonic() - started
        files = {name: {"file": shown(file.path), "sha256": sha256(file.path), "alone": file.alone}
                 for name, file in explainer.files.items()}
        task = explainer.task
    print(*lines(found, explainer), sep="\n")
    print(f"  {len(found['words'])} words, {len(files)} files: {seconds:.1f} s")
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    with atomic_folder(out) as scratch:
        write_json(scratch / "explanation.json", {
            "format": FORMAT, "run": RUN, "task": task.as_json(), "settings": settings, "files": files, "text": found})
        view.picture(found, scratch / "explanation.png")
        (scratch / "explanation.html").write_text(filled(
            Path(__file__).with_name("explanation.html.jinja"), run=RUN,
            task=task, settings=settings, files=files, record=found, view=view), encoding="utf-8")
        names = publish(scratch)
    record(out, STAGE, settings, [file.path for file in explainer.files.values()], names)
    print(f"wrote {', '.join(names)} in {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals(), bare="RUN TEXT")
