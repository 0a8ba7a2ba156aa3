"""Score many files with a packed model on Ray Data: one model load a worker, one file of records for each file of rows.

Needs    pip install -r requirements-ray.txt; on a cluster, MODEL_DIR, INPUT and OUTPUT in folders that all nodes see
Reads    INPUT                              .parquet, .jsonl, .csv, .tsv, .txt; all but .parquet also .gz
Writes   OUTPUT/<file>.jsonl                as predict.py does; what the same model made of the same file is kept
         OUTPUT/scored.json                 of which model and input each file was made
"""
import glob
import json
import logging
import os
import sys
from pathlib import Path

from lowbit.pipeline.errors import UserError, sentence_for
from lowbit.pipeline.files import claim, resolve, shown, write_json
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --workers 8 ---------------------------------------------
MODEL_DIR = "dist/indobert-qat-int8-smsa"  # folder that pack.py made
INPUT = "data/incoming"         # a folder, or a glob such as "data/incoming/2026-*.csv.gz"
COLUMN = ""                     # column or key of the text (of a pair two, with a comma), or number from 1
KEEP = ""                       # columns or keys that are copied into each record, such as id,text
SEPARATOR = ""                  # between the columns of every csv and tsv; "" = comma, tab
ENCODING = "utf-8"              # of every file but .parquet, such as utf-16 or cp1252
OUTPUT = "data/scored"          # folder of the records
FORCE = False                   # replace records of another model or of an older file
WORKERS = 2                     # processes that hold the model
THREADS = 1                     # cores of each
WINDOW = 4096                   # rows that a worker reads, sorts by length, labels and writes at a time
TEXT_BYTES = 1_000_000          # bytes of a text; a longer one is an error
# --------------------------------------------------------------------------------------------------

MOST_THREADS = max(64, 2 * (os.cpu_count() or 1))
SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".txt")
LEDGER = "scored.json"


class ScoreFile:
    """A Ray Data actor: loads the model once, then turns files into records, each whole or not at all."""

    def __init__(self, model_dir: str, s: dict):
        sys.path.insert(0, model_dir)  # predict.py and what it imports, as packed with the model
        from flags import names_of
        from predictor import Predictor

        self.predictor, self.s = Predictor(Path(model_dir), s["THREADS"], batches_at_once=True), s
        self.keep = names_of(s["KEEP"])

    def __call__(self, task: dict) -> dict:
        """{"path", "target", "force"} -> the same with `rows`, `errors` and `refusal`, which is "" for a whole file."""
        from output import Finished, Output
        from packed import Refusal, identity
        from predict import label_rows
        from records import Form

        found = {**task, "rows": 0, "errors": 0, "refusal": ""}
        try:
            rows = self.rows(task["path"])
            made_of = {"columns": self.s["COLUMN"], "keep": self.keep, "window": self.s["WINDOW"],
                       "batch_size": self.predictor.batch_size,
                       "batch_tokens": self.predictor.batch_tokens, "model": identity(self.predictor.manifest),
                       "input": task["input"]}
            out = Output(task["target"], task["path"], Form("jsonl", self.predictor.labels, self.keep), made_of,
                         not task["force"], task["force"])
            ended = label_rows(rows, self.predictor, out, self.s["WINDOW"])
            if ended is None:
                out.finish()
            return {**found, "rows": out.rows, "errors": out.counts[""], "refusal": str(ended or "")}
        except Finished:
            return found
        except Refusal as error:
            return {**found, "refusal": str(error)}
        except (ValueError, OverflowError, KeyError) as error:  # what pyarrow raises for a value Python cannot hold
            return {**found, "refusal": f"{task['path']} cannot be read ({type(error).__name__}: {error})"}
        except OSError as error:  # one file that cannot be read or written is one refusal
            return {**found, "refusal": sentence_for(error) or f"{task['path']}: {error}"}

    def rows(self, path: str):
        """The rows of a file."""
        from flags import columns_of
        from lines import open_input
        from packed import Refusal
        from rows import read_rows

        columns = columns_of(self.s["COLUMN"], self.predictor.texts)
        if path.lower().endswith(".parquet"):
            return self.parquet_rows(path, columns)
        table = Path(path.lower().removesuffix(".gz")).suffix in (".csv", ".tsv")
        source = open_input(path, "", self.s["ENCODING"], self.s["SEPARATOR"] if table else "")
        if self.s["COLUMN"] and source.form == "txt":
            raise Refusal(f"{path} has no columns, and COLUMN is {self.s['COLUMN']}: leave it out of INPUT")
        return read_rows(source, columns, self.keep, self.s["TEXT_BYTES"])

    def parquet_rows(self, path: str, columns: list[str]):
        """The rows of a Parquet file."""
        import pyarrow
        import pyarrow.parquet
        from packed import Refusal
        from rows import row_of

        try:
            table = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowException as error:
            raise Refusal(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from None
        names, wanted = table.schema_arrow.names, columns + self.keep
        for name in wanted:
            if name not in names:
                raise Refusal(f"{path} has no column {name!r}, but {', '.join(names)}")
            if names.count(name) > 1:
                raise Refusal(f"{path} has several columns of the name {name!r}: rename all but one")

        def values(column) -> list:
            """Python values; strings that are not UTF-8 keep their bytes as surrogates, for the row's own error."""
            if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
                return column.to_pylist()
            return [None if value is None else value.decode("utf-8", "surrogateescape")
                    for value in column.cast(pyarrow.large_binary()).to_pylist()]

        def every():
            try:
                for batch in table.iter_batches(min(self.s["WINDOW"], 1024), columns=wanted):
                    for record in zip(*(values(batch.column(name)) for name in wanted), strict=True):
                        texts, kept = record[: len(columns)], list(record[len(columns):])
                        if all(isinstance(text, str) for text in texts):
                            yield row_of(texts, kept, self.s["TEXT_BYTES"])
                        else:
                            yield row_of(("",), kept, 1)._replace(error="has no text")
            except pyarrow.ArrowException as error:
                raise Refusal(f"{path} breaks off ({str(error).splitlines()[0]}); the rows before are labelled"
                              ) from None
        return every()


def tasks_of(source: str, output: Path) -> list[dict]:
    """Every input file with the file its records go to; raises UserError for none, or for two of one name."""
    pattern = source if glob.has_magic(source) else f"{source}/*"
    found = sorted(path for path in glob.glob(str(resolve(pattern))) if Path(path).is_file()
                   and Path(path.lower().removesuffix(".gz")).suffix in SUFFIXES)
    check(bool(found), f"INPUT {source} holds no {', '.join(SUFFIXES)} file: name a folder or a glob")
    targets = [str(output / f"{Path(path).name}.jsonl") for path in found]
    double = next((path for path, target in zip(found, targets, strict=True) if targets.count(target) > 1), None)
    check(double is None, f"INPUT holds two files named {Path(double or '').name}: score them one after the other")
    return [{"path": path, "target": target, "force": False, "input": identity_of(path)}
            for path, target in zip(found, targets, strict=True)]


def identity_of(path: str) -> str:
    """Bytes and time of a file: what tells an input from a later one of its name."""
    seen = os.stat(path)
    return f"{seen.st_size} bytes of {seen.st_mtime_ns}"


def read_ledger(output: Path) -> dict[str, dict]:
    """Name of a file of records -> the model and input that it was made of."""
    try:
        ledger = json.loads((output / LEDGER).read_text(encoding="utf-8"))
        if isinstance(ledger, dict) and all(isinstance(made, dict) for made in ledger.values()):
            return ledger
        raise ValueError("it is no ledger")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown(output / LEDGER)} cannot be read ({error}): name another OUTPUT") from None


def tasks_to_do(tasks: list[dict], made: dict, output: Path) -> list[dict]:
    """The tasks whose records are not there yet, each with what it is `made` of; notes in the ledger what is begun.

    Raises UserError, unless FORCE, for records of another model, other settings, or an older file.
    """
    ledger, todo, stale = read_ledger(output), [], []
    for task in tasks:
        name, task["made"] = Path(task["target"]).name, made | {"input": task["input"]}
        if Path(task["target"]).exists() and ledger.get(name) == task["made"]:
            continue
        todo.append(task)
        if Path(task["target"]).exists():
            stale.append(name)
            ledger[name] = {"replacing": task["made"]}  # until it is done, what lies there is the old one
        else:
            ledger[name] = task["made"]
        task["force"] = FORCE
    check(FORCE or not stale,
          f"{len(stale)} files in {shown(output)} were not made by this model with these settings of these inputs; the "
          f"first is {(stale or [''])[0]}: name another OUTPUT, or replace them with --force")
    if todo:
        write_json(output / LEDGER, ledger)
    return todo


def main(settings):
    for name, most in (("WORKERS", 10_000), ("THREADS", MOST_THREADS), ("WINDOW", 1_000_000), ("TEXT_BYTES",
        100_000_000)):
        check(0 < settings[name] <= most, f"{name} is {settings[name]}; it must be from 1 to {most}")
    model_dir, output = resolve(MODEL_DIR), resolve(OUTPUT)
    check((model_dir / "manifest.json").exists(),
          f"MODEL_DIR {shown(model_dir)} holds no manifest.json: run `python deploy/pack.py` first")
    tasks = tasks_of(INPUT, output)
    check(output.is_dir() or not output.exists(), f"OUTPUT {shown(output)} is a file: name a folder")
    check(all(Path(task["path"]).resolve().parent != output.resolve() for task in tasks),
          f"OUTPUT {shown(output)} is the folder of INPUT: its records would be rows of the next run; name another")
    output.mkdir(parents=True, exist_ok=True)
    claim(output)
    made = {"model": identity_of_model(model_dir), "column": COLUMN, "keep": KEEP, "separator": SEPARATOR,
            "encoding": ENCODING, "window": WINDOW, "text_bytes": TEXT_BYTES}
    todo = tasks_to_do(tasks, made, output)
    print(f"  {len(tasks)} files, {len(tasks) - len(todo)} scored before", flush=True)
    rows = errors = 0
    refused = []
    if todo:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise UserError("Ray is not installed: `pip install -r requirements-ray.txt`") from None
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:  # a cluster of this machine alone; one core more than the workers hold, for what hands out the files
            ray.init(num_cpus=WORKERS * THREADS + 1, include_dashboard=False, **quiet)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        scored = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
            ScoreFile, fn_constructor_args=(str(model_dir), settings), num_cpus=THREADS,
            compute=ray.data.ActorPoolStrategy(size=min(WORKERS, len(todo))))
        for done in scored.iter_rows():
            rows, errors = rows + done["rows"], errors + done["errors"]
            refused += [done["refusal"]] if done["refusal"] else []
            said = done["refusal"] or f"{done['rows']} rows, {done['errors']} errors"
            print(f"  {Path(done['path']).name}: {said}", flush=True)
            if not done["refusal"]:
                write_json(output / LEDGER, read_ledger(output) | {Path(done["target"]).name: done["made"]})
    print(f"{rows} rows, {errors} errors in {len(todo) - len(refused)} files; records in {shown(output)}")
    check(not refused, f"{len(refused)} files could not be scored to their end: {'; '.join(refused[:3])}")


def identity_of_model(model_dir: Path) -> str:
    """Predictor.identity() of a packed folder; raises UserError for one that is not as it was packed."""
    sys.path.insert(0, str(model_dir))
    from packed import NEEDED, Refusal, identity, read_manifest, verify

    try:
        manifest = read_manifest(model_dir)
        verify(model_dir, manifest, (manifest["model"], *NEEDED))
        return identity(manifest)
    except Refusal as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run_stage(main, globals())
