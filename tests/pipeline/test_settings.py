"""Settings: constants at the top of a script, flags of the same name, and refusals a user can act on."""

import ast
import re
import runpy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_runs import EVALUATE, EXPORT, QUANTIZE, ROOT, TRAIN, run_stage_script

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.settings import parse_flags

SCRIPT = '''"""Stage 1 of 1: show the settings.

More words, 100 % of them.
"""
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --num-epochs 1 ----------------------------------------
RUN = "my-run"  # a folder
NUM_EPOCHS = 3                 # passes over train; 100 % of it
OFFSET = -1                    # a number below zero
LEARNING_RATE = 2e-5           # peak
QAT = True                     # simulate INT8
PER_CHANNEL = False            # one scale a channel
# --------------------------------------------------------------------------------------------------

LATER = 7


def main(settings):
    assert settings == {name: globals()[name] for name in settings}, "globals and settings differ"
    print(settings)


if __name__ == "__main__":
    run_stage(main, globals())
'''
DEFAULTS = {"RUN": "my-run", "NUM_EPOCHS": 3, "OFFSET": -1, "LEARNING_RATE": 2e-5, "QAT": True, "PER_CHANNEL": False}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A stage script with constants of every type."""
    path = tmp_path_factory.mktemp("script") / "show.py"
    path.write_text(SCRIPT)
    return path


def parsed(script, *argv) -> dict:
    """The settings in force, their types checked against the constants'."""
    settings = parse_flags(str(script), "doc", [str(flag) for flag in argv])
    assert {name: type(value) for name, value in settings.items()} == {n: type(v) for n, v in DEFAULTS.items()}
    return settings


@pytest.mark.parametrize(("argv", "changed"), [
    ((), {}),
    (("--num-epochs", 1), {"NUM_EPOCHS": 1}),
    (("--num-epochs=1",), {"NUM_EPOCHS": 1}),
    (("--offset", -5), {"OFFSET": -5}),
    (("--learning-rate", 1), {"LEARNING_RATE": 1.0}),
    (("--learning-rate", "3e-4"), {"LEARNING_RATE": 3e-4}),
    (("--run", "7"), {"RUN": "7"}),
    (("--run", "a b"), {"RUN": "a b"}),
    (("--no-qat",), {"QAT": False}),
    (("--qat", "false"), {"QAT": False}),
    (("--qat", "False"), {"QAT": False}),
    (("--qat=no",), {"QAT": False}),
    (("--qat",), {"QAT": True}),
    (("--per-channel",), {"PER_CHANNEL": True}),
    (("--per-channel", "true"), {"PER_CHANNEL": True}),
    (("--per-channel", "--num-epochs", 2), {"PER_CHANNEL": True, "NUM_EPOCHS": 2}),
    (("--no-per-channel", "--run", "x"), {"RUN": "x"}),
])
def test_flag_sets_the_constant_of_its_name(script, argv, changed):
    """For one run, with the constant's own type; everything else stays as the script says."""
    assert parsed(script, *argv) == DEFAULTS | changed


@given(epochs=st.integers(), rate=st.floats(allow_nan=False), qat=st.booleans())
def test_every_value_of_a_type_passes(script, epochs, rate, qat):
    """Whole numbers and numbers as Python writes them."""
    given = parsed(script, f"--num-epochs={epochs}", f"--learning-rate={rate}", f"--qat={qat}")
    assert given == DEFAULTS | {"NUM_EPOCHS": epochs, "LEARNING_RATE": rate, "QAT": qat}


@pytest.mark.parametrize(("argv", "said"), [
    (("--num-epoch", "1"), ("--num-epoch", "--num-epochs")),
    (("--NUM_EPOCHS", "1"), ("--NUM_EPOCHS",)),
    (("--perchannel",), ("--perchannel", "--per-channel")),
    (("--no-num-epochs",), ("--no-num-epochs", "--num-epochs")),
    (("--learning_rate=1",), ("--learning_rate", "--learning-rate")),
    (("--later", "1"), ("--later",)),
    (("my-run",), ("my-run",)),
    (("--num-epochs", "1.5"), ("--num-epochs", "whole number", "1.5")),
    (("--num-epochs", "three"), ("--num-epochs", "whole number", "three")),
    (("--num-epochs", ""), ("--num-epochs", "whole number")),
    (("--num-epochs",), ("--num-epochs",)),
    (("--learning-rate", "2e"), ("--learning-rate", "a number", "2e")),
    (("--qat", "maybe"), ("--qat", "true or false", "maybe")),
    (("--qat", "2"), ("--qat", "true or false", "2")),
])
def test_wrong_flag_is_refused_in_words(script, argv, said):
    """An unknown name with the nearest known one, a value of another type with the type; --help is pointed to."""
    with pytest.raises(UserError) as refusal:
        parse_flags(str(script), "doc", list(argv))
    for words in (*said, "--help"):
        assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_flags_reach_the_stage_and_the_constants_it_uses(script, monkeypatch, capsys):
    """main's argument and the script's own names hold the same values."""
    monkeypatch.setattr("sys.argv", [str(script), "--num-epochs", "9", "--no-qat"])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Stage 1 of 1: show the settings."
    assert lines[1] == str(DEFAULTS | {"NUM_EPOCHS": 9, "QAT": False})


def test_edited_constant_is_in_force(tmp_path):
    """Editing the block is the same as giving the flag."""
    edited = tmp_path / "edited.py"
    edited.write_text(SCRIPT.replace("NUM_EPOCHS = 3 ", "NUM_EPOCHS = 8 "))
    assert parsed(edited) == DEFAULTS | {"NUM_EPOCHS": 8}
    assert parsed(edited, "--num-epochs", 2) == DEFAULTS | {"NUM_EPOCHS": 2}


@pytest.mark.parametrize("name", [TRAIN, EXPORT, QUANTIZE, EVALUATE])
def test_help_lists_every_constant_with_its_comment(name):
    """What the block at the top says, --help says, with the value in force."""
    block = re.search(r"^# ---- settings.*?^# ----", (ROOT / "int8_eager" / name).read_text(encoding="utf-8"),
                      re.DOTALL | re.MULTILINE).group()
    constants = re.findall(r"^([A-Z_]+) = (\S+) +# (.+)$", block, re.MULTILINE)
    assert [name for name, _, _ in constants] == re.findall(r"^(\w+) = ", block, re.MULTILINE)
    assert "RUN" in block
    shown = run_stage_script(name, "--help")
    assert shown.returncode == 0
    dense = "".join(shown.stdout.split())
    for constant, value, comment in constants:
        assert f"--{constant.lower().replace('_', '-')}" in dense
        assert "".join(comment.split()) in dense
        assert f"[{ast.literal_eval(value)}]" in dense


@pytest.mark.parametrize(("flags", "said"), [
    (("--num-epoch", "1"), "--num-epochs"),
    (("--num-epochs", "many"), "whole number"),
    (("--qat", "perhaps"), "true or false"),
    (("--batch-size",), "--batch-size"),
])
def test_shell_sees_one_sentence_and_exit_2(flags, said):
    """Nothing but the sentence on stderr, nothing done."""
    done = run_stage_script(TRAIN, *flags)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_argument_without_a_flag_sets_the_setting_named_for_it(script):
    """`stage.py other` is `stage.py --run other`; a stage that names none, or a second argument, is refused."""
    assert parse_flags(str(script), "", ["other"], bare="RUN")["RUN"] == "other"
    assert parse_flags(str(script), "", ["--num-epochs", "1"], bare="RUN")["RUN"] == "my-run"
    for argv, bare in ((["other"], ""), (["one", "two"], "RUN")):
        with pytest.raises(UserError, match="unknown setting"):
            parse_flags(str(script), "", argv, bare=bare)
