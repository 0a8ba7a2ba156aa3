"""Fake-quantization with weights of few levels, whose scale is learned, and 8-bit activations as in INT8.

    integers = level nearest to weight / exp(log_scale)              one scale an output channel, or a row of a table
    y = (x_int @ integers.T) * (x_scale * exp(log_scale)) + bias     x_int, x_scale: as lowbit/int8 has them

Activations are uint8 of a range measured at run time (dynamic), or 8 bits of a learned scale (learned). The gradient
is LSQ's (Esser et al. 2020, arXiv:1902.08153): a weight has its own inside the outermost levels and none outside; the
scale has the rounding error inside and the level outside. What is trained is the scale's logarithm: an optimizer's step
is then a share of the scale, however small that is, and no scale is driven below zero.
"""

import torch
from torch import nn

from lowbit.int4.levels import Levels
from lowbit.int4.rounding import best_scales, to_levels
from lowbit.training.integer_attention import simulate_attention
from lowbit.training.integer_linear import IntegerLinear, dynamic_range
from lowbit.training.lsq import TARGETS, ActivationQuantizer, shared_inputs

FEW_ROWS = 8  # a table of fewer is no larger than a bias, and every token reads it: it stays FP32


class _ToLevels(torch.autograd.Function):
    """Weight [..., columns] and log_scale [...] to integers; the product that takes them multiplies by the scale.

    `scaled` says that the gradient that comes back is that of integers * scale already, as IntegerLinear gives it.
    """

    @staticmethod
    def forward(ctx, weight, log_scale, levels, scaled=False):
        scale = log_scale.exp().unsqueeze(-1)
        ratio = weight / scale
        integers = to_levels(ratio, levels)
        ctx.save_for_backward(ratio, integers, scale)
        ctx.top, ctx.scaled = levels.top, scaled
        return integers

    @staticmethod
    def backward(ctx, gradient):
        ratio, integers, scale = ctx.saved_tensors
        gradient = gradient if ctx.scaled else gradient / scale
        inside = ratio.abs() <= ctx.top
        error = torch.where(inside, integers - ratio, integers)
        to_scale = (gradient * error).sum(-1) * scale.squeeze(-1) / (ratio.shape[-1] * ctx.top) ** 0.5
        return gradient * inside, to_scale, None, None


class _FewLevels:
    """What Linear layers and tables of few levels share: `log_scale` [rows], `levels`, and what the file stores."""

    weight: torch.Tensor
    log_scale: torch.Tensor
    levels: Levels

    def start_from_weight(self) -> None:
        """Set the scales to those of least squared error."""
        with torch.no_grad():
            self.log_scale.copy_(best_scales(self.weight, self.levels).log())

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """What the file stores: int8 levels [rows, columns] (packed there) and their scale [rows]."""
        scale = self.log_scale.exp()
        integers = to_levels(self.weight / scale.unsqueeze(-1), self.levels)
        return {"weight.integers": integers.to(torch.int8), "weight.scale": scale}


class DynamicFewLevelLinear(_FewLevels, nn.Linear):
    """nn.Linear on weights of few levels and dynamically ranged uint8 inputs."""

    def forward(self, x):
        return IntegerLinear.apply(x, _ToLevels.apply(self.weight, self.log_scale, self.levels, True), self.bias,
                                   *dynamic_range(x.float()), self.log_scale.detach().exp().unsqueeze(-1))


class LearnedFewLevelLinear(_FewLevels, nn.Linear):
    """nn.Linear on weights of few levels and 8-bit inputs of a learned scale."""

    def forward(self, x):
        integers, scale = self.quantize(x)
        weight = _ToLevels.apply(self.weight, self.log_scale, self.levels)
        y = nn.functional.linear(integers, weight) * (scale * self.log_scale.detach().exp())
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def stored(self) -> dict[str, torch.Tensor]:
        """The levels and their scale, a zero point for Q/DQ, and the input's scale and zero point."""
        held = super().stored()
        return held | {"weight.zero_point": torch.zeros(held["weight.scale"].shape, dtype=torch.int8)} | (
            self.quantize.stored_as("input"))


class FewLevelEmbedding(_FewLevels, nn.Embedding):
    """nn.Embedding reading from a table of few levels with a scale a row; only the rows looked up are rounded."""

    def forward(self, ids):
        rows, log_scale = super().forward(ids), self.log_scale[ids]
        integers = _ToLevels.apply(rows, log_scale, self.levels)
        return integers * log_scale.detach().exp().unsqueeze(-1)


def simulate(model: nn.Module, bits: dict[str, Levels], learned: str | None, quantize_attention: bool) -> nn.Module:
    """Give `model` the arithmetic of the file, in place; returns it. Scales are 1 until they are started or loaded.

    `bits` holds the levels of "weights", "tables" (of words), "positions" and "head" (Linear layers outside the
    encoder's own, and its pooler). A table of few rows, the token types', stays FP32. `learned` is the target (see
    lsq.TARGETS) of learned activation ranges, None for dynamic ones. The state dict gains a `log_scale` for each weight
    and table of few levels, and what learned ranges add.
    """
    groups, words, levels = shared_inputs(model), model.get_input_embeddings(), {}
    for name, part in parts_of(model).items():
        module = model.get_submodule(name)
        if part != "tables" or module is words:
            levels[name] = bits[part]
        elif len(module.weight) >= FEW_ROWS:
            levels[name] = bits["positions"]
    assign(model, levels, bool(learned))
    for sharing in groups if learned else ():
        quantizer = sharing[0].quantizer = ActivationQuantizer(TARGETS[learned])
        for module in sharing:
            object.__setattr__(module, "quantize", quantizer)  # a reference: the state dict holds each scale once
    if learned and quantize_attention:
        simulate_attention(model, TARGETS[learned])
    return model


def assign(model: nn.Module, levels: dict[str, Levels], learned: bool = False) -> nn.Module:
    """Give the Linear layers and tables that `levels` names weights of these levels, in place; the others stay FP32."""
    for name, module in list(model.named_modules()):
        if name in levels:
            module.levels = levels[name]
            module.log_scale = nn.Parameter(torch.zeros(len(module.weight)))
            module.__class__ = FewLevelEmbedding if isinstance(module, nn.Embedding) else (
                LearnedFewLevelLinear if learned else DynamicFewLevelLinear)
    return model


def parts_of(model: nn.Module) -> dict[str, str]:
    """Every Linear layer and table by name, in the model's order: "tables", "head" or "weights"."""
    return {name: "tables" if type(module) is nn.Embedding else "head" if is_head(model, name) else "weights"
            for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Embedding)}


def is_head(model: nn.Module, name: str) -> bool:
    """Whether a Linear layer of that name is the classifier's or the pooler's."""
    return not name.startswith(f"{model.base_model_prefix}.") or "pooler" in name.split(".")


def start_scales(model: nn.Module) -> None:
    """Set every weight's and table's scale to that of least squared error."""
    for module in model.modules():
        if isinstance(module, _FewLevels):
            module.start_from_weight()
