"""A student that is inside as its teacher is: layer maps, losses, what is cut out, which words are replaced."""

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from transformers import BertConfig, BertForSequenceClassification

from lowbit.data.tokens import pad
from lowbit.distill.augment import augmented, neighbours, starts
from lowbit.distill.cut import check_fits, cut, most, used
from lowbit.distill.inside import Inside
from lowbit.distill.losses import (
    attention_loss,
    embedding_loss,
    hidden_loss,
    read_losses,
    read_map,
    relation_loss,
    uniform_map,
)
from lowbit.pipeline.errors import UserError
from lowbit.training.first_token import read_first_token_only

ROWS = [{"input_ids": [2, 5, 9, 7, 3]}, {"input_ids": [2, 11, 3]}]


def bert(layers=3, hidden=24, heads=4, intermediate=40, labels=3, seed=0) -> BertForSequenceClassification:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(
            vocab_size=20, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=intermediate, num_labels=labels, initializer_range=0.3,
            max_position_embeddings=16)).eval()


def batch(length: int = 0) -> dict:
    return {name: torch.from_numpy(value) for name, value in pad(ROWS, 0, length).items()}


def seen(model, length: int = 0) -> tuple[Inside, torch.Tensor]:
    """What the hooks saw of ROWS, and the mask."""
    inside, inputs = Inside(model), batch(length)
    with torch.no_grad():
        model(**inputs)
    return inside, inputs["attention_mask"]


# ---- which layer follows which


def test_layer_maps_of_the_paper_and_of_six_layers():
    """g(m) = 3m from 12 to 4 as in the paper; 6 to 4, which it refuses, rounds halves up."""
    assert uniform_map(4, 12) == [3, 6, 9, 12]
    assert uniform_map(4, 6) == [2, 3, 5, 6]
    assert uniform_map(6, 6) == [1, 2, 3, 4, 5, 6]
    assert read_map("", 4, 6) == [2, 3, 5, 6] and read_map("1, 2,4,6", 4, 6) == [1, 2, 4, 6]


@given(st.integers(1, 24), st.integers(1, 24))
def test_a_map_is_the_rounded_formula(student, teacher):
    wanted = [int(np.floor(m * teacher / student + 0.5)) for m in range(1, student + 1)]
    assert uniform_map(student, teacher) == wanted
    assert wanted[-1] == teacher


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,7", "0,1,2,3", "a,b,c,d"])
def test_a_layer_that_is_not_there(text):
    with pytest.raises(UserError, match="LAYER_MAP"):
        read_map(text, 4, 6)


def test_loss_names():
    assert read_losses(" logits, hidden") == ["hidden", "logits"]
    for text in ("", "hiden"):
        with pytest.raises(UserError, match="choose from embedding, hidden, attention, relation, logits, labels"):
            read_losses(text)


# ---- inside


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_scores_are_attention_before_the_softmax(attention):
    """The softmax of what the hooks give is what the model itself says of its attention."""
    model = bert()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        wanted = model(**batch(), output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation(attention)
    inside, mask = seen(model)
    for layer in range(3):
        scores = inside.scores(layer).masked_fill(mask[:, None, None, :] == 0, -1e9)
        assert torch.allclose(scores.softmax(-1), wanted.attentions[layer], atol=1e-6)
        assert torch.allclose(inside.hidden[layer], wanted.hidden_states[layer + 1], atol=1e-5)
    assert torch.equal(inside.embeddings, wanted.hidden_states[0])


def test_hooks_go_away():
    model = bert()
    inside, _ = seen(model)
    inside.remove()
    assert not any(module._forward_hooks for module in model.modules())


# ---- losses


def fits(wide: int = 24, narrow: int = 16) -> torch.nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Linear(narrow, wide, bias=False)


def test_losses_by_hand():
    """Against numpy, token by token, over the 8 real ones of 10."""
    teacher, student, fit = bert(), bert(2, 16, 4, 20, seed=3), fits()
    (theirs, mask), (ours, _) = seen(teacher), seen(student)
    weight, layer_map = fit.weight.detach().numpy(), [2, 3]
    real = [(i, j) for i, row in enumerate(ROWS) for j in range(len(row["input_ids"]))]

    def gap(a, b):
        return np.mean([((a[i, j].numpy() @ weight.T - b[i, j].numpy()) ** 2).mean() for i, j in real])

    with torch.no_grad():
        found = [embedding_loss(ours, theirs, fit, mask), hidden_loss(ours, theirs, fit, mask, layer_map),
                 attention_loss(ours, theirs, mask, layer_map), relation_loss(ours, theirs, mask, 8)]
    assert found[0] == pytest.approx(gap(ours.embeddings, theirs.embeddings), rel=1e-4)
    assert found[1] == pytest.approx(sum(gap(ours.hidden[m], theirs.hidden[g - 1]) for m, g in enumerate(layer_map)),
                                     rel=1e-4)
    pairs = [((ours.scores(m)[i, :, :n, :n] - theirs.scores(g - 1)[i, :, :n, :n]) ** 2).numpy().ravel()
             for m, g in enumerate(layer_map) for i, n in ((0, 5), (1, 3))]
    attention = sum(np.concatenate(pairs[2 * m : 2 * m + 2]).mean() for m in range(2))
    assert found[2] == pytest.approx(attention, rel=1e-4)
    relation = 0.0
    for part in ("query", "key", "value"):
        tokens = []
        for i, n in ((0, 5), (1, 3)):
            said = []
            for inside in (ours, theirs):
                x = inside.by_head(part, len(inside.hidden) - 1, 8)[i, :, :n].numpy().astype(np.float64)
                said.append(softmax(x @ x.transpose(0, 2, 1) / np.sqrt(x.shape[-1]), axis=-1))
            tokens.append(rel_entr(said[1], said[0]).sum(-1).ravel())
        relation += np.concatenate(tokens).mean()
    assert found[3] == pytest.approx(relation, rel=1e-4)


def test_padding_changes_no_loss():
    """The same texts padded to 5 and to 12 tokens."""
    values = []
    for length in (0, 12):
        (theirs, mask), (ours, _) = seen(bert(), length), seen(bert(2, 16, 4, 20, seed=3), length)
        with torch.no_grad():
            values.append([float(loss) for loss in (
                embedding_loss(ours, theirs, fits(), mask), hidden_loss(ours, theirs, fits(), mask, [2, 3]),
                attention_loss(ours, theirs, mask, [2, 3]), relation_loss(ours, theirs, mask, 8))])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_a_model_follows_itself_without_loss():
    (theirs, mask), (ours, _) = seen(bert()), seen(bert())
    same = torch.nn.Identity()
    with torch.no_grad():
        assert max(float(loss) for loss in (
            embedding_loss(ours, theirs, same, mask), hidden_loss(ours, theirs, same, mask, [1, 2, 3]),
            attention_loss(ours, theirs, mask, [1, 2, 3]), relation_loss(ours, theirs, mask, 8))) < 1e-6


def test_a_last_layer_of_one_token_is_compared_by_it_alone():
    """A student that computes its last layer for [CLS]: losses are those of the first token there."""
    whole, first = bert(), bert()
    read_first_token_only(first)
    (theirs, mask), (ours, _) = seen(bert(seed=5)), seen(first)
    (full, _) = seen(whole)
    with torch.no_grad():
        found = hidden_loss(ours, theirs, torch.nn.Identity(), mask, [1, 2, 3])
        parts = [hidden_loss(full, theirs, torch.nn.Identity(), mask, [1, 2])] + [
            ((full.hidden[2][:, 0] - theirs.hidden[2][:, 0]) ** 2).mean()]
        assert float(found) == pytest.approx(float(sum(parts)), rel=1e-4)
        assert torch.isfinite(attention_loss(ours, theirs, mask, [1, 2, 3]))


# ---- cutting


def test_a_cut_of_everything_is_the_teacher():
    """All layers, channels, heads and neurons kept: the same logits."""
    teacher, student = bert(), bert(seed=9)
    kept = cut(teacher, student, used(teacher, ROWS, [0, 2], 0), [1, 2, 3])
    assert kept == {"channels": list(range(24)), "layers": [1, 2, 3], "heads": [[0, 1, 2, 3]] * 3}
    with torch.no_grad():
        assert torch.allclose(student(**batch()).logits, teacher(**batch()).logits, atol=1e-6)


def test_what_is_not_used_can_go():
    """A teacher with dead channels, heads and neurons: the cut finds the live ones, and loses no logit."""
    teacher = bert(layers=2)
    live, neurons = [1, 4, 5, 8, 9, 12, 13, 17, 18, 20, 22, 23], [*range(0, 40, 2)]
    head_rows = [*range(6, 12), *range(18, 24)]
    dead = [i for i in range(24) if i not in live]
    with torch.no_grad():
        for norm in [teacher.bert.embeddings.LayerNorm, *(part for layer in teacher.bert.encoder.layer for part in (
                layer.attention.output.LayerNorm, layer.output.LayerNorm))]:
            norm.weight[dead], norm.bias[dead] = 0.0, 0.0
        for layer in teacher.bert.encoder.layer:
            unused = [i for i in range(24) if i not in head_rows]
            layer.attention.self.value.weight[unused], layer.attention.self.value.bias[unused] = 0.0, 0.0
            layer.attention.output.dense.weight[:, unused] = 0.0
            layer.output.dense.weight[:, [i for i in range(40) if i not in neurons]] = 0.0
    student = bert(2, 12, 2, 20, seed=9)
    kept = cut(teacher, student, used(teacher, ROWS, [0, 2], 0), [1, 2])
    assert kept["channels"] == live
    assert kept["heads"] == [[1, 3], [1, 3]]
    layer = student.bert.encoder.layer[1]
    assert torch.equal(layer.intermediate.dense.weight,
                       teacher.bert.encoder.layer[1].intermediate.dense.weight[neurons][:, live])
    assert torch.equal(layer.attention.output.dense.weight,
                       teacher.bert.encoder.layer[1].attention.output.dense.weight[live][:, head_rows])


def test_a_narrower_head_keeps_the_size_of_its_scores():
    """Queries and keys whose dropped parts are zero: the scores stay what they were."""
    teacher = bert(layers=1)
    with torch.no_grad():
        for part in ("query", "key"):
            linear = getattr(teacher.bert.encoder.layer[0].attention.self, part)
            for row in (4, 5, 10, 11, 16, 17, 22, 23):
                linear.weight[row], linear.bias[row] = 0.0, 0.0
    use = used(teacher, ROWS, [0, 2], 0)
    student = bert(1, 16, 4, 40, seed=9)
    kept = cut(teacher, student, use, [1])["channels"]
    x = torch.zeros(1, 3, 24)
    x[..., kept] = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))

    def scores(model, states, width):
        attention = model.bert.encoder.layer[0].attention.self
        query, key = (getattr(attention, part)(states).reshape(1, 3, 4, width).transpose(1, 2)
                      for part in ("query", "key"))
        return query @ key.transpose(-1, -2) / width**0.5

    with torch.no_grad():
        assert torch.allclose(scores(student, x[..., kept], 4), scores(teacher, x, 6), atol=1e-5)


def test_use_leaves_the_model_as_it_was():
    teacher = bert().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    use = used(teacher, ROWS, [0, 2], 0)
    assert teacher.training and not any(module._forward_hooks for module in teacher.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert use.channels.min() > 0 and use.neurons.shape == (3, 40) and use.scores.shape == (3, 4, 6)


def test_a_number_has_uses_too():
    assert used(bert(labels=1), ROWS, [0.5, 4.0], 0).channels.min() > 0


def test_most_keeps_the_order():
    assert most(torch.tensor([1.0, 9.0, 3.0, 7.0]), 2).tolist() == [1, 3]


@pytest.mark.parametrize("sizes, name", [((4, 24, 4, 40), "LAYERS"), ((3, 32, 4, 40), "HIDDEN"),
                                         ((3, 24, 8, 40), "HEADS"), ((3, 24, 4, 41), "INTERMEDIATE"),
                                         ((3, 24, 2, 40), "HIDDEN / HEADS")])
def test_what_cannot_be_cut(sizes, name):
    with pytest.raises(UserError, match=f"^{name} is"):
        check_fits(bert().config, *sizes)


# ---- words


def test_only_whole_words_are_replaced_by_near_ones():
    tokenizer = tiny_tokenizer()
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    start, continues = starts(pieces)
    words = np.flatnonzero(start)
    teacher = bert()
    table = torch.randn(len(pieces), 8, generator=torch.Generator().manual_seed(0))
    teacher.bert.embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(table)
    rows = [tokenizer(text)["input_ids"] for text in ("saya sangat suka", "xqzw saya!", "tidak")]
    train = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows],
                               "labels": [0, 1, 2]})
    more = augmented(train, teacher, tokenizer, 3, 1.0, 0)
    assert more["labels"] == [0, 1, 2] * 4 and more["input_ids"][:3] == rows
    near = neighbours(table, words, words)
    changed = 0
    for number, ids in enumerate(more["input_ids"][3:]):
        old = rows[number % 3]
        for place, (before, after) in enumerate(zip(old, ids, strict=True)):
            whole = start[before] and not continues[old[place + 1]] if place + 1 < len(old) else False
            assert (before != after) == bool(whole)
            changed += before != after
            assert before == after or after in near[before]
    assert changed > 6
    assert augmented(train, teacher, tokenizer, 3, 1.0, 0)["input_ids"] == more["input_ids"]


def test_neighbours_are_the_nearest_by_cosine():
    table = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    words = np.arange(10, 50)
    found = neighbours(table, words, np.array([12, 3]))
    unit = table.numpy() / np.linalg.norm(table.numpy(), axis=1, keepdims=True)
    for id_ in (12, 3):
        ranked = [i for i in words[np.argsort(-(unit[words] @ unit[id_]))] if i != id_][:15]
        assert found[id_].tolist() == ranked
