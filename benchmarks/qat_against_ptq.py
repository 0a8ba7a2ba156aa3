"""Benchmark: is quantization-aware training worth it? QAT's low-bit file against that of the FP32 baseline.

Reads   MODEL_NAME, DATA_DIR/{train,valid,test}.tsv
Writes  results/qat_against_ptq_<PRECISION>.json and .md, and models/bench-<PRECISION>-{qat,ptq}-<seed>/

Both are trained for the same number of steps by the same recipe and go through the same stages 2 to 4.
"""
import json
import statistics
import subprocess
import sys

from lowbit.artifacts import ROOT, read_manifest, run_dir, shown, write_json, write_text
from lowbit.machine import machine, versions
from lowbit.stage import run_stage

# ---- settings: edit here, or for one run: --seeds 1 ----------------------------------------------
PRECISION = "int8"              # int8 or fp16: whose four stages are run
MODEL_NAME = "models/bert-mini-id"  # encoder that every run starts from
DATA_DIR = "../shared/data/smsa"  # folder of train.tsv, valid.tsv, test.tsv
SEEDS = "1,2,3"                 # one QAT and one FP32 training run each
NUM_EPOCHS = 3                  # passes over train
LEARNING_RATE = 2e-5            # peak of the linear schedule
METHODS = "qat,ptq"             # both, or one of them for runs side by side
# --------------------------------------------------------------------------------------------------


def run_stages(method: str, seed: int) -> dict:
    """results.json of one run; a run that was evaluated before is read, not repeated."""
    run, folder = f"bench-{PRECISION}-{method}-{seed}", f"{PRECISION}_eager"
    stages = [f"{folder}/{name}.py" for name in (
        f"train_qat_{PRECISION}", "export_to_onnx", f"quantize_onnx_{PRECISION}", f"eval_onnx_{PRECISION}")]
    if stages[3] not in read_manifest(run_dir(run)):
        train = ["--model-name", MODEL_NAME, "--seed", str(seed), "--num-epochs", str(NUM_EPOCHS),
                 "--learning-rate", str(LEARNING_RATE), "--data-dir", DATA_DIR, "--qat", str(method == "qat").lower()]
        data = ["--data-dir", DATA_DIR]
        flags = {stages[0]: train, stages[3]: [*data, "--rounds", "2", "--runs", "10"]}
        if PRECISION == "fp16":
            flags[stages[2]] = data
        for stage in stages:
            subprocess.run([sys.executable, ROOT / stage, "--run", run, *flags.get(stage, [])], check=True)
    return json.loads((run_dir(run) / "results.json").read_text(encoding="utf-8"))


def main(settings):
    seeds = [int(seed) for seed in SEEDS.split(",")]
    results = {method: [run_stages(method, seed) for seed in seeds] for method in METHODS.split(",")}
    table, lines = {}, ["| run | file | accuracy | macro-F1 | each seed |", "|---|---|---|---|---|"]
    for method, runs in results.items():
        for file in ("FP32", PRECISION.upper()):
            scores = [run["files"][file] for run in runs]
            row = {name: [score[name] for score in scores] for name in ("accuracy", "macro_f1")}
            table[f"{method} {file}"] = row
            each = ", ".join(f"{100 * f1:.2f}" for f1 in row["macro_f1"])
            lines.append(f"| {method} | {file} | {100 * statistics.mean(row['accuracy']):.2f} "
                         f"| {100 * statistics.mean(row['macro_f1']):.2f} | {each} |")
        table[f"{method} against FP32"] = [run["against_fp32"] for run in runs]
        table[f"{method} against simulation"] = [run["valid_and_test_against_simulation"] for run in runs]
        table[f"{method} valid + test against FP32"] = [run["valid_and_test_against_fp32"] for run in runs]
    print(*lines, sep="\n")
    out = ROOT / "results" / f"qat_against_ptq_{PRECISION}"
    write_json(out.with_suffix(".json"),
               {"machine": machine(), "versions": versions(), "settings": settings, "test_texts":
                results[METHODS.split(",")[0]][0]["test_texts"], **table})
    write_text(out.with_suffix(".md"), "\n".join(lines) + "\n")
    print(f"wrote {shown(out)}.json and .md")


if __name__ == "__main__":
    run_stage(main, globals())
