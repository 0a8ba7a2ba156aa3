"""Fake-quantization with the arithmetic that ONNX Runtime's dynamic INT8 file executes.

    w_int = round(w / w_scale);  w_scale = max|w| / 127                       int8, per tensor or per output channel
    x_int = clamp(round(x / x_scale) + zero_point, 0, 255)                    uint8, of the whole tensor at run time
    x_scale = (max(x, 0) - min(x, 0)) / 255;  zero_point = round(-min(x, 0) / x_scale)
    y = ((x_int - zero_point) @ w_int.T) * (x_scale * w_scale) + bias

The range of x is that of the ONNX operator DynamicQuantizeLinear (opset 11). The product is taken of the *integers* and
scaled once, as MatMulInteger does: sums up to 2**24 are exact in FP32, and operands of 8 bits are exact in BF16, so
autocast changes nothing about them. Embedding tables are uint8 by the formula of x, with a range of their own.
Gradients pass rounding unchanged (straight-through, Bengio et al. 2013, arXiv:1308.3432).
"""

import torch
from torch import nn

from lowbit.training.integer_linear import IntegerLinear, dynamic_range, to_integers
from lowbit.training.straight_through import StraightThrough


def weight_scale(weight: torch.Tensor, per_channel: bool, reduce_range: bool) -> torch.Tensor:
    """Symmetric int8 scale of a weight [out, in]: a scalar, or [out, 1] per channel; 7 bits if reduce_range.

    Rounded once from double precision and 1 for an all-zero weight, as onnxruntime.quantization does.
    """
    low, high = torch.aminmax(weight.detach(), **({"dim": 1, "keepdim": True} if per_channel else {}))
    top = torch.maximum(-low, high)
    scale = (2 * top.double() / (128 if reduce_range else 254)).to(weight.dtype)
    return torch.where(scale < torch.finfo(weight.dtype).tiny, torch.ones_like(scale), scale)


def embedding_range(table: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(scale, zero_point) of a uint8 embedding table, whole tensor, range widened to hold zero."""
    low, high = (edge.double() for edge in torch.aminmax(table.detach()))
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    if scale < torch.finfo(table.dtype).tiny:
        return torch.ones((), dtype=table.dtype, device=table.device), 0
    return scale.to(table.dtype), int((-low / scale).round())


class DynamicQuantLinear(nn.Linear):
    """nn.Linear computing on int8 weights and dynamically ranged uint8 inputs; same parameters, same names."""

    per_channel = False
    reduce_range = False

    def forward(self, x):
        scale = weight_scale(self.weight, self.per_channel, self.reduce_range)
        integers = to_integers(self.weight.detach(), scale)  # |weight| <= bound * scale: nothing to clamp
        return IntegerLinear.apply(x, StraightThrough.apply(self.weight, integers), self.bias,
                                   *dynamic_range(x.float()), scale)

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores: the int8 weight [out, in]."""
        scale = weight_scale(self.weight, self.per_channel, self.reduce_range)
        return {"weight.integers": to_integers(self.weight, scale).to(torch.int8)}


class QuantEmbedding(nn.Embedding):
    """nn.Embedding reading from a uint8 table; only the rows looked up are rounded."""

    def forward(self, ids):
        scale, zero_point = embedding_range(self.weight)
        rows = super().forward(ids)
        rounded = to_integers(rows.detach(), scale, -zero_point, 255 - zero_point) * scale
        return StraightThrough.apply(rows, rounded)

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores: the uint8 table [rows, width]."""
        scale, zero_point = embedding_range(self.weight)
        integers = to_integers(self.weight, scale, -zero_point, 255 - zero_point) + zero_point
        return {"weight.integers": integers.to(torch.uint8)}


def simulate(model: nn.Module, per_channel: bool, quantize_embeddings: bool, reduce_range: bool) -> nn.Module:
    """Give every nn.Linear (and nn.Embedding) of `model` its fake-quantized forward, in place; returns `model`.

    Parameters, buffers and state-dict keys stay those of the FP32 model: there is nothing to convert or strip.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = DynamicQuantLinear
            module.per_channel, module.reduce_range = per_channel, reduce_range
        elif type(module) is nn.Embedding and quantize_embeddings:
            module.__class__ = QuantEmbedding
    return model
