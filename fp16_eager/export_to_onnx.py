"""Stage 2 of 4: export the trained model to a clean FP32 ONNX graph and check it against PyTorch.

Reads   models/<RUN>/model_qat.pth          (train_qat_fp16.py)
Writes  models/<RUN>/model_qat.onnx
Next    quantize_onnx_fp16.py
"""
from lowbit.graph.export import export_run
from lowbit.pipeline.manifest import settings_of
from lowbit.pipeline.stage import next_command, run_stage

# ---- settings: edit here, or for one run: --opset 18 ---------------------------------------------
RUN = "indobert-qat-fp16-smsa"  # folder under models/ shared by the four stages
OPSET = 17                      # ONNX operator set of the graph; 17 or higher
# --------------------------------------------------------------------------------------------------

TRAIN, STAGE = "fp16_eager/train_qat_fp16.py", "fp16_eager/export_to_onnx.py"


def main(settings):
    folder = export_run(settings, STAGE, TRAIN)
    trained = settings_of(folder, TRAIN)
    return next_command("fp16_eager/quantize_onnx_fp16.py", trained | settings, "RUN", "DATA_DIR", "FP32_OPS")


if __name__ == "__main__":
    run_stage(main, globals())
