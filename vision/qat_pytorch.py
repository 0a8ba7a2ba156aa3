"""Stage 2 of 8: train a network in FP32, then once more with the file's INT8 simulated, and an FP32 control beside it.

Reads   DATA_DIR/{train,valid}/<class>/*.jpg, models/<RUN>/calibration.json   (calibration_dataset.py)
Writes  models/<RUN>/model_<network>.pth, .onnx, .json   of fp32, control and qat_…; training.json
Next    ptq_tensorrt.py
"""
import json

import torch

from lowbit.data.task import read_task
from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir, shown
from lowbit.pipeline.manifest import publish, record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.lsq import TARGETS
from lowbit.vision.calibrate import METHODS, batches_of, calibrate, calibration_lines
from lowbit.vision.data import calibration_crops, read_splits
from lowbit.vision.export import check_fp32, export
from lowbit.vision.networks import build, check_size, load_published, settle_statistics
from lowbit.vision.placement import fold, place_pairs
from lowbit.vision.preprocessing import read_preprocessing
from lowbit.vision.run import CONTROL, FP32, TRAIN, Variant, data_files, low_bit_name, write_variant
from lowbit.vision.simulation import WEIGHT_BITS as KNOWN_WEIGHT_BITS
from lowbit.vision.train import accuracy_of, train
from lowbit.vision.trt_rules import check as check_rules
from lowbit.vision.trt_rules import finding_lines

# ---- settings: edit here, or for one run: --model resnet20 ----------------------------------------
RUN = "vision"                  # folder under models/ shared by the stages
DATA_DIR = "data/pictures"      # folder of train/, valid/, test/, each with a folder of pictures a class
MODEL = "resnet50"              # resnet50, vgg16, efficientnet_b0, resnet20 or efficientnet_lite0
WEIGHTS = "default"             # default: the published ones; a file; or none: random
FP32_EPOCHS = 3                 # passes over train in FP32 before anything is quantized; 0: the weights as they are
FP32_RATE = 1e-3                # peak learning rate of these (Adam)
FROZEN_EPOCHS = 1               # further passes after these, with BatchNorm's statistics frozen, at QAT_RATE
QAT = True                      # train with INT8 simulated, and the control; --no-qat: FP32 alone
QAT_EPOCHS = 3                  # passes over train with INT8 simulated, and as many of the FP32 control
QAT_RATE = 2e-4                 # peak learning rate of these (Adam)
TARGET = "tensorrt"             # tensorrt or openvino (int8), onnxruntime (uint8): what QAT simulates
WEIGHT_BITS = 8                 # bits of a weight, 8 or 4; 4 are stored as INT8 of 15 levels
METHOD = "minmax"               # calibration that QAT's scales start from: minmax, entropy or percentile
WEIGHT_DECAY = 1e-4             # AdamW, on matrices only
BATCH_SIZE = 64                 # pictures a step
SEED = 42                       # of new weights, order and moved pictures
SKIP_BAD = False                # leave out pictures that cannot be used instead of refusing them all
# --------------------------------------------------------------------------------------------------

FROZEN = "frozen"  # the phase of FROZEN_EPOCHS


def check_settings():
    check(TARGET in TARGETS, f"TARGET is {TARGET!r}; choose {', '.join(TARGETS)}")
    check(METHOD in METHODS, f"METHOD is {METHOD!r}; choose {', '.join(METHODS)}")
    check(WEIGHT_BITS in KNOWN_WEIGHT_BITS, f"WEIGHT_BITS is {WEIGHT_BITS}; choose 8 or 4")
    for name, value in (("FP32_EPOCHS", FP32_EPOCHS), ("FROZEN_EPOCHS", FROZEN_EPOCHS), ("QAT_EPOCHS", QAT_EPOCHS),
                        ("WEIGHT_DECAY", WEIGHT_DECAY)):
        check(value >= 0, f"{name} is {value}; it must not be below 0")
    for name, value in (("FP32_RATE", FP32_RATE), ("QAT_RATE", QAT_RATE), ("BATCH_SIZE", BATCH_SIZE)):
        check(value > 0, f"{name} is {value}; it must be above 0")


def recipe(epochs, rate):
    """What train() takes of the settings."""
    return {"epochs": epochs, "rate": rate, "decay": WEIGHT_DECAY, "batch": BATCH_SIZE, "seed": SEED}


def fp32_network(folder, data, preprocessing):
    """(network, its histories): loaded or new, trained for FP32_EPOCHS and FROZEN_EPOCHS.

    Training leaves statistics behind that are not those of its last weights. Weights that have not been trained with
    them may multiply what rounding does: see EfficientNet-B0 in RESULTS.md.
    """
    torch.manual_seed(SEED)
    model = build(MODEL, len(read_task(folder).labels))
    print(f"  {MODEL}, {load_published(model, MODEL, WEIGHTS)}")
    crops = data["train"][0][:: max(1, len(data["train"][0]) // 256)]
    if WEIGHTS == "none" and not FP32_EPOCHS:
        settle_statistics(model, batches_of(crops, preprocessing)())
    histories = {FP32: train(model, data, preprocessing, recipe(FP32_EPOCHS, FP32_RATE), FP32, folder, live_norm=True)}
    if FP32_EPOCHS and FROZEN_EPOCHS:
        histories[FROZEN] = train(model, data, preprocessing, recipe(FROZEN_EPOCHS, QAT_RATE), FROZEN, folder)
    model.eval()
    print(f"  FP32: valid accuracy {100 * accuracy_of(model, data['valid'], preprocessing):.2f} %")
    return model, histories


def main(settings):
    check_settings()
    folder, data_dir = run_dir(RUN), resolve(DATA_DIR)
    claim(folder)
    read, preprocessing = data_files(folder), read_preprocessing(folder)
    check_size(MODEL, preprocessing.size)
    data = read_splits(folder, data_dir, ("train", "valid"), SKIP_BAD)
    print("  " + ", ".join(f"{len(labels)} pictures of {split}" for split, (_, labels) in data.items()))
    model, histories = fp32_network(folder, data, preprocessing)
    folded = fold(model)
    made = [(Variant(FP32, TRAIN, "", 32, ()), folded, model)]
    if QAT:
        control = fold(model)
        histories[CONTROL] = train(control, data, preprocessing, recipe(QAT_EPOCHS, QAT_RATE), CONTROL, folder)
        made.append((Variant(CONTROL, TRAIN, "", 32, ()), control, control))
        crops = calibration_crops(folder, data_dir, 0)
        placed = place_pairs(folded, TARGET, WEIGHT_BITS)
        refused = calibrate(placed, batches_of(crops, preprocessing), METHOD)
        print(*calibration_lines(placed, METHOD, refused, len(crops)), sep="\n")
        variant = Variant(low_bit_name("qat", TARGET, WEIGHT_BITS), TRAIN, TARGET, WEIGHT_BITS, ())
        histories[variant.name] = train(placed, data, preprocessing, recipe(QAT_EPOCHS, QAT_RATE), variant.name, folder)
        made.append((variant, placed, placed))
    with atomic_folder(folder) as scratch:
        for variant, network, weights in made:
            write_variant(scratch, weights, variant)
            export(network, scratch / variant.file, preprocessing.size)
            if variant.target in ("tensorrt", "openvino"):
                print(*finding_lines(check_rules(scratch / variant.file)), sep="\n")
            elif not variant.target:
                worst = check_fp32(network, scratch / variant.file, preprocessing.size)
                print(f"  {variant.file} agrees with PyTorch within {worst:.1e} of its largest logit")
        (scratch / "training.json").write_text(json.dumps(histories, indent=2) + "\n", encoding="utf-8")
        names = publish(scratch)
    record(folder, TRAIN, settings, read, names)
    for path in folder.glob("checkpoint_*.pth"):
        path.unlink()
    print(f"wrote {', '.join(name for name in names if name.endswith('.onnx'))} in {shown(folder)}")
    return next_command("vision/ptq_tensorrt.py", settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
