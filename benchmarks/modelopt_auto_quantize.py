"""Benchmark: bits by layer from ModelOpt's auto_quantize beside those of mixed/, on the same model, texts and budget.

Reads   models/<FP32_RUN>/                  a fine-tuned FP32 model (ptq/finetune_fp32.py)
        DATA_DIR/valid.tsv                  one half to choose on, the other to measure on
Writes  results/modelopt_auto_quantize.json, and results/modelopt-env/, an environment of ModelOpt's own, made once

ModelOpt leaves embedding tables alone, so they keep FP32 here on both sides. Linear weights have 8 or 4 bits, a scale
an output channel, and inputs of 8 bits whose range is measured at run time. ModelOpt simulates: its choice is measured
as it simulates it, and as a file of this project's with the same bits.
"""
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from own_environment import MODELOPT, environment

from lowbit.data.task import task_of_run
from lowbit.data.tokens import load_reader
from lowbit.data.tsv import read_split
from lowbit.measure.score import divergence
from lowbit.mixed.assignment import FP32
from lowbit.mixed.budget import Budget, bits_table, bytes_table, loss_table, total
from lowbit.mixed.files import SOURCE, WEIGHTS, Files, halves
from lowbit.mixed.memory import Memory
from lowbit.mixed.search import Search
from lowbit.mixed.sensitivity import analyse, chosen_texts
from lowbit.pipeline.files import ROOT, resolve, run_dir, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import recorded
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --bits 6,5 ---------------------------------------------
FP32_RUN = "indobert-fp32-smsa-3label-finetuned"  # folder under models/ of finetune_fp32.py
DATA_DIR = "data"               # folder of valid.tsv
BITS = "6,5,4.5"                # mean bits of a Linear weight, between 4 and 8, with commas
TEXTS = 256                     # texts of valid's first half that both choose on
SEED = 42                       # of the draw of texts
# --------------------------------------------------------------------------------------------------

CHILD = """
import copy, json, sys
import modelopt.torch.quantization as mtq
import torch
from transformers import AutoModelForSequenceClassification
asked = json.load(sys.stdin)
model = AutoModelForSequenceClassification.from_pretrained(asked["folder"], attn_implementation="eager").eval()
batch = lambda row: {name: torch.tensor([values]) for name, values in row.items()}
choose, measure = ([batch(row) for row in asked[part]] for part in ("choose", "measure"))
formats = [{"quant_cfg": [{"quantizer_name": "*", "enable": False},
                          {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
                          {"quantizer_name": "*input_quantizer",
                           "cfg": {"num_bits": 8, "axis": None, "type": "dynamic"}}],
            "algorithm": "max"} for bits in (8, 4)]
answers = {}
for bits in asked["bits"]:
    found, state = mtq.auto_quantize(
        copy.deepcopy(model), constraints={"effective_bits": bits}, quantization_formats=formats, data_loader=choose,
        forward_step=lambda model, given: model(**given).logits, num_calib_steps=len(choose),
        num_score_steps=len(choose), method="kl_div", disabled_layers=[])
    with torch.inference_mode():
        logits = torch.cat([found(**given).logits for given in measure]).tolist()
    widths = {name.removesuffix(".weight_quantizer"): module.num_bits for name, module in found.named_modules()
              if name.endswith("weight_quantizer") and module.is_enabled}
    answers[bits] = {"logits": logits, "widths": widths}
print("ANSWER" + json.dumps(answers))
"""


def our_choice(files: Files, analysed: dict, bits: float) -> dict[str, float]:
    """The assignment that mixed/ finds for a mean of `bits` over Linear weights, tables in FP32."""
    modules = analysed["modules"]
    choices = {name: [FP32] if part == "tables" else [8.0, 4.0] for name, part in files.parts.items()}
    weights = {name: 0 if files.parts[name] == "tables" else count for name, count in files.weights.items()}
    cost, size = bits_table(weights, choices), bytes_table(modules, choices)
    losses = {name: loss_table(modules, choices, score) for name, score in (("kl", "kl_only"), ("fisher", "fisher"))}
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory(Path(folder) / "memory.json", "")
        search = Search(Budget("effective_bits", bits), files, memory, choices, cost, 0.0, losses, 0.0, size, {},
                        analysed["shifts"])
        starts = [search.measure(f"milp {name}", search.solved(loss)) for name, loss in losses.items()]
        starts.append(search.measure("added logits", search.shifts.descend(
            starts[0].assignment, cost, search.room() - total(cost, starts[0].assignment))))
        best = min(starts, key=search.rank)
        return (search.improve(best, 3) or [best])[-1].assignment


def main(settings):
    wanted = [float(bits) for bits in BITS.split(",")]
    check(all(4 < bits < 8 for bits in wanted), f"BITS is {BITS!r}; each must lie between 4 and 8")
    source, data_dir = run_dir(FP32_RUN), resolve(DATA_DIR)
    recorded(source, "ptq/finetune_fp32.py", SOURCE, WEIGHTS)
    reader = load_reader(source)
    rows = reader.rows(read_split(data_dir, "valid", task_of_run(source, data_dir))[0])
    choose, measure = ([rows[i] for i in part] for part in halves(len(rows)))
    choose = chosen_texts(choose, TEXTS, SEED)
    asked = {"folder": str(source), "choose": choose, "measure": measure, "bits": wanted}
    python = environment("modelopt", MODELOPT)
    done = subprocess.run([python, "-c", CHILD], input=json.dumps(asked), capture_output=True, text=True)
    check(done.returncode == 0, f"ModelOpt ended with: {done.stderr[-800:]}")
    theirs = json.loads(done.stdout[done.stdout.index("ANSWER") + len("ANSWER"):])
    files, others = Files(source, choose, reader.pad_id), Files(source, measure, reader.pad_id)
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory(Path(folder) / "memory.json", "")
        analysed = analyse(files, [8.0, 4.0], ["kl", "fisher"], ["only"], SEED, memory)
    weights = {name: 0 if files.parts[name] == "tables" else count for name, count in files.weights.items()}
    results = {}
    for bits in wanted:
        held = theirs[str(bits)]
        chosen = {name: float(held["widths"].get(name, FP32)) for name in files.parts}
        ours = our_choice(files, analysed, bits)
        table = bits_table(weights, dict.fromkeys(weights, [32.0, 8.0, 4.0]))
        results[f"{bits:g}"] = {
            "modelopt": {"bits": chosen, "mean_bits": total(table, chosen),
                         "divergence": divergence(np.array(held["logits"]), others.reference),
                         "divergence_as_our_file": others.measured(chosen)["divergence"]},
            "mixed": {"bits": ours, "mean_bits": total(table, ours),
                      "divergence": others.measured(ours)["divergence"]}}
        their, our = results[f"{bits:g}"].values()
        print(f"  {bits:g} bits: ModelOpt {their['divergence']:.1e} at {their['mean_bits']:.2f} bits, its choice as a "
              f"file of mixed/ {their['divergence_as_our_file']:.1e}; mixed/ {our['divergence']:.1e} at "
              f"{our['mean_bits']:.2f}", flush=True)
    out = ROOT / "results" / "modelopt_auto_quantize.json"
    write_json(out, {"machine": machine(), "versions": versions() | {"modelopt": list(MODELOPT)}, "settings": settings,
                     "texts": {"choose": len(choose), "measure": len(measure)}, "results": results})
    print(f"wrote {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
