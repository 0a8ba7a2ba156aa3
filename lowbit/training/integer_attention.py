"""Attention whose two products multiply 8-bit integers of learned scales: query with key, probabilities with value."""

from types import MethodType

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from lowbit.pipeline.errors import UserError
from lowbit.training.lsq import ActivationQuantizer

ATTENTION = "int8_learned"


def int8_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """Scaled dot-product attention, both products on integers; query, key, value [batch, heads, seq, width].

    Returns ([batch, seq, heads, width], probabilities), as Transformers' attention interface wants them.
    """
    of = module.quantizers
    (query, scale_q), (key, scale_k), (value, scale_v) = of["query"](query), of["key"](key), of["value"](value)
    scores = (query @ key.transpose(2, 3)) * (scale_q * scale_k)
    scores = scores.float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(-1)
    integers, scale_p = of["probabilities"](probabilities)
    dropped = nn.functional.dropout(integers, dropout, module.training)
    context = (dropped @ value) * (scale_p * scale_v)
    return context.transpose(1, 2).contiguous(), probabilities


def _stored_by_attention(module) -> dict[str, torch.Tensor]:
    """What the file stores of an attention's products: scale and zero point of each operand."""
    return {name: tensor for operand, quantizer in module.quantizers.items()
            for name, tensor in quantizer.stored_as(operand).items()}


def simulate_attention(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every attention of `model` a quantizer an operand and both products on integers, in place.

    Raises UserError for an encoder whose attention this cannot simulate.
    """
    for module in list(model.modules()):
        if hasattr(module, "scaling") and hasattr(module, "is_causal"):
            module.quantizers = nn.ModuleDict({name: ActivationQuantizer(dtype)
                                               for name in ("query", "key", "probabilities", "value")})
            module.stored = MethodType(_stored_by_attention, module)
    if not any(hasattr(module, "quantizers") for module in model.modules()):
        raise UserError("QUANTIZE_ATTENTION: this encoder's attention has no scaling that Transformers' attention "
                        "interface passes on; train it with --no-quantize-attention")
    AttentionInterface.register(ATTENTION, int8_attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    model.set_attn_implementation(ATTENTION)
