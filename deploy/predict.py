"""Label texts with a packed model: the words behind the command, standard input line by line, or a file of any size.

Needs    the folder that pack.py made, and numpy, onnxruntime, tokenizers; nothing of the project it comes from
Reads    .tsv, .csv, .jsonl, or .txt with a text a line; each also .gz
Writes   one record a row, in the rows' order: label and probabilities, or the row's error
Status   0; 1 if a row had an error; 2 if nothing could be done, or not to the end
"""
import argparse
import itertools
import os
import sys
import time
from pathlib import Path

from predictor import Predictor, Refusal, read_manifest, verify
from records import Output, checked, lines_of, open_input, texts_of

# ---- settings: edit here, or for one run: --input reviews.csv --output labels.jsonl ---------------
MODEL_DIR = ""                  # folder that pack.py made; "" = where this script lies
INPUT = ""                      # file to label; "" = the words behind the command, or standard input
FORMAT = ""                     # tsv, csv, jsonl or txt; "" = by the file's name, txt for standard input
COLUMN = "text"                 # column or key of the text; a number, from 1, for a tsv or csv without a header
OUTPUT = ""                     # .jsonl or .tsv file; "" = standard output
RESUME = False                  # go on where a killed run with the same settings stopped
CHECK = False                   # only verify every file of the folder against manifest.json
THREADS = 0                     # of the session; 0 = every core
BATCH_SIZE = 0                  # texts a batch; 0 = as pack.py found safe: 1 where batch-mates move a text's logits
WINDOW = 4096                   # rows that are read, sorted by length, labelled and written at a time
# --------------------------------------------------------------------------------------------------

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def settings_of(argv: list[str]) -> tuple[dict, list[str]]:
    """(settings, words): the constants above, each with its flag laid over it, and what is no flag."""
    source = Path(__file__).read_text(encoding="utf-8")
    block = source.split("# ---- settings")[1].split("# ----")[0]
    comments = {line.split(" ")[0]: line.partition("  # ")[2].strip() for line in block.splitlines()[1:]}
    constants = {name: globals()[name] for name in comments if name.isupper()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    for name, value in constants.items():
        flag = f"--{name.lower().replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, dest=name, nargs="?", const=True, default=value, help=comments[name],
                                type=lambda text: BOOLEANS[text.lower()])
        else:
            parser.add_argument(flag, dest=name, default=value, type=type(value), help=f"{comments[name]} [{value}]")
    parser.add_argument("words", nargs="*", help="texts to label")
    found = vars(parser.parse_args(argv))
    return {name: found[name] for name in constants}, found["words"]


def label_rows(texts, predictor: Predictor, out: Output, window: int) -> Refusal | None:
    """Label every row behind those that `out` holds already; returns what ended the input too early, or None."""
    ended = None
    skipped = sum(1 for _ in itertools.islice(texts, out.done))
    if skipped < out.done:
        raise Refusal(f"the input has {skipped} rows, fewer than the {out.done} that are labelled already: "
                      "start again without --resume")
    started, row, shown = time.monotonic(), out.done, sys.stderr.isatty()
    while ended is None:
        rows = []
        try:
            for text in itertools.islice(texts, window):
                rows.append(checked(text))
        except Refusal as error:
            ended = error
        if not rows:
            break
        good = [i for i, text in enumerate(rows) if not isinstance(text, ValueError)]
        for i, chances in zip(good, predictor.probabilities([rows[i] for i in good]), strict=True):
            rows[i] = chances
        out.write(row + 1, rows)
        row += len(rows)
        if shown:
            rate = (row - out.done) / (time.monotonic() - started)
            print(f"\r{row:,} rows, {rate:,.0f} rows/s ", end="", file=sys.stderr, flush=True)
    if shown:
        print(file=sys.stderr)
    return ended


def main(argv: list[str]) -> int:
    s, words = settings_of(argv)
    for name in ("WINDOW", "BATCH_SIZE", "THREADS"):
        if s[name] < (name == "WINDOW"):
            raise Refusal(f"{name} is {s[name]}; it must be {'above 0' if name == 'WINDOW' else '0 or more'}")
    folder = Path(s["MODEL_DIR"]) if s["MODEL_DIR"] else Path(__file__).resolve().parent
    if s["CHECK"]:
        manifest = read_manifest(folder)
        verify(folder, manifest, manifest["files"])
        print(f"{len(manifest['files'])} files are as they were packed")
        return 0
    lines, form, where = open_input(s["INPUT"], s["FORMAT"], words)
    predictor = Predictor(folder, s["THREADS"], s["BATCH_SIZE"])
    out = Output(s["OUTPUT"], predictor.labels, {
        "input": where, "format": form, "column": s["COLUMN"], "window": s["WINDOW"],
        "batch_size": predictor.batch_size,
        "model": predictor.manifest["files"][predictor.model]["sha256"]}, s["RESUME"])
    if out.done:
        print(f"resuming behind row {out.done}", file=sys.stderr)
    ended = label_rows(texts_of(lines_of(lines), form, s["COLUMN"], where), predictor, out, s["WINDOW"])
    if ended is not None:
        raise ended
    out.finish()
    total, errors = out.counts.total(), out.counts[""]
    if not words:
        counts = ", ".join(f"{label} {out.counts[label]}" for label in predictor.labels)
        print(f"{total} rows: {counts}, {errors} error{'s' * (errors != 1)}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("error: interrupted; with --output, go on with --resume", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 0
    sys.exit(status)
