"""Stage 2 of 4: give each module its bits under a budget, by measured candidates, and write the file.

Reads   models/<FP32_RUN>/                  a fine-tuned FP32 model (ptq/finetune_fp32.py), sensitivity.json, .npz
        DATA_DIR/valid.tsv                  one half to propose on, the other to decide on
Writes  models/<RUN>/                       model_mixed.onnx, assignment.json, census.json, config.json, tokenizer
                                            files, preprocessing.json, task.json
Next    eval_mixed.py, or train_qat_mixed.py to train the mix
"""
import json
import shutil

from lowbit.data.task import task_of_run
from lowbit.data.tokens import load_reader
from lowbit.data.tsv import describe, read_split
from lowbit.mixed import files as mixed_files
from lowbit.mixed.assignment import ASSIGNMENT, assignment_lines, mean_bits, read_bits
from lowbit.mixed.budget import MILLION, read_budget
from lowbit.mixed.file import PRECISION, write_file
from lowbit.mixed.files import SOURCE, WEIGHTS, Files, halves, simulated
from lowbit.mixed.memory import Memory
from lowbit.mixed.plan import search_for
from lowbit.mixed.sensitivity import SENSITIVITY, chosen_texts, main_score
from lowbit.mixed.shifts import SHIFTS, Shifts
from lowbit.pipeline.files import atomic_folder, resolve, run_dir, sha256, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import begin_run, publish, record, recorded
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.matrix import digest
from lowbit.training.encoder import RUN_FILES

# ---- settings: edit here, or for one run: --budget effective_bits=5 -------------------------------
RUN = "indobert-mixed-smsa"     # folder under models/ that is made
FP32_RUN = "indobert-fp32-smsa-3label-finetuned"  # folder under models/ of finetune_fp32.py
DATA_DIR = "data"               # folder of valid.tsv, from the project's root
BUDGET = "size_mb=4.6"          # size_mb=…, effective_bits=… (of a weight), max_kl=… (nats) or speed=… (times FP32's)
CHOICES = "32,8,4,2"            # bits that a module may have, with commas; 32 leaves it in FP32
KEEP_SPEED = True               # no encoder layer keeps FP32: the file is as fast as INT8; speed=… ignores it
TEXTS = 0                       # texts of valid's first half that candidates are measured on; 0 = all of it
ROUNDS = 3                      # of steps around the best candidate; 0 takes the best proposal
TOKENS = 128                    # BUDGET speed=…: length of the timed text
SEED = 42                       # of the draw of texts
# --------------------------------------------------------------------------------------------------

FINETUNE, ANALYSE = "ptq/finetune_fp32.py", "mixed/sensitivity_analysis.py"
STAGE, EVALUATE = "mixed/mixed_precision.py", "mixed/eval_mixed.py"
STAGES = {"train": STAGE, "export": STAGE, "quantize": STAGE, "evaluate": EVALUATE}
FORMAT = 1
UNFINISHED = "unfinished_search.json"


def candidate_lines(candidates, best) -> list[str]:
    """The candidates, best first, with their divergence from FP32, as a user reads them."""
    lines = [f"  {'divergence:':28}{'foretold':>12} {'half that':>11} {'half that':>12}",
             f"  {'candidate':20} {'MB':>6} {'':12} {'proposes':>11} {'decides':>12} {'flips':>6}"]
    for one in candidates:
        foretold = f"{one.predicted['kl']:.1e}" if "kl" in one.predicted else "-"
        confirmed = one.measured["confirm"]
        note = "  chosen" if one is best else "" if one.fits else "  over the budget"
        lines.append(f"  {one.name:20} {one.measured['bytes'] / MILLION:6.2f} {foretold:>12} "
                     f"{one.measured['divergence']:11.1e} {confirmed['divergence']:12.1e} {confirmed['flips']:6}{note}")
    return lines


def write_run(folder, source, files, best, held) -> list[str]:
    """The file, its census, the assignment and what a run's folder needs; returns their names."""
    with atomic_folder(folder) as scratch:
        counted = write_file(source / SOURCE, simulated(files.model, best.assignment), best.assignment,
                             scratch / "model_mixed.onnx")
        write_json(scratch / "census.json", counted)
        write_json(scratch / ASSIGNMENT, held)
        for name in RUN_FILES:
            shutil.copyfile(source / name, scratch / name)
        return publish(scratch)


def main(settings):
    budget, choices = read_budget(BUDGET), read_bits(CHOICES, "CHOICES")
    check(RUN != FP32_RUN, f"RUN and FP32_RUN are both {RUN!r}: name another RUN, it is made")
    check(TEXTS >= 0, f"TEXTS is {TEXTS}; it must be 0 or more")
    check(ROUNDS >= 0, f"ROUNDS is {ROUNDS}; it must be 0 or more")
    check(0 <= SEED < 2**32, f"SEED is {SEED}; it must be from 0 to 4294967295")
    folder, source, data_dir = run_dir(RUN), run_dir(FP32_RUN, "FP32_RUN"), resolve(DATA_DIR)
    read = recorded(source, FINETUNE, SOURCE, WEIGHTS, *RUN_FILES) + recorded(source, ANALYSE, SENSITIVITY)
    modules = json.loads((source / SENSITIVITY).read_text(encoding="utf-8"))["modules"]
    shifts = None
    if main_score({"modules": modules}) == "kl_only":
        read += recorded(source, ANALYSE, SHIFTS)
        shifts = Shifts.load(source / SHIFTS)
    task, reader = task_of_run(source, data_dir), load_reader(source)
    check(3 <= TOKENS <= reader.max_length, f"TOKENS is {TOKENS}; {FP32_RUN} reads from 3 to {reader.max_length}")
    texts, answers = read_split(data_dir, "valid", task)
    print(f"  {describe('valid', texts, answers, task)}")
    rows = reader.rows(texts)
    search_rows, confirm_rows = ([rows[i] for i in part] for part in halves(len(rows)))
    search_rows = chosen_texts(search_rows, TEXTS or len(search_rows), SEED)
    begin_run(folder, STAGE, UNFINISHED)
    circumstances = (search_rows, versions(), [sha256(path) for path in (source / SOURCE, source / WEIGHTS)],
                     sha256(resolve(mixed_files.__file__)))
    memory = Memory(folder / UNFINISHED, digest(*circumstances))
    files = Files(source, search_rows, reader.pad_id)
    search = search_for(budget, choices, KEEP_SPEED, TOKENS, files, reader, memory, modules, shifts)
    candidates = search.proposals()
    candidates += search.improve(min(candidates, key=search.rank), ROUNDS)
    confirm = Files(source, confirm_rows, reader.pad_id)
    confirm.rounded = files.rounded
    candidates = search.decide(candidates, confirm)
    best = candidates[0]
    check(best.fits, f"BUDGET {budget}: no candidate keeps it as measured, the nearest is {best.name} with "
                     f"{best.measured['bytes'] / MILLION:.2f} MB and a divergence of {best.measured['divergence']:.1e}")
    print(*candidate_lines(candidates, best), sep="\n")
    print(*assignment_lines(best.assignment, files.weights, files.parts), sep="\n")
    bits = mean_bits(best.assignment, files.weights)
    names = write_run(folder, source, files, best, {
        "format": FORMAT, "budget": str(budget), "chosen": best.name, "bits": best.assignment, "weights": files.weights,
        "parts": files.parts, "mean_bits": bits, "predicted": best.predicted, "measured": best.measured,
        "choices": search.choices, "texts": {"search": len(search_rows), "confirm": len(confirm_rows)},
        "candidates": [vars(one) for one in candidates], "machine": machine(), "versions": versions()})
    record(folder, STAGE, settings, [*read, data_dir / "valid.tsv"], names, {
        "precision": PRECISION, "file": "model_mixed.onnx", "runtime": "onnxruntime", "task": task.as_json(),
        "stages": STAGES})
    memory.forget()
    written, foretold = (folder / "model_mixed.onnx").stat().st_size, best.predicted["bytes"]
    print(f"wrote {shown(folder / 'model_mixed.onnx')}: {written / MILLION:.3f} MB, foretold {foretold / MILLION:.3f} "
          f"({100 * (written / foretold - 1):+.2f} %), {bits:.2f} bits a weight")
    return next_command(EVALUATE, settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
