"""Benchmark: the whole post-training matrix at IndoBERT-base's size, on random weights of its exact shape.

Reads   INDOBERT_DIR/                       IndoBERT's config.json and tokenizer (no weights are needed)
        DATA_DIR/{train,valid,test}.tsv
Writes  RESULTS/finetuned_smsa/results.json, RESULTS/report.html, and models/<RUN>/, about 6 GB, deleted unless --keep

Sizes, speeds, memory and census are IndoBERT's; accuracies are those of noise and mean nothing.
"""
import shutil
import subprocess
import sys

from bert_base import fresh_run, make_run

from lowbit.pipeline.files import ROOT, resolve, run_dir
from lowbit.pipeline.stage import run_stage
from lowbit.ptq.results import read_results

# ---- settings: edit here, or for one run: --rounds 1 ---------------------------------------------
INDOBERT_DIR = "data/indobert"  # folder of IndoBERT's config.json and tokenizer.json
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv
RUN = "bench-bert-base-ptq"     # folder under models/
RESULTS = "results/bert_base_ptq"  # folder of the results, from the project's root
METHODS = ""                    # rows to make and measure, as in run_ptq.py; "" = all
CALIBRATION_TEXTS = 512         # static: texts of train, one at a time
BATCH_SIZE = 1                  # texts of a timed batch
TOKENS = 128                    # their length
ROUNDS = 5                      # turns that each file takes
RUNS = 30                       # measured runs a turn
KEEP = False                    # keep models/<RUN>: a second run makes no file again
# --------------------------------------------------------------------------------------------------

FINETUNE, MATRIX, REPORT = "ptq/finetune_fp32.py", "ptq/run_ptq.py", "ptq/generate_report.py"
TITLE = "IndoBERT-base's shape, random weights: sizes, speeds and memory; accuracies mean nothing"


def main(settings):
    folder = run_dir(RUN)
    data = folder / "data"
    if not (folder / "model_fp32.onnx").exists():
        fresh_run(RUN).mkdir()
        make_run(folder, resolve(INDOBERT_DIR), resolve(DATA_DIR), [(FINETUNE, (
            "--model-name", folder / "encoder", "--data-dir", data, "--num-epochs", "1"))])
    shutil.copy(resolve(DATA_DIR) / "train.tsv", data)  # what is calibrated on
    flags = [f"--{name.lower().replace('_', '-')}={settings[name]}" for name in (
        "METHODS", "RESULTS", "CALIBRATION_TEXTS", "BATCH_SIZE", "TOKENS", "ROUNDS", "RUNS")]
    subprocess.run([sys.executable, ROOT / MATRIX, "finetuned_smsa", "--run", folder.name, "--data-dir", data, *flags],
                   check=True)
    subprocess.run([sys.executable, ROOT / REPORT, "--results", RESULTS, "--title", TITLE], check=True)
    rows = read_results(resolve(RESULTS) / "finetuned_smsa")["files"]
    making = [row["making"] for row in rows.values() if row.get("making")]
    most = max(part["peak_memory_mb"] for made in making for part in (made, made.get("calibration", made)))
    print(f"  largest peak memory of making a file: {most / 1e3:.1f} GB")
    if not KEEP:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_stage(main, globals())
