"""Stage 2 of 7: the student's first weights: cut out of the teacher, drawn at random, or another model's.

Reads   models/<RUN>-<TASK>-teacher/        (finetune_teacher.py)
        DATA_DIR/<TASK>/train.tsv           texts that say which parts of the teacher are used most
Writes  models/<RUN>-<TASK>-start_<STUDENT>/ model.safetensors, config.json, tokenizer files, cut.json
Next    distil.py
"""
import random

from transformers import BertForSequenceClassification, set_seed
from transformers.utils import logging

from lowbit.data.task import task_of_run
from lowbit.data.tokens import TOKENIZER_FILES, TextReader, input_names, load_reader
from lowbit.data.tsv import read_split
from lowbit.distill.cut import check_fits, cut, used
from lowbit.distill.follow import load_trained
from lowbit.distill.losses import read_map
from lowbit.distill.places import (
    FINETUNE,
    WEIGHTS,
    check_names,
    data_folder,
    made_by,
    refuse_other_task,
    start_dir,
    teacher_dir,
)
from lowbit.pipeline.files import atomic_folder, shown, write_json
from lowbit.pipeline.manifest import begin_run, is_made, publish, record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.encoder import RUN_FILES, load_pretrained, longest_input, model_files, save_run

# ---- settings: edit here, or for one run: --task SST-2 --start random -----------------------------
RUN = "tinybert"                # first part of the names of all folders under models/ that the stages share
TASK = "RTE"                    # folder of DATA_DIR, as the teacher was trained on
STUDENT = "4x312"               # the student's name
DATA_DIR = "data/glue"          # folder of the tasks' folders (data/prepare_glue.py)
START = "teacher"               # teacher: cut out of it; random; or a folder of a model of the sizes below
LAYERS = 4                      # layers of the student
HIDDEN = 312                    # channels of the student
HEADS = 12                      # heads of each layer
INTERMEDIATE = 1200             # neurons of each layer
LAYER_MAP = ""                  # the teacher's layer, from 1, of each of the student's: 2,3,5,6; "" = evenly spread
TEXTS = 512                     # START teacher: labelled texts of train that use is counted on
SEED = 42                       # of the random weights, and of the choice of those texts
# --------------------------------------------------------------------------------------------------

STAGE = "tinybert/make_student.py"


def counted_on(data, task, reader):
    """(token rows, answers) of TEXTS drawn texts of train."""
    texts, answers = read_split(data, "train", task)
    drawn = random.Random(SEED).sample(range(len(texts)), min(TEXTS, len(texts)))
    return reader.rows([texts[i] for i in drawn]), [answers[i] for i in drawn]


def first_weights(teacher, folder, data, task):
    """(the student, how it reads texts, what of the teacher was kept)."""
    reader = load_reader(folder)
    if START not in ("teacher", "random"):
        model, tokenizer = load_pretrained(START, "", task, "START")
        longest = longest_input(model)
        check(longest >= reader.max_length, f"START {START} reads at most {longest} tokens, and the teacher "
              f"{reader.max_length}: train it with --max-length {longest}")
        for name, value in (("num_hidden_layers", LAYERS), ("hidden_size", HIDDEN), ("num_attention_heads", HEADS),
                            ("intermediate_size", INTERMEDIATE)):
            check(getattr(model.config, name) == value, f"START {START} has {name} {getattr(model.config, name)}, the "
                  f"settings say {value}: set LAYERS, HIDDEN, HEADS and INTERMEDIATE to its sizes")
        return model, TextReader(tokenizer, reader.cleaning, reader.max_length,
                                 input_names(model.config, task.pairs)), {}
    check("num_hidden_layers" in teacher.config.to_dict(), f"{shown(folder)} is a {type(teacher).__name__}, whose "
          "sizes have other names than BERT's: take a teacher of BERT's family, or a student's folder with --start")
    config = type(teacher.config).from_dict(teacher.config.to_dict() | {
        "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE, "first_token_only": False})
    student = type(teacher)(config)
    if START == "random":
        return student, reader, {}
    check(isinstance(teacher, BertForSequenceClassification),
          f"START is teacher, but {shown(folder)} is a {type(teacher).__name__}: only a BERT is cut; --start random")
    check_fits(teacher.config, LAYERS, HIDDEN, HEADS, INTERMEDIATE)
    rows, answers = counted_on(data, task, reader)
    use = used(teacher, rows, answers, reader.pad_id)
    return student, reader, cut(teacher, student, use, read_map(LAYER_MAP, LAYERS, teacher.config.num_hidden_layers))


def main(settings):
    check_names(RUN, TASK, STUDENT)
    for name in ("LAYERS", "HIDDEN", "HEADS", "INTERMEDIATE", "TEXTS"):
        check(settings[name] > 0, f"{name} is {settings[name]}; it must be above 0")
    check(bool(START), "START is empty: teacher, random, or a folder")
    check(not LAYER_MAP or START == "teacher", f"LAYER_MAP says which layers are cut out of the teacher, but START is "
                                               f"{START}")
    check(HIDDEN % HEADS == 0, f"HIDDEN is {HIDDEN}, which {HEADS} HEADS do not divide")
    check(0 <= SEED < 2**32, f"SEED is {SEED}; it must be from 0 to 4294967295")
    data, folder, out = data_folder(DATA_DIR, TASK), teacher_dir(RUN, TASK), start_dir(RUN, TASK, STUDENT)
    read = made_by(FINETUNE, folder, f"--run {RUN} --task {TASK}", WEIGHTS, *RUN_FILES) + [data / "train.tsv"]
    read += model_files(START) if START not in ("teacher", "random") else []
    refuse_other_task(out, STAGE, TASK)
    following = next_command("tinybert/distil.py", settings, "RUN", "TASK", "STUDENT", "DATA_DIR")
    if is_made(out, STAGE, settings, read, [WEIGHTS, *TOKENIZER_FILES, "cut.json"]):
        print(f"  {shown(out)}: made before, with these settings and from this teacher")
        return following
    task = task_of_run(folder, data)
    logging.disable_progress_bar()  # of a second's work
    set_seed(SEED)
    teacher = load_trained(folder, every_token=True)
    student, reader, kept = first_weights(teacher, folder, data, task)
    begin_run(out, STAGE)
    with atomic_folder(out) as scratch:
        student.save_pretrained(scratch)
        save_run(scratch, student, reader, task)
        write_json(scratch / "cut.json", kept)
        record(out, STAGE, settings, read, publish(scratch))
    before, after = (sum(p.numel() for p in model.parameters()) / 1e6 for model in (teacher, student))
    layers = f", from its layers {', '.join(map(str, kept['layers']))}" if kept else ""
    print(f"  {after:.1f} M parameters; the teacher has {before:.1f} M{layers}")
    print(f"wrote {shown(out)}")
    return following


if __name__ == "__main__":
    run_stage(main, globals())
