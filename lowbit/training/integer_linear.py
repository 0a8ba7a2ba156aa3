"""A Linear layer on integers whose input range is measured at run time, as ONNX Runtime's dynamic kernels compute it.

    scale = (max(x, 0) - min(x, 0)) / 255;  zero_point = round(-min(x, 0) / scale)          of the whole tensor, uint8
    y = ((clamp(round(x / scale) + zero_point, 0, 255) - zero_point) @ weight_int.T) * (scale * weight_scale) + bias

The range is that of the ONNX operator DynamicQuantizeLinear (opset 11), the product that of MatMulInteger: sums up to
2**24 are exact in FP32, and operands of 8 bits are exact in BF16, so autocast changes nothing about them.
"""

import torch


def to_integers(x, scale, low=None, high=None):
    """round(x / scale), half to even, clamped if bounds are given: floats holding integers, zero point removed.

    Divides as ONNX QuantizeLinear does: a product with 1 / scale differs at ties.
    """
    integers = (x / scale).round_()
    return integers if low is None else integers.clamp_(low, high)


def _scaled_product(left, right, scale):
    """(left @ right) * scale for 2-D operands; the matrix kernel scales its sums itself, no further pass over them."""
    return torch.addmm(left.new_zeros(()), left, right, beta=0, alpha=float(scale))


class IntegerLinear(torch.autograd.Function):
    """x [..., in] to integers, times the weight's [out, in], their product scaled once, bias [out] added: [..., out].

    `weight_scale` is a scalar, or [out, 1] per channel. One node for autograd: scales go into the products, forward and
    backward, instead of passes over the tensors. The weight's gradient is that of weight_int * weight_scale.
    """

    @staticmethod
    def forward(ctx, x, weight_int, bias, scale, zero_point, weight_scale):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        rows = x.reshape(-1, x.shape[-1]).float()
        x_int = to_integers(rows, scale, -zero_point, 255 - zero_point).to(dtype)
        weight_int = weight_int.to(dtype)
        ctx.save_for_backward(x_int, weight_int, scale, weight_scale)
        ctx.shape, ctx.has_bias = x.shape, bias is not None
        bias = x_int.new_zeros(()) if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            if weight_scale.ndim:  # per channel: one factor an output
                y = (x_int @ weight_int.T).mul_(scale * weight_scale.view(-1)).add_(bias)
            else:
                y = torch.addmm(bias, x_int, weight_int.T, alpha=float(scale * weight_scale))
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        x_int, weight_int, scale, weight_scale = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]).to(weight_int.dtype)
        to_weight = _scaled_product(rows.T, x_int, scale).float()
        to_bias = rows.sum(0, dtype=torch.float32) if ctx.has_bias else None
        if weight_scale.ndim:
            to_x = (rows * weight_scale.view(-1)).to(rows.dtype) @ weight_int
        else:
            to_x = _scaled_product(rows, weight_int, weight_scale)
        return to_x.view(ctx.shape), to_weight, to_bias, None, None, None


def dynamic_range(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero_point) of DynamicQuantizeLinear for a whole tensor: uint8, range widened to hold zero."""
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale, (-low / scale).round()
