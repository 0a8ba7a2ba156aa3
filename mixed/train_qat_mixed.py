"""Stage 3 of 4: train the weights of a mix at the bits that it gives them, and write the file; may be left out.

Reads   models/<MIXED_RUN>/assignment.json  (mixed_precision.py), and the fine-tuned model that it was made from
        DATA_DIR/{train,valid,test}.tsv     train to learn from, valid to choose the epoch
        UNLABELLED                          texts without labels, one a line, if it is set
Writes  models/<RUN>/                       model_qat_mixed.onnx, assignment.json, census.json, model_qat.pth,
                                            model_qat.onnx, model_fp32.onnx (the teacher), what a run's folder holds
Next    eval_mixed.py
"""
import copy
import shutil

from lowbit.data.task import read_task, task_of_run
from lowbit.graph.export import ONNX, export_checked
from lowbit.int4.arithmetic import FP32 as FP32_GRAPH
from lowbit.int4.simulation import assign, start_scales
from lowbit.mixed.assignment import ASSIGNMENT, levels_of, read_assignment
from lowbit.mixed.file import PRECISION, load_trained, write_file
from lowbit.mixed.files import SOURCE, WEIGHTS
from lowbit.pipeline.files import resolve, run_dir, sha256, write_json
from lowbit.pipeline.manifest import record, recorded, settings_of, stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.distillation import drop_nothing, follower
from lowbit.training.encoder import RUN_FILES
from lowbit.training.fine_tune import fine_tune
from lowbit.training.weights import WEIGHTS as TRAINED
from lowbit.training.weights import save_state

# ---- settings: edit here, or for one run: --num-epochs 1 -----------------------------------------
RUN = "indobert-qat-mixed-smsa"  # folder under models/ that is made
MIXED_RUN = "indobert-mixed-smsa"  # folder under models/ of mixed_precision.py: bits, start and teacher
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv, from the project's root
NUM_EPOCHS = 3                  # passes over train; that of least loss on valid is kept
BATCH_SIZE = 32                 # texts a step and device
LEARNING_RATE = 5e-5            # peak of the linear schedule; 1e-4 where most weights have 2 bits
WARMUP_RATIO = 0.1              # share of the steps until the peak
WEIGHT_DECAY = 0.01             # AdamW, on matrices only
SEED = 42                       # of the order, and of the draw of UNLABELLED
LABEL_WEIGHT = 0.0              # of the label loss beside the teacher's; 0: the teacher alone is followed
UNLABELLED = ""                 # text files, one text a line, plain or .gz, with commas; read beside train
UNLABELLED_TEXTS = 20000        # of them; 0: all
OPSET = 17                      # ONNX operator set of the graph; 17 or higher
# --------------------------------------------------------------------------------------------------

FINETUNE, MIX = "ptq/finetune_fp32.py", "mixed/mixed_precision.py"
STAGE, EVALUATE = "mixed/train_qat_mixed.py", "mixed/eval_mixed.py"
STAGES = {"train": STAGE, "export": STAGE, "quantize": STAGE, "evaluate": EVALUATE}
LIKE = ("CLEANING", "MAX_LENGTH", "NUM_LABELS", "FIRST_TOKEN_ONLY")  # as the model was fine-tuned


def main(settings):
    check(RUN != MIXED_RUN, f"RUN and MIXED_RUN are both {RUN!r}: name another RUN, it is made")
    mixed, folder = run_dir(MIXED_RUN, "MIXED_RUN"), run_dir(RUN)
    read = recorded(mixed, MIX, ASSIGNMENT)
    source = run_dir(settings_of(mixed, MIX)["FP32_RUN"])
    read += recorded(source, FINETUNE, SOURCE, WEIGHTS, *RUN_FILES)
    task_of_run(source, resolve(DATA_DIR))  # the teacher's answers are to other labels otherwise
    check(source.name != RUN, f"RUN is {RUN!r}, the model that the mix was made from: name another, it is made")
    like = {name: settings_of(source, FINETUNE)[name] for name in LIKE} | {"ASSIGNMENT": sha256(mixed / ASSIGNMENT)}
    held, trainer = read_assignment(mixed / ASSIGNMENT), follower(LABEL_WEIGHT)

    def simulate(model, rows):
        read_assignment(mixed / ASSIGNMENT, model)
        trainer.teacher = copy.deepcopy(model)
        drop_nothing(model)
        start_scales(assign(model, levels_of(held["bits"])))

    def save(model, scratch):
        save_state(model, scratch)
        shutil.copyfile(mixed / ASSIGNMENT, scratch / ASSIGNMENT)
        shutil.copyfile(source / SOURCE, scratch / FP32_GRAPH)
        export_checked(scratch, TRAINED, scratch / ONNX, OPSET)
        simulation = load_trained(scratch, held["bits"])
        write_json(scratch / "census.json", write_file(scratch / ONNX, simulation, held["bits"],
                                                       scratch / "model_qat_mixed.onnx"))

    fine_tune(settings | like | {"MODEL_NAME": str(source), "MODEL_REVISION": ""}, STAGE, simulate, save=save,
              trainer_class=trainer)
    read += [resolve(DATA_DIR) / f"{split}.tsv" for split in ("train", "valid")]
    record(folder, STAGE, settings | like, read, list(stages_of(folder)[STAGE]["writes"]), {
        "precision": PRECISION, "file": "model_qat_mixed.onnx", "runtime": "onnxruntime",
        "task": read_task(folder).as_json(), "stages": STAGES})
    return next_command(EVALUATE, settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
