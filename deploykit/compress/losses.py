"""What a student is trained to lower: pure functions of tensors, each zero or lowest for a copied teacher.

M scored positions   C labels   N rows   L padded length   H hidden size   S student's, T teacher's heads * head size
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_NEVER = -1e9
"""A score that softmax turns into 0, without the infinities that make a NaN of 0 * inf."""


def soft_label_loss(student_MC: Tensor, teacher_MC: Tensor, temperature: float) -> Tensor:
    """Return the teacher's divergence from the student at a temperature, a mean over positions.

    Multiplied by the squared temperature, so that its gradients keep their size (Hinton et al. 2015, section 2).
    """
    student = F.log_softmax(student_MC / temperature, dim=-1)
    teacher = F.log_softmax(teacher_MC / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def hidden_loss(student_NLH: Tensor, teacher_NLH: Tensor, mask_NL: Tensor) -> Tensor:
    """Return the squared distance of hidden states, as a share of the teacher's own square; padding does not count.

    The mean squared error of TinyBERT (Jiao et al. 2020, equation 8), a narrower student's already projected to the
    teacher's width, and without a unit, so that one weight fits every family.
    """
    real = mask_NL.bool()
    return _relative_square(student_NLH[real], teacher_NLH[real])


def attention_scores(query_NLA: Tensor, key_NLA: Tensor, heads: int) -> Tensor:
    """Return scaled dot products (N,heads,L,L), rows for queries, before any softmax."""
    query, key = (x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2) for x in (query_NLA, key_NLA))
    size = query.shape[-1]
    return torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(size)


def attention_loss(student_NALL: Tensor, teacher_NALL: Tensor, mask_NL: Tensor) -> Tensor:
    """Return the squared distance of attention scores of as many heads, as a share of the teacher's own square.

    TinyBERT (Jiao et al. 2020, equation 7), which compares the scores before the softmax. Only pairs of real tokens
    count.
    """
    mask = mask_NL.bool()
    real = (mask[:, None, :, None] & mask[:, None, None, :]).expand_as(teacher_NALL)
    return _relative_square(student_NALL[real], teacher_NALL[real])


def relation_loss(student_NLS: Tensor, teacher_NLT: Tensor, heads: int, mask_NL: Tensor) -> Tensor:
    """Return the divergence of self-attention relations, a mean over relation heads and real tokens.

    A relation is the softmax of the scaled dot products of queries with queries, keys with keys, or values with values,
    after all heads are joined and cut anew into `heads` relation heads (MiniLMv2, Wang et al. 2021, equations 4 to 8);
    so the student may have other heads and another width, as long as `heads` divides both.
    """
    real = mask_NL.bool()
    student, teacher = (
        F.log_softmax(attention_scores(x, x, heads).masked_fill(~real[:, None, None, :], _NEVER), dim=-1)
        for x in (student_NLS, teacher_NLT)
    )
    rows_M = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1).mean(1)[real]
    return rows_M.mean()


def _relative_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance divided by the teacher's square."""
    smallest = torch.finfo(teacher.dtype).tiny
    return (student - teacher).square().sum() / teacher.square().sum().clamp(min=smallest)
