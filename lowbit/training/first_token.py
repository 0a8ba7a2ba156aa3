"""The last layer for the first token alone: the classifier reads no other.

    key, value = W_k x, W_v x                of every token, [batch, seq, width]
    query, residual = W_q x[:, :1], x[:, :1]     and so all that follows: attention's output, feed-forward, LayerNorms

Logits stay what they were; 10/12 of the layer's products are saved. Ranges of activations are those of what is used.
"""

import copy
from types import MethodType

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import eager_attention_forward

TOLERANCE = 1e-4  # largest logit difference, over the largest logit, that is rounding


def _attend_from_first(self, hidden_states, attention_mask=None, past_key_values=None, **kwargs):
    """A self-attention's forward: [batch, seq, width] -> ([batch, 1, width], probabilities)."""
    query, key, value = (
        linear(x).view(*x.shape[:-1], -1, self.attention_head_size).transpose(1, 2)
        for linear, x in ((self.query, hidden_states[:, :1]), (self.key, hidden_states), (self.value, hidden_states)))
    attend = AttentionInterface().get_interface(self.config._attn_implementation, eager_attention_forward)
    context, probabilities = attend(
        self, query, key, value, None if attention_mask is None else attention_mask[:, :, :1],
        dropout=self.dropout.p if self.training else 0.0, scaling=self.scaling, **kwargs)
    return context.reshape(*context.shape[:-2], -1), probabilities


def _first_residual(module, inputs):
    hidden_states, residual = inputs
    return hidden_states, residual[:, :1]


def last_attention(model: nn.Module) -> nn.Module | None:
    """The attention of the last layer, None if that layer is not one of its own and built as BERT's."""
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", [None])
    attention = getattr(layers[-1], "attention", None)
    parts = ("query", "key", "value", "scaling", "attention_head_size")
    known = all(hasattr(getattr(attention, "self", None), part) for part in parts) and hasattr(attention, "output")
    return attention if known else None


def read_first_token_only(model: nn.Module) -> None:
    """Compute the last layer for the first token alone, in place; the layer must be built as BERT's."""
    attention = last_attention(model)
    attention.self.forward = MethodType(_attend_from_first, attention.self)
    attention.output.register_forward_pre_hook(_first_residual)


@torch.no_grad()
def changes_no_logit(model: nn.Module) -> bool:
    """Whether logits stay what they are: compared on two texts, one of them padded."""
    cut = copy.deepcopy(model).eval()
    read_first_token_only(cut)
    was_training = model.training
    ids = torch.arange(16, device=model.device).reshape(2, 8) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    whole = model.eval()(input_ids=ids, attention_mask=mask).logits
    model.train(was_training)
    try:
        logits = cut(input_ids=ids, attention_mask=mask).logits
    except (IndexError, RuntimeError, TypeError, ValueError):  # it asks for other tokens, or of its parts otherwise
        return False
    return logits.shape == whole.shape and bool((logits - whole).abs().max() <= TOLERANCE * whole.abs().max())


def choose_first_token_only(model: nn.Module, wanted: bool) -> None:
    """Do so if it is wanted and changes no logit, and note in the model's configuration what was done.

    Where it would change one, a line says so, and every token is computed.
    """
    holds = wanted and last_attention(model) is not None and changes_no_logit(model)
    if holds:
        read_first_token_only(model)
    elif wanted:
        print(f"  the last layer is computed for every token: {type(model).__name__} reads more than the first, "
              "or its last layer is not built as BERT's")
    model.config.first_token_only = holds
