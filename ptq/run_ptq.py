"""Stage 2 of 5: every post-training method on one FP32 model, made, scored and timed in turns: one row each.

Reads   models/<RUN>/model_fp32.onnx        (finetune_fp32.py); for original_*: MODEL_NAME with an untrained head
        DATA_DIR/{train,valid,test}.tsv     train: texts to calibrate on; for *_tweets: TWEETS
Writes  models/<RUN>/model_<method>.onnx    one a method
        RESULTS/<experiment>/               results.json, results.csv
Next    run_qat.py (where there are QAT runs), compare_methods.py
"""
from transformers import set_seed

from lowbit.data.cleaning import require_preset
from lowbit.data.task import read_task, task_of_run
from lowbit.data.tokens import TextReader, input_names
from lowbit.data.tsv import read_tsv
from lowbit.graph.export import export_checked
from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir
from lowbit.pipeline.manifest import is_made, publish, record, recorded, stages_of
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.experiments import read_experiment, wanted_experiments
from lowbit.ptq.files import SOURCE, make_files
from lowbit.ptq.matrix import check_settings, measure
from lowbit.ptq.results import table_lines, write_results
from lowbit.training.encoder import RUN_FILES, load_pretrained, longest_input, renew_head, save_run
from lowbit.training.first_token import choose_first_token_only

# ---- settings: edit here, or for one run: finetuned_smsa --methods fp32,int8_dynamic --------------
EXPERIMENT = ""                 # {original,finetuned}_{smsa,tweets}; of a DATA_DIR with task.json _<its name>; "" = all
METHODS = ""                    # rows to make and measure, by name, with commas; "" = all
RUN = "indobert-fp32-smsa-3label-finetuned"  # finetuned_*: folder under models/ of finetune_fp32.py
ORIGINAL_RUN = "indobert-fp32-original-3label"  # original_*: folder under models/, made here
MODEL_NAME = "indobenchmark/indobert-base-p2"  # original_*: hub name, or a folder such as models/bert-mini-id
MODEL_REVISION = "94b4e0a82081fa57f227fcc2024d1ea89b57ac1f"  # original_*: commit on the hub; a folder ignores it
CLEANING = "negation-safe"      # original_*: text cleaning: documents, negation-safe or minimal
MAX_LENGTH = 128                # original_*: tokens; longer texts are cut and counted
FIRST_TOKEN_ONLY = True         # original_*: compute the last layer for [CLS] alone, if no other is read
DATA_DIR = "data"               # folder of train.tsv, valid.tsv, test.tsv, from the project's root
TWEETS = "data/INA_TweetsPPKM_Labeled_Pure.csv"  # *_tweets: tab-separated Date, User, Tweet, sentiment
SEED = 42                       # of the untrained head, and of the choice of calibration texts
CALIBRATION_TEXTS = 512         # static: texts of train, one at a time
PERCENTILE = 99.999             # static, percentile: share of the values inside the range, in percent
ENTROPY_BINS = 128              # static, entropy: bins of the longest text's values; more bins cut deeper
PER_CHANNEL = False             # static: one weight scale per output channel instead of one per tensor
QUANTIZE_EMBEDDINGS = True      # INT8 and INT4: embedding tables to 8 bits as well
REDUCE_RANGE = False            # INT8: 7-bit weights, for CPUs without VNNI
MAX_DROP = 1.0                  # points of accuracy below FP32, on valid or test, from which a method is never advised
PROVIDER = "CPUExecutionProvider"  # ONNX Runtime execution provider; an absent one is an error
THREADS = 0                     # threads of each session; 0 = every core
BATCH_SIZE = 1                  # texts of a timed batch
TOKENS = 128                    # their length
ROUNDS = 5                      # turns that each file takes, in a new process each
RUNS = 30                       # measured runs a turn, after 5 that are not counted
DEPENDENCE_TEXTS = 100          # test texts on which the dependence on batch-mates is looked for
RESULTS = "results"             # folder of the experiments' results, from the project's root
# --------------------------------------------------------------------------------------------------

RECIPES = {
    "fp32": {"kind": "fp32"},
    "fp16": {"kind": "fp16"},
    "int8_dynamic": {"kind": "dynamic", "per_channel": False},
    "int8_dynamic_per_channel": {"kind": "dynamic", "per_channel": True},
    **{f"int8_static_{form}_{activations}s8_{calibration}":
       {"kind": "static", "form": form, "activations": activations, "calibration": calibration}
       for form, activations in (("qdq", "s8"), ("qdq", "u8"), ("qoperator", "u8"))
       for calibration in ("minmax", "entropy", "percentile")},
    **{f"int4_{algorithm}_{'sym' if symmetric else 'asym'}_block{block_size}":
       {"kind": "int4", "algorithm": algorithm, "symmetric": symmetric, "block_size": block_size}
       for algorithm in ("rtn", "hqq") for symmetric in (True, False) for block_size in (32, 64, 128)},
    **{f"int{bits}_per_channel": {"kind": "per_channel", "bits": float(bits)} for bits in (4, 2)},
    **{f"int{bits}_per_channel_gptq": {"kind": "per_channel", "bits": float(bits), "calibration": "gptq"}
       for bits in (4, 2)},
}
FINETUNE, STAGE, WEIGHTS = "ptq/finetune_fp32.py", "ptq/run_ptq.py", "model.safetensors"


def make_original(settings):
    """models/<ORIGINAL_RUN>: the encoder as it comes, with a head that was never trained."""
    folder, task = run_dir(ORIGINAL_RUN, "ORIGINAL_RUN"), read_task(resolve(DATA_DIR))
    check(not (folder / WEIGHTS).exists() or STAGE in stages_of(folder),
          f"ORIGINAL_RUN is {ORIGINAL_RUN!r}, a folder that holds another model: choose a new name")
    made = {name: settings[name] for name in ("MODEL_NAME", "MODEL_REVISION", "CLEANING", "MAX_LENGTH",
                                              "FIRST_TOKEN_ONLY", "SEED")}
    made |= {"TASK": task.as_json()}
    source = sorted(resolve(MODEL_NAME).glob("*.safetensors"))  # of a folder; the hub's are pinned
    if not is_made(folder, STAGE, made, source, [SOURCE]):
        require_preset(CLEANING)
        set_seed(SEED)
        model, tokenizer = load_pretrained(MODEL_NAME, MODEL_REVISION, task)
        renew_head(model)  # a folder may bring a head that was trained
        check(3 <= MAX_LENGTH <= longest_input(model),
              f"MAX_LENGTH is {MAX_LENGTH}; {MODEL_NAME} reads 3 to {longest_input(model)}")
        choose_first_token_only(model, FIRST_TOKEN_ONLY)
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder)
        with atomic_folder(folder) as scratch:
            model.save_pretrained(scratch)
            save_run(scratch, model, TextReader(tokenizer, CLEANING, MAX_LENGTH, input_names(model.config, task.pairs)),
                     task)
            export_checked(scratch, WEIGHTS, scratch / SOURCE, 17)
            names = publish(scratch)
        record(folder, STAGE, made, source, names)
    return folder


def main(settings):
    check_settings(settings)
    check(CALIBRATION_TEXTS > 0, f"CALIBRATION_TEXTS is {CALIBRATION_TEXTS}; it must be above 0")
    check(50 < PERCENTILE <= 100, f"PERCENTILE is {PERCENTILE}; it must be above 50 and at most 100")
    methods = chosen(METHODS, RECIPES, "METHODS")
    recipes = {name: RECIPES[name] for name in RECIPES if name in methods or name == "fp32"}
    check(0 <= SEED < 2**32, f"SEED is {SEED}; it must be from 0 to 4294967295")
    check(ENTROPY_BINS >= 128, f"ENTROPY_BINS is {ENTROPY_BINS}; it must be at least 128, the levels it compares")
    data_dir = resolve(DATA_DIR)
    texts, _ = read_tsv(data_dir / "train.tsv", read_task(data_dir))
    experiments = wanted_experiments(EXPERIMENT, DATA_DIR, TWEETS)
    if any(experiment.trained for experiment in experiments):
        recorded(run_dir(RUN), FINETUNE, SOURCE, *RUN_FILES)
        task_of_run(run_dir(RUN), data_dir)
    for experiment in experiments:
        data, read = read_experiment(experiment, DATA_DIR, TWEETS)
        folder = run_dir(RUN) if experiment.trained else make_original(settings)
        candidates = make_files(folder, STAGE, recipes, settings, data_dir / "train.tsv", texts)
        out = resolve(RESULTS) / experiment.name
        found = measure(candidates, experiment, data, read_task(folder), settings, out / "unfinished_ptq")
        read += [candidate.path for candidate in candidates if candidate.path]
        print(*table_lines(write_results(out, STAGE, settings, found, read, "unfinished_ptq")), sep="\n")
    return next_command("ptq/compare_methods.py", settings, "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals(), bare="EXPERIMENT")
