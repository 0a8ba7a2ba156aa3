"""Fake-quantization with activation scales that are learned in training and stored in the file.

Both sides of every matrix product are 8-bit integers, and the product of the integers is scaled once, as the integer
kernels do that runtimes put in place of Q/DQ pairs. Activations: one trained scale a tensor (LSQ: Esser et al. 2020,
arXiv:1902.08153), int8 with zero point 0, or uint8 with the zero point that calibration found. Weights: int8,
symmetric, scale max|w| / 127; embedding tables likewise, per tensor. No range depends on the batch at run time.
"""


from types import MethodType

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from lowbit.int8.dynamic import weight_scale
from lowbit.pipeline.errors import UserError
from lowbit.training.straight_through import StraightThrough

ATTENTION = "int8_learned"
TARGETS = {"openvino": torch.int8, "tensorrt": torch.int8, "onnxruntime": torch.uint8}  # what activations become


class _ToIntegers(torch.autograd.Function):
    """clamp(round(x / scale), low, high) as floats; the product that takes them multiplies by `scale` as a constant.

    Backward is LSQ's, for the whole of x -> integers * scale: x has its gradient inside the range and none outside;
    d/dscale is the rounding error inside and the bound outside, over sqrt(elements * half the number of steps).
    """

    @staticmethod
    def forward(ctx, x, scale, low, high):
        ratio = x / scale
        ctx.save_for_backward(ratio, scale)
        ctx.bounds = low, high
        return ratio.round().clamp_(low, high)

    @staticmethod
    def backward(ctx, gradient):
        ratio, scale = ctx.saved_tensors
        low, high = ctx.bounds
        gradient = gradient.float() / scale
        inside = (ratio >= low) & (ratio <= high)
        error = ratio.round().clamp_(low, high).sub_(ratio * inside)
        to_scale = torch.dot(gradient.flatten(), error.flatten()) / (ratio.numel() * (high - low) / 2) ** 0.5
        return gradient * inside, to_scale.view(scale.shape), None, None


class ActivationQuantizer(nn.Module):
    """The scale (trained) and zero point (calibrated) of one activation tensor."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=dtype))
        self.enabled, self.watch = True, None

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest integer, zero point removed."""
        kind, zero_point = torch.iinfo(self.zero_point.dtype), int(self.zero_point)
        return kind.min - zero_point, kind.max - zero_point

    def stored_as(self, tensor: str) -> dict[str, torch.Tensor]:
        """What the file stores of the pair that quantizes `tensor`."""
        return {f"{tensor}.scale": self.scale.detach(), f"{tensor}.zero_point": self.zero_point}

    def forward(self, x):
        """(integers as floats, zero point removed, [same shape as x]; the scale that a product multiplies them by)."""
        if self.watch:
            self.watch(x.detach().float())
        if not self.enabled:
            return x.float(), torch.ones_like(self.scale)
        return _ToIntegers.apply(x.float(), self.scale, *self.bounds()), self.scale.detach()


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


@torch.no_grad()
def _shared_inputs(model: nn.Module) -> list[list[nn.Linear]]:
    """The Linear layers of `model`, those that take one and the same tensor together.

    Raises UserError if one is used more than once: it would need as many scales.
    """
    taken, groups = [], {}

    def note(module, inputs):
        taken.append(inputs[0])  # held, so that no other tensor gets its id
        groups.setdefault(id(inputs[0]), []).append(module)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if type(module) is nn.Linear]
    was_training = model.training
    model.eval()(input_ids=torch.zeros((1, 2), dtype=torch.long))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    if len(taken) != len({module for sharing in groups.values() for module in sharing}):
        raise UserError("MODEL_NAME: this encoder uses a Linear layer several times, and one learned range does not "
                        "fit all its inputs: train it with --activation-ranges dynamic")
    return list(groups.values())


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
    for sharing in _shared_inputs(model):
        quantizer = sharing[0].quantizer = ActivationQuantizer(dtype)
        for module in sharing:
            module.__class__ = LearnedQuantLinear
            object.__setattr__(module, "quantize", quantizer)  # a reference: the state dict holds each scale once
            module.per_channel, module.reduce_range = per_channel, reduce_range
    for module in list(model.modules()):
        if type(module) is nn.Embedding and quantize_embeddings:
            module.__class__ = SymmetricQuantEmbedding
        elif quantize_attention and hasattr(module, "scaling") and hasattr(module, "is_causal"):
            module.quantizers = nn.ModuleDict({name: ActivationQuantizer(dtype)
                                               for name in ("query", "key", "probabilities", "value")})
            module.stored = MethodType(_stored_by_attention, module)
    if quantize_attention:
        if not any(hasattr(module, "quantizers") for module in model.modules()):
            raise UserError("QUANTIZE_ATTENTION: this encoder's attention has no scaling that Transformers' attention "
                            "interface passes on; train it with --no-quantize-attention")
        AttentionInterface.register(ATTENTION, int8_attention)
        AttentionMaskInterface.register(ATTENTION, eager_mask)
        model.set_attn_implementation(ATTENTION)
    return model


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Name -> quantizer, in the order of the model's modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ActivationQuantizer)}






def refuse_lost_scales(model: nn.Module) -> None:
    """Raise UserError, naming the first, if training has driven a scale to zero or below."""
    for name, quantizer in quantizers(model).items():
        if not quantizer.scale > 0:
            raise UserError(f"training drove the scale of {name} to {quantizer.scale.item():.3g}: lower LEARNING_RATE")




