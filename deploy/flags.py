"""A script's settings: the UPPER_CASE constants at its top, each also a flag of the same name for one run."""

import argparse
import csv
import difflib

from packed import Refusal

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
WANTED = {bool: "true or false; texts come before it, or behind --", int: "a whole number", float: "a number"}


def names_of(text: str) -> list[str]:
    """The names in a setting, with commas between them; one that holds a comma stands in double quotes."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]


def columns_of(setting: str, texts: list[str]) -> list[str]:
    """The columns that COLUMN names, without it those that the model reads; raises Refusal for another number of them.

    That of one text may have a comma in its name.
    """
    columns = ([setting.strip()] if setting and len(texts) == 1 else names_of(setting)) or texts
    if len(columns) != len(texts):
        raise Refusal(f"COLUMN names {len(columns)} columns; this model reads {len(texts)}: {', '.join(texts)}")
    return columns


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refusal(f"{message}; see --help")

    def _print_message(self, message, file=None):
        print(message, end="", file=file, flush=True)  # a full disk is seen here, not when Python ends


def settings_of(script: dict, argv: list[str], limits: dict, words: str = "") -> tuple[dict, list[str]]:
    """(settings, words): the constants of a script (its globals()), flags laid over them, and what is no flag.

    `limits` are the least and greatest value of some; `words` says what those are good for. Raises Refusal.
    """
    with open(script["__file__"], encoding="utf-8") as source:
        block = source.read().split("# ---- settings")[1].split("# ----")[0]
    comments = {line.split(" ")[0]: line.partition("  # ")[2].strip() for line in block.splitlines()[1:]}
    constants = {name: script[name] for name in comments if name.isupper()}
    parser = _Parser(description=script["__doc__"], formatter_class=argparse.RawDescriptionHelpFormatter,
                     allow_abbrev=False, usage=f"%(prog)s [flags] [{words.split(';')[0]}]", epilog=words)
    for name, value in constants.items():
        more = {"nargs": "?", "const": "true"} if isinstance(value, bool) else {"metavar": type(value).__name__}
        parser.add_argument(f"--{name.lower().replace('_', '-')}", dest=name,
                            help=f"{comments[name]} [{value}]".replace("%", "%%"), **more)
    end = argv.index("--") if "--" in argv else len(argv)
    found, others = parser.parse_known_args(argv[:end])
    unknown = [text for text in others if text.startswith("-")]
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1, cutoff=0.0)[0]
        raise Refusal(f"unknown setting {unknown[0]!r}; the nearest is {near}; "
                      f"a text that starts with a dash goes behind --, as in: -- {unknown[0]!r}")
    settings = {}
    for name, value in constants.items():
        text, kind = getattr(found, name), type(value)
        try:
            settings[name] = value if text is None else BOOLEANS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise Refusal(f"{name} takes {WANTED[kind]}, not {text!r}; see --help") from None
        if name in limits and not limits[name][0] <= settings[name] <= limits[name][1]:
            raise Refusal(f"{name} is {settings[name]}; it must be from {limits[name][0]} to {limits[name][1]}")
    return settings, others + argv[end + 1:]
