"""A stage's settings: the UPPER_CASE constants at its top, each also a flag for one run."""

import argparse
import ast
import difflib
import re
from pathlib import Path

from lowbit.pipeline.errors import UserError

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text"}


def read_constants(source: str) -> dict[str, tuple[object, str]]:
    """Name -> (value, comment) of the literal constants in the block that starts with `# ---- settings`."""
    lines = source.splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("# ---- settings"))
    last = next(number for number, line in enumerate(lines, 1) if number > first and line.startswith("# ----"))
    constants = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and first < node.lineno < last:
            comment = lines[node.end_lineno - 1].partition("  # ")[2].strip()
            constants[node.targets[0].id] = (ast.literal_eval(node.value), comment)
    return constants


def parse_value(flag: str, text: str, kind: type):
    """`text` as a value of the constant's own type; anything else is refused with a sentence."""
    try:
        if kind is bool:
            return BOOLEANS[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        wanted = "true or false" if kind is bool else TYPE_NAMES[kind]
        raise UserError(f"{flag} takes {wanted}, not {text!r}; see --help") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")


def parse_flags(script: str, doc: str, argv: list[str], bare: str = "") -> dict[str, object]:
    """The settings in force: the constants of `script` with the flags in `argv` laid over them.

    `--num-epochs 1` sets NUM_EPOCHS; a boolean is `--qat`, `--no-qat` or `--qat false`. Arguments without a flag are
    the values of the settings that `bare` names, in this order.
    Raises UserError on an unknown flag (naming the nearest) or a value of the wrong type.
    """
    constants = read_constants(Path(script).read_text(encoding="utf-8"))
    parser = _Parser(prog=Path(script).name, description=doc, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (value, comment) in constants.items():
        flag = flag_of(name)
        shown = f"{comment} [{value}]".replace("%", "%%")
        if isinstance(value, bool):
            parser.add_argument(flag, dest=name, nargs="?", const="true", default=None, help=shown)
            parser.add_argument("--no-" + flag[2:], dest=name, action="store_const", const="false",
                                default=None, help=argparse.SUPPRESS)
        else:
            parser.add_argument(flag, dest=name, default=None, help=shown, metavar=type(value).__name__)
    for name in bare.split():
        parser.add_argument(f"bare_{name}", nargs="?", metavar=name.lower(), help=f"the same as {flag_of(name)}")
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        refuse_renamed(unknown[0], constants)
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1, cutoff=0.0)
        raise UserError(f"unknown setting {unknown[0]!r}; the nearest is {near[0]}; see --help")
    settings = {}
    for name, (value, _) in constants.items():
        bare_text = getattr(given, f"bare_{name}", None)
        text = getattr(given, name) if bare_text is None else bare_text
        flag = flag_of(name)
        settings[name] = value if text is None else parse_value(flag, text, type(value))
    return settings


def flag_of(name: str) -> str:
    """NUM_EPOCHS -> --num-epochs."""
    return "--" + name.lower().replace("_", "-")


def refuse_renamed(flag: str, constants: dict[str, tuple[object, str]]) -> None:
    """Raise UserError if `flag` is the old name of a constant whose comment says `(was OLD_NAME)`."""
    for name, (_, comment) in constants.items():
        for old in re.findall(r"\(was ([A-Z0-9_]+)\)", comment):
            if flag.split("=")[0] in (flag_of(old), "--no-" + flag_of(old)[2:]):
                raise UserError(f"{old} is called {name} now: use {flag_of(name)}; see --help")


def check(ok: bool, sentence: str) -> None:
    """Refuse a setting that cannot work: raises UserError(sentence) unless ok."""
    if not ok:
        raise UserError(sentence)


def whole_numbers(text: str, setting: str) -> list[int]:
    """The numbers in a comma-separated setting, such as seeds; raises UserError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    check(all(part.isdecimal() for part in parts), f"{setting} is {text!r}; write whole numbers with commas: 1,2,3")
    return [int(part) for part in parts]


def chosen(text: str, known, setting: str) -> list[str]:
    """The names in a comma-separated setting, all of `known` for an empty one, in the order of `known`.

    Raises UserError for a name that is not known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        check(name in known, f"{setting} names {name!r}; choose from {', '.join(known)}")
    return [name for name in known if name in names or not names]
