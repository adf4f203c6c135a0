"""What goes into a model's linear modules on real rows, padding left out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

See = Callable[[str, Tensor], None]
"""A module's name and its input of one batch: float32 (M,I), a line for each token that is no padding."""


@contextmanager
def watched(model: PreTrainedModel, names: Iterable[str], see: See) -> Iterator[None]:
    """Show the inputs of the modules `names` to `see` while the model runs."""
    masks: list[Tensor] = []

    def remember(_model: nn.Module, _inputs: Any, given: dict[str, Any]) -> None:
        masks[:] = [given["attention_mask"].bool()]

    def showing(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _module, inputs: see(name, _tokens(inputs[0], masks[0]))

    handles = [model.register_forward_pre_hook(remember, with_kwargs=True)]
    handles += [model.get_submodule(name).register_forward_pre_hook(showing(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tokens(x: Tensor, mask_NL: Tensor) -> Tensor:
    """Take the lines of (N,L,I) that are no padding; (N,1,I) and (N,I) hold none."""
    if x.ndim == 3 and x.shape[:2] == mask_NL.shape:
        return x[mask_NL]
    return x.reshape(-1, x.shape[-1])
