"""Stage 1 of 4: what each module of a fine-tuned model costs at 8, 4 and 2 bits, measured by the answers of files.

Reads   models/<RUN>/                       a fine-tuned FP32 model (ptq/finetune_fp32.py)
        DATA_DIR/valid.tsv                  texts of its first half: every second one
Writes  models/<RUN>/                       sensitivity.json, .csv, .npz (with kl of MODE only), sensitivity_<bits>.png
Next    mixed_precision.py
"""
import csv
import io

from lowbit.data.task import task_of_run
from lowbit.data.tokens import load_reader
from lowbit.data.tsv import describe, read_split
from lowbit.mixed import files as mixed_files
from lowbit.mixed import sensitivity
from lowbit.mixed.assignment import FP32, read_bits, short_name
from lowbit.mixed.files import SOURCE, WEIGHTS, Files, halves
from lowbit.mixed.memory import Memory
from lowbit.mixed.plots import heat_map
from lowbit.mixed.sensitivity import MODES, SCORES, SENSITIVITY, analyse, chosen_texts, main_score, ranked
from lowbit.mixed.shifts import SHIFTS
from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir, sha256, shown, write_json
from lowbit.pipeline.machine import machine, versions
from lowbit.pipeline.manifest import publish, record, recorded
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.ptq.matrix import digest
from lowbit.training.encoder import RUN_FILES

# ---- settings: edit here, or for one run: --score fisher -----------------------------------------
RUN = "indobert-fp32-smsa-3label-finetuned"  # folder under models/ of finetune_fp32.py
DATA_DIR = "data"               # folder of valid.tsv, from the project's root
BITS = "8,4,2"                  # bits that each module is tried at, with commas: 8, 4, 2, 1.6
SCORE = "kl,fisher"             # kl: measured, a file a module and bits; fisher: from gradients, a pass a text
MODE = "only"                   # of kl: only (this module at few bits), all_but (all others), or both
TEXTS = 0                       # texts of valid's first half, drawn at random; 0 = all: fewer make worse mixes
SEED = 42                       # of the draw, and of fisher's random signs
# --------------------------------------------------------------------------------------------------

FINETUNE, STAGE = "ptq/finetune_fp32.py", "mixed/sensitivity_analysis.py"
COLUMNS = ("kl_only", "kl_all_but", "fisher", "flips", "sqnr_db", "bytes")


def csv_of(result: dict) -> str:
    """A line a module and number of bits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["module", "layer", "kind", "weights", "bits", *COLUMNS])
    for name, module in result["modules"].items():
        for bits, held in module["bits"].items():
            writer.writerow([name, module["layer"], module["kind"], module["weights"], bits,
                             *(held.get(column) for column in COLUMNS)])
    return out.getvalue()


def table_lines(result: dict, bits: str) -> list[str]:
    """Modules at one number of bits, the most sensitive first."""
    held = ranked(result, bits)
    shown_columns = [column for column in COLUMNS if column in held[0][1]]
    width = max(len(short_name(name, result["modules"][name]["part"])) for name, _ in held)
    lines = [f"  {'at ' + bits + ' bits':{width}} {'weights':>9} " + " ".join(f"{name:>10}" for name in shown_columns)]
    for name, one in held:
        cells = " ".join(f"{one[column]:>10.1f}" if column == "sqnr_db" else f"{one[column]:>10}"
                         if column in ("flips", "bytes") else f"{one[column]:>10.1e}" for column in shown_columns)
        part = result["modules"][name]["part"]
        lines.append(f"  {short_name(name, part):{width}} {result['modules'][name]['weights']:>9} {cells}")
    return lines


def main(settings):
    bits = read_bits(BITS, "BITS")
    check(FP32 not in bits, "BITS names 32, which is what the others are compared with: leave it out")
    scores, modes = chosen(SCORE, SCORES, "SCORE"), chosen(MODE, MODES, "MODE")
    check(TEXTS >= 0, f"TEXTS is {TEXTS}; it must be 0 or more")
    check(0 <= SEED < 2**32, f"SEED is {SEED}; it must be from 0 to 4294967295")
    folder, data_dir = run_dir(RUN), resolve(DATA_DIR)
    read = recorded(folder, FINETUNE, SOURCE, WEIGHTS, *RUN_FILES)
    task = task_of_run(folder, data_dir)
    claim(folder)
    texts, answers = read_split(data_dir, "valid", task)
    print(f"  {describe('valid', texts, answers, task)}")
    first = [texts[i] for i in halves(len(texts))[0]]
    reader = load_reader(folder)
    rows = reader.rows(chosen_texts(first, TEXTS or len(first), SEED))
    memory = Memory(folder / "unfinished_sensitivity.json", digest(
        rows, SEED, versions(), [sha256(path) for path in read], [sha256(resolve(module.__file__)) for module in (
            mixed_files, sensitivity)]))
    if memory.known:
        print(f"  going on: {memory.known} figures are there from an interrupted run")
    result = analyse(Files(folder, rows, reader.pad_id), bits, scores, modes, SEED, memory)
    shifts = result.pop("shifts")
    result |= {"texts": len(rows), "settings": settings, "machine": machine(), "versions": versions()}
    with atomic_folder(folder) as scratch:
        write_json(scratch / SENSITIVITY, result)
        if shifts:
            shifts.save(scratch / SHIFTS)
        (scratch / "sensitivity.csv").write_text(csv_of(result), encoding="utf-8")
        for each in bits:
            heat_map(result, f"{each:g}", scratch / f"sensitivity_{each:g}.png")
        names = publish(scratch)
    record(folder, STAGE, settings, [*read, data_dir / "valid.tsv"], names)
    memory.forget()
    print(*table_lines(result, f"{bits[len(bits) // 2]:g}"), sep="\n")
    for what, value in result["correlation"].items():
        print(f"  rank correlation of {what} with {main_score(result)}: {value:.2f}")
    print(f"  {len(rows)} texts; processor time: "
          + ", ".join(f"{name} {value:.0f} s" for name, value in result["cpu_seconds"].items()))
    print(f"wrote {', '.join(names)} in {shown(folder)}")
    return next_command("mixed/mixed_precision.py", settings | {"FP32_RUN": RUN}, "FP32_RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
