"""Stage 1 of 5: fine-tune the FP32 baseline by the recipe of QAT, with nothing simulated, and export it to ONNX.

Reads   DATA_DIR/{train,valid,test}.tsv     text<TAB>label (python data/download_smsa.py), and task.json if there is one
Writes  models/<RUN>/                       model.safetensors, config.json, tokenizer files, preprocessing.json,
                                            task.json, model_fp32.onnx
Next    run_ptq.py
"""
from lowbit.graph.export import check_opset, export_checked
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.experiments import experiments_of
from lowbit.ptq.files import SOURCE
from lowbit.training.fine_tune import autocast_dtype, fine_tune

# ---- settings: edit here, or for one run: --num-epochs 1 -----------------------------------------
RUN = "indobert-fp32-smsa-3label-finetuned"  # folder under models/; from_pretrained() loads it
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
AUTOCAST = True                 # BF16/FP16 arithmetic in training steps where the device has it
OPSET = 17                      # ONNX operator set of the graph; 17 or higher
# --------------------------------------------------------------------------------------------------

STAGE, WEIGHTS = "ptq/finetune_fp32.py", "model.safetensors"


def main(settings):
    check_opset(OPSET)

    def save(model, folder):
        model.save_pretrained(folder)
        export_checked(folder, WEIGHTS, folder / SOURCE, OPSET)

    fine_tune(settings, STAGE, autocast=autocast_dtype() if AUTOCAST else None, save=save)
    name = next(experiment.name for experiment in experiments_of(DATA_DIR) if experiment.trained)
    return next_command("ptq/run_ptq.py", settings | {"EXPERIMENT": name}, "EXPERIMENT", "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
