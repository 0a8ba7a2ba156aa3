"""Fetch SMSA, the Indonesian sentiment texts of IndoNLU, checked by SHA-256.

Reads   {train,valid,test}_preprocess.tsv of the IndoNLU repository, or the same files in SOURCE_DIR
Writes  OUT_DIR/{train,valid,test}.tsv      all three or none; a file of your own there is not replaced
Next    int8_eager/train_qat_int8.py
"""
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from lowbit.data.tsv import SPLITS, count_shared, describe, read_tsv
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, move_up, resolve, sha256, shown
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage

# ---- settings: edit here, or for one run: --source-dir DIR ---------------------------------------
SOURCE_DIR = ""    # take the files from this folder instead of the network, as train.tsv or train_preprocess.tsv
OUT_DIR = "data"   # folder for train.tsv, valid.tsv, test.tsv, from the project's root
OVERWRITE = False  # replace files of OUT_DIR that are not SMSA
TIMEOUT = 30       # seconds to wait for the server's next bytes
BASE_URL = "https://raw.githubusercontent.com/IndoNLP/indonlu"  # where the repository's raw files are served
COMMIT = "ce728f6926a36174b9923dfe49d6a6839b6e9bb7"  # commit of IndoNLU to which the checksums below belong
# --------------------------------------------------------------------------------------------------

FOLDER = "dataset/smsa_doc-sentiment-prosa"
FILES = {  # split -> SHA-256, bytes
    "train": ("50f38ceed9b31521bf1581e126620532cc9b790712938159a2cdcf6906977a9b", 2186718),
    "valid": ("6ab41ddc9d58a35086f05ebd2e209c74cb03d87d4f51d6abdfba674eafbefa74", 246974),
    "test": ("4e8016daa8e4e1b193f2a28a79d3a7804dd4e3f926a3ab7e8a64264f5f416a6f", 75949),
}
CHUNK = 1 << 16  # bytes read between two steps of the progress bar
ELSEWHERE = "or fetch the three files by other means and name their folder with --source-dir"


def source_files(folder: str, splits: list[str]) -> dict[str, Path]:
    """Split -> its file in `folder`, counted from the project's root or else from the shell's folder.

    Where both names stand side by side, IndoNLU's own `<split>_preprocess.tsv` is taken.
    Raises UserError if the folder or a file is missing.
    """
    places = list(dict.fromkeys([resolve(folder), Path(os.path.abspath(folder))]))
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UserError(f"SOURCE_DIR is {folder!r}, but there is no folder {' or '.join(map(str, places))}: "
                        "name the folder that holds the three SMSA files")
    files = {}
    for split in splits:
        names = (f"{split}_preprocess.tsv", f"{split}.tsv")
        files[split] = next((found / name for name in names if (found / name).is_file()), None)
        if files[split] is None:
            raise UserError(f"{found} holds neither {names[0]} nor {names[1]}: put the three SMSA files there, "
                            "or leave --source-dir away to fetch them from the network")
    return files


def reason(error: Exception, timeout: int) -> str:
    """What went wrong with a request, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"no answer within {timeout} s"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def download(url: str, timeout: int, bar: tqdm) -> bytes:
    """The bytes behind `url`; raises UserError if they cannot be had."""
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            while chunk := response.read(CHUNK):
                content += chunk
                bar.update(len(chunk))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{url} could not be fetched ({reason(error, timeout)}): check the network and run again, "
                        f"{ELSEWHERE}") from None
    return bytes(content)


def refuse_other_content(split: str, content: bytes, origin: str) -> None:
    """Raises UserError unless `content` is SMSA's file of that split, byte for byte."""
    wanted, size = FILES[split]
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise UserError(f"{origin} is not the {split} file of SMSA: expected SHA-256 {wanted} ({size} bytes), found "
                        f"{found} ({len(content)} bytes): it was cut short or changed, perhaps only in its line ends; "
                        f"nothing was written: fetch it again, {ELSEWHERE}")


def missing_splits(out: Path, overwrite: bool) -> list[str]:
    """The splits that `out` does not hold yet; raises UserError if another file would have to be replaced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"OUT_DIR {shown(out)} is a file: name a folder with --out-dir")
    missing, others = [], []
    for split in SPLITS:
        path = out / f"{split}.tsv"
        if path.is_dir():
            raise UserError(f"{shown(path)} is a folder: move it away, or name another folder with --out-dir")
        if path.exists() and sha256(path) == FILES[split][0]:
            continue
        missing.append(split)
        if path.exists():
            others.append(shown(path))
    if others and not overwrite:
        raise UserError(f"{', '.join(others)} {'differs' if len(others) == 1 else 'differ'} from SMSA and may be your "
                        "own data: move away what you want to keep, name another folder with --out-dir, or use "
                        "--overwrite to replace")
    return missing


def main(settings):
    s = settings
    check(1 <= s["TIMEOUT"] <= 3600, f"TIMEOUT is {s['TIMEOUT']}: use 1 to 3600 seconds")
    out = resolve(s["OUT_DIR"])
    wanted = missing_splits(out, s["OVERWRITE"])
    contents = {}
    if not wanted:
        print(f"{shown(out)} already holds the three files of SMSA, byte for byte: nothing to fetch")
    elif s["SOURCE_DIR"]:
        for split, path in source_files(s["SOURCE_DIR"], wanted).items():
            contents[split] = path.read_bytes()
            refuse_other_content(split, contents[split], str(path))
            print(f"{split}: {path}, SHA-256 as expected")
    else:
        total = sum(FILES[split][1] for split in wanted)
        with tqdm(total=total, unit="B", unit_scale=True, desc="SMSA", disable=None) as bar:
            for split in wanted:
                url = f"{s['BASE_URL'].rstrip('/')}/{s['COMMIT']}/{FOLDER}/{split}_preprocess.tsv"
                contents[split] = download(url, s["TIMEOUT"], bar)
                refuse_other_content(split, contents[split], url)
                tqdm.write(f"{split}: {url}, SHA-256 as expected")
    if contents:
        with atomic_folder(out) as scratch:
            for split, content in contents.items():
                (scratch / f"{split}.tsv").write_bytes(content)
            move_up(scratch)
    texts = {}
    for split in SPLITS:
        path = out / f"{split}.tsv"
        texts[split], labels = read_tsv(path)
        print(f"{shown(path)}  {path.stat().st_size} bytes  {describe(split, texts[split], labels)}")
    shared = count_shared(texts["train"], texts["valid"])
    print(f"{shared} of {len(texts['valid'])} validation texts also stand in train")
    print("licence Apache-2.0: IndoNLU, https://github.com/IndoNLP/indonlu, Wilie et al. 2020")
    return next_command("int8_eager/train_qat_int8.py", {"DATA_DIR": shown(out)}, "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
