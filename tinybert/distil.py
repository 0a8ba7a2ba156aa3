"""Stage 3 of 7: train the student to follow the teacher inside and in what it says, in FP32 or as a low-bit file.

Reads   models/<RUN>-<TASK>-teacher/        (finetune_teacher.py)
        models/<RUN>-<TASK>-start_<STUDENT>/ (make_student.py), or FROM
        DATA_DIR/<TASK>/                    train.tsv, valid.tsv, test.tsv
Writes  models/<RUN>-<TASK>-student_<STUDENT>/ model.safetensors, config.json, tokenizer files, preprocessing.json,
                                            task.json, training.json
Next    export_to_onnx.py
"""
import json

from lowbit.data.task import task_of_run
from lowbit.data.tokens import load_reader, same_tokens
from lowbit.data.tsv import read_split
from lowbit.distill.arithmetic import INT4, check_kind, simulate_kind
from lowbit.distill.follow import Following, add_fit, follower, load_trained, save_student
from lowbit.distill.losses import SAME_TOKENS, check_comparable, read_losses, read_map
from lowbit.distill.places import (
    DISTIL,
    FINETUNE,
    MAKE,
    WEIGHTS,
    check_names,
    data_folder,
    made_by,
    refuse_cut_of_another,
    refuse_other_task,
    refuse_other_teacher,
    start_dir,
    student_dir,
    teacher_dir,
)
from lowbit.distill.soft_labels import Taught, distiller
from lowbit.distill.teachers import judged
from lowbit.pipeline.files import sha256, shown
from lowbit.pipeline.manifest import is_made
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.distillation import drop_nothing
from lowbit.training.encoder import RUN_FILES
from lowbit.training.fine_tune import autocast_dtype, fine_tune
from lowbit.training.labelled import training_files
from lowbit.training.lsq import refuse_lost_scales

# ---- settings: edit here, or for one run: --task SST-2 --losses labels ----------------------------
RUN = "tinybert"                # first part of the names of all folders under models/ that the stages share
TASK = "RTE"                    # folder of DATA_DIR, as the teacher was trained on
STUDENT = "4x312"               # the student's name
DATA_DIR = "data/glue"          # folder of the tasks' folders (data/prepare_glue.py)
FROM = ""                       # a trained student of this task to start from, by its name; "" = make_student.py's
LOSSES = "embedding,hidden,attention,logits"  # of embedding, hidden, attention, relation, logits, labels: their sum
INTERMEDIATE_EPOCHS = 0.0       # first epochs, on embedding, hidden, attention and relation alone; 0 = all at once
LAYER_MAP = ""                  # the teacher's layer, from 1, of each of the student's: 2,3,5,6; "" = evenly spread
RELATION_HEADS = 12             # heads that queries, keys and values are cut into for relation
TEMPERATURE = 1.0               # of the softmax that logits are compared through
AUGMENT = 0                     # copies of each text of train with words replaced, which the teacher judges
REPLACED = 0.3                  # share of a copy's words that are replaced
QAT = ""                        # train as a file of this kind computes: int8_dynamic, int8_learned, int4; "" = FP32
NUM_EPOCHS = 6                  # passes over train (and its copies); the best on valid is kept
BATCH_SIZE = 32                 # texts a step
LEARNING_RATE = 2e-4            # peak of the linear schedule
WARMUP_RATIO = 0.1              # share of the steps until the peak
WEIGHT_DECAY = 0.01             # AdamW, on matrices only
FREEZE_WORDS = False            # leave the table of word embeddings as it starts
DROPOUT = True                  # drop values in training, as the configuration says
SEED = 42                       # of dropout, order and copies
FIRST_TOKEN_ONLY = True         # what is written computes the last layer for [CLS] alone
AUTOCAST = True                 # BF16 arithmetic in training steps where the device has it; losses are in FP32
# --------------------------------------------------------------------------------------------------

STAGE = DISTIL


def check_settings(losses):
    """Refuse what cannot be followed, each with one sentence."""
    check(0.01 <= TEMPERATURE <= 100, f"TEMPERATURE is {TEMPERATURE:g}; it must be from 0.01 to 100")
    check(RELATION_HEADS > 0, f"RELATION_HEADS is {RELATION_HEADS}; it must be above 0")
    check(0 <= AUGMENT <= 100, f"AUGMENT is {AUGMENT}; it must be from 0 to 100")
    check(0 < REPLACED <= 1, f"REPLACED is {REPLACED}; it must be above 0 and at most 1")
    check(0 <= INTERMEDIATE_EPOCHS < NUM_EPOCHS,
          f"INTERMEDIATE_EPOCHS is {INTERMEDIATE_EPOCHS:g}; it must be from 0 to below NUM_EPOCHS, {NUM_EPOCHS}")
    inner = [name for name in losses if name in SAME_TOKENS]
    check(len(inner) < len(losses), f"LOSSES is {LOSSES!r}: none of them trains the classifier; add logits or labels")
    check(not INTERMEDIATE_EPOCHS or inner,
          f"INTERMEDIATE_EPOCHS is {INTERMEDIATE_EPOCHS:g}, but LOSSES names none of {', '.join(SAME_TOKENS)}")
    check(not AUGMENT or "labels" not in losses,
          "LOSSES names labels, but the copies that AUGMENT makes have none: take one of the two away")
    check_kind(QAT)
    check(not QAT or "relation" not in losses, "QAT computes the last layer for the first token alone, and relation "
                                               "compares all of them: take relation out of LOSSES")


def taught_from_outside(folder, task, texts, losses):
    """The trainer of a student with other words than its teacher's: it hears only what the teacher says of texts."""
    inner = [name for name in losses if name in SAME_TOKENS]
    check(not inner, f"the student does not read the teacher's tokens, so that {', '.join(inner)} cannot be compared: "
                     "--losses logits, or logits,labels")
    check(not AUGMENT and not QAT, "AUGMENT and QAT need a student that reads the teacher's tokens")
    check(task.labels is not None or "labels" not in losses,
          "a student that does not read the teacher's tokens learns a number from logits alone: --losses logits")
    logits, _ = judged(folder, texts, WEIGHTS)
    return distiller(Taught(logits, len(texts)), temperature=TEMPERATURE, hard_weight=float("labels" in losses))


def trainer_for(start, folder, task, data, losses):
    """(the class that trains the student of folder `start`, the teacher)."""
    reader, teacher = load_reader(folder), load_trained(folder, every_token=not QAT)
    layers = json.loads((start / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    follows = read_map(LAYER_MAP, layers, teacher.config.num_hidden_layers)
    if not same_tokens(load_reader(start), reader) and losses != ["labels"]:
        return taught_from_outside(folder, task, read_split(data, "train", task)[0], losses), teacher
    return follower(Following(teacher, losses, follows, RELATION_HEADS, TEMPERATURE, INTERMEDIATE_EPOCHS, AUGMENT,
                              REPLACED, SEED)), teacher


def train(given, start, folder, task, data, losses):
    """Train the student of folder `start`, and write its run."""
    trainer, teacher = trainer_for(start, folder, task, data, losses)
    cut = json.loads((start / "cut.json").read_text(encoding="utf-8"))

    def prepare(model, rows):
        check_comparable(model.config, teacher.config, losses, RELATION_HEADS)
        if not DROPOUT:
            drop_nothing(model)
        if FREEZE_WORDS:
            model.get_input_embeddings().weight.requires_grad_(False)
        if QAT:
            simulate_kind(model, QAT, rows)
        if {"embedding", "hidden"} & set(losses):
            add_fit(model, teacher.config.hidden_size, cut.get("channels"))

    fine_tune(given, STAGE, prepare, autocast=autocast_dtype() if AUTOCAST and QAT != INT4 else None,
              save=lambda model, scratch: save_student(model, scratch, FIRST_TOKEN_ONLY and not QAT),
              observe=lambda model, rows: {"cut.json": cut}, trainer_class=trainer,
              check_epoch=refuse_lost_scales if QAT else None)


def main(settings):
    check_names(RUN, TASK, STUDENT)
    losses = read_losses(LOSSES)
    check_settings(losses)
    check(not set(FROM) & set("/\\,"), f"FROM is {FROM!r}; use the plain name of a student")
    check(FROM != STUDENT, f"FROM and STUDENT are both {STUDENT!r}: give the new student a name of its own")
    data, folder, flags = data_folder(DATA_DIR, TASK), teacher_dir(RUN, TASK), f"--run {RUN} --task {TASK}"
    teacher_file = made_by(FINETUNE, folder, flags, WEIGHTS, *RUN_FILES)[0]
    start = student_dir(RUN, TASK, FROM) if FROM else start_dir(RUN, TASK, STUDENT)
    made = (WEIGHTS, "cut.json", *RUN_FILES)
    start_file = made_by(DISTIL if FROM else MAKE, start, f"{flags} --student {FROM or STUDENT}", *made)[0]
    if FROM:
        refuse_other_teacher(RUN, TASK, f"student_{FROM}", start, sha256(teacher_file))
    else:
        refuse_cut_of_another(start, teacher_file, f"{flags} --student {STUDENT}")
    task, reader, out = task_of_run(folder, data), load_reader(folder), student_dir(RUN, TASK, STUDENT)
    refuse_other_task(out, STAGE, TASK)
    given = settings | {
        "RUN": out.name, "DATA_DIR": shown(data), "MODEL_NAME": shown(start), "MODEL_REVISION": "", "NUM_LABELS": 0,
        "CLEANING": reader.cleaning, "MAX_LENGTH": reader.max_length, "START_SHA256": sha256(start_file),
        "TEACHER_SHA256": "" if losses == ["labels"] else sha256(teacher_file), "FIRST_TOKEN_ONLY": bool(QAT),
        "SHORTENED": FIRST_TOKEN_ONLY}
    if is_made(out, STAGE, given, training_files(data), [WEIGHTS]):
        print(f"  {shown(out)}: made before, with these settings, data, teacher and first weights")
    else:
        train(given, start, folder, task, data, losses)
    return next_command("tinybert/export_to_onnx.py", settings, "RUN", "TASK")


if __name__ == "__main__":
    run_stage(main, globals())
