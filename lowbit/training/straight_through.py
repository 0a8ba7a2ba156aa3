"""Rounding in the forward pass, the identity in the backward pass (Bengio et al. 2013, arXiv:1308.3432)."""

import torch


class StraightThrough(torch.autograd.Function):
    """The rounded value forward, the gradient of the unrounded one backward."""

    @staticmethod
    def forward(ctx, x, rounded):
        return rounded

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None
