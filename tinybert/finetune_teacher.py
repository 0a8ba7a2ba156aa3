"""Stage 1 of 7: fine-tune the teacher on one task.

Reads   DATA_DIR/<TASK>/                    train.tsv, valid.tsv, test.tsv, task.json (data/prepare_glue.py)
        MODEL_NAME                          a BERT; without a hub: tinybert/teacher_folder.py says where one is
Writes  models/<RUN>-<TASK>-teacher/        model.safetensors, config.json, tokenizer files, preprocessing.json,
                                            task.json, training.json
Next    make_student.py
"""
from lowbit.distill.places import WEIGHTS, check_names, data_folder, refuse_other_task, teacher_dir
from lowbit.pipeline.files import sha256, shown
from lowbit.pipeline.manifest import is_made
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.encoder import model_files
from lowbit.training.fine_tune import autocast_dtype, fine_tune
from lowbit.training.labelled import training_files

# ---- settings: edit here, or for one run: --task SST-2 --num-epochs 1 -----------------------------
RUN = "tinybert"                # first part of the names of all folders under models/ that the stages share
TASK = "RTE"                    # folder of DATA_DIR: CoLA, SST-2, MRPC, RTE, STS-B, your own; or smsa
DATA_DIR = "data/glue"          # folder of the tasks' folders (data/prepare_glue.py)
MODEL_NAME = "google-bert/bert-base-uncased"  # hub name, or a folder
MODEL_REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"  # commit on the hub; a folder ignores it
CLEANING = "minimal"            # text cleaning: documents, negation-safe or minimal; saved with the model
MAX_LENGTH = 128                # tokens; longer texts are cut and counted
NUM_EPOCHS = 3                  # passes over train; the best on valid is kept
BATCH_SIZE = 32                 # texts a step
LEARNING_RATE = 3e-5            # peak of the linear schedule; 1e-4 for encoders of 384 channels
WARMUP_RATIO = 0.1              # share of the steps until the peak
WEIGHT_DECAY = 0.01             # AdamW, on matrices only
FREEZE_WORDS = False            # leave the table of word embeddings as it is: steps on short texts are cheaper
SEED = 42                       # of the head's first weights, dropout and order
FIRST_TOKEN_ONLY = True         # compute the last layer for [CLS] alone, where the classifier reads no other
AUTOCAST = True                 # BF16/FP16 arithmetic in training steps where the device has it
# --------------------------------------------------------------------------------------------------

STAGE = "tinybert/finetune_teacher.py"


def main(settings):
    check_names(RUN, TASK)
    check(bool(MODEL_NAME), "MODEL_NAME is empty: name a model on the hub, or a folder")
    data, folder = data_folder(DATA_DIR, TASK), teacher_dir(RUN, TASK)
    given = settings | {"RUN": folder.name, "DATA_DIR": shown(data), "NUM_LABELS": 0,
                        "MODEL_SHA256": {path.name: sha256(path) for path in model_files(MODEL_NAME)}}
    refuse_other_task(folder, STAGE, TASK)

    def freeze(model, rows):
        if FREEZE_WORDS:
            model.get_input_embeddings().weight.requires_grad_(False)

    if is_made(folder, STAGE, given, training_files(data), [WEIGHTS]):
        print(f"  {shown(folder)}: made before, with these settings and data")
    else:
        fine_tune(given, STAGE, freeze, autocast=autocast_dtype() if AUTOCAST else None,
                  save=lambda model, out: model.save_pretrained(out))
    return next_command("tinybert/make_student.py", settings, "RUN", "TASK", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
