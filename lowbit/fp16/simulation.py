"""Half precision simulated in training: what the FP16 file holds in FP16 is rounded to FP16 in the forward pass.

    fp16(x) = x.half().float()                                                IEEE 754 binary16, half to even
    y = fp16(fp16(x) @ fp16(w).T + fp16(bias))                                Linear; LayerNorm, softmax likewise
    row = fp16(table[id])

Sums, means and exponentials stay FP32, as kernels compute them. Operators are those of the exported graph, so that
FP32_OPS means the same in training and in the file: a value is rounded unless both the operator that makes it and the
one that takes it are kept in FP32. Gradients pass rounding unchanged (straight-through, Bengio et al. 2013,
arXiv:1308.3432); parameters stay FP32 master weights under their own names.
"""

import difflib
from dataclasses import asdict, dataclass

import numpy as np
import onnx
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from lowbit.data.tokens import Row
from lowbit.pipeline.errors import UserError
from lowbit.training.encoder import longest_input
from lowbit.training.observe import observe
from lowbit.training.straight_through import StraightThrough

FP16_MAX = 65504.0
MASKED = -32768.0  # added to a masked score: half of FP16's range, so that no score can carry the sum beyond it
ATTENTION = "fp16_simulated"


def operators(names: str) -> frozenset[str]:
    """FP32_OPS as a set; raises UserError for a name that is no ONNX operator."""
    given = [name.strip() for name in names.split(",") if name.strip()]
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"FP32_OPS names {name!r}, which is no ONNX operator; the nearest is {near[0]}")
    return frozenset(given)


@dataclass
class Seen:
    """What one tensor held: its largest finite magnitude, how many values FP16 turned to infinity and to zero."""

    largest: float = 0.0
    values: int = 0
    overflow: int = 0
    underflow: int = 0

    def add(self, x: torch.Tensor, rounded: torch.Tensor) -> None:
        self.largest = max(self.largest, float(x.abs().nan_to_num(0, posinf=0).max()))
        self.values += x.numel()
        self.overflow += int((~rounded.isfinite()).sum())
        self.underflow += int(((rounded == 0) & (x != 0)).sum())


def _round(module, x, tensor, *operators):
    """x as FP16 holds it, unless FP32_OPS holds all `operators` around it; ranges() is told of named tensors."""
    if module.fp32_ops.issuperset(operators):
        return x
    rounded = x.detach().half().float()
    if module.watch and tensor:
        module.watch(tensor, x.detach(), rounded)
    return StraightThrough.apply(x, rounded)


def _round_weight(module, tensor, operator, rows=None):
    """Parameter `tensor` (or `rows` of it) as the file stores it: beyond 65,504 at that limit, if stage 3 allows it."""
    weight = getattr(module, tensor)
    taken = weight if rows is None else rows
    if operator in module.fp32_ops:
        return taken
    if module.watch:
        module.watch(tensor, weight.detach(), weight.detach().half().float(), once=True)
    return StraightThrough.apply(taken, taken.detach().clamp(-FP16_MAX, FP16_MAX).half().float())


class Fp16Linear(nn.Linear):
    """nn.Linear as exporters write it: Gemm for x [batch, in], MatMul and Add for x [batch, seq, in]."""

    def forward(self, x):
        product, add = ("Gemm", "Gemm") if x.dim() == 2 else ("MatMul", "Add")
        bias = None if self.bias is None else _round_weight(self, "bias", add)
        y = nn.functional.linear(_round(self, x, "input", product), _round_weight(self, "weight", product), bias)
        return _round(self, y, "output", product if bias is None else add)


class Fp16Head(nn.Linear):
    """The Linear that makes the logits: FP16 input, and FP32 from there on."""

    def forward(self, x):
        return super().forward(_round(self, x, "input", "Tanh"))


class Fp16LayerNorm(nn.LayerNorm):
    """nn.LayerNorm with input, parameters and output in FP16."""

    def forward(self, x):
        name = "LayerNormalization"
        y = nn.functional.layer_norm(_round(self, x, "input", "Sum", name), self.normalized_shape,
                                     _round_weight(self, "weight", name), _round_weight(self, "bias", name),
                                     self.eps)
        return _round(self, y, "output", name)


class Fp16Embedding(nn.Embedding):
    """nn.Embedding reading from an FP16 table; only the rows looked up are rounded."""

    def forward(self, ids):
        return _round_weight(self, "weight", "Gather", super().forward(ids))


def fp16_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """Scaled dot-product attention; query, key, value [batch, heads, seq, width], additive mask or None.

    Returns ([batch, seq, heads, width], probabilities), as Transformers' attention interface wants them.
    """
    query, key, value = (_round(module, x, name, "MatMul")
                         for name, x in (("query", query), ("key", key), ("value", value)))
    scores = _round(module, query @ key.transpose(2, 3), "scores", "MatMul", "Mul")
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None:
        scores = _round(module, scores, "scaled_scores", "Mul", "Softmax")
    else:  # not watched: what the mask adds would be the largest magnitude everywhere
        scores = _round(module, scores + attention_mask.clamp(min=MASKED), None, "Add", "Softmax")
    probabilities = _round(module, scores.softmax(-1), "probabilities", "Softmax", "MatMul")
    dropped = nn.functional.dropout(probabilities, dropout, module.training)
    context = _round(module, dropped @ value, "context", "MatMul", "Transpose")
    return context.transpose(1, 2).contiguous(), probabilities


def simulate(model: nn.Module, fp32_ops: frozenset[str]) -> nn.Module:
    """Give `model` the forward of its FP16 graph, in place, ONNX operators `fp32_ops` kept in FP32; returns `model`.

    A model may be simulated again, with other operators. Parameters, buffers and state-dict keys stay as they were.
    """
    simulated = {nn.Linear: Fp16Linear, nn.LayerNorm: Fp16LayerNorm, nn.Embedding: Fp16Embedding}
    for module in model.modules():
        module.__class__ = simulated.get(type(module), type(module))
        module.fp32_ops, module.watch = fp32_ops, None
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    linears[-1].__class__ = Fp16Head
    AttentionInterface.register(ATTENTION, fp16_attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    model.set_attn_implementation(ATTENTION)
    return model


def random_rows(model: nn.Module) -> list[Row]:
    """8 rows of random token ids: enough to see a model that cannot run in FP16."""
    length = min(32, longest_input(model))
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (8, length)).tolist()
    return [{"input_ids": row} for row in ids]


def ranges(model: nn.Module, rows: list[Row]) -> dict[str, dict]:
    """Tensor -> largest magnitude, values, how many FP16 turned to infinity and to zero, over token rows `rows`.

    `model` went through simulate and runs in eval mode. Tensors are its parameters (`….weight`) and what flows into
    and out of its operators (`….input`), in the order of computation; one kept in FP32 is not there.
    """
    found = {}

    def watching(name):
        def watch(tensor, x, rounded, once=False):
            key = f"{name}.{tensor}"
            if not once or key not in found:
                found.setdefault(key, Seen()).add(x, rounded)
        return watch

    observe(model, rows, {module: watching(name) for name, module in model.named_modules()})
    return {name: asdict(seen) for name, seen in found.items()}


def range_lines(seen: dict[str, dict]) -> list[str]:
    """What ranges() found, as a user reads it."""
    name = max(seen, key=lambda tensor: seen[tensor]["largest"])
    lines = [f"  FP16 ranges over valid: {len(seen)} tensors, the largest magnitude is {seen[name]['largest']:.1f} of "
             f"{FP16_MAX:.0f} ({name})"]
    values = sum(held["values"] for held in seen.values())
    for what, key in (("overflow to infinity", "overflow"), ("underflow to zero", "underflow")):
        share = {tensor: held[key] / held["values"] for tensor, held in seen.items() if held[key]}
        worst = max(share, key=share.get, default=None)
        lines.append(f"    {sum(held[key] for held in seen.values())} of {values} values {what}"
                     + (f", most in {worst} ({100 * share[worst]:.2g} %)" if worst else ""))
    return lines


def refuse_overflow(seen: dict[str, dict], model_name: str) -> None:
    """Raise UserError, naming the first tensor, if values that ranges() saw pass FP16's range."""
    passing = [tensor for tensor, held in seen.items() if held["overflow"]]
    if passing:
        first = passing[0]
        raise UserError(
            f"MODEL_NAME {model_name!r} does not fit FP16: {first} reaches {seen[first]['largest']:.3g}, beyond "
            f"{FP16_MAX:.0f} ({len(passing)} of {len(seen)} tensors overflow); keep operators in FP32, such as "
            "--fp32-ops MatMul,Add,Sum,LayerNormalization, or choose INT8")
