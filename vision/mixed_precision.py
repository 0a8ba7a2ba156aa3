"""Stage 5 of 8: keep the most sensitive layers in FP32, as few as bring the loss under MAX_DROP; say what they cost.

Reads   models/<RUN>/sensitivity.json       (sensitivity_analysis.py)
Writes  models/<RUN>/model_mixed_<file>.onnx, .pth, .json   where a layer has to stay FP32; mixed_precision.json
Next    accuracy_evaluation.py
"""
import json
import statistics

from lowbit.measure.session import require_runtime
from lowbit.pipeline.files import atomic_folder, claim, file_bytes, resolve, run_dir, shown, write_json
from lowbit.pipeline.manifest import publish, record, recorded
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.vision.data import read_splits
from lowbit.vision.evaluate import measured_speed
from lowbit.vision.export import export
from lowbit.vision.preprocessing import read_preprocessing
from lowbit.vision.run import FP32, MIX, TRAIN, Variant, data_files, folded_network, load, variants, write_variant
from lowbit.vision.sensitivity import Judge, choose_floats, with_floats
from lowbit.vision.trt_rules import check as check_rules
from lowbit.vision.trt_rules import finding_lines

# ---- settings: edit here, or for one run: --max-drop 0.5 ------------------------------------------
RUN = "vision"                  # folder under models/ shared by the stages
DATA_DIR = "data/pictures"      # folder of valid/
MAX_DROP = 1.0                  # points of validation accuracy below FP32 that are allowed
THREADS = 0                     # threads of each session; 0 = every core
ROUNDS = 5                      # turns that the files take when their time is measured
RUNS = 10                       # measured runs a turn
BATCH_SIZE = 8                  # pictures of the larger timed batch
SKIP_BAD = False                # leave out pictures that cannot be used instead of refusing them all
# --------------------------------------------------------------------------------------------------

SENSITIVE, SENSITIVITY, WAY = "vision/sensitivity_analysis.py", "sensitivity.json", "mixed_precision.json"


def say(floats, lost):
    """A line a step."""
    added = f" (+ {floats[-1]})" if floats else ""
    print(f"  {len(floats)} layers in FP32{added}: {lost['points_lost']:+.2f} points lost, {lost['flips']} labels "
          f"change, divergence {lost['divergence']:.1e}", flush=True)


def write_mixed(scratch, folder, judge, calibrated, variant, floats):
    """Write the mixed file, check its rules, and say what its FP32 layers cost beside the file without any."""
    mixed = Variant(f"mixed_{variant.name}", MIX, variant.target, variant.bits, floats)
    model = with_floats(judge.folded, calibrated, variant, floats)
    write_variant(scratch, model, mixed)
    export(model, scratch / mixed.file, judge.preprocessing.size)
    if variant.runtime == "openvino":
        kept = tuple(f"/{name}/{operator}" for name in floats for operator in ("Conv", "Gemm"))
        print(*finding_lines(check_rules(scratch / mixed.file, kept)), sep="\n")
    require_runtime(variant.runtime)
    files = {variant.name: folder / variant.file, mixed.name: scratch / mixed.file}
    turns, shapes = measured_speed(files, variant.runtime, judge.preprocessing, {
        "THREADS": THREADS, "ROUNDS": ROUNDS, "RUNS": RUNS, "BATCH_SIZE": BATCH_SIZE})
    before, after = (statistics.median(value for turn in turns[name] for value in turn["ms"][shapes[-1]])
                     for name in files)
    size, larger = (file_bytes(path) / 1e6 for path in files.values())
    cost = {"mb": larger - size, "ms": after - before, "runtime": variant.runtime, "shape": shapes[-1]}
    print(f"  they cost {cost['mb']:+.2f} MB ({size:.2f} -> {larger:.2f}) and {cost['ms']:+.2f} ms a picture in "
          f"{variant.runtime} ({before:.2f} -> {after:.2f})")
    return cost


def main(settings):
    check(MAX_DROP >= 0, f"MAX_DROP is {MAX_DROP}; it must not be below 0")
    for name, value in (("ROUNDS", ROUNDS), ("RUNS", RUNS), ("BATCH_SIZE", BATCH_SIZE)):
        check(value > 0, f"{name} is {value}; it must be above 0")
    folder = run_dir(RUN)
    claim(folder)
    read = data_files(folder) + recorded(folder, SENSITIVE, SENSITIVITY) + recorded(folder, TRAIN, f"model_{FP32}.pth")
    sensitivity = json.loads((folder / SENSITIVITY).read_text(encoding="utf-8"))
    variant = next(made for made in variants(folder) if made.name == sensitivity["file"])
    read += recorded(folder, variant.stage, variant.weights, variant.file)
    split = read_splits(folder, resolve(DATA_DIR), ("valid",), SKIP_BAD)["valid"]
    judge = Judge(folded_network(folder, folder / f"model_{FP32}.pth"), split, read_preprocessing(folder))
    calibrated = load(folder, variant)
    floats, way = choose_floats(judge, calibrated, variant, sensitivity["order"], MAX_DROP, say)
    with atomic_folder(folder) as scratch:
        cost = write_mixed(scratch, folder, judge, calibrated, variant, floats) if floats else None
        write_json(scratch / WAY, {"file": variant.name, "max_drop": MAX_DROP, "pictures": len(split[0]),
                                   "floats": list(floats), "way": way, "cost": cost})
        names = publish(scratch)
    record(folder, MIX, settings, read, names)
    print(f"wrote {', '.join(names)} in {shown(folder)}" + ("" if floats else
          f": {variant.name} loses no more than {MAX_DROP:g} points, no layer has to stay FP32"))
    return next_command("vision/accuracy_evaluation.py", settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
