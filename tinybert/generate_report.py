"""Stage 7 of 7: one HTML page a task: size, latency, score, what each file loses, and which layers follow which.

Reads   RESULTS/<TASK>/results.json         (quantization_experiments.py)
        models/<RUN>-<TASK>-{teacher,student_*}/ (finetune_teacher.py, distil.py)
        DATA_DIR/<TASK>/test.tsv            one text, whose attention is drawn
Writes  RESULTS/<TASK>/report.html          self-contained: pictures and styles are inside
"""
from lowbit.data.tokens import load_reader, same_tokens
from lowbit.data.tsv import read_split
from lowbit.distill.comparison import refuse_other_run, results_name, students_in
from lowbit.distill.losses import read_map
from lowbit.distill.page import layer_picture, section_of_task, shortest
from lowbit.distill.places import (
    DISTIL,
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
    student_dir,
    teacher_dir,
)
from lowbit.measure.record import task_of_results
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import claim, resolve, sha256, shown
from lowbit.pipeline.manifest import publish_text, settings_of, stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.ptq.page import page
from lowbit.ptq.results import read_results
from lowbit.training.encoder import load_run

# ---- settings: edit here, or for one run: --tasks SST-2 --------------------------------------------
RUN = "tinybert"                # first part of the names of all folders under models/ that the stages share
TASKS = ""                      # tasks, with commas; "" = all that RESULTS holds
DATA_DIR = "data/glue"          # folder of the tasks' folders (data/prepare_glue.py)
RESULTS = "results/tinybert"    # folder of the results, from the project's root
TITLE = "Teacher, students and their files"  # heading of a page, before the task
# --------------------------------------------------------------------------------------------------

MEASURE = "tinybert/quantization_experiments.py"


def results_of(task_name):
    """The results of a task, as they were recorded."""
    try:
        return read_results(resolve(RESULTS) / task_name)
    except UserError as error:
        raise UserError(str(error).split(": run ")[0] + f": run `python {MEASURE} --run {RUN} --tasks {task_name}`"
                        ) from None


def refuse_not_measured(name, folder, task_name, results):
    """Raises UserError for a model that was trained or exported again since it was measured."""
    made_by(EXPORT, folder, f"--run {RUN} --task {task_name}", ONNX)
    check(sha256(folder / ONNX) == results["files"][f"{results_name(name)}/{ONNX}"]["sha256"],
          f"{shown(folder)} was trained or exported again since it was measured: run `python {MEASURE} --run {RUN} "
          f"--tasks {task_name}` again")


def pictures_of(task_name, results):
    """A picture of each FP32-distilled student's layers beside the teacher's."""
    folder = teacher_dir(RUN, task_name)
    made_by(FINETUNE, folder, f"--run {RUN} --task {task_name}", WEIGHTS)
    refuse_not_measured(TEACHER, folder, task_name, results)
    depth, pictures = load_run(folder).config.num_hidden_layers, []
    texts, _ = read_split(data_folder(DATA_DIR, task_name), "test", task_of_results(results))
    text = shortest(texts, load_reader(folder))
    for name in students_in(results):
        student = student_dir(RUN, task_name, name)
        made_by(DISTIL, student, flags_of(RUN, task_name, f"{STUDENT}{name}"), WEIGHTS)
        refuse_not_measured(f"{STUDENT}{name}", student, task_name, results)
        trained = settings_of(student, DISTIL)
        if not trained["QAT"] and same_tokens(load_reader(student), load_reader(folder)):
            layers = load_run(student).config.num_hidden_layers
            pictures.append(layer_picture(name, folder, student, read_map(trained["LAYER_MAP"], layers, depth), text))
    return pictures


def main(settings):
    tasks = [name.strip() for name in TASKS.split(",") if name.strip()] or [
        path.parent.name for path in sorted(resolve(RESULTS).glob("*/results.json"))
        if stages_of(path.parent).get(MEASURE, {"settings": {"RUN": ""}})["settings"]["RUN"] == RUN]
    check(bool(tasks), f"{shown(resolve(RESULTS))} holds no <TASK>/results.json of RUN {RUN}: run `python {MEASURE} "
                       f"--run {RUN}` first")
    for task_name in tasks:
        check_names(RUN, task_name)
        refuse_other_run(resolve(RESULTS) / task_name, MEASURE, RUN)
        results, out = results_of(task_name), resolve(RESULTS) / task_name
        claim(out)
        part = section_of_task(results, stages_of(out), pictures_of(task_name, results))
        publish_text(out / "report.html", page(f"{TITLE}: {task_name}", [part], {}))
        print(f"  {task_name}: ship {part['method']}: {part['why']}")
        print(f"wrote {shown(out / 'report.html')}", flush=True)


if __name__ == "__main__":
    run_stage(main, globals())
