"""Stage 1 of 8: draw the pictures that scales are calibrated on, and fix how pictures become a network's input.

Reads   DATA_DIR/{train,valid,test}/<class>/*.jpg
Writes  models/<RUN>/calibration.json       the drawn pictures with their content's digest, and what was passed over
        models/<RUN>/preprocessing.json, task.json
Next    qat_pytorch.py
"""
import json
from collections import Counter

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, resolve, run_dir, shown
from lowbit.pipeline.manifest import begin_run, publish, record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.vision.calibration_set import CALIBRATION, STAGE, draw, task_of_classes
from lowbit.vision.preprocessing import PREPROCESSING, from_settings

# ---- settings: edit here, or for one run: --pictures 500 ------------------------------------------
RUN = "vision"                  # folder under models/ shared by the stages
DATA_DIR = "data/pictures"      # folder of train/, valid/, test/, each with a folder of pictures a class
PICTURES = 1000                 # drawn from train, the same share of each class; fewer where train has fewer
SEED = 42                       # of the draw
SIZE = 224                      # side of a network's input, pixels
RESIZE = 256                    # the shorter side of a picture before its centre is cut out, pixels
MEAN = "0.485,0.456,0.406"      # subtracted from red, green, blue as shares of 255; torchvision's networks
STD = "0.229,0.224,0.225"       # what they are divided by then; EfficientNet-Lite: mean 0.498039, std 0.501961
SKIP_BAD = False                # leave out pictures that cannot be used instead of refusing them all
# --------------------------------------------------------------------------------------------------


def main(settings):
    check(PICTURES > 0, f"PICTURES is {PICTURES}; it must be above 0")
    preprocessing = from_settings(settings)
    data_dir, folder = resolve(DATA_DIR), run_dir(RUN)
    found = draw(data_dir, PICTURES, SEED, SKIP_BAD)
    begin_run(folder, STAGE)
    with atomic_folder(folder) as scratch:
        for name, value in ((CALIBRATION, found), (PREPROCESSING, preprocessing.as_json()),
                            ("task.json", task_of_classes(tuple(found["classes"])).as_json())):
            (scratch / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        names = publish(scratch)
        record(folder, STAGE, settings, [], names)
    counts = Counter(entry["class"] for entry in found["pictures"])
    print(f"  {len(found['pictures'])} pictures of {len(counts)} classes, {min(counts.values())} to "
          f"{max(counts.values())} of each; none has the pixels of a test picture")
    for key, said in (("in_test", "pictures of train that test holds too were passed over"),
                      ("twice", "pictures that the draw held already were passed over")):
        if found[key]:
            print(f"  {len(found[key])} {said}: {', '.join(found[key][:5])}{' …' * (len(found[key]) > 5)}")
    print(f"wrote {', '.join(names)} in {shown(folder)}")
    if len(counts) < len(found["classes"]):
        raise UserError(f"{next(name for name in found['classes'] if name not in counts)} has no picture left to draw")
    return next_command("vision/qat_pytorch.py", settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
