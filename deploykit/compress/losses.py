"""What a student is trained to lower: pure functions of tensors, each zero or lowest for a copied teacher.

M scored positions   C labels   N rows   L padded length   H hidden size
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_label_loss(student_MC: Tensor, teacher_MC: Tensor, temperature: float) -> Tensor:
    """Return the teacher's divergence from the student at a temperature, a mean over positions.

    Multiplied by the squared temperature, so that its gradients keep their size (Hinton et al. 2015, section 2).
    """
    student = F.log_softmax(student_MC / temperature, dim=-1)
    teacher = F.log_softmax(teacher_MC / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def hidden_loss(student_NLH: Tensor, teacher_NLH: Tensor, mask_NL: Tensor) -> Tensor:
    """Return the squared distance of hidden states, as a share of the teacher's own square; padding does not count.

    The mean squared error of TinyBERT (Jiao et al. 2020, equation 8), without a projection as the widths are equal,
    and without a unit, so that one weight fits every family.
    """
    real = mask_NL.bool()
    teacher = teacher_NLH[real]
    return (student_NLH[real] - teacher).square().sum() / teacher.square().sum().clamp(
        min=torch.finfo(teacher.dtype).tiny
    )
