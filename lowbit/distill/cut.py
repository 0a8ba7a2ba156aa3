"""A smaller BERT cut out of a trained one: its most-used channels, heads and neurons, in every n-th layer.

    use[i] = sum over tokens of |x[i] * dL/dx[i]|          of a channel, a neuron, a part of a query, key or value

L is the teacher's own loss on labelled texts (Molchanov et al. 2017, arXiv:1611.06440, eq. 8). What is kept keeps its
order. Channels are selected and not rotated: a LayerNorm does not commute with a rotation. Chen et al. 2021,
arXiv:2104.11928 (Extract-then-Distill). A narrower head's query is multiplied by sqrt(its width / the old width), so
that its scores stay those of the parts that are kept.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertForSequenceClassification

from lowbit.data.tokens import Row, batches, pad
from lowbit.distill.inside import PARTS, Inside, layers_of
from lowbit.pipeline.settings import check

BATCH_SIZE = 16  # texts


@dataclass
class Use:
    """How much of a loss goes through each part of a model: channels [width], and, a row a layer, of the others.

    `scores` [layers, heads, head width] are query and key together, `values` the same of the value, `neurons`
    [layers, intermediate width].
    """

    channels: torch.Tensor
    scores: torch.Tensor
    values: torch.Tensor
    neurons: torch.Tensor


def used(model: nn.Module, rows: list[Row], answers: list, pad_id: int) -> Use:
    """The Use of a model's parts over labelled token rows; the model is left as it was."""
    config, layers, neurons = model.config, layers_of(model), {}
    shape = (len(layers), config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    found = Use(torch.zeros(config.hidden_size), torch.zeros(shape), torch.zeros(shape),
                torch.zeros(len(layers), config.intermediate_size))
    inside = Inside(model)
    handles = [layer.intermediate.register_forward_hook(
        lambda module, inputs, output, number=number: neurons.update({number: output}))
        for number, layer in enumerate(layers)]
    was_training = model.training
    model.eval()
    for batch in batches(rows, BATCH_SIZE, sort=True):
        given = {name: torch.from_numpy(value) for name, value in pad([rows[i] for i in batch], pad_id).items()}
        labels = torch.tensor([answers[i] for i in batch])
        with torch.enable_grad():
            loss = model(**given, labels=labels if model.config.num_labels > 1 else labels.float()).loss
            states = [inside.embeddings, *inside.hidden]
            seen = [*states, *(x for part in PARTS for x in inside.parts[part]), *neurons.values()]
            gradients = torch.autograd.grad(loss * len(batch), seen)
        uses = [(x * gradient).detach().abs().flatten(0, -2).sum(0)
                for x, gradient in zip(seen, gradients, strict=True)]
        count = len(layers)
        found.channels += torch.stack(uses[: len(states)]).sum(0)
        query, key, value = (torch.stack(uses[start : start + count]).reshape(shape)
                             for start in range(len(states), len(states) + 3 * count, count))
        found.scores += query + key
        found.values += value
        found.neurons += torch.stack(uses[len(states) + 3 * count:])
    for handle in handles:
        handle.remove()
    inside.remove()
    model.train(was_training)
    return found


def most(use: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the `count` largest, in ascending order."""
    return use.topk(count).indices.sort().values


def check_fits(config, layers: int, hidden: int, heads: int, intermediate: int) -> None:
    """Raises UserError unless a student of these sizes can be cut out of a model of `config`."""
    for name, ours, theirs in (("LAYERS", layers, config.num_hidden_layers), ("HIDDEN", hidden, config.hidden_size),
                               ("HEADS", heads, config.num_attention_heads),
                               ("INTERMEDIATE", intermediate, config.intermediate_size)):
        check(ours <= theirs, f"{name} is {ours}, but the teacher has {theirs}: nothing larger can be cut out of it; "
                              "choose less, or --start random")
    width = config.hidden_size // config.num_attention_heads
    check(hidden // heads <= width, f"HIDDEN / HEADS is {hidden // heads}, but the teacher's heads are {width} wide: "
                                    "choose more HEADS or a smaller HIDDEN, or --start random")


def _linear(target: nn.Linear, source: nn.Linear, rows: torch.Tensor | None, columns: torch.Tensor,
            factor: float = 1.0) -> None:
    """Fill a Linear with the rows (all of them without) and columns of another, times `factor`."""
    weight, bias = source.weight, source.bias
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    target.weight.copy_(factor * weight[:, columns])
    target.bias.copy_(factor * bias)


def _norm(target: nn.LayerNorm, source: nn.LayerNorm, channels: torch.Tensor) -> None:
    target.weight.copy_(source.weight[channels])
    target.bias.copy_(source.bias[channels])


def _rows_of_heads(use: torch.Tensor, heads: torch.Tensor, width: int) -> torch.Tensor:
    """Rows of a query, key or value that are kept: in each kept head its `width` most-used ones."""
    return torch.cat([head * use.shape[1] + most(use[head], width) for head in heads.tolist()])


def cut_layer(target: nn.Module, source: nn.Module, use: Use, number: int, channels: torch.Tensor,
              heads: int) -> list[int]:
    """Fill a student's layer from layer `number` of the teacher; returns the heads that were kept, from 0."""
    width = len(channels) // heads
    kept = most(use.values[number].sum(-1), heads)
    scores = _rows_of_heads(use.scores[number], kept, width)
    values = _rows_of_heads(use.values[number], kept, width)
    ours, theirs = target.attention, source.attention
    _linear(ours.self.query, theirs.self.query, scores, channels, (width / use.scores.shape[-1]) ** 0.5)
    _linear(ours.self.key, theirs.self.key, scores, channels)
    _linear(ours.self.value, theirs.self.value, values, channels)
    _linear(ours.output.dense, theirs.output.dense, channels, values)
    _norm(ours.output.LayerNorm, theirs.output.LayerNorm, channels)
    neurons = most(use.neurons[number], target.intermediate.dense.out_features)
    _linear(target.intermediate.dense, source.intermediate.dense, neurons, channels)
    _linear(target.output.dense, source.output.dense, channels, neurons)
    _norm(target.output.LayerNorm, source.output.LayerNorm, channels)
    return kept.tolist()


@torch.no_grad()
def cut(teacher: BertForSequenceClassification, student: BertForSequenceClassification, use: Use,
        layer_map: list[int]) -> dict:
    """Fill `student` from `teacher`, in place; says which channels, layers (from 1) and heads were kept."""
    channels = most(use.channels, student.config.hidden_size)
    ours, theirs = student.bert.embeddings, teacher.bert.embeddings
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        getattr(ours, table).weight.copy_(getattr(theirs, table).weight[:, channels])
    _norm(ours.LayerNorm, theirs.LayerNorm, channels)
    heads = [cut_layer(layer, teacher.bert.encoder.layer[number - 1], use, number - 1, channels,
                       student.config.num_attention_heads)
             for layer, number in zip(student.bert.encoder.layer, layer_map, strict=True)]
    _linear(student.bert.pooler.dense, teacher.bert.pooler.dense, channels, channels)
    _linear(student.classifier, teacher.classifier, None, channels)
    return {"channels": channels.tolist(), "layers": layer_map, "heads": heads}
