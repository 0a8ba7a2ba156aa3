"""Stage 4 of 8: one layer at a time on integers: how much each costs, measured on the validation pictures.

Reads   models/<RUN>/model_<QUANTIZED>.pth  (ptq_tensorrt.py), model_fp32.pth (qat_pytorch.py)
Writes  models/<RUN>/sensitivity.json
Next    mixed_precision.py
"""
from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir, shown, write_json
from lowbit.pipeline.manifest import publish, record, recorded
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.vision.data import read_splits
from lowbit.vision.preprocessing import read_preprocessing
from lowbit.vision.run import FP32, TRAIN, data_files, folded_network, load, variants
from lowbit.vision.sensitivity import Judge, measure_layers

# ---- settings: edit here, or for one run: --quantized ptq_entropy_int8 ---------------------------------
RUN = "vision"                  # folder under models/ shared by the stages
DATA_DIR = "data/pictures"      # folder of valid/
QUANTIZED = "ptq_minmax_int8"   # the quantized network whose scales are used
VALID_PICTURES = 0              # validation pictures that are asked; 0 = all
SKIP_BAD = False                # leave out pictures that cannot be used instead of refusing them all
# --------------------------------------------------------------------------------------------------

STAGE, SENSITIVITY = "vision/sensitivity_analysis.py", "sensitivity.json"


def say(place, count, name, lost):
    """A line a layer."""
    print(f"  {place}/{count} {name}: divergence {lost['divergence']:.1e}, {lost['flips']} labels change, "
          f"{lost['points_lost']:+.2f} points lost", flush=True)


def main(settings):
    check(VALID_PICTURES >= 0, f"VALID_PICTURES is {VALID_PICTURES}; it must not be below 0")
    folder = run_dir(RUN)
    claim(folder)
    made = {variant.name: variant for variant in variants(folder)}
    quantized = [name for name, variant in made.items() if variant.target]
    check(QUANTIZED in quantized,
          f"QUANTIZED is {QUANTIZED!r}; this run has {', '.join(quantized) or 'no quantized network'}")
    variant = made[QUANTIZED]
    read = data_files(folder) + recorded(folder, TRAIN, f"model_{FP32}.pth") + recorded(
        folder, variant.stage, variant.weights)
    crops, labels = read_splits(folder, resolve(DATA_DIR), ("valid",), SKIP_BAD)["valid"]
    step = max(1, len(crops) // VALID_PICTURES) if VALID_PICTURES else 1
    folded = folded_network(folder, folder / f"model_{FP32}.pth")
    judge = Judge(folded, (crops[::step], labels[::step]), read_preprocessing(folder))
    found = measure_layers(judge, load(folder, variant), variant, say)
    order = sorted(found, key=lambda name: -found[name]["divergence"])
    with atomic_folder(folder) as scratch:
        write_json(scratch / SENSITIVITY, {"file": QUANTIZED, "pictures": len(judge.split[0]), "order": order,
                                           "layers": found})
        names = publish(scratch)
    record(folder, STAGE, settings, read, names)
    print(f"  most sensitive first: {', '.join(order[:5])}{' …' * (len(order) > 5)}")
    print(f"wrote {', '.join(names)} in {shown(folder)}")
    return next_command("vision/mixed_precision.py", settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
