"""Fake-quantization of convolutional networks, with the arithmetic of the Q/DQ file.

    w_int = clamp(round(w / w_scale), -top, top)      int8, one scale an output channel, w with BatchNorm folded in
    x_int = clamp(round(x / x_scale) + zero_point, low, high)                 one scale a tensor, trained (LSQ)
    y = conv((x_int - zero_point) * x_scale, w_int * w_scale) + bias

At 8 bits w_scale is max|w| / 127 and moves with the weights; with fewer its logarithm is trained, the gradient LSQ's
(Esser et al. 2020, arXiv:1902.08153). BatchNorm is frozen: its statistics are constants, its factor and shift are
trained. For ONNX Runtime the bias is int32 of scale x_scale * w_scale, as its kernel adds it.

The modules write themselves: while torch exports, each gives the Q/DQ operators that it simulates.
"""

import torch
from torch import nn

from lowbit.training.lsq import ActivationQuantizer
from lowbit.training.straight_through import StraightThrough

INT8_BITS = 8
WEIGHT_BITS = (INT8_BITS, 4)
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of max|w|, tried for the first scale of few levels


class _Written(torch.autograd.Function):
    """What the exporter writes of a pair: QuantizeLinear and DequantizeLinear."""

    @staticmethod
    def forward(ctx, x, scale, zero_point):
        return x.clone()

    @staticmethod
    def symbolic(g, x, scale, zero_point):
        integers = g.op("QuantizeLinear", x, scale, zero_point)
        return g.op("DequantizeLinear", integers, scale, zero_point).setType(x.type())


class _WrittenConstant(torch.autograd.Function):
    """What the exporter writes of stored integers [channels, ...]: DequantizeLinear along axis 0."""

    @staticmethod
    def forward(ctx, integers, scale, *zero_point):
        return integers.float() * scale.view(-1, *[1] * (integers.ndim - 1))

    @staticmethod
    def symbolic(g, integers, scale, *zero_point):
        return g.op("DequantizeLinear", integers, scale, *zero_point, axis_i=0).setType(
            integers.type().with_dtype(torch.float32))


class Pair(ActivationQuantizer):
    """A Q/DQ pair: a tensor to its nearest multiples of the scale, same shape."""

    def forward(self, x):
        if torch.onnx.is_in_onnx_export():
            return _Written.apply(x, self.scale, self.zero_point)
        integers, scale = super().forward(x)
        return integers * self.scale if self.enabled else integers

    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores of it."""
        return {"scale": self.scale.detach(), "zero_point": self.zero_point}


class FoldedLayer(nn.Module):
    """A convolution or Linear layer with the frozen BatchNorm behind it as part of its weight and bias.

    `bits` 0 leaves the weight in FP32; `source` is the pair that its input comes from, where its bias is int32.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None = None):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.shape = None if isinstance(layer, nn.Linear) else (
            layer.stride, layer.padding, layer.dilation, layer.groups)
        self.normed, self.bits, self.source = norm is not None, 0, None
        if norm is not None:
            self.norm_weight, self.norm_bias, self.eps = norm.weight, norm.bias, norm.eps
            self.register_buffer("norm_mean", norm.running_mean)
            self.register_buffer("norm_var", norm.running_var)

    def quantize(self, bits: int, source: Pair | None) -> None:
        """Simulate `bits` of weight; with `source` also ONNX Runtime's bias."""
        self.bits = bits
        object.__setattr__(self, "source", source)  # a reference: the state dict holds each scale once
        if bits < INT8_BITS:
            self.log_scale = nn.Parameter(self._best_scale(self.folded()[0].detach()).log())

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(weight, bias) in FP32 with BatchNorm's factor and shift in them."""
        if not self.normed:
            return self.weight, self.bias
        factor = self.norm_weight / (self.norm_var + self.eps).sqrt()
        bias = -self.norm_mean if self.bias is None else self.bias - self.norm_mean
        return self.weight * self._across(factor), bias * factor + self.norm_bias

    def _across(self, channels: torch.Tensor) -> torch.Tensor:
        return channels.view(-1, *[1] * (self.weight.ndim - 1))

    @property
    def top(self) -> int:
        """Largest integer of a weight."""
        return 2 ** (self.bits - 1) - 1

    def _best_scale(self, weight: torch.Tensor) -> torch.Tensor:
        """Scale of each output channel: the share of max|w| by which rounding costs least squared error."""
        largest = weight.abs().flatten(1).amax(1).clamp(min=1e-8)
        scales = torch.stack([share * largest / self.top for share in SHARES])
        errors = torch.stack([(self._rounded(weight, scale) * self._across(scale) - weight).square().flatten(1).sum(1)
                              for scale in scales])
        return scales.gather(0, errors.argmin(0, keepdim=True)).squeeze(0)

    def _rounded(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (weight / self._across(scale)).round().clamp(-self.top, self.top)

    def weight_scale(self, weight: torch.Tensor) -> torch.Tensor:
        """Scale of each output channel, 1 for a channel of zeros."""
        if self.bits < INT8_BITS:
            return self.log_scale.exp()
        scale = weight.detach().abs().flatten(1).amax(1) / self.top
        return torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)

    def _simulated(self, weight: torch.Tensor, bias: torch.Tensor | None):
        scale = self.weight_scale(weight)
        if self.bits == INT8_BITS:
            rounded = StraightThrough.apply(weight, self._rounded(weight.detach(), scale) * self._across(scale))
        else:
            slow = 1 / (weight[0].numel() * self.top) ** 0.5  # LSQ's: the scale's gradient is that of a whole channel
            trained = scale * slow + (scale * (1 - slow)).detach()
            ratio = (weight / self._across(trained)).clamp(-self.top, self.top)
            rounded = StraightThrough.apply(ratio, ratio.detach().round()) * self._across(trained)
        if bias is not None and self.source is not None:
            step = scale.detach() * self.source.scale.detach()
            bias = StraightThrough.apply(bias, (bias.detach() / step).round() * step)
        return rounded, bias

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores: int8 weight with scale and zero point a channel, and the bias in int32 or FP32."""
        weight, bias = self.folded()
        if not self.bits:
            return {"weight": weight.detach()} | ({} if bias is None else {"bias": bias.detach()})
        scale = self.weight_scale(weight)
        found = {"weight.integers": self._rounded(weight, scale).to(torch.int8), "weight.scale": scale,
                 "weight.zero_point": torch.zeros(len(scale), dtype=torch.int8)}
        if bias is not None and self.source is not None:
            step = scale * self.source.scale
            found |= {"bias.integers": (bias / step).round().to(torch.int32), "bias.scale": step}
        elif bias is not None:
            found["bias"] = bias.detach()
        return found

    def freeze(self) -> None:
        """Keep stored() as buffers: what the exporter writes as constants."""
        for part, tensor in self.stored().items():
            self.register_buffer(f"stored_{part.replace('.', '_')}", tensor.contiguous())

    def _constants(self):
        """(weight, bias) of what freeze() kept."""
        def constant(part):
            if hasattr(self, f"stored_{part}_integers"):
                ends = ("integers", "scale", "zero_point")[: 3 if part == "weight" else 2]  # int32's is 0 by default
                return _WrittenConstant.apply(*(getattr(self, f"stored_{part}_{end}") for end in ends))
            return getattr(self, f"stored_{part}", None)

        return constant("weight"), constant("bias")

    def forward(self, x):
        if torch.onnx.is_in_onnx_export():
            weight, bias = self._constants()
        else:
            weight, bias = self.folded()
            if self.bits:
                weight, bias = self._simulated(weight, bias)
        if self.shape is None:
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv2d(x, weight, bias, *self.shape)


class Sum(nn.Module):
    """A residual addition; the first operand comes from the convolution that the addition is fused to."""

    def forward(self, main, shortcut):
        return main + shortcut
