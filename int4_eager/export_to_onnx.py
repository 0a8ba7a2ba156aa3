"""Stage 2 of 4: export the trained model to a clean FP32 ONNX graph and check it against PyTorch.

Reads   models/<RUN>/model_qat.pth          (train_qat_int4.py), model_fp32.pth where there was a teacher
Writes  models/<RUN>/model_qat.onnx         the trained weights before they are rounded
        models/<RUN>/model_fp32.onnx        the teacher, which the low-bit file is compared with
Next    quantize_onnx_int4.py
"""
from lowbit.graph.export import export_run
from lowbit.int4.arithmetic import ARITHMETIC, FP32, TEACHER
from lowbit.pipeline.manifest import settings_of
from lowbit.pipeline.stage import next_command, run_stage

# ---- settings: edit here, or for one run: --opset 18 ---------------------------------------------
RUN = "indobert-qat-int4-smsa"  # folder under models/ shared by the four stages
OPSET = 17                      # ONNX operator set of the graph; 17 or higher
# --------------------------------------------------------------------------------------------------

TRAIN, STAGE = "int4_eager/train_qat_int4.py", "int4_eager/export_to_onnx.py"


def main(settings):
    folder = export_run(settings, STAGE, TRAIN, {TEACHER: FP32})
    trained = settings_of(folder, TRAIN)
    return next_command("int4_eager/quantize_onnx_int4.py", trained | settings, "RUN", *ARITHMETIC)


if __name__ == "__main__":
    run_stage(main, globals())
