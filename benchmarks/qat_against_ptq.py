"""Benchmark: is quantization-aware training worth it? QAT's low-bit files against those of the FP32 baseline.

Reads   MODEL_NAME, DATA_DIR/{train,valid,test}.tsv
Writes  results/qat_against_ptq_<PRECISION>.json and .md, and models/<NAME>-<PRECISION>-<method>-<seed>/

Methods: qat, ptq (the FP32 baseline, quantized after training), and for INT8 also learned (QAT with activation ranges
learned and stored), calibrated (the FP32 baseline with the ranges that learned ones start from: NUM_EPOCHS 0),
static (the FP32 baseline by ONNX Runtime's static quantizer as it is usually called: MinMax, int8, Q/DQ) and
static_inputs (the same call, told to leave what products give in floats, as every other method does).
All are trained for the same number of steps by the same recipe and go through the same stages 2 to 4.
"""
import logging
import random
import statistics
import subprocess
import sys

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

from lowbit.data.task import read_task
from lowbit.data.tokens import load_reader, pad
from lowbit.data.tsv import read_split
from lowbit.measure.evaluate import batch_dependence
from lowbit.measure.record import RESULTS, read_results_file
from lowbit.measure.score import compare, difference, score
from lowbit.measure.session import Session
from lowbit.pipeline.files import ROOT, resolve, run_dir, shown, write_json, write_text
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.ptq.files import SOURCE
from lowbit.ptq.methods import PRODUCTS, TABLES

# ---- settings: edit here, or for one run: --seeds 1 ----------------------------------------------
PRECISION = "int8"              # int8 or fp16: whose four stages are run
MODEL_NAME = "models/bert-mini-id"  # encoder that every run starts from; {seed} in it becomes the run's seed
NAME = "bench"                  # of the runs; another name also stands before that of the results
CLEANING = "negation-safe"      # text cleaning: documents, negation-safe or minimal
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv
SEEDS = "1,2,3"                 # one QAT and one FP32 training run each
NUM_EPOCHS = 3                  # passes over train
LEARNING_RATE = 2e-5            # peak of the linear schedule
METHODS = "qat,ptq"             # some of qat, ptq, learned, calibrated, static, static_inputs
CALIBRATION_TEXTS = 512         # static only: texts of train
# --------------------------------------------------------------------------------------------------


FINETUNE = "ptq/finetune_fp32.py"
LEARNED = ["--activation-ranges", "learned"]
STATIC: dict = {"static": {}, "static_inputs": {"OpTypesToExcludeOutputQuantization": PRODUCTS}}


class Texts(CalibrationDataReader):
    """Token rows, one at a time: padding must not widen a range."""

    def __init__(self, rows):
        self.inputs = (pad([row], 0) for row in rows)

    def get_next(self):
        return next(self.inputs, None)


def baseline(seed: int) -> str:
    """The FP32 run that calibrated and static files are made from, trained unless it is there."""
    run = f"{NAME}-{PRECISION}-base-{seed}"
    if FINETUNE not in stages_of(run_dir(run)):
        subprocess.run([sys.executable, ROOT / FINETUNE, "--run", run, *training(seed)], check=True)
    return run


def training(seed: int) -> list[str]:
    """Flags of every training of a seed."""
    return ["--model-name", MODEL_NAME.replace("{seed}", str(seed)), "--cleaning", CLEANING, "--seed", str(seed),
            "--num-epochs", str(NUM_EPOCHS), "--learning-rate", str(LEARNING_RATE), "--data-dir", DATA_DIR]


def run_static(method: str, seed: int) -> dict:
    """What a results.json says, as far as the table needs it, of the FP32 baseline quantized statically."""
    folder = run_dir(baseline(seed))
    path, made = folder / SOURCE, run_dir(f"{NAME}-{PRECISION}-{method}-{seed}") / "model_int8.onnx"
    made.parent.mkdir(exist_ok=True)
    reader, task = load_reader(folder), read_task(folder)
    data = {split: read_split(resolve(DATA_DIR), split, task) for split in ("train", "valid", "test")}
    rows = {split: reader.rows(texts) for split, (texts, _) in data.items()}
    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(path, made, Texts(random.Random(0).sample(rows["train"], CALIBRATION_TEXTS)),
                    activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
                    op_types_to_quantize=PRODUCTS + TABLES, calibrate_method=CalibrationMethod.MinMax,
                    extra_options={"DedicatedQDQPair": True} | STATIC[method])
    files, outputs, truth = {}, {}, data["test"][1]
    for name, file in (("FP32", path), ("INT8", made)):
        with Session(file, "CPUExecutionProvider", 0) as session:
            outputs[name] = session.logits(rows["valid"] + rows["test"], reader.pad_id)
            alone = outputs[name][-len(truth):]
            files[name] = score(truth, alone, task) | {"samples": len(truth), "batch_dependence": batch_dependence(
                session, rows["test"], alone, reader.pad_id, 16, reader.max_length, task)}
    test = {name: values[-len(truth):] for name, values in outputs.items()}
    files["INT8"] |= {"against_fp32": compare(truth, test["INT8"], test["FP32"], task),
                      "all_against_fp32": difference(outputs["INT8"], outputs["FP32"], task)}
    return {"files": files}


def run_stages(method: str, seed: int) -> dict:
    """results.json of one run; a run that was evaluated before is read, not repeated."""
    run, folder = f"{NAME}-{PRECISION}-{method}-{seed}", f"{PRECISION}_eager"
    stages = [f"{folder}/{name}.py" for name in (
        f"train_qat_{PRECISION}", "export_to_onnx", f"quantize_onnx_{PRECISION}", f"eval_onnx_{PRECISION}")]
    if stages[3] not in stages_of(run_dir(run)):
        data = ["--data-dir", DATA_DIR]
        flags = {stages[0]: [*training(seed), "--qat", str(method != "ptq").lower()],
                 stages[3]: [*data, "--rounds", "2", "--runs", "10"]}
        if PRECISION == "fp16":
            flags[stages[2]] = data
        if method == "calibrated":
            flags[stages[0]] += ["--model-name", f"models/{baseline(seed)}", "--num-epochs", "0"]
        if method in ("learned", "calibrated"):
            flags[stages[0]] += LEARNED
            flags[stages[2]] = LEARNED
        for stage in stages:
            subprocess.run([sys.executable, ROOT / stage, "--run", run, *flags.get(stage, [])], check=True)
    return read_results_file(run_dir(run) / RESULTS)


def main(settings):
    seeds = [int(seed) for seed in SEEDS.split(",")]
    known = ("qat", "ptq", "learned", "calibrated", *STATIC) if PRECISION == "int8" else ("qat", "ptq")
    for method in METHODS.split(","):
        check(method in known, f"METHODS names {method!r}; for {PRECISION} choose from {', '.join(known)}")
    results = {method: [run_static(method, seed) if method in STATIC else run_stages(method, seed) for seed in seeds]
               for method in METHODS.split(",")}
    table, lines = {}, ["| run | file | accuracy | macro-F1 | each seed |", "|---|---|---|---|---|"]
    for method, runs in results.items():
        for file in ("FP32", PRECISION.upper()):
            scores = [run["files"][file] for run in runs]
            row = {name: [score[name] for score in scores] for name in ("accuracy", "macro_f1")}
            table[f"{method} {file}"] = row
            each = ", ".join(f"{100 * f1:.2f}" for f1 in row["macro_f1"])
            lines.append(f"| {method} | {file} | {100 * statistics.mean(row['accuracy']):.2f} "
                         f"| {100 * statistics.mean(row['macro_f1']):.2f} | {each} |")
        low = [run["files"][PRECISION.upper()] for run in runs]
        for key in ("against_fp32", "all_against_simulation", "all_against_fp32", "batch_dependence"):
            table[f"{method} {key}"] = [record.get(key) for record in low]
    print(*lines, sep="\n")
    out = ROOT / "results" / f"{NAME + '_' if NAME != 'bench' else ''}qat_against_ptq_{PRECISION}"
    write_json(out.with_suffix(".json"),
               {"machine": machine(), "versions": versions(), "settings": settings, "test_texts":
                results[METHODS.split(",")[0]][0]["files"]["FP32"]["samples"], **table})
    write_text(out.with_suffix(".md"), "\n".join(lines) + "\n")
    print(f"wrote {shown(out)}.json and .md")


if __name__ == "__main__":
    run_stage(main, globals())
