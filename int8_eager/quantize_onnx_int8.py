"""Stage 3 of 4: turn the exported FP32 graph into INT8, check it against training, count what runs on integers.

Reads   models/<RUN>/model_qat.onnx         (export_to_onnx.py), model_qat.pth (train_qat_int8.py)
Writes  models/<RUN>/model_qat_int8.onnx
Next    eval_onnx_int8.py
"""
import logging

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from lowbit.data.task import read_task
from lowbit.graph.agreement import check_against_simulation
from lowbit.graph.census import census, census_lines
from lowbit.graph.export import ONNX, save_onnx
from lowbit.int8.arithmetic import is_learned, refuse_other_arithmetic, simulate
from lowbit.int8.qdq import quantize
from lowbit.pipeline.files import atomic_folder, claim, run_dir, shown, write_json
from lowbit.pipeline.machine import integer_advice
from lowbit.pipeline.manifest import publish, record, recorded, settings_of
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.encoder import RUN_FILES, load_run
from lowbit.training.weights import WEIGHTS, load_weights

# ---- settings: edit here, or for one run: --per-channel ------------------------------------------
RUN = "indobert-qat-int8-smsa"  # folder under models/ shared by the four stages
ACTIVATION_RANGES = "dynamic"   # dynamic: measured over each batch at run time; learned: in the file; as trained
TARGET = "openvino"             # learned only: openvino or tensorrt (int8), onnxruntime (uint8); as trained
QUANTIZE_ATTENTION = True       # learned only: attention's two products on integers as well; as trained
PER_CHANNEL = False             # one weight scale per output channel instead of one per tensor; as trained
QUANTIZE_EMBEDDINGS = True      # embedding tables to 8 bits as well: a third to a half of the file; as trained
REDUCE_RANGE = False            # 7-bit weights, for CPUs without VNNI; as trained
# --------------------------------------------------------------------------------------------------

TRAIN, EXPORT = "int8_eager/train_qat_int8.py", "int8_eager/export_to_onnx.py"
STAGE, EVALUATE = "int8_eager/quantize_onnx_int8.py", "int8_eager/eval_onnx_int8.py"
STAGES = {"train": TRAIN, "export": EXPORT, "quantize": STAGE, "evaluate": EVALUATE}
INT8 = "model_qat_int8.onnx"


def main(settings):
    folder = run_dir(RUN)
    claim(folder)
    read = recorded(folder, EXPORT, ONNX) + recorded(folder, TRAIN, WEIGHTS, *RUN_FILES)
    refuse_other_arithmetic(settings, settings_of(folder, TRAIN))
    learned = is_learned(settings)
    print(f"  {integer_advice()}")
    model = load_run(folder)
    simulate(model, settings)
    load_weights(model, folder / WEIGHTS)
    with atomic_folder(folder) as scratch:
        path = scratch / INT8
        if learned:
            save_onnx(quantize(onnx.load(folder / ONNX), model, TARGET), path)
        else:
            logging.getLogger().setLevel(logging.ERROR)  # it recommends a pre-processing that gains nothing here
            # given the graph, not its path: for a path it writes a second file beside the first
            quantize_dynamic(onnx.load(folder / ONNX), path, weight_type=QuantType.QInt8, per_channel=PER_CHANNEL,
                             reduce_range=REDUCE_RANGE,
                             op_types_to_quantize=["MatMul", "Gather"] if QUANTIZE_EMBEDDINGS else ["MatMul"])
        count, worst = check_against_simulation(model, path)
        counted = census(path)
        write_json(scratch / "census.json", counted)
        names = publish(scratch)
    record(folder, STAGE, settings, read, names, {
        "precision": "int8", "file": INT8, "runtime": TARGET if learned else "onnxruntime",
        "task": read_task(folder).as_json(), "stages": STAGES})
    print(f"  {count} of {count} weights{' and scales' * learned} equal those simulated in training, "
          "bit for bit")
    print(f"  logits differ from the simulation by at most {worst:.1e} on random inputs")
    print("  in the graph as ONNX Runtime optimises it:", *census_lines(counted), sep="\n")
    before, after = (folder / ONNX).stat().st_size, (folder / INT8).stat().st_size
    print(f"wrote {shown(folder / INT8)}: {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB ({100 * after / before:.1f} %)")
    return next_command("int8_eager/eval_onnx_int8.py", settings_of(folder, TRAIN) | settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
