"""Stage 4 of 4: score the INT8 file on the test split beside FP32: quality, agreement, speed, memory.

Reads   models/<RUN>/model_qat_int8.onnx    (quantize_onnx_int8.py), model_qat.onnx (export_to_onnx.py)
Writes  models/<RUN>/                       results.json, results.csv, classification_report.txt, plots
Deploy  models/<RUN>/model_qat_int8.onnx    with tokenizer.json and preprocessing.json
"""
import json
from functools import partial

from lowbit.data.tokens import load_reader
from lowbit.graph.agreement import simulated_logits
from lowbit.graph.census import openvino_kernels, openvino_lines
from lowbit.graph.export import ONNX
from lowbit.int8.arithmetic import is_learned, simulate
from lowbit.measure.evaluate import evaluate
from lowbit.measure.report import agreement_lines, table_lines, write_report
from lowbit.pipeline.files import claim, run_dir, shown
from lowbit.pipeline.manifest import record, recorded, settings_of
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import RUN_FILES, load_run
from lowbit.training.weights import WEIGHTS, load_weights

# ---- settings: edit here, or for one run: --threads 1 --------------------------------------------
RUN = "indobert-qat-int8-smsa"  # folder under models/ shared by the four stages
DATA_DIR = "data"               # folder of test.tsv and valid.tsv, from the project's root
RUNTIME = "onnxruntime"         # onnxruntime, or openvino (CPU; pip install -r requirements-openvino.txt)
PROVIDER = "CPUExecutionProvider"  # ONNX Runtime execution provider; an absent one is an error
THREADS = 0                     # threads of each session; 0 = every core
BATCH_SIZE = 16                 # texts a batch, for throughput and for the dependence on batch-mates
ROUNDS = 5                      # turns that FP32 and INT8 take when their speed is measured
RUNS = 30                       # measured runs a turn
# --------------------------------------------------------------------------------------------------

TRAIN, EXPORT = "int8_eager/train_qat_int8.py", "int8_eager/export_to_onnx.py"
QUANTIZE, STAGE = "int8_eager/quantize_onnx_int8.py", "int8_eager/eval_onnx_int8.py"
INT8, RANGES = "model_qat_int8.onnx", "activation_ranges.json"


def main(settings):
    folder = run_dir(RUN)
    claim(folder)
    read = (recorded(folder, QUANTIZE, INT8) + recorded(folder, EXPORT, ONNX)
            + recorded(folder, TRAIN, WEIGHTS, *RUN_FILES))
    quantized = settings_of(folder, QUANTIZE)
    learned = is_learned(quantized)
    read += recorded(folder, TRAIN, RANGES) if learned else []
    ranges = json.loads((folder / RANGES).read_text(encoding="utf-8")) if learned else None
    model, reader = load_run(folder), load_reader(folder)
    load_weights(simulate(model, quantized), folder / WEIGHTS)
    results, reports = evaluate(settings, {"FP32": folder / ONNX, "INT8": folder / INT8}, folder, reader,
                                partial(simulated_logits, model, pad_id=reader.pad_id))
    print(reports["INT8"])
    if RUNTIME == "openvino":
        results["openvino_kernels"] = openvino_kernels(folder / INT8)
        print(*openvino_lines(results["openvino_kernels"]), sep="\n")
    record(folder, STAGE, settings, read, write_report(folder, results, reports, ranges))
    print(*table_lines(results), *agreement_lines(results), sep="\n")
    print(f"deploy {shown(folder / INT8)}")


if __name__ == "__main__":
    run_stage(main, globals())
