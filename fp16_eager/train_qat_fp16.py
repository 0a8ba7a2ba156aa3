"""Stage 1 of 4: fine-tune an encoder with the FP16 file's rounding simulated in every step.

Reads   DATA_DIR/{train,valid,test}.tsv     text<TAB>label (python data/download_smsa.py), and task.json if there is one
Writes  models/<RUN>/                       model_qat.pth, config.json, tokenizer files, preprocessing.json, task.json
Next    export_to_onnx.py
"""
import torch

from lowbit.fp16.simulation import operators, random_rows, range_lines, ranges, refuse_overflow, simulate
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.fine_tune import fine_tune

# ---- settings: edit here, or for one run: --num-epochs 1 -----------------------------------------
RUN = "indobert-qat-fp16-smsa"  # folder under models/ shared by the four stages
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
QAT = True                      # simulate FP16; --no-qat trains the FP32 baseline by the same recipe
FP32_OPS = ""                   # ONNX operators kept in FP32, such as "LayerNormalization,Softmax"
TF32 = True                     # TF32 products where the device has them: exact for FP16 operands (was AUTOCAST)
# --------------------------------------------------------------------------------------------------

STAGE = "fp16_eager/train_qat_fp16.py"


def main(settings):
    fp32_ops = operators(FP32_OPS)
    torch.backends.cuda.matmul.allow_tf32 = TF32  # BF16 would lose 3 of the 11 bits that FP16 keeps

    def simulate_fp16(model, _):
        if QAT:
            refuse_overflow(ranges(simulate(model, fp32_ops), random_rows(model)), MODEL_NAME)

    def observe(model, rows):
        seen = ranges(simulate(model, fp32_ops), rows)
        print(*range_lines(seen), sep="\n")
        return {"fp16_ranges.json": seen}

    fine_tune(settings, STAGE, simulate_fp16, observe=observe)
    return next_command("fp16_eager/export_to_onnx.py", settings, "RUN")


if __name__ == "__main__":
    run_stage(main, globals())
