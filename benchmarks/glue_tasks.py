"""Benchmark: all stages of tinybert/ on whole GLUE tasks, several seeds: teacher, student, students distilled as files.

Reads   DATA_DIR/<TASK>/                    (data/prepare_glue.py)
        MODEL_NAME                          the encoder that the teachers are fine-tuned from
Writes  models/<NAME>-<seed>-<TASK>-*/, results/<NAME>-<seed>/<TASK>/, results/<NAME>.json and .md

What lies there whole is read and not repeated; a killed training goes on from its last epoch, a measuring from its last
file. The first seed's files are all measured, those of further seeds in FP32 and dynamic INT8.
"""
import statistics
import subprocess
import sys

from lowbit.data.task import read_task
from lowbit.data.tsv import read_split
from lowbit.distill.places import DISTIL, EXPORT, FINETUNE, MAKE, data_folder
from lowbit.measure.record import RESULTS, quality_metrics, read_results_file
from lowbit.pipeline.files import ROOT, resolve, shown, write_json, write_text
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.settings import whole_numbers
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --tasks SST-2 --seeds 1 ---------------------------------
TASKS = "SST-2,STS-B,CoLA,RTE"  # the tasks, with commas
DATA_DIR = "data/glue"          # folder of the tasks' folders
MODEL_NAME = ""                 # encoder of the teachers; empty: that of the package (tinybert/teacher_folder.py)
NAME = "glue"                   # of the runs, before the seed, and of the results
SEEDS = "1,2,3"                 # one teacher and one student of each task
QAT = "int8_dynamic,int8_learned,int4"  # kinds that the first seed's student is distilled as too; empty: none
TEACHER_EPOCHS = 3              # passes over train of a teacher
TEACHER_RATE = 5e-5             # peak of its linear schedule
NUM_EPOCHS = 4                  # passes over train of a student
FEW_ROWS = 20000                # rows of train below which a task is a small one
FEW_TIMES = 3                   # times as many passes for small tasks; the best on valid is kept
LEARNING_RATE = 2e-4            # peak of the linear schedule of a student
AUGMENT = 0                     # copies of each text of train with words replaced
STUDENT_SHAPE = "4,312,12,1200"  # layers, channels, heads, neurons
CONFIGS = "quant_1,quant_2,dynamic"  # files of the first seed's models; those of further seeds are dynamic
OPS = "products,all"            # static files of the first seed: products, all, or both
ROUNDS = 3                      # turns that each file takes
RUNS = 30                       # measured runs a turn
# --------------------------------------------------------------------------------------------------

QUANTIZE, MEASURE, REPORT = (f"tinybert/{name}.py" for name in (
    "quantize", "quantization_experiments", "generate_report"))
BY_QAT = {"int8_dynamic": ("2", "5e-5"), "int8_learned": ("2", "5e-5"), "int4": ("3", "1e-4")}  # epochs, rate


def stage(script: str, *flags) -> None:
    """A stage in a process of its own; a failed one ends the benchmark."""
    subprocess.run([sys.executable, ROOT / script, *map(str, flags)], check=True)


def make(task: str, seed: int, encoder: str, times: int, whole: bool) -> None:
    """Every model of a task and seed, exported and quantized; `times` as many epochs as the settings say."""
    run = ("--run", f"{NAME}-{seed}", "--task", task)
    data, seeded = (*run, "--data-dir", DATA_DIR), ("--seed", seed)
    stage(FINETUNE, *data, *seeded, "--model-name", encoder, "--num-epochs", times * TEACHER_EPOCHS, "--learning-rate",
          TEACHER_RATE)
    sizes = zip(("--layers", "--hidden", "--heads", "--intermediate"), STUDENT_SHAPE.split(","), strict=True)
    stage(MAKE, *data, *seeded, "--student", "fp32", *(word.strip() for pair in sizes for word in pair))
    stage(DISTIL, *data, *seeded, "--student", "fp32", "--num-epochs", times * NUM_EPOCHS, "--learning-rate",
          LEARNING_RATE, "--augment", AUGMENT)
    for kind in [kind.strip() for kind in QAT.split(",") if kind.strip()] if whole else []:
        epochs, rate = BY_QAT.get(kind, BY_QAT["int4"])
        stage(DISTIL, *data, *seeded, "--student", kind, "--from", "fp32", "--qat", kind, "--num-epochs", epochs,
              "--learning-rate", rate, "--augment", AUGMENT)
    stage(EXPORT, *run)
    stage(QUANTIZE, *data, *seeded, *(("--configs", CONFIGS, "--ops", OPS) if whole else (
        "--configs", "dynamic")))


def main(settings):
    seeds = whole_numbers(SEEDS, "SEEDS")
    tasks = [name.strip() for name in TASKS.split(",") if name.strip()]
    folders = {task: data_folder(DATA_DIR, task) for task in tasks}
    encoder = MODEL_NAME or subprocess.run([sys.executable, ROOT / "tinybert/teacher_folder.py"], check=True, text=True,
                                           stdout=subprocess.PIPE).stdout.strip()
    found: dict = {task: {} for task in tasks}
    lines = ["| task | file | score | each seed | other scores, mean |", "|---|---|---|---|---|"]
    for task in tasks:
        for seed in seeds:
            results = f"results/{NAME}-{seed}"
            times = FEW_TIMES if len(read_split(folders[task], "train", read_task(folders[task]))[0]) < FEW_ROWS else 1
            make(task, seed, encoder, times, seed == seeds[0])
            given = ("--run", f"{NAME}-{seed}", "--tasks", task, "--data-dir", DATA_DIR, "--results", results)
            stage(MEASURE, *given, "--rounds", ROUNDS, "--runs", RUNS)
            stage(REPORT, *given)
            for name, record in read_results_file(resolve(results) / task / RESULTS)["files"].items():
                found[task].setdefault(name, []).append(
                    {metric.key: metric.value(record) for metric in quality_metrics(read_task(folders[task]))})
            write_json(ROOT / "results" / f"{NAME}.json", {
                "machine": machine(), "versions": versions(), "settings": settings, "scores": found})
        main_score, *others = quality_metrics(read_task(folders[task]))
        for name, runs in found[task].items():
            each = [run[main_score.key] for run in runs]
            more = "; ".join(f"{metric.heading} {statistics.mean(run[metric.key] for run in runs):.2f}"
                             for metric in others)
            lines.append(f"| {task}, {main_score.heading} | {name} | {statistics.mean(each):.2f} "
                         f"| {', '.join(f'{value:.2f}' for value in each)} | {more} |")
    print(*lines, sep="\n")
    write_text(ROOT / "results" / f"{NAME}.md", "\n".join(lines) + "\n")
    print(f"wrote {shown(ROOT / 'results' / NAME)}.json and .md, results/{NAME}-<seed>/<TASK>/report.html")


if __name__ == "__main__":
    run_stage(main, globals())
