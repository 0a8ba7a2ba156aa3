"""Where the models of one task lie under models/, and which data they were trained on: found by RUN, TASK, STUDENT."""

import glob
from pathlib import Path

from lowbit.data.task import TASK_FILE
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT, resolve, run_dir, sha256, shown
from lowbit.pipeline.manifest import recorded, settings_of, stages_of
from lowbit.pipeline.settings import check

WEIGHTS = "model.safetensors"  # of teachers, starts and students alike: from_pretrained() reads it
ONNX = "model.onnx"
FINETUNE, MAKE, DISTIL = "tinybert/finetune_teacher.py", "tinybert/make_student.py", "tinybert/distil.py"
EXPORT = "tinybert/export_to_onnx.py"
TEACHER, STUDENT = "teacher", "student_"


def check_names(run: str, task: str, student: str = "x") -> None:
    """Raises UserError unless all can be parts of a folder's name."""
    for name, value in (("TASK", task), ("STUDENT", student)):
        check(value not in ("", ".", "..") and not set(value) & set("/\\,") and value == value.strip() and
              value.isprintable(),
              f"{name} is {value!r}; use one plain name")
    run_dir(f"{run}-{task}-{STUDENT}{student}")


def data_folder(data_dir: str, task: str) -> Path:
    """DATA_DIR/<task>; for smsa without such a folder data/, where data/download_smsa.py puts it.

    Raises UserError for a task without train.tsv.
    """
    folder = resolve(data_dir) / task
    if task == "smsa" and not folder.is_dir():
        folder = ROOT / "data"
        check((folder / "train.tsv").is_file(), f"TASK is smsa, but neither {shown(resolve(data_dir))} nor data/ holds "
                                                "it: run `python data/download_smsa.py`")
    if not (folder / "train.tsv").is_file():
        known = sorted(path.parent.name for path in resolve(data_dir).glob("*/train.tsv"))
        here = f"DATA_DIR holds {', '.join(known)}" if known else f"there is no task in {shown(resolve(data_dir))}"
        raise UserError(f"TASK is {task!r}, but {shown(folder)} holds no train.tsv ({here}): make GLUE's with "
                        "`python data/prepare_glue.py --source-dir DIR`, or name your own folder of tasks with "
                        "--data-dir")
    check(task == "smsa" or (folder / TASK_FILE).is_file(),
          f"{shown(folder)} holds no {TASK_FILE}: see data/README.md for its form")
    return folder


def teacher_dir(run: str, task: str) -> Path:
    """models/<run>-<task>-teacher."""
    return run_dir(f"{run}-{task}-{TEACHER}")


def start_dir(run: str, task: str, student: str) -> Path:
    """models/<run>-<task>-start_<student>: the student's first weights."""
    return run_dir(f"{run}-{task}-start_{student}")


def student_dir(run: str, task: str, student: str) -> Path:
    """models/<run>-<task>-student_<student>."""
    return run_dir(f"{run}-{task}-{STUDENT}{student}")


def made_by(stage: str, folder: Path, flags: str, *names: str) -> list[Path]:
    """The files `names` that `stage` recorded in `folder`; `flags` are those that make it again, as a user types them.

    Raises UserError where there are none, or they are not what was recorded.
    """
    try:
        check(stage in stages_of(folder), f"{shown(folder)} holds nothing that {Path(stage).name} made: run "
                                          f"`python {stage} {flags}` first")
        return recorded(folder, stage, *names)
    except UserError as error:
        # a quantized file's own entry names its recipe; the stage's flags are others
        typed = stage.replace(" --methods ", " --configs ").replace("_all_operators", " --ops all")
        raise UserError(str(error).replace(stage, typed).replace(f"--run {folder.name}`", f"{flags}`")) from None


def trainer_of(folder: Path) -> str:
    """The stage that trained what lies in a folder: its teacher's, or its student's."""
    return FINETUNE if FINETUNE in stages_of(folder) else DISTIL


def flags_of(run: str, task: str, name: str) -> str:
    """Flags that name one model of a task; `name` is "teacher" or "student_<student>"."""
    given = f"--run {run} --task {task}"
    return given if name == TEACHER else f"{given} --student {name.removeprefix(STUDENT)}"


def models_of(run: str, task: str, wanted: str) -> dict[str, Path]:
    """"teacher" or "student_<name>" -> folder of every trained model of a task; `wanted` names some of them.

    Raises UserError for a name that is not there, and where nothing is. One that was not trained to its end is named.
    """
    prefix = f"{run}-{task}-"
    folders = {TEACHER: teacher_dir(run, task)}
    folders |= {path.name.removeprefix(prefix): path for path in sorted(
        folders[TEACHER].parent.glob(f"{glob.escape(prefix + STUDENT)}*")) if path.is_dir()}
    found = {name: path for name, path in folders.items() if {FINETUNE, DISTIL} & stages_of(path).keys()}
    check(bool(found), f"there is no model of {task} under models/{prefix}*: run `python {FINETUNE} --run {run} --task "
                       f"{task}` first")
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        check(name in folders, f"MODELS names {name!r}, which is not there for {task}; choose from {', '.join(found)}")
    for name, path in folders.items():
        if name not in found and path.is_dir():
            stage = FINETUNE if name == TEACHER else DISTIL
            said = f"{shown(path)} was not trained to its end: run `python {stage} {flags_of(run, task, name)}`"
            check(name not in names, said)
            print(f"  left out: {said}")
    return {name: path for name, path in found.items() if name in names or not names}


def refuse_other_task(folder: Path, stage: str, task: str) -> None:
    """Raises UserError for a folder of another TASK whose name, after another RUN, is the same: a-b of RTE, a of b-RTE.
    """
    held = stages_of(folder).get(stage, {"settings": {"TASK": task}})["settings"]["TASK"]
    check(held == task, f"{shown(folder)} holds a model of TASK {held}, and {task} of this RUN would have the same "
                        "folder: choose another RUN")


def refuse_cut_of_another(start: Path, teacher_file: Path, flags: str) -> None:
    """Raises UserError for first weights that were cut out of other weights than `teacher_file`."""
    made = stages_of(start)[MAKE]
    read = made["reads"].get(shown(teacher_file))
    check(made["settings"]["START"] != TEACHER or read == sha256(teacher_file),
          f"{shown(start)} was cut out of another teacher than {shown(teacher_file.parent)} holds now: run "
          f"`python {MAKE} {flags}` again")


def refuse_other_teacher(run: str, task: str, name: str, folder: Path, teacher_sha256: str) -> None:
    """Raises UserError for a student that followed another teacher than the one that lies there now."""
    followed = settings_of(folder, DISTIL)["TEACHER_SHA256"]
    check(followed in ("", teacher_sha256),
          f"{shown(folder)} was distilled from another teacher (SHA-256 {followed[:12]}) than "
          f"{shown(teacher_dir(run, task))} holds now ({teacher_sha256[:12]}): "
          f"run `python {DISTIL} {flags_of(run, task, name)}` again")
