"""Stage 4 of 4: score the low-bit file on the test split beside FP32: quality, agreement, speed, memory.

Reads   models/<RUN>/                       the file of quantize_onnx_int4.py; model_fp32.onnx, the teacher, or without
                                            one model_qat.onnx (export_to_onnx.py)
Writes  models/<RUN>/                       results.json, results.csv, classification_report.txt, plots
Deploy  models/<RUN>/model_qat_int4.onnx    (or _int2, _ternary) with tokenizer.json and preprocessing.json
"""
import json
from functools import partial

from lowbit.data.tokens import load_reader
from lowbit.graph.agreement import simulated_logits
from lowbit.graph.census import openvino_kernels, openvino_lines
from lowbit.graph.export import ONNX
from lowbit.int4.arithmetic import FP32, is_learned, load_simulation
from lowbit.measure.evaluate import evaluate
from lowbit.measure.report import agreement_lines, table_lines, write_report
from lowbit.pipeline.files import claim, run_dir, shown
from lowbit.pipeline.manifest import record, recorded, settings_of, shipped, stages_of
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import RUN_FILES
from lowbit.training.weights import WEIGHTS

# ---- settings: edit here, or for one run: --threads 1 --------------------------------------------
RUN = "indobert-qat-int4-smsa"  # folder under models/ shared by the four stages
DATA_DIR = "data"               # folder of test.tsv and valid.tsv, from the project's root
RUNTIME = "onnxruntime"         # onnxruntime, or openvino (CPU; pip install -r requirements-openvino.txt)
PROVIDER = "CPUExecutionProvider"  # ONNX Runtime execution provider; an absent one is an error
THREADS = 0                     # threads of each session; 0 = every core
BATCH_SIZE = 16                 # texts a batch, for throughput and for the dependence on batch-mates
ROUNDS = 5                      # turns that FP32 and the low-bit file take when their speed is measured
RUNS = 30                       # measured runs a turn
# --------------------------------------------------------------------------------------------------

TRAIN, EXPORT = "int4_eager/train_qat_int4.py", "int4_eager/export_to_onnx.py"
QUANTIZE, STAGE = "int4_eager/quantize_onnx_int4.py", "int4_eager/eval_onnx_int4.py"
RANGES = "activation_ranges.json"


def main(settings):
    folder = run_dir(RUN)
    claim(folder)
    reference = FP32 if FP32 in stages_of(folder).get(EXPORT, {}).get("writes", ()) else ONNX
    read = recorded(folder, EXPORT, reference) + recorded(folder, TRAIN, WEIGHTS, *RUN_FILES)
    ships = shipped(folder)
    read += recorded(folder, QUANTIZE, ships["file"])
    quantized, low = settings_of(folder, QUANTIZE), ships["precision"].upper()
    learned = is_learned(quantized)
    read += recorded(folder, TRAIN, RANGES) if learned else []
    ranges = json.loads((folder / RANGES).read_text(encoding="utf-8")) if learned else None
    reader = load_reader(folder)
    model = load_simulation(folder, quantized, settings_of(folder, TRAIN))
    results, reports = evaluate(settings, {"FP32": folder / reference, low: folder / ships["file"]}, folder, reader,
                                partial(simulated_logits, model, pad_id=reader.pad_id))
    print(reports[low])
    if RUNTIME == "openvino":
        results["openvino_kernels"] = openvino_kernels(folder / ships["file"])
        print(*openvino_lines(results["openvino_kernels"]), sep="\n")
    record(folder, STAGE, settings, read, write_report(folder, results, reports, ranges))
    print(*table_lines(results), *agreement_lines(results), sep="\n")
    print(f"deploy {shown(folder / ships['file'])}")


if __name__ == "__main__":
    run_stage(main, globals())
