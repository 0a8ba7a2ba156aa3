"""What happens inside a BERT while it reads: embeddings, states, queries, keys and values of each layer, by hooks.

    scores[l] = q_l k_l^T / sqrt(d)          attention before the softmax, [batch, heads, seq, seq]

`output_attentions` gives probabilities only, and only of the slow attention; the hooks leave the fast one in place.
"""

import torch
from torch import nn

from lowbit.pipeline.errors import UserError

PARTS = ("query", "key", "value")


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of BERT's kind, first to last; raises UserError for a model that is built otherwise."""
    layers = list(getattr(getattr(model.base_model, "encoder", None), "layer", []))
    known = layers and all(hasattr(getattr(layer.attention, "self", None), part) for layer in layers for part in PARTS)
    if not known or not hasattr(model.base_model, "embeddings") or len(set(map(id, layers))) < len(layers):
        raise UserError(f"{type(model).__name__} is not built of layers as BERT is, each with weights of its own: "
                        "choose a BERT or RoBERTa")
    return layers


class Inside:
    """Hooks on a model. After each forward pass `embeddings` [batch, seq, width], `hidden` (one a layer), and `parts`.

    `parts[name][layer]` are query, key and value [batch, heads, seq, head width]. A model that computes its last layer
    for the first token alone gives that layer's query and hidden state [batch, …, 1, …].
    """

    def __init__(self, model: nn.Module):
        layers = layers_of(model)
        self.heads = model.config.num_attention_heads
        self.embeddings: torch.Tensor | None = None
        self.hidden: list = [None] * len(layers)
        self.parts: dict[str, list] = {part: [None] * len(layers) for part in PARTS}
        self.handles = [model.base_model.embeddings.register_forward_hook(self._note_embeddings)]
        for number, layer in enumerate(layers):
            self.handles.append(layer.register_forward_hook(self._noting(self.hidden, number)))
            self.handles += [getattr(layer.attention.self, part).register_forward_hook(
                self._noting(self.parts[part], number)) for part in PARTS]

    def _note_embeddings(self, module, inputs, output):
        self.embeddings = output

    @staticmethod
    def _noting(places: list, number: int):
        def note(module, inputs, output):
            places[number] = output[0] if isinstance(output, tuple) else output
        return note

    def by_head(self, part: str, layer: int, heads: int = 0) -> torch.Tensor:
        """Query, key or value of a layer in FP32 [batch, heads, seq, width / heads]; `heads` or the model's own."""
        x = self.parts[part][layer].float()
        return x.reshape(*x.shape[:-1], heads or self.heads, -1).transpose(1, 2)

    def scores(self, layer: int) -> torch.Tensor:
        """Attention of a layer before mask and softmax, in FP32 [batch, heads, seq, seq]."""
        query, key = self.by_head("query", layer), self.by_head("key", layer)
        return query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5

    def remove(self) -> None:
        """Take the hooks away, and forget what they saw."""
        for handle in self.handles:
            handle.remove()
        self.hidden.clear()
        self.parts.clear()
        self.embeddings = None
