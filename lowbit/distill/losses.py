"""What a student is compared with its teacher by; every mean is over real tokens: padding is left out.

    embedding   mean((E_s W - E_t)**2)                                       E: sum of the embeddings after LayerNorm
    hidden      sum over layers m of mean((H_s[m] W - H_t[g(m)])**2)          W: learned, [student's width, teacher's]
    attention   sum over layers m of mean((A_s[m] - A_t[g(m)])**2)            A = q k^T / sqrt(d), before the softmax
    relation    sum over X in q, k, v of the last layers' KL(R_t(X) || R_s(X))    R(X) = softmax(X X^T / sqrt(d))
    logits      T**2 KL(teacher || student) at temperature T; of a number (student - teacher)**2
    labels      cross-entropy, or squared error of a number

    g(m) = round(m N / M), halves up, m = 1 … M: the layer of N that layer m of M follows

The first three and logits: Jiao et al. 2020 (arXiv:1909.10351), whose own mean over attention includes the padding and
whose g needs N to be a multiple of M. relation: Wang et al. 2021 (arXiv:2012.15828), heads of any number.
"""

import torch
from torch.nn.functional import log_softmax

from lowbit.distill.inside import PARTS, Inside
from lowbit.pipeline.settings import check

INTERMEDIATE = ("embedding", "hidden", "attention", "relation")
LOSSES = (*INTERMEDIATE, "logits", "labels")
SAME_TOKENS = INTERMEDIATE  # these compare token with token: both must read the same ones


def uniform_map(student: int, teacher: int) -> list[int]:
    """g(m) for m = 1 … student, from 1: the teacher's layer that each layer of the student follows."""
    return [(2 * m * teacher + student) // (2 * student) for m in range(1, student + 1)]


def read_map(text: str, student: int, teacher: int) -> list[int]:
    """LAYER_MAP "2,3,5,6", or uniform_map() of an empty one; raises UserError for a layer that is not there."""
    if not text.strip():
        return uniform_map(student, teacher)
    parts = [part.strip() for part in text.split(",")]
    check(all(part.isdecimal() and 1 <= int(part) <= teacher for part in parts) and len(parts) == student,
          f"LAYER_MAP is {text!r}; name {student} of the teacher's layers 1 to {teacher} with commas, one for each of "
          "the student's, or leave it empty")
    return [int(part) for part in parts]


def squared_gap(ours: torch.Tensor, theirs: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of [batch, …] where `real`, broadcast over them, is true; both in FP32."""
    theirs = theirs[:, : ours.shape[1]] if ours.ndim == 3 else theirs[:, :, : ours.shape[2]]  # the first token alone
    real = (real[:, : ours.shape[1]] if ours.ndim == 3 else real[:, :, : ours.shape[2]]).expand_as(ours)
    return ((ours.float() - theirs.float()) ** 2 * real).sum() / real.sum()


def embedding_loss(ours: Inside, theirs: Inside, to_teacher, mask: torch.Tensor) -> torch.Tensor:
    """`mask` [batch, seq] is 1 for real tokens."""
    return squared_gap(to_teacher(ours.embeddings.float()), theirs.embeddings, mask[:, :, None].float())


def hidden_loss(ours: Inside, theirs: Inside, to_teacher, mask: torch.Tensor, layer_map: list[int]) -> torch.Tensor:
    """Each layer's states against those of the layer that it follows."""
    return sum((squared_gap(to_teacher(ours.hidden[m].float()), theirs.hidden[g - 1], mask[:, :, None].float())
                for m, g in enumerate(layer_map)), torch.zeros(()))


def attention_loss(ours: Inside, theirs: Inside, mask: torch.Tensor, layer_map: list[int]) -> torch.Tensor:
    """Each head's scores against those of the same head of the layer that is followed."""
    real = (mask[:, None, :, None] * mask[:, None, None, :]).float()
    return sum((squared_gap(ours.scores(m), theirs.scores(g - 1), real) for m, g in enumerate(layer_map)),
               torch.zeros(()))


def relation_loss(ours: Inside, theirs: Inside, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """How the tokens of a text relate, in the last layers, cut into `heads` whatever heads the two models have."""
    total, padding = torch.zeros(()), mask[:, None, None, :] == 0
    for part in PARTS:
        logs = []
        for inside in (ours, theirs):
            x = inside.by_head(part, len(inside.hidden) - 1, heads)
            relation = x @ x.transpose(-1, -2) * x.shape[-1] ** -0.5
            logs.append(log_softmax(relation.masked_fill(padding, torch.finfo(torch.float32).min), -1))
        student, teacher = logs
        gap = (teacher.exp() * (teacher - student)).masked_fill(padding, 0.0).sum(-1)  # [batch, heads, seq]
        real = mask[:, None, :].expand_as(gap).float()
        total = total + (gap * real).sum() / real.sum()
    return total


def read_losses(text: str) -> list[str]:
    """The names of LOSSES in a setting, in their own order; raises UserError for another name or none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    check(bool(names), f"LOSSES is empty; choose from {', '.join(LOSSES)}")
    for name in names:
        check(name in LOSSES, f"LOSSES names {name!r}; choose from {', '.join(LOSSES)}")
    return [name for name in LOSSES if name in names]


def check_comparable(ours, theirs, losses: list[str], relation_heads: int) -> None:
    """Raises UserError for losses that models of these two configurations cannot be compared by."""
    check("attention" not in losses or ours.num_attention_heads == theirs.num_attention_heads,
          f"LOSSES names attention, which compares head with head, but the student has {ours.num_attention_heads} and "
          f"the teacher {theirs.num_attention_heads}: use relation instead")
    check("relation" not in losses or not (ours.hidden_size % relation_heads or theirs.hidden_size % relation_heads),
          f"RELATION_HEADS is {relation_heads}, which does not divide both widths, {ours.hidden_size} and "
          f"{theirs.hidden_size}")
