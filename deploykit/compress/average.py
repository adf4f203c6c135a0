"""The weights between where a student began and where it ended, as near to the teacher as any of them.

A student that goes on learning, on rows of its own, ends about as near to its teacher as it began, and errs elsewhere.
Weights between the two are nearer than either (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section
3: weights interpolated after fine-tuning; "Model soups", section 2). How far to go, the divergence on the validation
rows says; accuracy on so few rows tells students apart too badly.
"""

from collections.abc import Callable, Mapping

from torch import Tensor
from transformers import PreTrainedModel

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the way from the start to the end that are tried; the last is the end itself."""

Weights = Mapping[str, Tensor]


def average(start: Weights, model: PreTrainedModel, divergence: Callable[[], float]) -> dict[float, float]:
    """Give a model the weights of the share of the way that diverges least; the later one of equal ones.

    Args:
        start: a copy of the weights that the model began with.
        model: as it ended; left with the weights chosen.
        divergence: of the model from its teacher, as it stands.

    Returns:
        the divergence at each share.
    """
    end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = {}
    for share in SHARES:
        model.load_state_dict(between(start, end, share))
        found[share] = divergence()
    model.load_state_dict(between(start, end, min(reversed(SHARES), key=found.__getitem__)))
    return found


def between(start: Weights, end: Weights, share: float) -> dict[str, Tensor]:
    """Return weights a share of the way from one model's to another's; what is no float is the latter's."""
    return {
        name: start[name].lerp(tensor, share) if tensor.is_floating_point() else tensor for name, tensor in end.items()
    }
