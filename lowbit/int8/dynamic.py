"""Fake-quantization with the arithmetic that ONNX Runtime's dynamic INT8 file executes.

Linear layers: weight int8, symmetric, scale = max|w| / 127 (per tensor, or per output channel); input
uint8, asymmetric, its range measured on the whole tensor at run time and widened to hold zero, as the
ONNX operator DynamicQuantizeLinear (opset 11) defines. The product is taken of the *integers* and scaled
once, as MatMulInteger does: sums up to 2**24 are exact in FP32, and operands of 8 bits are exact in BF16,
so autocast changes nothing about them. Embedding tables: uint8, asymmetric, per tensor, range holding zero.
Gradients pass rounding unchanged (straight-through, Bengio et al. 2013, arXiv:1308.3432).
"""

import torch
from torch import nn

from lowbit.training.straight_through import StraightThrough


def _to_integers(x, scale, low=None, high=None):
    """round(x / scale), half to even, clamped if bounds are given: floats holding integers, zero point removed.

    Divides as ONNX QuantizeLinear does: a product with 1 / scale differs at ties.
    """
    integers = (x / scale).round_()
    return integers if low is None else integers.clamp_(low, high)




def _scaled_product(left, right, scale):
    """(left @ right) * scale for 2-D operands; the matrix kernel scales its sums itself, no further pass over them."""
    return torch.addmm(left.new_zeros(()), left, right, beta=0, alpha=float(scale))


class _IntegerLinear(torch.autograd.Function):
    """x [..., in] and weight [out, in] to integers, their product scaled once, bias [out] added: [..., out].

    One node for autograd: scales go into the products, forward and backward, instead of passes over the tensors.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, scale, zero_point, weight_scale_):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        rows = x.reshape(-1, x.shape[-1]).float()
        x_int = _to_integers(rows, scale, -zero_point, 255 - zero_point).to(dtype)
        weight_int = _to_integers(weight, weight_scale_).to(dtype)  # |weight| <= bound * scale: nothing to clamp
        ctx.save_for_backward(x_int, weight_int, scale, weight_scale_)
        ctx.shape, ctx.has_bias = x.shape, bias is not None
        bias = x_int.new_zeros(()) if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            if weight_scale_.ndim:  # per channel: one factor an output
                y = (x_int @ weight_int.T).mul_(scale * weight_scale_.view(-1)).add_(bias)
            else:
                y = torch.addmm(bias, x_int, weight_int.T, alpha=float(scale * weight_scale_))
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        x_int, weight_int, scale, weight_scale_ = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]).to(weight_int.dtype)
        to_weight = _scaled_product(rows.T, x_int, scale).float()
        to_bias = rows.sum(0, dtype=torch.float32) if ctx.has_bias else None
        if weight_scale_.ndim:
            to_x = (rows * weight_scale_.view(-1)).to(rows.dtype) @ weight_int
        else:
            to_x = _scaled_product(rows, weight_int, weight_scale_)
        return to_x.view(ctx.shape), to_weight, to_bias, None, None, None


def dynamic_range(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero_point) of DynamicQuantizeLinear for a whole tensor: uint8, range widened to hold zero."""
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, (-low / scale).round()


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
        return _IntegerLinear.apply(x, self.weight, self.bias, *dynamic_range(x.float()),
                                    weight_scale(self.weight, self.per_channel, self.reduce_range))

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores: the int8 weight [out, in]."""
        scale = weight_scale(self.weight, self.per_channel, self.reduce_range)
        return {"weight.integers": _to_integers(self.weight, scale).to(torch.int8)}


class QuantEmbedding(nn.Embedding):
    """nn.Embedding reading from a uint8 table; only the rows looked up are rounded."""

    def forward(self, ids):
        scale, zero_point = embedding_range(self.weight)
        rows = super().forward(ids)
        rounded = _to_integers(rows.detach(), scale, -zero_point, 255 - zero_point) * scale
        return StraightThrough.apply(rows, rounded)

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores: the uint8 table [rows, width]."""
        scale, zero_point = embedding_range(self.weight)
        integers = _to_integers(self.weight, scale, -zero_point, 255 - zero_point) + zero_point
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
