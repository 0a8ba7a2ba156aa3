"""results.json of an experiment: written whole, read only as it was recorded, shown as tables."""

import csv
import io
import json
import shutil
from pathlib import Path

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, publish, remove_leftovers, sha256, shown, write_json
from lowbit.pipeline.manifest import MANIFEST, read_manifest, record
from lowbit.ptq.matrix import MEASURED, NUMBERS

RESULTS = "results.json"


def write_results(folder: Path, stage: str, s: dict, rows: dict[str, dict], reads: list[Path], unfinished: str,
                  replaced: str = " ") -> dict[str, dict]:
    """results.json and results.csv of an experiment, `rows` laid over what stands there; returns all rows.

    Rows beside another FP32 file, or of other data, protocol, versions or machine, are dropped, in words; so are those
    whose name starts with `replaced`. The folder `unfinished` in it is deleted.
    """
    remove_leftovers(folder)
    old = {}
    if (folder / RESULTS).exists():
        try:
            old = read_results(folder)
        except UserError:
            print(f"  {shown(folder / RESULTS)} is not as it was recorded: its rows are dropped")
    base = next(iter(rows.values()))
    stale = [name for name, row in old.items() if name not in rows
             and any(row[key] != base[key] for key in ("fp32_sha256", "circumstances"))]
    if stale:
        print(f"  dropping {', '.join(stale)} from {shown(folder / RESULTS)}: measured beside another FP32 file, or "
              "with other data, protocol, MAX_DROP, versions or machine")
    kept = {name: row for name, row in old.items() if name not in stale and not name.startswith(replaced)}
    rows = {**kept, **rows}
    with atomic_folder(folder) as scratch:
        write_json(scratch / RESULTS, rows)
        (scratch / "results.csv").write_text(csv_text(rows), encoding="utf-8")
        names = publish(scratch)
    record(folder, stage, s, reads, names)
    shutil.rmtree(folder / unfinished, ignore_errors=True)
    print(f"wrote {', '.join(names)} in {shown(folder)}")
    return rows


def read_results(folder: Path) -> dict[str, dict]:
    """The rows of an experiment; raises UserError unless they are what a stage recorded last."""
    path = folder / RESULTS
    written = [made["writes"].get(RESULTS, {}).get("sha256") for made in read_manifest(folder).values()]
    if not path.exists() or sha256(path) not in written:
        state = "was changed since it was recorded in" if path.exists() else "is missing beside"
        raise UserError(f"{shown(path)} {state} {shown(folder / MANIFEST)}: run `python ptq/run_ptq.py {folder.name}`")
    return json.loads(path.read_text(encoding="utf-8"))


def read_experiments(results: Path) -> dict[str, dict]:
    """Experiment -> rows, of every folder in `results` that holds some; raises UserError where none does."""
    found = sorted((path.parent for path in results.glob(f"*/{RESULTS}")), key=lambda folder: (
        not folder.name.startswith("finetuned"), folder.name))
    if not found:
        raise UserError(f"{shown(results)} holds no <experiment>/{RESULTS}: run `python ptq/run_ptq.py` first")
    return {folder.name: read_results(folder) for folder in found}


def csv_text(rows: dict[str, dict]) -> str:
    """One line a method, one column a number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "status", *NUMBERS, "lost_on_test", "lost_on_valid", "within_max_drop", "flips",
                     "mcnemar_p", "samples", "reason"])
    for method, row in rows.items():
        paired = row.get("against_fp32", {})
        writer.writerow([method, row["status"], *(row[name] for name in NUMBERS),
                         *(row.get("accuracy_drop", {}).get(split) for split in ("test", "valid")),
                         row.get("within_max_drop"), paired.get("flips"), paired.get("mcnemar_p"), row.get("samples"),
                         row.get("reason", "")])
    return out.getvalue()


def lost(row: dict, split: str) -> str:
    """Points of accuracy below FP32 on a split, "-" where it was not scored."""
    return f"{row['accuracy_drop'][split]:.2f}" if split in row["accuracy_drop"] else "-"


def table_lines(rows: dict[str, dict]) -> list[str]:
    """The matrix as a table for the terminal."""
    width = max(map(len, rows))
    lines = [f"  {'':{width}} {'accuracy':>9} {'macro-F1':>9} {'points lost on':>16} {'':>7} {'median':>8} {'':>9} "
             f"{'peak':>6}",
             f"  {'method':{width}} {'%':>9} {'%':>9} {'test':>8} {'valid':>7} {'MB':>7} {'ms':>8} {'speed-up':>9} "
             f"{'MB':>6}  flips"]
    for method, row in rows.items():
        if row["status"] != MEASURED:
            lines.append(f"  {method:{width}} could not run: {row['reason']}")
            continue
        paired = row["against_fp32"]
        lines.append(f"  {method:{width}} {100 * row['accuracy']:9.2f} {100 * row['f1']:9.2f} {lost(row, 'test'):>8} "
                     f"{lost(row, 'valid'):>7} {row['model_size']:7.1f} {row['median_ms']:8.2f} {row['speedup']:8.2f}x "
                     f"{row['peak_memory_mb']:6.0f}  {paired['flips']} (p = {paired['mcnemar_p']:.2f})"
                     + "  loses too much" * (not row["within_max_drop"]))
    return lines
