"""Fake-quantization with activation scales that are learned in training and stored in the file.

    w_int = round(w / w_scale);  w_scale = max|w| / 127                       int8, per tensor or per output channel
    x_int = clamp(round(x / x_scale) + zero_point, low, high)                 x_scale trained, zero_point calibrated
    y = ((x_int - zero_point) @ w_int.T) * (x_scale * w_scale) + bias

Both sides of every matrix product are 8-bit integers, and the product of the integers is scaled once, as the integer
kernels do that runtimes put in place of Q/DQ pairs. Activations have one trained scale a tensor (LSQ: Esser et al.
2020, arXiv:1902.08153): int8 with zero point 0, or uint8 with the zero point that calibration found. Embedding tables
are int8 by the formula of w, per tensor. No range depends on the batch at run time.
"""

import torch
from torch import nn

from lowbit.int8.dynamic import weight_scale
from lowbit.pipeline.errors import UserError
from lowbit.training.integer_attention import simulate_attention
from lowbit.training.lsq import TARGETS, ActivationQuantizer, shared_inputs
from lowbit.training.straight_through import StraightThrough


def _stored_weight(weight: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """A weight or table as int8 with zero point 0; `scale` is a scalar or [out, 1]."""
    flat = scale.flatten() if scale.ndim else scale
    return {"weight.integers": (weight / scale).round().to(torch.int8), "weight.scale": flat,
            "weight.zero_point": torch.zeros(flat.shape, dtype=torch.int8)}


class LearnedQuantLinear(nn.Linear):
    """nn.Linear on int8 weights and 8-bit inputs of a learned scale."""

    def forward(self, x):
        integers, scale = self.quantize(x)
        scale_w = weight_scale(self.weight, self.per_channel, self.reduce_range)
        ratio = self.weight / scale_w
        y = nn.functional.linear(integers, StraightThrough.apply(ratio, ratio.detach().round()))
        y = y * (scale * scale_w.view(-1) if self.per_channel else scale * scale_w)
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores: int8 weight [out, in], its scale (a scalar, or [out] per channel), its input's."""
        scale = weight_scale(self.weight, self.per_channel, self.reduce_range)
        return _stored_weight(self.weight, scale) | self.quantize.stored_as("input")


class SymmetricQuantEmbedding(nn.Embedding):
    """nn.Embedding reading from an int8 table with zero point 0; only the rows looked up are rounded."""

    def forward(self, ids):
        rows, scale = super().forward(ids), weight_scale(self.weight, False, False)
        return StraightThrough.apply(rows, (rows.detach() / scale).round() * scale)

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores: int8 table [rows, width] and its scale."""
        return _stored_weight(self.weight, weight_scale(self.weight, False, False))


def simulate(model: nn.Module, target: str, per_channel: bool, quantize_embeddings: bool, quantize_attention: bool,
             reduce_range: bool) -> nn.Module:
    """Give `model` the arithmetic of the Q/DQ file, in place; returns it. Scales are 1 until calibrated or loaded.

    The state dict gains `….quantizer.scale` and `.zero_point` for the input of each Linear (owned by the first of
    those that share it) and `….quantizers.{query,key,probabilities,value}` for each attention.
    Raises UserError for an unknown target, or an encoder whose layers this cannot simulate.
    """
    if target not in TARGETS:
        raise UserError(f"TARGET is {target!r}; choose {', '.join(TARGETS)}")
    dtype = TARGETS[target]
    for sharing in shared_inputs(model):
        quantizer = sharing[0].quantizer = ActivationQuantizer(dtype)
        for module in sharing:
            module.__class__ = LearnedQuantLinear
            object.__setattr__(module, "quantize", quantizer)  # a reference: the state dict holds each scale once
            module.per_channel, module.reduce_range = per_channel, reduce_range
    for module in list(model.modules()):
        if type(module) is nn.Embedding and quantize_embeddings:
            module.__class__ = SymmetricQuantEmbedding
    if quantize_attention:
        simulate_attention(model, dtype)
    return model
