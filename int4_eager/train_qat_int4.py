"""Stage 1 of 4: train weights of 4 or 2 bits in, with the arithmetic of the file simulated in every step.

Reads   DATA_DIR/{train,valid,test}.tsv     text<TAB>label (python data/download_smsa.py), and task.json if there is one
        UNLABELLED                          texts without labels, one a line, if it is set
        MODEL_NAME                          best a fine-tuned model (ptq/finetune_fp32.py); it is also the teacher
Writes  models/<RUN>/                       model_qat.pth, config.json, tokenizer files, preprocessing.json, task.json,
                                            model_fp32.pth: the teacher's weights
Next    export_to_onnx.py
"""
import copy

import torch

from lowbit.int4.arithmetic import TEACHER, is_learned, levels_by_part, simulate
from lowbit.int4.simulation import start_scales
from lowbit.pipeline.files import resolve
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.calibration import calibrate_scales, observed_ranges, range_lines
from lowbit.training.distillation import drop_nothing, follower
from lowbit.training.fine_tune import FineTuner, autocast_dtype, fine_tune
from lowbit.training.lsq import refuse_lost_scales
from lowbit.training.weights import save_state

# ---- settings: edit here, or for one run: --num-epochs 1 -----------------------------------------
RUN = "indobert-qat-int4-smsa"  # folder under models/ shared by the four stages
MODEL_NAME = "models/indobert-fp32-smsa-3label-finetuned"  # folder or hub name; fine-tuned, it is the teacher as well
MODEL_REVISION = "94b4e0a82081fa57f227fcc2024d1ea89b57ac1f"  # commit on the hub; a folder ignores it
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv, from the project's root
CLEANING = "negation-safe"      # text cleaning: documents, negation-safe or minimal; saved with the model
MAX_LENGTH = 128                # tokens; longer texts are cut and counted
NUM_LABELS = 0                  # labels; 0 = as task.json says, without it 3: positive 0, neutral 1, negative 2
NUM_EPOCHS = 3                  # passes over train; that of least loss on valid is kept; 0: the model as it is
BATCH_SIZE = 32                 # texts a step and device
LEARNING_RATE = 2e-5            # peak of the linear schedule; 1e-4 at 2 bits, 3e-4 at 1.6, less for large encoders
WARMUP_RATIO = 0.1              # share of the steps until the peak
WEIGHT_DECAY = 0.01             # AdamW, on matrices only
SEED = 42                       # of the head's first weights, dropout, order, and the draw of UNLABELLED
FIRST_TOKEN_ONLY = True         # compute the last layer for [CLS] alone, where the classifier reads no other
QAT = True                      # simulate the file; --no-qat trains the FP32 twin by the same recipe and teacher
BITS = 4.0                      # a weight of a Linear layer: 4, 2, or 1.6 (three levels, five a byte)
TABLE_BITS = 4.0                # a weight of the table of words: 8, 4, 2 or 1.6
POSITION_BITS = 8.0             # a weight of the table of positions: 8, 4, 2 or 1.6
HEAD_BITS = 8.0                 # a weight of pooler and classifier: 8, 4, 2 or 1.6
ACTIVATION_RANGES = "dynamic"   # dynamic: measured over each batch at run time; learned: trained and in the file
TARGET = "openvino"             # learned only: openvino or tensorrt (int8, zero point 0), onnxruntime (uint8)
QUANTIZE_ATTENTION = True       # learned only: attention's two products on integers as well
CALIBRATION_TEXTS = 512         # learned only: texts of train that the activation scales start from
DROPOUT = False                 # drop values in training, as the encoder's configuration says
DISTIL = True                   # follow the outputs of MODEL_NAME as it was before training
LABEL_WEIGHT = 0.0              # with DISTIL: weight of the label loss beside it; 0: the teacher alone is followed
UNLABELLED = ""                 # with DISTIL: text files, one text a line, plain or .gz, with commas; read beside train
UNLABELLED_TEXTS = 20000        # of them; 0: all
AUTOCAST = False                # BF16 arithmetic in training steps where the device has it
# --------------------------------------------------------------------------------------------------

STAGE = "int4_eager/train_qat_int4.py"


def main(settings):
    learned = is_learned(settings)
    levels_by_part(settings)
    check(QAT or not learned, "ACTIVATION_RANGES is learned, but QAT is off: without it nothing is learned")
    check(CALIBRATION_TEXTS > 0, f"CALIBRATION_TEXTS is {CALIBRATION_TEXTS}; it must be above 0")
    check(not MODEL_NAME.startswith("models/") or resolve(MODEL_NAME).is_dir(),
          f"MODEL_NAME is {MODEL_NAME!r}, and there is no such folder: fine-tune an encoder first with `python "
          f"ptq/finetune_fp32.py`, or name an encoder and --no-distil")
    check(QAT or not DISTIL or LABEL_WEIGHT or not NUM_EPOCHS, "QAT is off, and a model in FP32 that follows itself "
          "alone learns nothing: train on the labels as well with --label-weight 0.5")
    check(DISTIL or not UNLABELLED, "UNLABELLED names texts without labels, but DISTIL is off: without a teacher "
          "nothing can be learned from them")
    trainer = follower(LABEL_WEIGHT)

    def simulate_int4(model, rows):
        if DISTIL:
            check(not model.untrained, f"MODEL_NAME is {MODEL_NAME!r}, whose {', '.join(model.untrained[:2])} was not "
                  "trained for these labels, so that nothing can be learned from it: fine-tune it first (`python "
                  "ptq/finetune_fp32.py`), or train on the labels alone with --no-distil")
            trainer.teacher = copy.deepcopy(model)
        if not DROPOUT:
            drop_nothing(model)
        if QAT:
            start_scales(simulate(model, settings))
        if learned:
            calibrate_scales(model, rows, CALIBRATION_TEXTS)

    def observe(model, rows):
        seen = observed_ranges(model, rows)
        print(*range_lines(seen), sep="\n")
        return {"activation_ranges.json": seen}

    def save(model, folder):
        save_state(model, folder)
        if DISTIL:
            save_state(trainer.teacher, folder, TEACHER)

    autocast = autocast_dtype() if AUTOCAST else None
    fine_tune(settings, STAGE, simulate_int4, autocast=None if autocast is torch.float16 else autocast,
              check_epoch=refuse_lost_scales, observe=observe if learned else None, save=save,
              trainer_class=trainer if DISTIL else FineTuner)
    return next_command("int4_eager/export_to_onnx.py", settings, "RUN")


if __name__ == "__main__":
    run_stage(main, globals())
