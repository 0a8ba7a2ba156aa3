"""Stage 5 of 7: low-bit files of teacher and students: static INT8 by two configurations, dynamic INT8, QAT's own.

Reads   models/<RUN>-<TASK>-{teacher,student_*}/model.onnx (export_to_onnx.py)
        DATA_DIR/<TASK>/train.tsv           texts to calibrate on
Writes  models/<RUN>-<TASK>-{teacher,student_*}/model_quant_1.onnx, model_quant_2.onnx, model_dynamic.onnx;
                                            of a student distilled with QAT model_qat_<kind>.onnx alone
Next    quantization_experiments.py
"""
from lowbit.data.task import task_of_run
from lowbit.data.tsv import read_split
from lowbit.distill.arithmetic import write_kind
from lowbit.distill.comparison import qat_file
from lowbit.distill.places import (
    EXPORT,
    ONNX,
    WEIGHTS,
    check_names,
    data_folder,
    flags_of,
    made_by,
    models_of,
    trainer_of,
)
from lowbit.graph.census import census, census_lines
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, claim, file_bytes, shown
from lowbit.pipeline.manifest import is_made, publish, record, settings_of
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.files import make_files
from lowbit.training.encoder import RUN_FILES, load_run, longest_input

# ---- settings: edit here, or for one run: --task SST-2 --ops products,all -------------------------
RUN = "tinybert"                # first part of the names of all folders under models/ that the stages share
TASK = "RTE"                    # the task whose models are quantized
DATA_DIR = "data/glue"          # folder of the tasks' folders (data/prepare_glue.py)
MODELS = ""                     # teacher and student_<name>, with commas; "" = all that were exported
CONFIGS = "quant_1,quant_2"     # of quant_1, quant_2, dynamic, with commas
OPS = "products"                # static: products (MatMul, Gemm, Gather), all (as the call is usually written), or both
CALIBRATION_EXAMPLES = 512      # static: drawn texts of train that ranges are measured on
SEQ_LEN = 128                   # OPS all: tokens that every text is padded to; products are calibrated unpadded
SEED = 42                       # of the choice of those texts
# --------------------------------------------------------------------------------------------------

STAGE = "tinybert/quantize.py"
STATIC = {"quant_1": {"form": "qdq", "activations": "s8"}, "quant_2": {"form": "qoperator", "activations": "u8"}}
NAMES = {"products": "{}", "all": "{}_all_operators"}  # of the files, after model_
FIXED = {"PERCENTILE": 99.999, "ENTROPY_BINS": 128, "QUANTIZE_EMBEDDINGS": True, "PER_CHANNEL": False,
         "REDUCE_RANGE": False}


def recipes_of(configs, operators):
    """Name of a file -> its recipe, as lowbit/ptq makes it."""
    recipes = {}
    for config in configs:
        if config == "dynamic":
            recipes[config] = {"kind": "dynamic", "per_channel": False}
            continue
        for ops in operators:
            more = {"kind": "static", "calibration": "minmax"} if ops == "products" else {
                "kind": "every_operator", "calibration": "rows", "length": SEQ_LEN}
            recipes[NAMES[ops].format(config)] = STATIC[config] | more
    return recipes


def write_trained(name, folder, kind):
    """The file of a student that was distilled as one."""
    target = qat_file(kind)
    read = made_by(EXPORT, folder, f"--run {RUN} --task {TASK}", ONNX) + made_by(
        trainer_of(folder), folder, flags_of(RUN, TASK, name), WEIGHTS, *RUN_FILES)
    if is_made(folder, STAGE, {"QAT": kind}, read, [target]):
        print(f"  {target}: made before")
        return
    claim(folder)
    with atomic_folder(folder) as scratch:
        count, worst = write_kind(folder, kind, folder / WEIGHTS, folder / ONNX, scratch / target)
        counted = census(scratch / target)
        names = publish(scratch)
    record(folder, STAGE, {"QAT": kind}, read, names)
    print(f"  {count} of {count} weights and scales equal those simulated in training, bit for bit",
          f"  logits differ from the simulation by at most {worst:.1e} on random inputs",
          *census_lines(counted), sep="\n")
    print(f"wrote {shown(folder / target)} ({file_bytes(folder / target) / 1e6:.1f} MB)", flush=True)


def main(settings):
    check_names(RUN, TASK)
    check(CALIBRATION_EXAMPLES > 0, f"CALIBRATION_EXAMPLES is {CALIBRATION_EXAMPLES}; it must be above 0")
    check(0 <= SEED < 2**32, f"SEED is {SEED}; it must be from 0 to 4294967295")
    check(SEQ_LEN >= 8, f"SEQ_LEN is {SEQ_LEN}; it must be at least 8 tokens")
    operators = chosen(OPS, NAMES, "OPS")
    recipes = recipes_of(chosen(CONFIGS, [*STATIC, "dynamic"], "CONFIGS"), operators)
    data = data_folder(DATA_DIR, TASK)
    for name, folder in models_of(RUN, TASK, MODELS).items():
        print(name, flush=True)
        made_by(EXPORT, folder, f"--run {RUN} --task {TASK}", ONNX)
        kind = settings_of(folder, trainer_of(folder)).get("QAT", "")
        if kind:
            write_trained(name, folder, kind)
            continue
        task, longest = task_of_run(folder, data), longest_input(load_run(folder))
        check("all" not in operators or longest >= SEQ_LEN,
              f"SEQ_LEN is {SEQ_LEN}, but {name} reads at most {longest} tokens")
        made = FIXED | {"CALIBRATION_TEXTS": CALIBRATION_EXAMPLES, "SEED": SEED}
        candidates = make_files(folder, STAGE, recipes, made, data / "train.tsv", read_split(data, "train", task)[0],
                                ONNX)
        failed = [candidate for candidate in candidates
                  if candidate.path is None and candidate.recipe["kind"] != "every_operator"]  # that one may fail
        if failed:
            raise UserError(f"{name}: model_{failed[0].method}.onnx could not be made: {failed[0].reason}")
    return next_command("tinybert/quantization_experiments.py", settings | {"TASKS": TASK}, "RUN", "TASKS", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
