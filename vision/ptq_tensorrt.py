"""Stage 3 of 8: quantize the FP32 network after training, by TensorRT's rules, and check the file against them.

Reads   models/<RUN>/model_fp32.pth         (qat_pytorch.py), the pictures of calibration.json
Writes  models/<RUN>/model_ptq_<method>_int8.onnx (tensorrt, openvino) or _u8.onnx (onnxruntime), with .pth and .json
Next    sensitivity_analysis.py
"""
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, claim, file_bytes, resolve, run_dir, shown
from lowbit.pipeline.manifest import publish, record, recorded
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.lsq import TARGETS
from lowbit.vision.calibrate import METHODS, batches_of, calibrate, calibration_lines
from lowbit.vision.data import calibration_crops
from lowbit.vision.export import INPUT, check_stored, export
from lowbit.vision.placement import place_pairs
from lowbit.vision.preprocessing import read_preprocessing
from lowbit.vision.run import FP32, PTQ, TRAIN, Variant, data_files, folded_network, low_bit_name, write_variant
from lowbit.vision.simulation import WEIGHT_BITS as KNOWN_WEIGHT_BITS
from lowbit.vision.trt_rules import ERROR, finding_lines
from lowbit.vision.trt_rules import check as check_rules

# ---- settings: edit here, or for one run: --method entropy ----------------------------------------
RUN = "vision"                  # folder under models/ shared by the stages
DATA_DIR = "data/pictures"      # folder that the calibration pictures were drawn from
METHOD = "minmax"               # calibration: minmax, entropy, percentile; several with commas
TARGET = "tensorrt"             # tensorrt, openvino (int8), onnxruntime (uint8); several with commas
WEIGHT_BITS = 8                 # bits of a weight, 8 or 4; 4 are stored as INT8 of 15 levels
CALIBRATION_PICTURES = 0        # calibration pictures that are used; 0 = all that were drawn
# --------------------------------------------------------------------------------------------------


def trtexec(path, size):
    """The command that builds an engine of a file."""
    shape = f"{INPUT}:{{}}x3x{size}x{size}"
    return (f"trtexec --onnx={shown(path)} --saveEngine={shown(path.with_suffix('.engine'))} "
            f"--minShapes={shape.format(1)} --optShapes={shape.format(8)} --maxShapes={shape.format(32)}")


def make(scratch, folder, folded, batches, method, target, pictures, size):
    """Write one quantized network; returns its variant."""
    placed = place_pairs(folded, target, WEIGHT_BITS)
    refused = calibrate(placed, batches, method)
    print(*calibration_lines(placed, method, refused, pictures), sep="\n")
    name = low_bit_name(f"ptq_{method}", target, WEIGHT_BITS)
    variant = Variant(name, PTQ, target, WEIGHT_BITS, ())
    write_variant(scratch, placed, variant, method=method, guard=refused)
    export(placed, scratch / variant.file, size)
    print(f"  {check_stored(placed, scratch / variant.file)} integers, scales and biases of {variant.file} equal the "
          "simulation's, bit for bit")
    if target != "onnxruntime":
        findings = check_rules(scratch / variant.file)
        print(*finding_lines(findings), sep="\n")
        if any(finding.kind == ERROR for finding in findings):
            raise UserError(f"{variant.file} breaks TensorRT's rules: {findings[0]}")
    return variant


def main(settings):
    methods, targets = chosen(METHOD, METHODS, "METHOD"), chosen(TARGET, TARGETS, "TARGET")
    check(WEIGHT_BITS in KNOWN_WEIGHT_BITS, f"WEIGHT_BITS is {WEIGHT_BITS}; choose 8 or 4")
    check(CALIBRATION_PICTURES >= 0, f"CALIBRATION_PICTURES is {CALIBRATION_PICTURES}; it must not be below 0")
    check(not {"tensorrt", "openvino"} <= set(targets), "TARGET names tensorrt and openvino, which are the same file")
    folder, data_dir = run_dir(RUN), resolve(DATA_DIR)
    claim(folder)
    read = data_files(folder) + recorded(folder, TRAIN, f"model_{FP32}.pth", f"model_{FP32}.onnx")
    preprocessing = read_preprocessing(folder)
    folded = folded_network(folder, folder / f"model_{FP32}.pth")
    crops = calibration_crops(folder, data_dir, CALIBRATION_PICTURES)
    made = {}
    for target in targets:
        for method in methods:
            with atomic_folder(folder) as scratch:
                variant = make(scratch, folder, folded, batches_of(crops, preprocessing), method, target, len(crops),
                               preprocessing.size)
                names = publish(scratch)
            stage = f"{PTQ} --method {method} --target {target} --weight-bits {WEIGHT_BITS}"
            record(folder, stage, settings, read, names)
            made[variant] = folder / variant.file
            size, before = file_bytes(folder / variant.file), file_bytes(folder / f"model_{FP32}.onnx")
            print(f"wrote {shown(folder / variant.file)}: {before / 1e6:.2f} MB -> {size / 1e6:.2f} MB "
                  f"({before / size:.2f}x smaller)")
    for variant, path in made.items():
        if variant.target != "onnxruntime":
            print(f"  not run here, TensorRT is not installed: {trtexec(path, preprocessing.size)}")
    return next_command("vision/sensitivity_analysis.py", settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
