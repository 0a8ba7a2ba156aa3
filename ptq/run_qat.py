"""Stage 3 of 5: the files of quantization-aware training, and mixes, measured as the others, into the same table.

Reads   models/<INT8_RUNS, INT4_RUNS, FP16_RUNS>/  finished runs (stages 1 to 3) of {int8,int4,fp16}_eager/
        models/<MIXED_RUNS>/                files of mixed/, trained or not
        models/<RUN>/model_fp32.onnx        the FP32 baseline that every row is compared with (finetune_fp32.py)
Writes  RESULTS/<experiment>/               results.json, results.csv: rows qat_*, mixed_* beside those of run_ptq.py
Next    compare_methods.py
"""
from pathlib import Path

from lowbit.data.task import read_task, task_of_run
from lowbit.mixed.assignment import ASSIGNMENT, read_assignment
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve, run_dir
from lowbit.pipeline.manifest import recorded, settings_of, shipped
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.experiments import read_experiment, wanted_experiments
from lowbit.ptq.files import SOURCE, Candidate
from lowbit.ptq.matrix import check_settings, measure
from lowbit.ptq.results import table_lines, write_results
from lowbit.training.encoder import RUN_FILES

# ---- settings: edit here, or for one run: finetuned_smsa --int8-runs my-run -----------------------
EXPERIMENT = ""                 # finetuned_{smsa,tweets}; of a DATA_DIR with task.json finetuned_<its name>; "" = all
RUN = "indobert-fp32-smsa-3label-finetuned"  # folder under models/ of finetune_fp32.py
INT8_RUNS = "indobert-qat-int8-smsa"  # folders under models/ of int8_eager/, with commas
INT4_RUNS = "indobert-qat-int4-smsa"  # folders under models/ of int4_eager/, with commas: 4, 2 and 1.6 bits
FP16_RUNS = "indobert-qat-fp16-smsa"  # folders under models/ of fp16_eager/, with commas
MIXED_RUNS = ""                 # folders under models/ of mixed/, with commas: mixed_precision.py, train_qat_mixed.py
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


def candidate_of(run: str, kind: str) -> Candidate:
    """The file of a finished run of <kind>_eager/ or mixed/, or the reason why there is none, by what its stages say.
    """
    folder, wanted = run_dir(run, f"{kind.upper()}_RUNS"), kind if kind == "mixed" else f"{kind}_eager"
    unnamed = Candidate(f"{'' if kind == 'mixed' else 'qat_'}{kind}_{run}", {"kind": "qat", "run": run}, folder)
    try:
        ships = shipped(folder)
        stages = Path(ships["stages"]["quantize"]).parent.name
        if stages != wanted:
            unnamed.reason = f"{run} is a run of {stages}/, not of {wanted}/"
            return unnamed
        path = recorded(folder, ships["stages"]["quantize"], ships["file"])[0]
        recorded(folder, ships["stages"]["train"], *RUN_FILES)
    except UserError as error:
        unnamed.reason = str(error)
        return unnamed
    trained, quantized = (settings_of(folder, ships["stages"][stage]) for stage in ("train", "quantize"))
    if kind == "mixed":
        recorded(folder, ships["stages"]["quantize"], ASSIGNMENT)
        held = read_assignment(folder / ASSIGNMENT)
        method = ("" if "BUDGET" in quantized else "qat_") + f"mixed_{held['budget'].replace('=', '_')}"
        return Candidate(method, unnamed.recipe | {"bits": held["bits"], "settings": quantized}, folder, path)
    if not trained["QAT"] or not trained["NUM_EPOCHS"]:
        unnamed.reason = f"{run} was trained with {'--num-epochs 0' if trained['QAT'] else '--no-qat'}"
        return unnamed
    ranges = f"_{trained.get('ACTIVATION_RANGES', 'dynamic')}" if kind != "fp16" else ""  # old runs had no choice
    return Candidate(f"qat_{ships['precision']}{ranges}", unnamed.recipe | {"settings": quantized}, folder, path)


def main(settings):
    check_settings(settings)
    folder = run_dir(RUN)
    recorded(folder, FINETUNE, SOURCE, *RUN_FILES)
    task = task_of_run(folder, resolve(DATA_DIR))
    candidates = [Candidate("fp32", {"kind": "fp32"}, folder, folder / SOURCE)]
    for kind, runs in (("int8", INT8_RUNS), ("int4", INT4_RUNS), ("fp16", FP16_RUNS), ("mixed", MIXED_RUNS)):
        for run in filter(None, map(str.strip, runs.split(","))):
            candidate = candidate_of(run, kind)
            check(candidate.method not in [other.method for other in candidates],
                  f"INT8_RUNS, INT4_RUNS, FP16_RUNS and MIXED_RUNS name two runs that are both {candidate.method}: one "
                  "at a time")
            if not candidate.reason and read_task(candidate.folder) != task:
                candidate.path, candidate.reason = None, f"{run} was trained for another task than {RUN}"
            if candidate.reason:
                print(f"  {candidate.method}: {candidate.reason}")
            candidates.append(candidate)
    for experiment in wanted_experiments(EXPERIMENT, DATA_DIR, TWEETS, trained_only=True):
        data, read = read_experiment(experiment, DATA_DIR, TWEETS)
        out = resolve(RESULTS) / experiment.name
        found = measure(candidates, experiment, data, task, settings, out / "unfinished_qat")
        read += [candidate.path for candidate in candidates if candidate.path]
        whole = write_results(out, STAGE, settings, found, read, "unfinished_qat", replaced=("qat_", "mixed_"))
        print(*table_lines(whole), sep="\n")
    return next_command("ptq/compare_methods.py", settings, "RESULTS")


if __name__ == "__main__":
    run_stage(main, globals(), bare="EXPERIMENT")
