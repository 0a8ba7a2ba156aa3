"""Stage 2 of 4: fine-tune an encoder on SMSA with several seeds, as teachers of the small model.

Reads   models/<ENCODER>/                   adapt_e5_small_id.py, or pretrain_bert_mini_id.py
        DATA_DIR/{train,valid,test}.tsv     python data/download_smsa.py
Writes  models/<ENCODER>-<CLEANING>-<seed>/ what every training stage writes
        models/<CHECKED>/                   the rows that are trained on, with valid and test
Next    distill_bert_mini_id.py
"""
from lowbit.data.heldout import held_out
from lowbit.distill.rates import LayerwiseTuner
from lowbit.pipeline.files import resolve, run_dir, sha256, shown
from lowbit.pipeline.settings import check, whole_numbers
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.pretrain.checked_data import checked_data
from lowbit.pretrain.runs import kept_epoch, score_lines
from lowbit.training.fine_tune import autocast_dtype, fine_tune
from lowbit.training.weights import save_state

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
MAX_LENGTH = 128                # tokens; longer texts are cut
NAME = ""                       # of the runs, before the seed; empty: the encoder's and the cleaning's
AUTOCAST = True                 # BF16/FP16 arithmetic in training steps where the device has it
# --------------------------------------------------------------------------------------------------

STAGE = "pretrain/train_teachers.py"
ENCODER_WEIGHTS = "model.safetensors"


def save(model, folder):
    """The weights as later stages read them, and as MODEL_NAME reads them: a teacher can be trained on in INT8."""
    save_state(model, folder)
    model.save_pretrained(folder)


def settings_of_seed(seed: int) -> dict:
    """The settings of one teacher's run, with the SHA-256 of the weights that it starts from."""
    return {"RUN": f"{NAME or f'{ENCODER}-{CLEANING}'}-{seed}", "MODEL_NAME": f"models/{ENCODER}",
            "ENCODER_SHA256": sha256(run_dir(ENCODER) / ENCODER_WEIGHTS), "MODEL_REVISION": "",
            "DATA_DIR": f"models/{CHECKED}", "CLEANING": CLEANING, "MAX_LENGTH": MAX_LENGTH, "NUM_LABELS": 0,
            "NUM_EPOCHS": NUM_EPOCHS, "BATCH_SIZE": BATCH_SIZE, "LEARNING_RATE": LEARNING_RATE,
            "LAYER_DECAY": LAYER_DECAY, "LABEL_SMOOTHING": LABEL_SMOOTHING, "WARMUP_RATIO": 0.1, "WEIGHT_DECAY": 0.01,
            "SEED": seed, "FIRST_TOKEN_ONLY": True, "AUTOCAST": AUTOCAST}


def main(settings):
    check(0 < LAYER_DECAY <= 1, f"LAYER_DECAY is {LAYER_DECAY}; it must be above 0 and at most 1")
    check(0 <= LABEL_SMOOTHING < 1, f"LABEL_SMOOTHING is {LABEL_SMOOTHING}; it must be from 0 to below 1")
    seeds = whole_numbers(SEEDS, "SEEDS")
    encoder = run_dir(ENCODER, "ENCODER")
    check((encoder / ENCODER_WEIGHTS).exists(), f"ENCODER: {shown(encoder)} holds no {ENCODER_WEIGHTS}: run "
          "`python pretrain/adapt_e5_small_id.py` first, or name another folder under models/")
    held = held_out(resolve(DATA_DIR))
    checked_data(resolve(DATA_DIR), run_dir(CHECKED, "CHECKED"), held, STAGE)
    print(f"  rows of train left out for valid and test: {held.line()}", flush=True)

    class Tuner(LayerwiseTuner):
        layer_decay, label_smoothing = LAYER_DECAY, LABEL_SMOOTHING

    def train(seed: int):
        fine_tune(settings_of_seed(seed), STAGE, autocast=autocast_dtype() if AUTOCAST else None, save=save,
                  trainer_class=Tuner)

    kept = [kept_epoch(settings_of_seed(seed), STAGE, lambda seed=seed: train(seed)) for seed in seeds]
    print(*score_lines(kept), sep="\n")
    teachers = ",".join(settings_of_seed(seed)["RUN"] for seed in seeds)
    return next_command("pretrain/distill_bert_mini_id.py", settings | {"TEACHERS": teachers}, "TEACHERS", "DATA_DIR",
                        "CHECKED")


if __name__ == "__main__":
    run_stage(main, globals())
