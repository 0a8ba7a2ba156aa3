"""Stage 4 of 4: score a mix on the test split beside FP32, uniform bits, the hand rule and random mixes of its size.

Reads   models/<RUN>/                       the file of mixed_precision.py or of train_qat_mixed.py, assignment.json
        models/<its FP32_RUN>/              model_fp32.onnx, weights (ptq/finetune_fp32.py), sensitivity.json
Writes  models/<RUN>/                       results.json, results.csv, classification_report.txt, pareto.png and other
                                            plots, compared_*.onnx
Deploy  models/<RUN>/model_mixed.onnx       (or model_qat_mixed.onnx) with tokenizer.json and preprocessing.json
"""
import json
from functools import partial

import onnx

from lowbit.data.tokens import load_reader
from lowbit.graph.agreement import simulated_logits
from lowbit.int4.arithmetic import FP32 as FP32_GRAPH
from lowbit.measure.evaluate import evaluate
from lowbit.measure.report import agreement_lines, write_report
from lowbit.mixed.assignment import ASSIGNMENT, read_assignment
from lowbit.mixed.assignment import INT8 as INT8_BITS
from lowbit.mixed.budget import bytes_table
from lowbit.mixed.file import load_trained
from lowbit.mixed.files import SOURCE, WEIGHTS, Files, simulated
from lowbit.mixed.report import INT8, comparison_lines, pareto
from lowbit.mixed.search import random_assignment
from lowbit.mixed.sensitivity import SENSITIVITY
from lowbit.pipeline.files import atomic_folder, claim, run_dir, shown
from lowbit.pipeline.manifest import publish, record, recorded, settings_of, shipped
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage
from lowbit.training.encoder import RUN_FILES
from lowbit.training.weights import WEIGHTS as TRAINED

# ---- settings: edit here, or for one run: --threads 1 --------------------------------------------
RUN = "indobert-mixed-smsa"     # folder under models/ of mixed_precision.py, or of train_qat_mixed.py
DATA_DIR = "data"               # folder of test.tsv and valid.tsv, from the project's root
RANDOM = 5                      # random mixes of the same size
PROVIDER = "CPUExecutionProvider"  # ONNX Runtime execution provider; an absent one is an error
THREADS = 0                     # threads of each session; 0 = every core
BATCH_SIZE = 16                 # texts a batch, for throughput and for the dependence on batch-mates
ROUNDS = 5                      # turns that each file takes when its speed is measured
RUNS = 30                       # measured runs a turn
# --------------------------------------------------------------------------------------------------

FINETUNE, ANALYSE = "ptq/finetune_fp32.py", "mixed/sensitivity_analysis.py"
TRIES = 20  # seeds for each random mix
MIX, TRAIN, STAGE = "mixed/mixed_precision.py", "mixed/train_qat_mixed.py", "mixed/eval_mixed.py"


def others(held: dict, modules: dict, rounded: bool) -> dict[str, dict]:
    """Name -> assignment of what the mix is compared with; `rounded`: with the mix itself, not trained."""
    found, known = {INT8: dict.fromkeys(held["bits"], INT8_BITS)}, [] if rounded else [held["bits"]]
    for one in held["candidates"]:
        kind = " ".join(one["name"].split()[:2]) if one["name"].startswith("milp") else one["name"]
        wanted = kind.startswith(("uniform", "hand", "milp")) and kind not in found
        if wanted and one["assignment"] not in known:
            found[kind] = one["assignment"]
    size = bytes_table(modules, {name: [float(bits) for bits in held["choices"][name]] for name in held["bits"]})
    room = sum(size[name][bits] for name, bits in held["bits"].items())
    drawn = []
    for seed in range(TRIES * RANDOM):  # where there is little to choose, several seeds draw the same mix
        one = random_assignment(size, room, seed)
        if one not in drawn and len(drawn) < RANDOM:
            drawn.append(one)
    found |= {f"random {number}": one for number, one in enumerate(drawn, 1)}
    order = ("uniform", "hand", "milp", "random")
    found = dict(sorted(found.items(), key=lambda pair: (order.index(pair[0].split()[0]), -sum(pair[1].values()))))
    return found | ({"rounded": held["bits"]} if rounded else {})


def main(settings):
    check(0 <= RANDOM <= 100, f"RANDOM is {RANDOM}; it must be from 0 to 100")
    folder = run_dir(RUN)
    claim(folder)
    ships = shipped(folder)
    made = ships["stages"]["quantize"]
    check(made in (MIX, TRAIN), f"{RUN} was made by {made}: name a run of {MIX} or {TRAIN}")
    trained = made == TRAIN
    read = recorded(folder, made, ships["file"], ASSIGNMENT, *RUN_FILES)
    read += recorded(folder, made, TRAINED, FP32_GRAPH) if trained else []
    mixed = run_dir(settings_of(folder, made)["MIXED_RUN"]) if trained else folder
    source = run_dir(settings_of(mixed, MIX)["FP32_RUN"])
    read += recorded(source, FINETUNE, SOURCE, WEIGHTS) + recorded(source, ANALYSE, SENSITIVITY)
    held = read_assignment(folder / ASSIGNMENT)
    modules = json.loads((source / SENSITIVITY).read_text(encoding="utf-8"))["modules"]
    reader, files = load_reader(folder), Files(source, [], 0)
    with atomic_folder(folder) as scratch:
        paths = {}
        for name, assignment in others(held, modules, trained).items():
            paths[name] = folder / f"compared_{name.replace(', ', '_').replace(' ', '_')}.onnx"
            onnx.save(files.graph(assignment), scratch / paths[name].name)
        publish(scratch)
    model = load_trained(folder, held["bits"]) if trained else simulated(files.model, held["bits"])
    results, reports = evaluate(settings, {"FP32": source / SOURCE, **paths, ships["precision"].upper():
                                           folder / ships["file"]}, folder, reader,
                                partial(simulated_logits, model, pad_id=reader.pad_id))
    results |= {"budget": held["budget"], "trained": trained}
    names = write_report(folder, results, reports, draw_more=pareto)
    record(folder, STAGE, settings, read, names + [path.name for path in paths.values()])
    (base, first), *_, (low, last) = results["files"].items()
    print(*comparison_lines(results), *agreement_lines({"files": {base: first, low: last}}), sep="\n")
    print(f"deploy {shown(folder / ships['file'])}")


if __name__ == "__main__":
    run_stage(main, globals())
