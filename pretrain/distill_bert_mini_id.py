"""Stage 3 of 4: teach the small encoder what the teachers say of labelled and unlabelled texts, several seeds.

Reads   models/<STUDENT>/                   pretrain_bert_mini_id.py
        models/<teacher>/ for TEACHERS      train_teachers.py, pack_bert_mini_id.py; or this: students can teach
        models/<CHECKED>/                   train_teachers.py
        CORPUS_DIRS/*.txt.gz, DATA_DIR      unlabelled texts; valid and test, which are left out of them
Writes  models/<RUN>-<seed>/                what every training stage writes
        models/<RUN>-judged/                the teachers' words, kept for the next run
Next    pack_bert_mini_id.py
"""
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from lowbit.data.heldout import held_out
from lowbit.data.task import SENTIMENT
from lowbit.data.tokens import TextReader
from lowbit.data.tsv import read_split
from lowbit.distill.soft_labels import Taught, distiller
from lowbit.pipeline.files import claim, resolve, run_dir, sha256, shown
from lowbit.pipeline.manifest import stages_of
from lowbit.pipeline.settings import check, whole_numbers
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.pretrain.corpus import Corpus, read_weights
from lowbit.pretrain.runs import is_packed, kept_epoch, load_packed, made_by, score_lines
from lowbit.pretrain.unlabelled import chosen_texts, judge, taught_of
from lowbit.training.fine_tune import autocast_dtype, fine_tune
from lowbit.training.weights import WEIGHTS

# ---- settings: edit here, or for one run: --seeds 1 ----------------------------------------------
STUDENT = "bert-mini-id-mlm"    # folder under models/ of the pretrained encoder that learns
TEACHERS = "e5-small-id-adapted-minimal-1,e5-small-id-adapted-minimal-2,e5-small-id-adapted-minimal-3"  # their runs
RUN = "bert-mini-id-distilled"  # folders under models/, before the seed
CORPUS_DIRS = "data/corpus_id,data/corpus_id_large"  # folders of gzipped text files, one document a line
CHECKED = "checked-data"        # folder under models/ of the labelled rows (train_teachers.py)
DATA_DIR = "data"               # folder of valid.tsv and test.tsv, whose texts are kept out
TEXTS = ("reviews:1,social:0.4,news:1,speech:0.1,wiki:0.01,"
         "indonlu_casa_hoasa_emot_wrete:1")  # file:share of it that is read unlabelled
KEEP = 0.8                      # share of the unlabelled texts on which the teachers agree most
LONGEST_TEXT = 100              # words of an unlabelled text
CLEANING = "minimal"            # the student's text cleaning: documents, negation-safe or minimal
SEEDS = "1,2,3"                 # one student each
NUM_EPOCHS = 4                  # passes over the taught texts; the best on valid is kept
REPEATS = 3                     # times that train is read a pass
BATCH_SIZE = 32                 # texts a step
LEARNING_RATE = 3e-4            # peak of the linear schedule, of the head
LAYER_DECAY = 1.0               # factor on the rate from each layer to the one below it
TEMPERATURE = 2.0               # of the probabilities that are compared
HARD_WEIGHT = 0.5               # weight of the labels of train beside the teachers' probabilities
HIDDEN_WEIGHT = 0.5             # weight of the teachers' sentence vectors
MAX_LENGTH = 128                # tokens; longer texts are cut
AUTOCAST = True                 # BF16/FP16 arithmetic in training steps where the device has it
# --------------------------------------------------------------------------------------------------

STAGE, TEACH = "pretrain/distill_bert_mini_id.py", "pretrain/train_teachers.py"
STUDENT_WEIGHTS = "model.safetensors"


def weights_of(teacher: Path) -> Path:
    """The weights of one of TEACHERS; raises UserError if no script of pretrain/ made any there."""
    if is_packed(teacher):
        load_packed(teacher, "TEACHERS")  # which fails now if it is damaged
        return teacher / STUDENT_WEIGHTS
    return made_by(STAGE if STAGE in stages_of(teacher) else TEACH, teacher, "TEACHERS", WEIGHTS)[0]


def teach(student) -> Taught:
    """What is learned, with the student's token rows of unlabelled texts."""
    runs = [run_dir(name.strip(), "TEACHERS") for name in TEACHERS.split(",")]
    check(len({run.resolve() for run in runs}) == len(runs), f"TEACHERS is {TEACHERS!r}, which names a model twice: "
          "its voice would count double")
    weights = [weights_of(run) for run in runs]
    made_by(TEACH, run_dir(CHECKED, "CHECKED"), "CHECKED", "train.tsv", "valid.tsv", "test.tsv")
    labelled = read_split(run_dir(CHECKED), "train")[0]
    corpus = Corpus(CORPUS_DIRS, held_out(resolve(DATA_DIR)))
    texts = chosen_texts(corpus, read_weights(TEXTS, corpus.files, "TEXTS"), labelled, LONGEST_TEXT, 0)
    check(len(texts) * KEEP >= 1, f"TEXTS gives {len(texts)} texts of at most LONGEST_TEXT words, too few")
    folder = run_dir(f"{RUN}-judged")
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    logits, vectors = judge(runs, weights, labelled + texts, folder)
    taught, kept = taught_of(logits, vectors, len(labelled), KEEP, AutoConfig.from_pretrained(student).hidden_size)
    reader = TextReader(AutoTokenizer.from_pretrained(student), CLEANING, MAX_LENGTH)
    taught.unlabelled_rows = reader.rows([texts[i - len(labelled)] for i in kept])
    taught.repeats = REPEATS
    answers = taught.logits[len(labelled):].argmax(-1)
    shares = ", ".join(f"{label} {int((answers == i).sum())}" for i, label in enumerate(SENTIMENT.labels))
    print(f"  {len(labelled)} labelled texts, {len(kept)} of {len(texts)} unlabelled ones (teachers: {shares}); "
          f"left out for valid and test: {corpus.held_out.line()}", flush=True)
    return taught


def settings_of_seed(seed: int, settings: dict, taught: Taught) -> dict:
    """The settings of one student's run: the script's own, and the SHA-256 of what it starts from and is taught."""
    return {name: value for name, value in settings.items() if name != "SEEDS"} | {
        "RUN": f"{RUN}-{seed}", "MODEL_NAME": f"models/{STUDENT}", "MODEL_REVISION": "",
        "STUDENT_SHA256": sha256(run_dir(STUDENT) / STUDENT_WEIGHTS), "TAUGHT_SHA256": taught.digest(),
        "DATA_DIR": f"models/{CHECKED}", "NUM_LABELS": 0, "WARMUP_RATIO": 0.1, "WEIGHT_DECAY": 0.01, "SEED": seed,
        "FIRST_TOKEN_ONLY": True}


def main(settings):
    check(0 < KEEP <= 1, f"KEEP is {KEEP}; it must be above 0 and at most 1")
    check(KEEP == 1 or "," in TEACHERS, f"KEEP is {KEEP}, but one teacher disagrees with nobody: set KEEP to 1, or "
          "name more TEACHERS")
    for name in ("REPEATS", "TEMPERATURE", "LAYER_DECAY"):
        check(settings[name] > 0, f"{name} is {settings[name]}; it must be above 0")
    for name in ("HARD_WEIGHT", "HIDDEN_WEIGHT"):
        check(settings[name] >= 0, f"{name} is {settings[name]}; it must be 0 or more")
    seeds, student = whole_numbers(SEEDS, "SEEDS"), run_dir(STUDENT, "STUDENT")
    check((student / STUDENT_WEIGHTS).exists(), f"STUDENT: {shown(student)} holds no {STUDENT_WEIGHTS}: run "
          "`python pretrain/pretrain_bert_mini_id.py` first, or name another folder under models/")
    taught = teach(student)

    def train(seed: int):
        fine_tune(settings_of_seed(seed, settings, taught), STAGE, autocast=autocast_dtype() if AUTOCAST else None,
                  trainer_class=distiller(taught, layer_decay=LAYER_DECAY, temperature=TEMPERATURE,
                                          hard_weight=HARD_WEIGHT, hidden_weight=HIDDEN_WEIGHT))

    kept = [kept_epoch(settings_of_seed(seed, settings, taught), STAGE, lambda seed=seed: train(seed))
            for seed in seeds]
    print(*score_lines(kept), sep="\n")
    students = ",".join(f"{RUN}-{seed}" for seed in seeds)
    return next_command("pretrain/pack_bert_mini_id.py", settings | {"RUNS": students}, "RUNS", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
