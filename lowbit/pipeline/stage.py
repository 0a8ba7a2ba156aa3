"""What every stage script does around its own work: settings, banner, errors, the next step's command."""

import os
import shlex
import sys
import time
from pathlib import Path

from lowbit.pipeline.errors import exit_with_sentence
from lowbit.pipeline.files import ROOT
from lowbit.pipeline.settings import flag_of, parse_flags, read_constants


def run_stage(main, script_globals: dict, bare: str = "") -> None:
    """Run a stage: lay the flags over its constants, print its first line, call main(settings).

    `main` returns the command to run next, or None. Arguments without a flag set the constants that `bare` names.
    A user's mistake ends in one sentence and exit 2.
    """
    script, doc = script_globals["__file__"], script_globals["__doc__"]
    open_closed_streams()
    started = time.monotonic()
    try:
        settings = parse_flags(script, doc, sys.argv[1:], bare)
        script_globals.update(settings)
        print(doc.splitlines()[0], flush=True)
        following = main(settings)
        print(f"done in {time.monotonic() - started:.0f} s" + (f"; next: {following}" if following else ""), flush=True)
    except (Exception, KeyboardInterrupt) as error:
        exit_with_sentence(error)


def open_closed_streams() -> None:
    """Point a standard stream that the shell closed (`>&-`) at nothing: a file must not get its descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def next_command(script: str, settings: dict, *names: str) -> str:
    """`python int8_eager/export_to_onnx.py --run X`: the next stage with those settings that were changed here.

    Raises FileNotFoundError if `script` is not a path from the project's root.
    """
    defaults = read_constants((ROOT / script).read_text(encoding="utf-8"))
    flags = [f"{flag_of(name)} {shlex.quote(str(settings[name]))}" for name in names
             if name in defaults and settings.get(name, defaults[name][0]) != defaults[name][0]]
    return " ".join([f"python {Path(script)}", *flags])
