"""Score many files with a packed model on Ray Data: one model load a worker, one file of records for each file of rows.

Needs    pip install -r requirements-ray.txt; on a cluster, MODEL_DIR, INPUT and OUTPUT in folders that all nodes see
Reads    INPUT                              .parquet, .jsonl, .csv, .tsv, .txt; all but .parquet also .gz
Writes   OUTPUT/<file>.jsonl                as predict.py does; a file that is there already is not scored again
"""
import glob
import logging
import os
import sys
from pathlib import Path

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve, shown
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --workers 8 ---------------------------------------------
MODEL_DIR = "dist/indobert-qat-int8-smsa"  # folder that pack.py made
INPUT = "data/incoming"         # a folder, or a glob such as "data/incoming/2026-*.csv.gz"
COLUMN = "text"                 # column or key of the text; a number, from 1, for csv and tsv without a header
OUTPUT = "data/scored"          # folder of the records
WORKERS = 2                     # processes that hold the model
THREADS = 1                     # cores of each
WINDOW = 4096                   # rows that a worker reads, sorts by length, labels and writes at a time
# --------------------------------------------------------------------------------------------------

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".txt")


class ScoreFile:
    """A Ray Data actor: loads the model once, then turns files into records, each whole or not at all."""

    def __init__(self, model_dir: str, column: str, window: int, threads: int):
        sys.path.insert(0, model_dir)  # predict.py and what it imports, as packed with the model
        from predictor import Predictor

        self.predictor, self.column, self.window = Predictor(Path(model_dir), threads), column, window

    def __call__(self, task: dict) -> dict:
        """{"path", "target"} -> the same with `rows`, `errors` and `refusal`, which is "" for a whole file."""
        from predict import label_rows
        from predictor import Refusal
        from records import Output

        try:
            out = Output(task["target"], self.predictor.labels, {
                "input": task["path"], "column": self.column, "window": self.window,
                "batch_size": self.predictor.batch_size,
                "model": self.predictor.manifest["files"][self.predictor.model]["sha256"]}, resume=True)
            ended = label_rows(self.texts(task["path"]), self.predictor, out, self.window)
            if ended is None:
                out.finish()
        except Refusal as error:
            return {**task, "rows": 0, "errors": 0, "refusal": str(error)}
        return {**task, "rows": out.counts.total(), "errors": out.counts[""], "refusal": str(ended or "")}

    def texts(self, path: str):
        """Each row's text, or the ValueError of a row that has none."""
        from predictor import Refusal
        from records import lines_of, open_input, texts_of

        if path.endswith(".parquet"):
            import pyarrow.parquet

            table = pyarrow.parquet.ParquetFile(path)
            if self.column not in table.schema_arrow.names:
                raise Refusal(f"{path} has no column {self.column!r}, but {', '.join(table.schema_arrow.names)}")
            return (value if isinstance(value, str) else ValueError("has no text")
                    for batch in table.iter_batches(self.window, columns=[self.column])
                    for value in batch.column(0).to_pylist())
        lines, form, where = open_input(path, "", [])
        return texts_of(lines_of(lines), form, self.column, where)


def tasks_of(source: str, output: Path) -> list[dict]:
    """Every input file with the file its records go to; raises UserError for none, or for two of one name."""
    pattern = source if glob.has_magic(source) else f"{source}/*"
    found = sorted(path for path in glob.glob(str(resolve(pattern))) if Path(path).is_file()
                   and Path(path.removesuffix(".gz")).suffix in SUFFIXES)
    check(bool(found), f"INPUT {source} holds no {', '.join(SUFFIXES)} file: name a folder or a glob")
    targets = [str(output / f"{Path(path).name}.jsonl") for path in found]
    double = next((path for path, target in zip(found, targets, strict=True) if targets.count(target) > 1), None)
    check(double is None, f"INPUT holds two files named {Path(double or '').name}: score them one after the other")
    return [{"path": path, "target": target} for path, target in zip(found, targets, strict=True)]


def main(settings):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: `pip install -r requirements-ray.txt`") from None
    for name in ("WORKERS", "THREADS", "WINDOW"):
        check(settings[name] > 0, f"{name} is {settings[name]}; it must be above 0")
    model_dir, output = resolve(MODEL_DIR), resolve(OUTPUT)
    check((model_dir / "manifest.json").exists(),
            f"MODEL_DIR {shown(model_dir)} holds no manifest.json: run `python deploy/pack.py` first")
    tasks = tasks_of(INPUT, output)
    output.mkdir(parents=True, exist_ok=True)
    todo = [task for task in tasks if not Path(task["target"]).exists()]
    print(f"  {len(tasks)} files, {len(tasks) - len(todo)} scored before", flush=True)
    rows = errors = 0
    refused = []
    if todo:
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:  # a cluster of this machine alone; one core more than the workers hold, for what hands out the files
            ray.init(num_cpus=WORKERS * THREADS + 1, include_dashboard=False, **quiet)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        scored = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
            ScoreFile, fn_constructor_args=(str(model_dir), COLUMN, WINDOW, THREADS), num_cpus=THREADS,
            compute=ray.data.ActorPoolStrategy(size=min(WORKERS, len(todo))))
        for done in scored.iter_rows():
            rows, errors = rows + done["rows"], errors + done["errors"]
            refused += [done["refusal"]] if done["refusal"] else []
            said = done["refusal"] or f"{done['rows']} rows, {done['errors']} errors"
            print(f"  {Path(done['path']).name}: {said}", flush=True)
    print(f"{rows} rows, {errors} errors in {len(todo) - len(refused)} files; records in {shown(output)}")
    check(not refused, f"{len(refused)} files could not be scored to their end: {'; '.join(refused[:3])}")


if __name__ == "__main__":
    run_stage(main, globals())
