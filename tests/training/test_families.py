"""Encoders of other families through every stage: other special tokens, no token types, padding id 1, shared layers."""

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conftest import SAMPLE, read_plain_rows, tiny_tokenizer
from stage_runs import TRAIN, ended_well, new_run, run_folder, run_stage_script
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from lowbit.data.tokens import load_reader

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "initializer_range": 0.2}
LONGEST = 128  # tokens that each of these encoders can read


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """XLM-R's kind: Unigram pieces, <s> … </s>, padding id 1, no token types."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        (text for text, _ in read_plain_rows("train", SAMPLE)),
        trainers.UnigramTrainer(vocab_size=500, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
                                unk_token="<unk>", show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", model_input_names=["input_ids", "attention_mask"])


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's kind, which marks the two texts of a pair by token types."""
    tokenizer = tiny_tokenizer()
    special = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **special,
                                   model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def make(family: str):
    """(model, tokenizer) of a family, untrained."""
    tokenizer = wordpiece_tokenizer() if family == "albert" else sentencepiece_tokenizer()
    sizes = SIZES | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "albert":
            return AlbertModel(AlbertConfig(**sizes, embedding_size=16, max_position_embeddings=LONGEST)), tokenizer
        if family == "bert":  # multilingual-e5's kind
            return BertModel(BertConfig(**sizes, max_position_embeddings=LONGEST)), tokenizer
        offset = tokenizer.pad_token_id + 1  # positions are counted from there
        return XLMRobertaModel(XLMRobertaConfig(**sizes, type_vocab_size=1,
                                                max_position_embeddings=LONGEST + offset)), tokenizer


@pytest.fixture(scope="module", params=["bert", "xlm-roberta", "albert"])
def family(request, tmp_path_factory):
    """(name, folder of an encoder)."""
    folder = tmp_path_factory.mktemp(request.param)
    for part in make(request.param):
        part.save_pretrained(folder)
    return request.param, folder


OTHERS = pytest.mark.parametrize("family", ["xlm-roberta", "albert"], indirect=True)  # BERT's is tested as such


def run_stages(family, small_data, eval_flags, folder: str, train_flags=(), convert_flags=()) -> str:
    """Name of a run that the stages of a precision folder made of this encoder; without eval_flags the first three."""
    precision, run = folder.partition("_")[0], new_run()
    data = ("--data-dir", small_data)
    done = {}
    for stage, flags in ((f"train_qat_{precision}.py", ("--model-name", family[1], *data, *train_flags)),
                         ("export_to_onnx.py", ()), (f"quantize_onnx_{precision}.py", convert_flags),
                         (f"eval_onnx_{precision}.py", eval_flags))[:4 if eval_flags else 3]:
        done[stage] = run_stage_script(stage, "--run", run, *flags, folder=folder)
        if done[stage].returncode:
            break
    return ended_well(run, done)


TRAIN_FLAGS = ("--num-epochs", 1, "--learning-rate", 3e-4, "--cleaning", "minimal")


def ask(path, inputs: dict) -> np.ndarray:
    """Logits of an ONNX file."""
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], inputs)[0]


def assert_padding_changes_nothing(folder, fp32: str) -> None:
    """In the FP32 file a text alone, and padded by the tokenizer beside a longer one, has the same logits."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["makanan nya enak", "kamar nya bersih sekali dan staf nya sangat ramah kepada semua tamu"]
    alone, both = (tokenizer(part, padding=True, return_tensors="np") for part in (texts[:1], texts))
    names = ("input_ids", "attention_mask")
    assert both["input_ids"][0, -1] == tokenizer.pad_token_id
    logits = [ask(folder / fp32, {name: given[name].astype(np.int64) for name in names}) for given in (alone, both)]
    assert np.abs(logits[0][0] - logits[1][0]).max() < 1e-5


def test_int8_dynamic(family, small_data, eval_flags, tmp_path):
    """All four stages; every Linear layer on integers, those that are shared as well; the file follows training."""
    run = run_stages(family, small_data, eval_flags, "int8_eager", TRAIN_FLAGS)
    folder = run_folder(run)
    counted = json.loads((folder / "census.json").read_text())
    assert counted["linear"]["float"] == 0 and counted["embedding"] == {"integer": 2, "float": 0}
    assert counted["linear"]["integer"] == {"albert": 15}.get(family[0], 14)
    results = json.loads((folder / "results.json").read_text())
    assert results["files"]["INT8"]["all_against_simulation"]["median_logit_difference"] < 1e-3
    assert_padding_changes_nothing(folder, "model_qat.onnx")
    done = run_stage_script("pack.py", "--run", run, "--dist", tmp_path, "--force", folder="deploy")
    assert done.returncode == 0, done.stderr
    packed = json.loads((tmp_path / run / "preprocessing.json").read_text())
    assert packed["pad_id"] == AutoTokenizer.from_pretrained(family[1]).pad_token_id
    assert packed["inputs"] == ["input_ids", "attention_mask"]


@OTHERS
def test_int8_learned(family, small_data, eval_flags):
    """All four stages, or one sentence where layers are shared: one range does not fit several inputs."""
    learned = ("--activation-ranges", "learned")
    if family[0] == "albert":
        refused = run_stage_script(TRAIN, "--run", new_run(), "--model-name", family[1], "--data-dir", small_data,
                                   *TRAIN_FLAGS, *learned)
        assert refused.returncode == 2
        assert "uses a Linear layer several times" in refused.error
        assert "--activation-ranges dynamic" in refused.error
        return
    folder = run_folder(run_stages(family, small_data, eval_flags, "int8_eager", (*TRAIN_FLAGS, *learned), learned))
    counted = json.loads((folder / "census.json").read_text())
    assert counted["linear"] == {"integer": 14, "float": 0} and counted["attention"] == {"integer": 4, "float": 0}
    results = json.loads((folder / "results.json").read_text())["files"]["INT8"]
    assert results["all_against_simulation"]["median_logit_difference"] < 1e-3
    assert results["batch_dependence"]["max_logit_difference"] == 0


@OTHERS
def test_fp16(family, small_data, eval_flags):
    folder = run_folder(run_stages(family, small_data, eval_flags, "fp16_eager", TRAIN_FLAGS,
                                   ("--data-dir", small_data)))
    results = json.loads((folder / "results.json").read_text())["files"]["FP16"]
    assert results["all_against_simulation"]["max_logit_difference"] < 0.01
    assert_padding_changes_nothing(folder, "model_qat.onnx")


@pytest.mark.parametrize("tokens, status", [(LONGEST, 0), (LONGEST + 1, 2)])
def test_longest_input_is_what_the_encoder_reads(family, small_data, tokens, status):
    """XLM-R's table has two rows more than it can read: positions are counted from the padding id on."""
    done = run_stage_script(TRAIN, "--run", new_run(), "--model-name", family[1], "--data-dir", small_data,
                            *TRAIN_FLAGS, "--max-length", tokens)
    assert done.returncode == status
    if status:
        assert f"MAX_LENGTH is {tokens}; {family[1]} reads at most {LONGEST} tokens" in done.error


def test_pairs(family, small_data, tmp_path):
    """Pairs go through: told apart by token types, or between two </s> where the tokenizer knows one type."""
    for split in ("train", "valid", "test"):
        rows = read_plain_rows(split, small_data)
        (tmp_path / f"{split}.tsv").write_text("".join(
            f"{text}\t{other}\t{label}\n" for (text, label), (other, _) in zip(rows, rows[::-1], strict=True)))
    (tmp_path / "task.json").write_text(json.dumps({
        "texts": ["text", "reply"], "labels": ["positive", "neutral", "negative"], "score": "macro_f1"}))
    run = run_stages(family, tmp_path, (), "int8_eager", TRAIN_FLAGS)  # stage 3 compares the file with the simulation
    inputs = json.loads((run_folder(run) / "preprocessing.json").read_text())["inputs"]
    types = [] if family[0] == "xlm-roberta" else ["token_type_ids"]  # as many as its configuration has
    assert inputs == ["input_ids", "attention_mask", *types]
    row = load_reader(run_folder(run)).rows([("enak", "kotor")])[0]
    apart = AutoTokenizer.from_pretrained(run_folder(run)).decode(row["input_ids"]).replace(" ", "")
    assert ("[SEP]" if family[0] == "albert" else "</s></s>") in apart
    # SentencePiece's encoders were pretrained on type 0 alone
    assert set(row.get("token_type_ids", [0])) == ({0, 1} if family[0] == "albert" else {0})
    session = ort.InferenceSession(run_folder(run) / "model_qat_int8.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == inputs
