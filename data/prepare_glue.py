"""Turn a GLUE folder into data folders with a task.json each, which every stage reads: --data-dir data/glue/RTE.

Reads   SOURCE_DIR/<TASK>/{train,dev}.tsv   GLUE's own files, tab-separated, no quoting
Writes  OUT_DIR/<TASK>/                     train.tsv, valid.tsv, test.tsv, task.json
Next    any first stage with --data-dir OUT_DIR/<TASK>

valid is a drawn tenth of GLUE's train, test is GLUE's dev: nothing may be chosen on it.
"""
import json
import random

from lowbit.data.task import TASK_FILE, Task
from lowbit.data.tsv import BOM, decoded
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, move_up, resolve, shown
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --tasks RTE,STS-B ---------------------------------------
SOURCE_DIR = "data/glue_original"  # folder of GLUE's task folders
OUT_DIR = "data/glue"           # folder of the data folders that are made
TASKS = ""                      # CoLA, SST-2, MRPC, RTE, STS-B, with commas; "" = all that SOURCE_DIR holds
TRAIN_ROWS = 0                  # drawn rows of GLUE's train that are used, valid's among them; 0 = all
VALID_SHARE = 0.1               # share of train that becomes valid
SEED = 42                       # of the draw
OVERWRITE = False               # replace files of OUT_DIR that hold something else
# --------------------------------------------------------------------------------------------------

LABELS = ("0", "1")
# task, the columns of GLUE's file that hold texts and answer, the first one where the file has no header
GLUE = {
    "CoLA": (Task(("sentence",), LABELS, "matthews"), (3, 1), False),
    "SST-2": (Task(("sentence",), LABELS, "accuracy"), ("sentence", "label"), True),
    "MRPC": (Task(("sentence1", "sentence2"), LABELS, "f1"), ("#1 String", "#2 String", "Quality"), True),
    "RTE": (Task(("sentence1", "sentence2"), ("entailment", "not_entailment"), "accuracy"),
            ("sentence1", "sentence2", "label"), True),
    "STS-B": (Task(("sentence1", "sentence2"), None, "pearson"), ("sentence1", "sentence2", "score"), True),
}


def read_rows(path, columns: tuple, header: bool) -> list[str]:
    """Lines `text<TAB>answer` of one of GLUE's files; raises UserError, naming the line, for one of another form."""
    if not path.is_file():
        raise UserError(f"{shown(path)} is missing: SOURCE_DIR is the folder of GLUE's task folders")
    rows = []
    for number, line in enumerate(path.read_bytes().removeprefix(BOM).split(b"\n"), 1):
        try:
            if line.strip(b"\r"):
                rows.append((number, decoded(line)))
        except ValueError as error:
            raise UserError(f"{shown(path)} line {number} {error}") from None
    check(len(rows) > header, f"{shown(path)} holds no rows")
    names = rows.pop(0)[1] if header else [*range(len(rows[0][1]))]
    absent = [name for name in columns if name not in names]
    check(not absent, f"{shown(path)} line 1 lacks the column {(absent or [''])[0]!r}: it is not GLUE's file")
    places = [names.index(name) for name in columns]
    for number, row in rows:
        check(len(row) == len(names) and all(row[place] for place in places),
              f"{shown(path)} line {number} is not a whole row of {len(names)} columns")
    return ["\t".join(row[place] for place in places) for _, row in rows]


def main(settings):
    check(0 < VALID_SHARE < 1, f"VALID_SHARE is {VALID_SHARE}; it must be between 0 and 1")
    check(TRAIN_ROWS == 0 or 2 / min(VALID_SHARE, 1 - VALID_SHARE) <= TRAIN_ROWS,
          f"TRAIN_ROWS is {TRAIN_ROWS}; it must be 0, or leave at least 2 rows for train and for valid")
    source = resolve(SOURCE_DIR)
    known = [name for name in GLUE if (source / name).is_dir()]
    check(bool(known), f"SOURCE_DIR {shown(source)} holds none of {', '.join(GLUE)}: name the folder of GLUE's tasks")
    for name in chosen(TASKS, known, "TASKS"):
        task, columns, header = GLUE[name]
        train, test = (read_rows(source / name / f"{split}.tsv", columns, header) for split in ("train", "dev"))
        if TRAIN_ROWS and len(train) > TRAIN_ROWS:
            train = random.Random(SEED).sample(train, TRAIN_ROWS)
        check(1 <= round(VALID_SHARE * len(train)) < len(train),
              f"{shown(source / name / 'train.tsv')} has {len(train)} rows: VALID_SHARE {VALID_SHARE:g} of them leaves "
              "none for valid or for train")
        drawn = set(random.Random(SEED).sample(range(len(train)), round(VALID_SHARE * len(train))))
        splits = {"train": [row for i, row in enumerate(train) if i not in drawn],
                  "valid": [row for i, row in enumerate(train) if i in drawn], "test": test}
        out = resolve(OUT_DIR) / name
        head = "\t".join((*task.texts, task.answer))
        files = {f"{split}.tsv": "\n".join([head, *rows]) + "\n" for split, rows in splits.items()}
        files[TASK_FILE] = json.dumps(task.as_json(), indent=2) + "\n"
        others = [file for file, text in files.items()
                  if (out / file).exists() and (out / file).read_bytes() != text.encode()]
        check(OVERWRITE or not others,
              f"{shown(out)} holds another {(others or [''])[0]}, which may be your own: move it away, name another "
              "folder with --out-dir, or use --overwrite to replace it")
        with atomic_folder(out) as scratch:
            for file, text in files.items():
                (scratch / file).write_text(text, encoding="utf-8")
            move_up(scratch)
        counts = ", ".join(f"{split} {len(rows)}" for split, rows in splits.items())
        print(f"{shown(out)}: {counts}, judged by {task.score_name}")


if __name__ == "__main__":
    run_stage(main, globals())
