"""Make a folder for any static host: a page that runs packed models inside the browser, with nothing else to load.

Reads   MODEL_DIRS (pack.py), deploy/page/, deploy/web/ with its node_modules (npm ci --prefix deploy/web)
Writes  OUT/                                index.html and all that it loads; a folder for each model
Next    copy the folder to a static host; to try it: python -m http.server --directory dist/web
"""
import functools
import json
import os
import shutil
from pathlib import Path

from packed import NEEDED, Refusal, read_manifest, verify
from tokenizers import Tokenizer
from web_tables import python_tables, tokenizer_tables

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, resolve, shown, write_json
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --model-dirs dist/sample-int8 ---------------------------
MODEL_DIRS = "dist/sample-int8"  # folders that pack.py made, with commas; the page offers the first, then the others
OUT = "dist/web"                # folder that is made
# --------------------------------------------------------------------------------------------------

HERE = Path(__file__).parent
PAGE = ("index.html", "page.css", "page.js")
SCRIPTS = ("ask.js", "labels.js", "clean.js", "wordpiece.js")
RUNTIME = HERE / "web" / "node_modules" / "onnxruntime-web"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
POLICY = ('<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'self\'; '
          "script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; img-src data:; worker-src 'self' blob:; "
          "form-action 'none'\">\n")
ABOUT = "about.json"


def wordpiece(folder: Path, max_length: int) -> dict:
    """The WordPiece model of a packed tokenizer; raises UserError for a tokenizer of another kind."""
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    kinds = {part: (stored[part] or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer")}
    check(kinds == {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"},
          f"{shown(folder)} has a tokenizer of {', '.join(map(str, kinds.values()))}: the page runs BERT's WordPiece "
          "only")
    model, tokenizer = stored["model"], Tokenizer.from_file(str(folder / "tokenizer.json"))
    frame = tokenizer.encode("").ids
    named = [token["content"] for token in stored["added_tokens"] if token["content"] == token["content"].lower()]
    check(len(frame) == 2 and not named, f"{shown(folder)} has a tokenizer with tokens of its own ({named}): the page "
                                         "runs BERT's WordPiece only")
    return {"vocabulary": model["vocab"], "prefix": model["continuing_subword_prefix"],
            "unknown": model["vocab"][model["unk_token"]], "most": model["max_input_chars_per_word"],
            "first": frame[0], "last": frame[1], "maxLength": max_length}


@functools.cache
def tables_of(tokenizer: str) -> dict:
    """The tables of a tokenizer.json; models of one encoder share them."""
    return tokenizer_tables(Tokenizer.from_str(tokenizer))


def write_model(folder: Path, target: Path, characters: dict) -> dict:
    """The model and packed.json of a packed folder, written into `target`; returns what the page is told of it."""
    try:
        manifest = read_manifest(folder)
        verify(folder, manifest, [manifest["model"], *NEEDED])
    except Refusal as refusal:
        raise UserError(str(refusal)) from None
    settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    check(len(task["texts"]) == 1, f"{shown(folder)} reads pairs: the page labels single texts only")
    check(settings["steps"]["LOWER_CASE"], f"{shown(folder)} keeps capitals: the page labels lower-case models only")
    model = wordpiece(folder, settings["max_length"])
    target.mkdir()
    shutil.copyfile(folder / manifest["model"], target / "model.onnx")
    packed = {"labels": task["labels"], "inputs": settings["inputs"], "steps": settings["steps"],
              "stop_words": settings["stop_words"], "characters": characters,
              "tokenizer": tables_of((folder / "tokenizer.json").read_text(encoding="utf-8")), "wordpiece": model}
    (target / "packed.json").write_text(json.dumps(packed, ensure_ascii=False, separators=(",", ":")),
                                        encoding="utf-8", errors="surrogatepass")
    shipped = manifest["files"][manifest["model"]]
    return {"run": manifest.get("run", folder.name), "precision": manifest.get("precision", ""), "folder": target.name,
            "bytes": shipped["bytes"], "sha256": shipped["sha256"], "texts": task["texts"]}


def main(settings):
    folders, out = [resolve(name.strip()) for name in MODEL_DIRS.split(",")], resolve(OUT)
    for name in RUNTIME_FILES:
        check((RUNTIME / "dist" / name).is_file(), f"{shown(RUNTIME)} lacks dist/{name}: install Node.js, then "
                                                   "run npm ci --prefix deploy/web")
    names = [folder.name for folder in folders]
    check(len(set(names)) == len(names), f"MODEL_DIRS {MODEL_DIRS} has two folders of one name")
    check(not out.exists() or out.is_dir() and not any(out.iterdir()),
          f"{shown(out)} is there already: move it away, or name another OUT")
    print("  asking Python and the tokenizer what they make of every character")
    characters = python_tables()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out.parent) as scratch:
        made = scratch / out.name
        (made / "ort").mkdir(parents=True)
        for name in PAGE:
            shutil.copyfile(HERE / "page" / name, made / name)
        page = (made / "index.html").read_text(encoding="utf-8")
        (made / "index.html").write_text(page.replace('<title>', POLICY + '<title>'), encoding="utf-8")
        for name in SCRIPTS:
            shutil.copyfile(HERE / "web" / name, made / name)
        for name in RUNTIME_FILES:
            shutil.copyfile(RUNTIME / "dist" / name, made / "ort" / name)
        models = [write_model(folder, made / folder.name, characters) for folder in folders]
        check(len({tuple(model["texts"]) for model in models}) == 1, f"MODEL_DIRS {MODEL_DIRS} read different texts")
        write_json(made / ABOUT, {"texts": models[0]["texts"], "key": False, "models": models})
        os.replace(made, out)
    sizes = {name: sum(path.stat().st_size for path in (out / name).rglob("*")) / 1e6 for name in ("ort", *names)}
    print("  " + ", ".join(f"{name} {size:.2f} MB" for name, size in sizes.items()))
    print(f"wrote {shown(out)}; try it: python -m http.server --bind 127.0.0.1 --directory {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
