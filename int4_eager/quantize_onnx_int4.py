"""Stage 3 of 4: pack the trained weights at their bits, check the file against training, count what runs on integers.

Reads   models/<RUN>/model_qat.onnx         (export_to_onnx.py), model_qat.pth (train_qat_int4.py)
Writes  models/<RUN>/model_qat_int4.onnx    at 2 bits model_qat_int2.onnx, at 1.6 model_qat_ternary.onnx
Next    eval_onnx_int4.py
"""

import onnx

from lowbit.data.task import read_task
from lowbit.graph.agreement import check_against_simulation
from lowbit.graph.census import census, census_lines
from lowbit.graph.export import ONNX, save_onnx
from lowbit.int4.arithmetic import PRECISIONS, is_learned, load_simulation, refuse_other_arithmetic
from lowbit.int4.file import quantize
from lowbit.pipeline.files import atomic_folder, claim, run_dir, shown, write_json
from lowbit.pipeline.manifest import publish, record, recorded, settings_of
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.encoder import RUN_FILES
from lowbit.training.weights import WEIGHTS

# ---- settings: edit here, or for one run: --bits 2 -----------------------------------------------
RUN = "indobert-qat-int4-smsa"  # folder under models/ shared by the four stages
BITS = 4.0                      # a weight of a Linear layer: 4, 2, or 1.6 (three levels, five a byte); as trained
TABLE_BITS = 4.0                # a weight of the table of words: 8, 4, 2 or 1.6; as trained
POSITION_BITS = 8.0             # a weight of the table of positions: 8, 4, 2 or 1.6; as trained
HEAD_BITS = 8.0                 # a weight of pooler and classifier: 8, 4, 2 or 1.6; as trained
ACTIVATION_RANGES = "dynamic"   # dynamic: measured over each batch at run time; learned: in the file; as trained
TARGET = "openvino"             # learned only: openvino or tensorrt (int8), onnxruntime (uint8); as trained
QUANTIZE_ATTENTION = True       # learned only: attention's two products on integers as well; as trained
# --------------------------------------------------------------------------------------------------

TRAIN, EXPORT = "int4_eager/train_qat_int4.py", "int4_eager/export_to_onnx.py"
STAGE, EVALUATE = "int4_eager/quantize_onnx_int4.py", "int4_eager/eval_onnx_int4.py"
STAGES = {"train": TRAIN, "export": EXPORT, "quantize": STAGE, "evaluate": EVALUATE}


def main(settings):
    folder = run_dir(RUN)
    claim(folder)
    read = recorded(folder, EXPORT, ONNX) + recorded(folder, TRAIN, WEIGHTS, *RUN_FILES)
    trained = settings_of(folder, TRAIN)
    refuse_other_arithmetic(settings, trained)
    learned, precision = is_learned(settings), PRECISIONS[BITS]
    model, name = load_simulation(folder, settings, trained), f"model_qat_{precision}.onnx"
    with atomic_folder(folder) as scratch:
        path = scratch / name
        save_onnx(quantize(onnx.load(folder / ONNX), model), path)
        count, worst = check_against_simulation(model, path)
        counted = census(path)
        write_json(scratch / "census.json", counted)
        names = publish(scratch)
    record(folder, STAGE, settings, read, names, {
        "precision": precision, "file": name, "runtime": TARGET if learned else "onnxruntime",
        "task": read_task(folder).as_json(), "stages": STAGES})
    print(f"  {count} of {count} weights and scales, unpacked, equal those simulated in training, "
          "bit for bit")
    print(f"  logits differ from the simulation by at most {worst:.1e} on random inputs")
    print("  in the graph as ONNX Runtime optimises it:", *census_lines(counted), sep="\n")
    before, after = (folder / ONNX).stat().st_size, (folder / name).stat().st_size
    print(f"wrote {shown(folder / name)}: {before / 1e6:.1f} MB -> {after / 1e6:.2f} MB ({100 * after / before:.1f} %)")
    return next_command(EVALUATE, trained | settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
