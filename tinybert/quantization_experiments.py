"""Stage 6 of 7: score and time every file of finished runs in ONNX Runtime, by one protocol, in turns: a table a task.

Reads   models/<RUN>-<TASK>-{teacher,student_*}/ (export_to_onnx.py, quantize.py)
        DATA_DIR/<TASK>/{valid,test}.tsv
Writes  RESULTS/<TASK>/                     results.json, results.csv, and the files measured:
                                            ts_teacher_bert/model*.onnx, ts_student_<STUDENT>/model*.onnx
Next    generate_report.py
"""
import glob

from lowbit.data.task import task_of_run
from lowbit.data.tsv import describe, read_split
from lowbit.distill.comparison import (
    QUANTIZE,
    add_own,
    copy_file,
    files_of,
    refuse_other_run,
    results_name,
    table_lines,
)
from lowbit.distill.places import (
    EXPORT,
    FINETUNE,
    ONNX,
    STUDENT,
    TEACHER,
    WEIGHTS,
    check_names,
    data_folder,
    flags_of,
    made_by,
    models_of,
    refuse_other_teacher,
    teacher_dir,
    trainer_of,
)
from lowbit.distill.shipping import ship
from lowbit.measure.record import RESULTS as RESULTS_FILE
from lowbit.pipeline.files import claim, resolve, run_dir, sha256, shown
from lowbit.pipeline.manifest import is_made, stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.experiments import Experiment
from lowbit.ptq.files import Candidate
from lowbit.ptq.matrix import check_settings, measure
from lowbit.ptq.results import read_results, write_results

# ---- settings: edit here, or for one run: --tasks SST-2,RTE ---------------------------------------
RUN = "tinybert"                # first part of the names of all folders under models/ that the stages share
TASKS = ""                      # tasks, with commas; "" = all that have a teacher
MODELS = ""                     # teacher and student_<name>, with commas; "" = all that were exported
DATA_DIR = "data/glue"          # folder of the tasks' folders (data/prepare_glue.py)
PROVIDER = "CPUExecutionProvider"  # ONNX Runtime execution provider; an absent one is an error
THREADS = 0                     # threads of each session; 0 = every core
BATCH_SIZE = 1                  # texts of a timed batch
TOKENS = 128                    # their length
WARMUP = 5                      # runs of a turn that are not counted
RUNS = 30                       # measured runs a turn
ROUNDS = 3                      # turns that each file takes, in a new process each
DEPENDENCE_TEXTS = 100          # test texts on which the dependence on batch-mates is looked for
MAX_DROP = 1.0                  # points of accuracy below the teacher's FP32 from which the report advises no file
RESULTS = "results/tinybert"    # folder of the results, from the project's root
# --------------------------------------------------------------------------------------------------

STAGE = "tinybert/quantization_experiments.py"
UNFINISHED = "unfinished_tinybert"


def tasks_of():
    """The tasks that TASKS names, or all that have a teacher of RUN."""
    if TASKS.strip():
        return [name.strip() for name in TASKS.split(",") if name.strip()]
    folders = sorted(run_dir(RUN).parent.glob(f"{glob.escape(RUN)}-*-{TEACHER}"))
    trained = [stages_of(folder).get(FINETUNE) for folder in folders]
    found = [made["settings"]["TASK"] for made in trained
             if made and made["settings"]["RUN"] == teacher_dir(RUN, made["settings"]["TASK"]).name]
    check(bool(found), f"there is no models/{RUN}-<TASK>-{TEACHER}: run `python {FINETUNE} --run {RUN}` first")
    return found


def candidates_of(task_name, out):
    """A candidate for every file of every model of a task, copied into `out`; the teacher's FP32 is the first."""
    folders = models_of(RUN, task_name, MODELS)
    check(TEACHER in folders, f"MODELS is {MODELS!r}, without teacher, which every file is measured beside: add it")
    teacher, candidates = "", []
    for name, folder in folders.items():
        flags = flags_of(RUN, task_name, name)
        weights = made_by(trainer_of(folder), folder, flags, WEIGHTS)[0]
        if name == TEACHER:
            teacher = sha256(weights)
        else:
            refuse_other_teacher(RUN, task_name, name, folder, teacher)
        for file in files_of(folder):
            stage = EXPORT if file == ONNX else next(
                key for key, made in stages_of(folder).items() if key.startswith(QUANTIZE) and file in made["writes"])
            path = made_by(stage, folder, f"--run {RUN} --task {task_name}", file)[0]
            made = out / results_name(name) / file
            copy_file(path, made)
            candidates.append(Candidate(f"{results_name(name)}/{file}", {"kind": "fp32" if file == ONNX else file},
                                        folder, made))
    return candidates


def ship_students(candidates, results, task):
    """Note in each student's folder which of its files is the one to deploy."""
    models = {candidate.method.split("/")[0].removeprefix("ts_"): candidate.folder for candidate in candidates}
    for name, folder in models.items():
        if not name.startswith(STUDENT):
            continue
        file = ship(name, folder, results, STAGE, task)
        print(f"  {name} ships {file}: python deploy/pack.py --run {folder.name}" if file else
              f"  {name} ships nothing: it has no low-bit file that ran and is within {MAX_DROP:g} points of its own "
              "FP32")


def experiment(task_name, settings):
    """Measure one task, unless it was measured before with these settings and files."""
    folder, out = data_folder(DATA_DIR, task_name), resolve(RESULTS) / task_name
    print(task_name, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    claim(out)
    refuse_other_run(out, STAGE, RUN)
    candidates = candidates_of(task_name, out)
    task = task_of_run(candidates[0].folder, folder)
    read = [folder / f"{split}.tsv" for split in ("valid", "test")] + [candidate.path for candidate in candidates]
    given = settings | {"TASKS": task_name}
    if is_made(out, STAGE, given, read, [RESULTS_FILE, "results.csv"]):
        print(f"  {shown(out)}: measured before, with these settings and files")
        whole = read_results(out)
    else:
        data = {split: read_split(folder, split, task) for split in ("valid", "test")}
        print(f"  {describe('test', *data['test'], task)}")
        found = measure(candidates, Experiment(task_name, True, False), data, task, settings, out / UNFINISHED)
        add_own(found, data, out / UNFINISHED)
        whole = write_results(out, STAGE, given, found, read, UNFINISHED, replaced="ts_")
    ship_students(candidates, whole, task)
    print(*table_lines(whole), sep="\n", flush=True)


def main(settings):
    check_settings(settings)
    for name in ("WARMUP", "RUNS"):
        check(0 <= settings[name] <= 10_000, f"{name} is {settings[name]}; it must be at most 10000")
    tasks = tasks_of()
    for task_name in tasks:
        check_names(RUN, task_name)
    for task_name in tasks:
        experiment(task_name, settings)
    return next_command("tinybert/generate_report.py", settings, "RUN", "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals())
