"""The last layer for the first token alone: the same logits and gradients, and only where the head reads no other."""

import copy

import numpy as np
import pytest
import torch
from conftest import read_plain_rows, real_data
from stage_runs import TRAIN, new_run, run_folder, run_stage_script
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.bert.modeling_bert import BertSelfAttention

from lowbit.data.task import SENTIMENT
from lowbit.data.tokens import load_reader
from lowbit.graph.export import export
from lowbit.measure.session import Session
from lowbit.pipeline.files import ROOT
from lowbit.training.encoder import BUNDLED, load_pretrained, load_run
from lowbit.training.first_token import choose_first_token_only, read_first_token_only

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "initializer_range": 0.2, "num_labels": 3}
BERTS_KIND = ("bert", "roberta", "xlm-roberta", "electra", "camembert")


def make(family: str, **more) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **SIZES | more)).eval()


def batch(padding: int = 3) -> dict:
    ids = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1::2, 12 - padding:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", BERTS_KIND)
def test_logits_and_gradients_stay(family, attention):
    """With padding, and to the weights of every layer."""
    whole = make(family)
    whole.set_attn_implementation(attention)
    first = copy.deepcopy(whole)
    choose_first_token_only(first, True)
    assert first.config.first_token_only
    for model in (whole, first):
        model(**batch(), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
    torch.testing.assert_close(first(**batch()).logits, whole(**batch()).logits, rtol=0, atol=1e-5)
    for (name, ours), theirs in zip(first.named_parameters(), whole.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_other_tokens_are_not_computed():
    """Of the last layer: one row through everything behind keys and values, all of them through these."""
    model = make("bert")
    read_first_token_only(model)
    seen = {}
    for name, module in model.bert.encoder.layer.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].shape[1]}))
    model(**batch())
    last = {name.removeprefix("1."): rows for name, rows in seen.items() if name.startswith("1.")}
    assert last == {"attention.self.query": 1, "attention.self.key": 12, "attention.self.value": 12,
                    "attention.output.dense": 1, "intermediate.dense": 1, "output.dense": 1}
    assert {rows for name, rows in seen.items() if name.startswith("0.")} == {12}


class MeanHead(nn.Module):
    """A pooler that reads every token."""

    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def forward(self, hidden_states):
        return self.dense(hidden_states.mean(1))


class LastTokenHead(MeanHead):
    """A pooler that looks for a token that is not computed."""

    def forward(self, hidden_states):
        return self.dense(hidden_states[:, 4])


class ScaledAttention(BertSelfAttention):
    """An attention of BERT's parts that computes otherwise: to compute it as BERT's would change what it says."""

    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(2 * hidden_states, *args, **kwargs)


@pytest.mark.parametrize("kind", [MeanHead, LastTokenHead, ScaledAttention])
def test_model_that_computes_otherwise_is_left_alone(kind, capsys):
    model = make("bert")
    if kind is ScaledAttention:
        model.bert.encoder.layer[-1].attention.self.__class__ = kind
    else:
        model.bert.pooler = kind(model.bert.pooler.dense)
    before = model(**batch()).logits
    choose_first_token_only(model, True)
    assert not model.config.first_token_only
    assert "computed for every token" in capsys.readouterr().out
    torch.testing.assert_close(model(**batch()).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("family, sizes", [
    ("albert", {"embedding_size": 16}), ("deberta-v2", {}), ("roformer", {"embedding_size": 32}), ("megatron-bert", {}),
    ("mobilebert", {}), ("bert", {"chunk_size_feed_forward": 4}),
    ("distilbert", {"dim": 32, "n_heads": 2, "n_layers": 2, "hidden_dim": 64})])
def test_other_layers_are_left_alone(family, sizes, capsys):
    """Shared layers, and those built otherwise: a line says so, and nothing changes."""
    model = make(family, **sizes)
    before = model(**batch()).logits
    choose_first_token_only(model, True)
    assert not model.config.first_token_only
    assert "computed for every token" in capsys.readouterr().out
    torch.testing.assert_close(model(**batch()).logits, before, rtol=0, atol=0)


def test_choosing_draws_no_random_numbers():
    """Training goes on with the numbers that the seed gives, and in the mode that it was in."""
    model = make("bert").train()
    torch.manual_seed(3)
    choose_first_token_only(model, True)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert drawn == torch.rand(1)
    assert model.training


@pytest.mark.parametrize("flags, wanted", [((), True), (("--no-first-token-only",), False)])
def test_run_remembers_what_was_trained(tiny_model, small_data, flags, wanted):
    """Later stages compute as training did: it stands in the run's configuration."""
    run = new_run()
    done = run_stage_script(TRAIN, "--run", run, "--model-name", tiny_model, "--data-dir", small_data,
                            "--num-epochs", 1, *flags)
    assert done.returncode == 0, done.stderr
    model = load_run(run_folder(run))
    assert model.config.first_token_only == wanted
    rows = []
    dense = model.bert.encoder.layer[-1].output.dense
    dense.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    model(input_ids=torch.ones((1, 7), dtype=torch.long))
    assert rows == [1 if wanted else 7]


@real_data
def test_exported_files_agree_on_smsa(tmp_path):
    """The bundled model, whole and cut, on all of valid and test: no label differs, no logit by more than 1e-5."""
    rows = load_reader(ROOT / BUNDLED).rows([text for split in ("valid", "test") for text, _ in read_plain_rows(split)])
    order, logits = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"])), []
    for wanted in (False, True):
        model, _ = load_pretrained(BUNDLED, "", SENTIMENT)
        model.set_attn_implementation("eager")
        choose_first_token_only(model.eval(), wanted)
        assert model.config.first_token_only == wanted
        export(model, tmp_path / "model.onnx", 17)
        with Session(tmp_path / "model.onnx", "CPUExecutionProvider", 1) as session:
            logits.append(session.logits(rows, 0, 16, order))
    assert len(logits[0]) == 1760
    assert (logits[0].argmax(1) == logits[1].argmax(1)).all()
    assert np.abs(logits[0] - logits[1]).max() <= 1e-5
