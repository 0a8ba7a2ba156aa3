"""Benchmark: a network on real pictures, several seeds: FP32, calibrations, QAT and its FP32 control, in one table.

Reads   DATA_DIR/{train,valid,test}/<class>/*.jpg, WEIGHTS
Writes  models/<NAME>-<seed>/, results/<NAME>/comparison.md, comparison.csv, report.html

A seed that was evaluated before is not run again, and a training that was killed goes on.
"""
import subprocess
import sys

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT, run_dir
from lowbit.pipeline.manifest import stages_of
from lowbit.pipeline.settings import whole_numbers
from lowbit.pipeline.stage import run_stage
from lowbit.vision.evaluate import STAGE

# ---- settings: edit here, or for one run: --seeds 1 ------------------------------------------------
NAME = "cifar10"                # of the runs and of the results
DATA_DIR = "data/cifar10_small"  # folder of train/, valid/, test/
MODEL = "resnet20"              # as in vision/qat_pytorch.py
WEIGHTS = "none"                # as there: a file, default or none
MEAN = "0.485,0.456,0.406"      # of the pictures that the weights know, as in vision/calibration_dataset.py
STD = "0.229,0.224,0.225"       # as there
SIZE = 32                       # side of a network's input, pixels; pictures are resized to it
FP32_EPOCHS = 0                 # passes over train before anything is quantized
FP32_RATE = 1e-3                # peak learning rate of these
FROZEN_EPOCHS = 0               # further passes after these, with BatchNorm's statistics frozen
QAT_EPOCHS = 3                  # passes with INT8 simulated, and as many of the control
QAT_RATE = 2e-4                 # peak learning rate of both
WEIGHT_BITS = 8                 # bits of a weight in QAT and after training, 8 or 4
BATCH_SIZE = 64                 # pictures a step
SEEDS = "1,2,3"                 # one run each
# --------------------------------------------------------------------------------------------------


def run_script(name, *flags):
    """A stage, its settings beside the defaults."""
    done = subprocess.run([sys.executable, ROOT / "vision" / f"{name}.py", *map(str, flags)], check=False)
    if done.returncode:
        raise UserError(f"vision/{name}.py ended with status {done.returncode}: what it said stands above")


def run_seed(seed):
    """All stages up to the results of one seed."""
    run = f"{NAME}-{seed}"
    if STAGE in stages_of(run_dir(run)):
        print(f"  {run} was evaluated before")
        return
    here = ("--run", run, "--data-dir", DATA_DIR)
    run_script("calibration_dataset", *here, "--size", SIZE, "--resize", SIZE, "--mean", MEAN, "--std", STD,
               "--seed", seed)
    run_script("qat_pytorch", *here, "--model", MODEL, "--weights", WEIGHTS, "--batch-size", BATCH_SIZE,
               "--fp32-epochs", FP32_EPOCHS, "--fp32-rate", FP32_RATE, "--frozen-epochs", FROZEN_EPOCHS,
               "--qat-epochs", QAT_EPOCHS, "--qat-rate", QAT_RATE, "--weight-bits", WEIGHT_BITS, "--seed", seed)
    run_script("ptq_tensorrt", *here, "--method", "minmax,entropy,percentile", "--target", "tensorrt,onnxruntime",
               "--weight-bits", WEIGHT_BITS)
    run_script("accuracy_evaluation", *here, "--rounds", 3)


def main(settings):
    seeds = whole_numbers(SEEDS, "SEEDS")
    for seed in seeds:
        run_seed(seed)
    told = ("--run-names", ",".join(f"{NAME}-{seed}" for seed in seeds), "--results", f"results/{NAME}")
    run_script("compare_methods", *told)
    run_script("generate_report", *told)


if __name__ == "__main__":
    run_stage(main, globals())
