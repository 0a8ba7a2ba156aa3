"""Stage 1 of 4: fine-tune an encoder with the arithmetic of the INT8 file simulated in every step.

Reads   DATA_DIR/{train,valid,test}.tsv     text<TAB>label (python data/download_smsa.py), and task.json if there is one
Writes  models/<RUN>/                       model_qat.pth, config.json, tokenizer files, preprocessing.json, task.json
Next    export_to_onnx.py
"""
from lowbit.int8.arithmetic import is_learned, simulate, step_dtype
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.calibration import calibrate_scales, observed_ranges, range_lines
from lowbit.training.fine_tune import fine_tune
from lowbit.training.lsq import refuse_lost_scales

# ---- settings: edit here, or for one run: --num-epochs 1 -----------------------------------------
RUN = "indobert-qat-int8-smsa"  # folder under models/ shared by the four stages
MODEL_NAME = "indobenchmark/indobert-base-p2"  # hub name, or a folder such as models/bert-mini-id
MODEL_REVISION = "94b4e0a82081fa57f227fcc2024d1ea89b57ac1f"  # commit on the hub; a folder ignores it
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv, from the project's root
CLEANING = "negation-safe"      # text cleaning: documents, negation-safe or minimal; saved with the model
MAX_LENGTH = 128                # tokens; longer texts are cut and counted
NUM_LABELS = 0                  # labels; 0 = as task.json says, without it 3: positive 0, neutral 1, negative 2
NUM_EPOCHS = 3                  # passes over train; the best on valid is kept; 0: a fine-tuned model as it is
BATCH_SIZE = 16                 # texts a step and device
LEARNING_RATE = 2e-5            # peak of the linear schedule
WARMUP_RATIO = 0.1              # share of the steps until the peak
WEIGHT_DECAY = 0.01             # AdamW, on matrices only
SEED = 42                       # of the head's first weights, dropout and order
FIRST_TOKEN_ONLY = True         # compute the last layer for [CLS] alone, where the classifier reads no other
QAT = True                      # simulate INT8; --no-qat trains the FP32 baseline by the same recipe
ACTIVATION_RANGES = "dynamic"   # dynamic: measured over each batch at run time; learned: trained and in the file
TARGET = "openvino"             # learned only: openvino or tensorrt (int8, zero point 0), onnxruntime (uint8)
QUANTIZE_ATTENTION = True       # learned only: attention's two products on integers as well
CALIBRATION_TEXTS = 512         # learned only: texts of train that the scales start from
PER_CHANNEL = False             # one weight scale per output channel instead of one per tensor
QUANTIZE_EMBEDDINGS = True      # embedding tables to 8 bits as well: a third to a half of the file
REDUCE_RANGE = False            # 7-bit weights, for CPUs without VNNI
AUTOCAST = True                 # BF16/FP16 arithmetic in training steps where the device has it
# --------------------------------------------------------------------------------------------------

STAGE = "int8_eager/train_qat_int8.py"


def main(settings):
    learned = is_learned(settings)
    check(QAT or not learned, "ACTIVATION_RANGES is learned, but QAT is off: without it nothing is learned")
    check(CALIBRATION_TEXTS > 0, f"CALIBRATION_TEXTS is {CALIBRATION_TEXTS}; it must be above 0")

    def simulate_int8(model, rows):
        if QAT:
            simulate(model, settings)
        if learned:
            calibrate_scales(model, rows, CALIBRATION_TEXTS)

    def observe(model, rows):
        seen = observed_ranges(model, rows)
        print(*range_lines(seen), sep="\n")
        return {"activation_ranges.json": seen}

    fine_tune(settings, STAGE, simulate_int8, autocast=step_dtype(settings), check_epoch=refuse_lost_scales,
              observe=observe if learned else None)
    return next_command("int8_eager/export_to_onnx.py", settings, "RUN")


if __name__ == "__main__":
    run_stage(main, globals())
