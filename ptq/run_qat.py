"""Stage 3 of 5: the files of quantization-aware training, measured as the post-training ones, into the same table.

Reads   models/<INT8_RUNS, FP16_RUNS>/      finished runs of int8_eager/ and fp16_eager/ (stages 1 to 3)
        models/<RUN>/model_fp32.onnx        the FP32 baseline that every row is compared with (finetune_fp32.py)
Writes  RESULTS/<experiment>/               results.json, results.csv: rows qat_* beside those of run_ptq.py
Next    compare_methods.py
"""
from lowbit.data.tokens import PREPROCESSING, TOKENIZER_FILES
from lowbit.int8.arithmetic import is_learned
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve, run_dir
from lowbit.pipeline.manifest import require, settings_of
from lowbit.pipeline.settings import require as require_setting
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.experiments import EXPERIMENTS, read_experiment, wanted_experiments
from lowbit.ptq.files import SOURCE, Candidate
from lowbit.ptq.matrix import check_settings, measure
from lowbit.ptq.results import table_lines, write_results

# ---- settings: edit here, or for one run: finetuned_smsa --int8-runs my-run -----------------------
EXPERIMENT = ""                 # finetuned_smsa, finetuned_tweets; "" = all with data
RUN = "indobert-fp32-smsa-3label-finetuned"  # folder under models/ of finetune_fp32.py
INT8_RUNS = "indobert-qat-int8-smsa"  # folders under models/ of int8_eager/, with commas
FP16_RUNS = "indobert-qat-fp16-smsa"  # folders under models/ of fp16_eager/, with commas
DATA_DIR = "data"               # folder of valid.tsv, test.tsv, from the project's root
TWEETS = "data/INA_TweetsPPKM_Labeled_Pure.csv"  # *_tweets: tab-separated Date, User, Tweet, sentiment
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

FINETUNE, STAGE = "ptq/finetune_fp32.py", "ptq/run_qat.py"
TRAIN, QUANTIZE = "{0}_eager/train_qat_{0}.py", "{0}_eager/quantize_onnx_{0}.py"


def candidate_of(run: str, precision: str) -> Candidate:
    """The file of a finished run, or the reason why there is none; named by what its stages recorded."""
    folder, quantize = run_dir(run), QUANTIZE.format(precision)
    recipe = {"kind": "qat", "run": run}
    try:
        path = require(folder, quantize, f"model_qat_{precision}.onnx")[0]
        require(folder, TRAIN.format(precision), PREPROCESSING, *TOKENIZER_FILES)
    except UserError as error:
        return Candidate(f"qat_{precision}_{run}", recipe, folder, reason=str(error))
    trained = settings_of(folder, TRAIN.format(precision))
    if not trained["QAT"]:
        return Candidate(f"qat_{precision}_{run}", recipe, folder, reason=f"{run} was trained with --no-qat")
    ranges = "" if precision == "fp16" else "_learned" if is_learned(trained) else "_dynamic"
    return Candidate(f"qat_{precision}{ranges}", recipe | {"settings": settings_of(folder, quantize)}, folder, path)


def main(settings):
    check_settings(settings)
    folder = run_dir(RUN)
    require(folder, FINETUNE, SOURCE, PREPROCESSING, *TOKENIZER_FILES)
    candidates = [Candidate("fp32", {"kind": "fp32"}, folder, folder / SOURCE)]
    for precision, runs in (("int8", INT8_RUNS), ("fp16", FP16_RUNS)):
        for run in filter(None, map(str.strip, runs.split(","))):
            candidate = candidate_of(run, precision)
            require_setting(candidate.method not in [other.method for other in candidates],
                            f"INT8_RUNS and FP16_RUNS name two runs that are both {candidate.method}: one at a time")
            if candidate.reason:
                print(f"  {candidate.method}: {candidate.reason}")
            candidates.append(candidate)
    known = tuple(name for name in EXPERIMENTS if name.startswith("finetuned"))
    for experiment in wanted_experiments(EXPERIMENT, known, TWEETS):
        data, read = read_experiment(experiment, DATA_DIR, TWEETS)
        out = resolve(RESULTS) / experiment
        rows = measure(candidates, data, settings, out / "unfinished_qat")
        read += [candidate.path for candidate in candidates if candidate.path]
        rows = write_results(out, STAGE, settings, rows, read, "unfinished_qat", replaced="qat_")
        print(*table_lines(rows), sep="\n")
    return next_command("ptq/compare_methods.py", settings, "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals(), bare="EXPERIMENT")
