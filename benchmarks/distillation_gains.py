"""Benchmark: what each part of distillation is worth: first weights and losses, several seeds, equal steps.

Reads   DATA_DIR/<TASK>/                    (data/prepare_glue.py)
        MODEL_NAME                          the encoder that the one teacher is fine-tuned from
Writes  models/<NAME>-<TASK>-*/, results/<NAME>_<TASK>.json and .md

Starts: random, cut (out of the teacher). Losses: labels; tinybert (embedding, hidden and attention for the first half
of the epochs, then logits); relation (relation and logits at once); joint (TinyBERT's four at once).
A run that lies there whole is read and not repeated; a killed one goes on from its last epoch.
"""
import statistics
import subprocess
import sys

import numpy as np

from lowbit.data.task import Task, read_task
from lowbit.data.tokens import load_reader
from lowbit.data.tsv import read_split
from lowbit.distill.places import DISTIL, EXPORT, FINETUNE, MAKE, ONNX, data_folder, student_dir, teacher_dir
from lowbit.measure.score import quick_score
from lowbit.measure.session import Session
from lowbit.pipeline.files import ROOT, shown, write_json, write_text
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import check, chosen, whole_numbers
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --seeds 1 --task STS-B ----------------------------------
TASK = "SST-2"                  # the task
DATA_DIR = "data/glue"          # folder of the tasks' folders
MODEL_NAME = ""                 # encoder of the teacher; empty: that of the package (tinybert/teacher_folder.py)
NAME = "gains"                  # of the runs, and of the results
SEEDS = "1,2,3"                 # one student each of every start and loss
STARTS = ""                     # of random, cut; empty: both
LOSSES = ""                     # of labels, tinybert, relation, joint; empty: all
TEACHER_EPOCHS = 3              # passes over train of the teacher
TEACHER_RATE = 5e-5             # peak of its linear schedule
NUM_EPOCHS = 4                  # passes over train of every student
LEARNING_RATE = 2e-4            # peak of the linear schedule of every student
SHAPE = "4,312,12,1200"         # layers, channels, heads, neurons of the students
# --------------------------------------------------------------------------------------------------

START = {"random": "random", "cut": "teacher"}
LOSS = {"labels": ["labels"], "tinybert": ["embedding,hidden,attention,logits"], "relation": ["relation,logits"],
        "joint": ["embedding,hidden,attention,logits"]}


def stage(script: str, *flags) -> None:
    """A stage in a process of its own; a failed one ends the benchmark."""
    subprocess.run([sys.executable, ROOT / script, "--run", NAME, "--task", TASK, *map(str, flags)], check=True)


def tested(folder, data: dict, task: Task) -> dict:
    """Scores on valid and test of a model's FP32 graph, a text at a time."""
    reader = load_reader(folder)
    with Session(folder / ONNX, "CPUExecutionProvider", 0) as session:
        return {split: quick_score(answers, session.logits(reader.rows(texts), reader.pad_id), task)
                for split, (texts, answers) in data.items()}


def make(start: str, loss: str, seed: int) -> str:
    """The student's name, once it is trained and exported."""
    name, data = f"{start}-{loss}-{seed}", ("--data-dir", DATA_DIR)
    sizes = [part.strip() for part in SHAPE.split(",")]
    layout = [word for pair in zip(("--layers", "--hidden", "--heads", "--intermediate"), sizes, strict=True)
              for word in pair]
    stage(MAKE, *data, "--student", name, "--start", START[start], *layout, "--seed", seed)
    first = NUM_EPOCHS / 2 if loss == "tinybert" else 0
    stage(DISTIL, *data, "--student", name, "--losses", *LOSS[loss], "--intermediate-epochs", first, "--relation-heads",
          sizes[2], "--num-epochs", NUM_EPOCHS, "--learning-rate", LEARNING_RATE, "--seed", seed)
    stage(EXPORT, "--models", f"student_{name}")
    return name


def line(name: str, found: list[dict], task: Task, base: float) -> str:
    """A row of the table: mean and each seed of the task's score, and how far the mean lies from the base."""
    test, valid = ([100 * run[split][task.score] for run in found] for split in ("test", "valid"))
    gain = f"{statistics.mean(test) - base:+.2f}" if np.isfinite(base) else "-"
    return (f"| {name} | {statistics.mean(test):.2f} | {', '.join(f'{value:.2f}' for value in test)} "
            f"| {statistics.mean(valid):.2f} | {gain} |")


def main(settings):
    seeds = whole_numbers(SEEDS, "SEEDS")
    starts, losses = chosen(STARTS, START, "STARTS"), chosen(LOSSES, LOSS, "LOSSES")
    check(len(SHAPE.split(",")) == 4, f"SHAPE is {SHAPE!r}; name layers, channels, heads and neurons: 4,312,12,1200")
    folder = data_folder(DATA_DIR, TASK)
    task = read_task(folder)
    data = {split: read_split(folder, split, task) for split in ("valid", "test")}
    encoder = MODEL_NAME or subprocess.run([sys.executable, ROOT / "tinybert/teacher_folder.py"], check=True, text=True,
                                           stdout=subprocess.PIPE).stdout.strip()
    stage(FINETUNE, "--data-dir", DATA_DIR, "--model-name", encoder, "--num-epochs", TEACHER_EPOCHS, "--learning-rate",
          TEACHER_RATE)
    stage(EXPORT, "--models", "teacher")
    rows = {"teacher": [tested(teacher_dir(NAME, TASK), data, task)]}
    out, base = ROOT / "results" / f"{NAME}_{TASK}", float("nan")
    for start in starts:
        for loss in losses:
            found = rows[f"{start}, {loss}"] = []
            for seed in seeds:
                found.append(tested(student_dir(NAME, TASK, make(start, loss, seed)), data, task))
                write_json(out.with_suffix(".json"), {
                    "machine": machine(), "versions": versions(), "settings": settings, "task": task.as_json(),
                    "test_texts": len(data["test"][1]), "runs": rows})
    if "random, labels" in rows:
        base = statistics.mean(100 * run["test"][task.score] for run in rows["random, labels"])
    lines = [f"| start, losses | test {task.score_name}, % | each seed | valid | over random, labels |",
             "|---|---|---|---|---|", *(line(name, found, task, base) for name, found in rows.items())]
    print(*lines, sep="\n")
    write_text(out.with_suffix(".md"), "\n".join(lines) + "\n")
    print(f"wrote {shown(out)}.json and .md")


if __name__ == "__main__":
    run_stage(main, globals())
