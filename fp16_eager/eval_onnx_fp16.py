"""Stage 4 of 4: score the FP16 file on the test split beside FP32: quality, agreement, speed, memory.

Reads   models/<RUN>/model_qat_fp16.onnx    (quantize_onnx_fp16.py), model_qat.onnx (export_to_onnx.py)
Writes  models/<RUN>/                       results.json, results.csv, classification_report.txt, plots
Deploy  models/<RUN>/model_qat_fp16.onnx    with tokenizer.json and preprocessing.json
"""
from functools import partial

from lowbit.data.tokens import load_reader
from lowbit.fp16.simulation import operators, simulate
from lowbit.graph.agreement import simulated_logits
from lowbit.graph.export import ONNX
from lowbit.measure.evaluate import evaluate
from lowbit.measure.report import agreement_lines, table_lines, write_report
from lowbit.pipeline.files import claim, run_dir, shown
from lowbit.pipeline.manifest import record, recorded, settings_of
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import RUN_FILES, load_run
from lowbit.training.weights import WEIGHTS, load_weights

# ---- settings: edit here, or for one run: --threads 1 --------------------------------------------
RUN = "indobert-qat-fp16-smsa"  # folder under models/ shared by the four stages
DATA_DIR = "data"               # folder of test.tsv and valid.tsv, from the project's root
PROVIDER = "CPUExecutionProvider"  # ONNX Runtime execution provider; an absent one is an error
THREADS = 0                     # threads of each session; 0 = every core
BATCH_SIZE = 16                 # texts a batch, for throughput and for the dependence on batch-mates
ROUNDS = 5                      # turns that FP32 and FP16 take when their speed is measured
RUNS = 30                       # measured runs a turn
# --------------------------------------------------------------------------------------------------

TRAIN, EXPORT = "fp16_eager/train_qat_fp16.py", "fp16_eager/export_to_onnx.py"
QUANTIZE, STAGE = "fp16_eager/quantize_onnx_fp16.py", "fp16_eager/eval_onnx_fp16.py"
FP16 = "model_qat_fp16.onnx"


def main(settings):
    folder = run_dir(RUN)
    claim(folder)
    read = (recorded(folder, QUANTIZE, FP16) + recorded(folder, EXPORT, ONNX)
            + recorded(folder, TRAIN, WEIGHTS, *RUN_FILES))
    model, reader = load_run(folder), load_reader(folder)
    load_weights(model, folder / WEIGHTS)
    simulate(model, operators(settings_of(folder, QUANTIZE)["FP32_OPS"]))
    results, reports = evaluate(settings, {"FP32": folder / ONNX, "FP16": folder / FP16}, folder, reader,
                                partial(simulated_logits, model, pad_id=reader.pad_id))
    print(reports["FP16"])
    record(folder, STAGE, settings, read, write_report(folder, results, reports))
    print(*table_lines(results), *agreement_lines(results), sep="\n")
    print(f"deploy {shown(folder / FP16)}")


if __name__ == "__main__":
    run_stage(main, globals())
