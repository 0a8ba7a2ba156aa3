"""Label texts with a packed model: the words behind the command, standard input line by line, or a file of any size.

Needs    the folder that pack.py made, and numpy, onnxruntime, tokenizers; nothing of the project it comes from
Reads    .tsv, .csv, .jsonl, or .txt with a text a line; each also .gz
Writes   one record a row, in the rows' order: label and probabilities (or a number), or the row's error
Status   0; 1 if a row had an error; 2 if nothing could be done, or not to the end
"""
import contextlib
import errno
import itertools
import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C while libraries load: nothing has begun

import numpy as np
from flags import columns_of, names_of, settings_of
from lines import open_input
from output import Finished, Output
from packed import MOST_BATCH, Refusal, identity, read_manifest, verify
from predictor import Predictor
from records import EMPTY, NOTED, Form, form_of
from rows import read_rows, rows_of_words

# ---- settings: edit here, or for one run: --input reviews.csv --output labels.jsonl ---------------
MODEL_DIR = ""                  # folder that pack.py made; "" = where this script lies
INPUT = ""                      # file to label; "" = the words behind the command, or standard input
FORMAT = ""                     # tsv, csv, jsonl or txt; "" = by the file's name, txt for standard input
COLUMN = ""                     # column or key of the text (of a pair two, with a comma), or number from 1
KEEP = ""                       # columns or keys that are copied into each record, such as id,text
SEPARATOR = ""                  # between the columns of a csv or tsv; "" = comma, tab
ENCODING = "utf-8"              # of the input, such as utf-16 or cp1252
OUTPUT = ""                     # .jsonl or .tsv file; "" = standard output
RESUME = False                  # go on where a killed run with the same settings stopped
FORCE = False                   # replace OUTPUT, or begin again what a killed run has begun
CHECK = False                   # only verify every file of the folder against manifest.json
THREADS = 0                     # batches that are computed at once, a core each; 0 = every core
BATCH_SIZE = 0                  # texts a batch; 0 = 1 where pack.py saw batch-mates move logits, else 1,024 tokens
WINDOW = 4096                   # rows that are read, sorted by length, labelled and written at a time
TEXT_BYTES = 1_000_000          # bytes of a text; a longer one is an error
# --------------------------------------------------------------------------------------------------

WINDOW_CHARACTERS = 4_000_000  # of the texts of a window: it is closed early by long ones
LIMITS = {"THREADS": (0, max(64, 2 * (os.cpu_count() or 1))), "BATCH_SIZE": (0, MOST_BATCH), "WINDOW": (1, 1_000_000),
          "TEXT_BYTES": (1, 100_000_000)}
FAULTS = {errno.EBADF: "it is not open for writing",
          errno.ENOSPC: "no space is left", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "it is too large",
          errno.EROFS: "the file system is read-only", errno.EACCES: "permission is denied",
          errno.ENAMETOOLONG: "the name is too long", errno.EIO: "the disk or stream fails"}


def windows(rows, window: int):
    """(rows, the Refusal that ended the input too early, or None) of each window: `window` rows, fewer long ones."""
    ended = None
    while ended is None:
        held, size = [], 0
        try:
            for row in itertools.islice(rows, window):
                held.append(row)
                size += row.characters()
                if size > WINDOW_CHARACTERS:
                    break
        except Refusal as error:
            ended = error
        if not held and ended is None:
            return
        yield held, ended


def label_rows(rows, predictor: Predictor, out: Output, window: int) -> Refusal | None:
    """Label every row behind those that `out` holds already; returns what ended the input too early, or None."""
    rows = iter(rows)
    out.pass_over(itertools.islice(rows, out.done))
    started, ended, shown = time.monotonic(), None, sys.stderr is not None and sys.stderr.isatty()
    for held, broken in windows(rows, window):
        ended = broken
        good = [place for place, row in enumerate(held) if not row.error]
        answers, empty = predictor.answers([held[place].text for place in good])
        found = dict(zip(good, zip(answers, empty, strict=True), strict=True))
        for place in [place for place in good if not np.isfinite(found[place][0]).all()]:
            held[place] = held[place]._replace(error="the model's answer is no number")
            del found[place]
        out.write(held, found, ended is None)
        if shown:
            rate = (out.rows - out.done) / (time.monotonic() - started)
            say(f"\r{out.rows:,} rows, {rate:,.0f} rows/s ", end="")
    if shown:
        say("")
    return ended


def say(text: str, end: str = "\n") -> None:
    """Text on standard error; whether it is open, full or read changes nothing of what is done."""
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            print(text, end=end, file=sys.stderr, flush=True)


def summary(out: Output, predictor: Predictor, seconds: float, labelled: int) -> None:
    """Where the time went, and what was found."""
    parts = {name: predictor.seconds[name] for name in ("cleaning", "tokens", "session")}
    parts["reading and writing"] = max(seconds - sum(parts.values()), 0)
    shares = ", ".join(f"{name} {100 * spent / seconds:.0f} %" for name, spent in parts.items())
    say(f"{labelled} rows in {seconds:.1f} s, {labelled / seconds:.0f} rows/s: {shares}")
    counts, errors = out.counts, out.counts[""]
    kinds = ", ".join(f"{kind} {counts[kind]}" for kind in predictor.labels or ["value"])
    say(f"{out.rows} rows: {kinds}, {errors} error{'s' * (errors != 1)}"
        + f", {counts[EMPTY]} empty after cleaning" * bool(counts[EMPTY])
        + f", {counts[NOTED]} with a note on the row" * bool(counts[NOTED]))


def main(argv: list[str]) -> int:
    s, words = settings_of(globals(), argv, LIMITS, "texts to label; behind -- where one starts with a dash")
    if words and s["INPUT"]:
        raise Refusal(f"INPUT is {s['INPUT']}, and there are texts behind the command ({words[0]!r}): give one of both")
    keep = names_of(s["KEEP"])
    for word in words:
        if os.path.isfile(word):
            say(f"note: {word} is a file, but its name is labelled here: for what is in it, --input {word}")
    if words and keep:
        raise Refusal(f"KEEP is {s['KEEP']}, but the texts behind the command ({words[0]!r}) have no columns")
    folder = Path(s["MODEL_DIR"]) if s["MODEL_DIR"] else Path(__file__).resolve().parent
    if s["CHECK"]:
        manifest = read_manifest(folder)
        verify(folder, manifest, manifest["files"])
        say(f"{len(manifest['files'])} files are as they were packed")
        return 0
    predictor = Predictor(folder, s["THREADS"], s["BATCH_SIZE"], batches_at_once=True)
    source = None if words else open_input(s["INPUT"], s["FORMAT"], s["ENCODING"], s["SEPARATOR"])
    if s["COLUMN"] and source and source.form == "txt":
        raise Refusal(f"COLUMN is {s['COLUMN']}, but {source.where} is read as a text a line: if it has columns, say "
                      "so with --format csv, tsv or jsonl")
    columns = columns_of(s["COLUMN"], predictor.texts)
    # a header is understood before anything is written
    rows = (rows_of_words(words, len(columns), s["TEXT_BYTES"]) if words
            else read_rows(source, columns, keep, s["TEXT_BYTES"]))
    form = Form(form_of(s["OUTPUT"]), predictor.labels, keep)
    made_of = {"format": source and source.form, "column": columns, "keep": keep, "encoding": s["ENCODING"],
               "separator": source and source.separator, "window": s["WINDOW"], "text_bytes": s["TEXT_BYTES"],
               "batch_size": predictor.batch_size, "batch_tokens": predictor.batch_tokens,
               "model": identity(predictor.manifest)}
    reading = None if words else s["INPUT"] or sys.stdin.fileno()
    try:
        out = Output(s["OUTPUT"], reading, form, made_of, s["RESUME"], s["FORCE"])
    except Finished:
        say(f"{s['OUTPUT']} is finished already; nothing was done, and the input was not compared; --force makes it "
            "anew")
        return 0
    started = time.monotonic()
    if out.done:
        say(f"resuming behind row {out.done}")
    ended = label_rows(rows, predictor, out, s["WINDOW"])
    if ended is not None:
        raise ended
    out.finish()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written: Ctrl-C would only disturb the end of the threads
    if not words:
        summary(out, predictor, time.monotonic() - started, out.rows - out.done)
    return 1 if out.counts[""] else 0


def interrupted() -> int:
    """Say so; returns the status of it."""
    say("error: interrupted; with --output, go on with --resume")
    return 130


def status_of(argv: list[str]) -> int:
    """main() with a sentence for each way to end early."""
    try:
        return main(argv)
    except Refusal as refusal:
        say(f"error: {refusal}")
    except KeyboardInterrupt:
        return interrupted()
    except RuntimeError as error:
        if not isinstance(error.__context__, KeyboardInterrupt):  # else Ctrl-C came while Python let go of a lock
            raise
        return interrupted()
    except BrokenPipeError:  # the reader has had enough
        return 0
    except OSError as error:
        if error.errno not in FAULTS:
            raise
        where = f"{error.filename}: " if error.filename else "the output: "
        say(f"error: {where}{FAULTS[error.errno]}; what was written stays: mend it, then go on with --resume")
    return 2


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = status_of(sys.argv[1:])
    sys.stdout = sys.stderr = None  # nothing is left to be flushed
    sys.exit(status)
