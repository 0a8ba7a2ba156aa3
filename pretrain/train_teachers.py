"""Stage 2 of 4: fine-tune an encoder on SMSA with several seeds, as teachers of the small model.

Reads   models/<ENCODER>/                   adapt_e5_small_id.py, or pretrain_bert_mini_id.py
        DATA_DIR/{train,valid,test}.tsv     python data/download_smsa.py
Writes  models/<ENCODER>-<CLEANING>-<seed>/ what every training stage writes
        models/<CHECKED>/                   the rows that are trained on
Next    distill_bert_mini_id.py
"""
import json
import statistics

from lowbit.distill.rates import LayerwiseTuner
from lowbit.pipeline.files import resolve, run_dir
from lowbit.pipeline.manifest import recorded, stages_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.pretrain.checked_data import checked_data
from lowbit.pretrain.heldout import held_out
from lowbit.training.fine_tune import autocast_dtype, fine_tune
from lowbit.training.weights import WEIGHTS, save_state

# ---- settings: edit here, or for one run: --seeds 1 ----------------------------------------------
ENCODER = "e5-small-id-adapted"  # folder under models/
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv, from the project's root
CHECKED = "checked-data"        # folder under models/ for the rows of DATA_DIR that are trained on
CLEANING = "minimal"            # text cleaning: documents, negation-safe or minimal
SEEDS = "1,2,3"                 # one teacher each
NUM_EPOCHS = 5                  # passes over train; the best on valid is kept
BATCH_SIZE = 32                 # texts a step
LEARNING_RATE = 1e-4            # peak of the linear schedule, of the head
LAYER_DECAY = 0.9               # factor on the rate from each layer to the one below it
LABEL_SMOOTHING = 0.0           # share of each label that is spread over all of them
MAX_LENGTH = 128                # tokens
NAME = ""                       # of the runs, before the seed; empty: the encoder's and the cleaning's
AUTOCAST = True                 # BF16/FP16 arithmetic in training steps where the device has it
# --------------------------------------------------------------------------------------------------

STAGE = "pretrain/train_teachers.py"


def save(model, folder):
    """The weights as later stages read them, and as MODEL_NAME reads them: a teacher can be trained on in INT8."""
    save_state(model, folder)
    model.save_pretrained(folder)


def train_once(data: str, seed: int) -> dict:
    """The kept epoch's scores on valid; a finished run of the same settings is not repeated."""
    settings = {"RUN": f"{NAME or f'{ENCODER}-{CLEANING}'}-{seed}", "MODEL_NAME": f"models/{ENCODER}",
                "MODEL_REVISION": "", "DATA_DIR": data, "CLEANING": CLEANING, "MAX_LENGTH": MAX_LENGTH,
                "NUM_LABELS": 0, "NUM_EPOCHS": NUM_EPOCHS, "BATCH_SIZE": BATCH_SIZE, "LEARNING_RATE": LEARNING_RATE,
                "LAYER_DECAY": LAYER_DECAY, "LABEL_SMOOTHING": LABEL_SMOOTHING, "WARMUP_RATIO": 0.1,
                "WEIGHT_DECAY": 0.01, "SEED": seed, "AUTOCAST": AUTOCAST}
    folder = run_dir(settings["RUN"])
    if stages_of(folder).get(STAGE, {}).get("settings") != settings:
        print(f"{settings['RUN']}", flush=True)
        tuner = type("Tuner", (LayerwiseTuner,), {"layer_decay": LAYER_DECAY, "label_smoothing": LABEL_SMOOTHING})
        fine_tune(settings, STAGE, autocast=autocast_dtype() if AUTOCAST else None, save=save,
                  trainer_class=tuner)
    recorded(folder, STAGE, WEIGHTS, "training.json")
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return next(epoch for epoch in training["epochs"] if epoch["epoch"] == training["kept_epoch"])


def main(settings):
    check(0 < LAYER_DECAY <= 1, f"LAYER_DECAY is {LAYER_DECAY}; it must be above 0 and at most 1")
    check(0 <= LABEL_SMOOTHING < 1, f"LABEL_SMOOTHING is {LABEL_SMOOTHING}; it must be from 0 to below 1")
    held = held_out(resolve(DATA_DIR))
    data = checked_data(resolve(DATA_DIR), run_dir(CHECKED), held)
    print(f"  rows of train left out for valid and test: {held.line()}", flush=True)
    kept = [train_once(f"models/{data.name}", int(seed)) for seed in SEEDS.split(",")]
    for name in ("accuracy", "macro_f1"):
        each = [epoch[f"eval_{name}"] for epoch in kept]
        print(f"  valid {name} {statistics.mean(each):.4f} ({', '.join(f'{value:.4f}' for value in each)})")
    return next_command("pretrain/distill_bert_mini_id.py", settings, "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
