"""Activation scales that are learned in training and stored in the file (LSQ: Esser et al. 2020, arXiv:1902.08153).

    q = clamp(round(x / scale) + zero_point, low, high)        the scale is trained, the zero point calibrated

One scale an activation tensor, int8 with zero point 0 or uint8. No range depends on the batch at run time.
"""

import torch
from torch import nn

from lowbit.pipeline.errors import UserError

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


@torch.no_grad()
def shared_inputs(model: nn.Module) -> list[list[nn.Linear]]:
    """The Linear layers of `model`, those that take one and the same tensor together.

    Raises UserError if one is used more than once: it would need as many scales, and few-level weights a place each.
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
        raise UserError("MODEL_NAME: this encoder uses a Linear layer several times, and one range, or one set of few "
                        "levels, does not fit all its uses: train it by int8_eager/ with --activation-ranges dynamic")
    return list(groups.values())


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Name -> quantizer, in the order of the model's modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ActivationQuantizer)}


def refuse_lost_scales(model: nn.Module) -> None:
    """Raise UserError, naming the first, if training has driven a scale to zero or below."""
    for name, quantizer in quantizers(model).items():
        if not quantizer.scale > 0:
            raise UserError(f"training drove the scale of {name} to {quantizer.scale.item():.3g}: lower LEARNING_RATE")
