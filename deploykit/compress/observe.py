"""What a model computes inside: hidden states, what its attentions read, and their queries, keys and values.

Collected by hooks on the modules that `families` names, so no family needs code of its own. Names carry the layer,
counted from 1: `hidden-3` is what layer 3 gives, `attention-3` what its query, key and value matrices read.

    N rows   L padded length   H hidden size   A heads * head size
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from deploykit import families
from deploykit.checkpoint import input_names

Seen = Mapping[str, Tensor]
PARTS = ("query", "key", "value")


def hidden(layer: int) -> str:
    """Name the hidden states (N,L,H) after a layer."""
    return f"hidden-{layer}"


def attention(layer: int) -> str:
    """Name what a layer's attention reads (N,L,H)."""
    return f"attention-{layer}"


def part(name: str, layer: int) -> str:
    """Name a layer's queries, keys or values (N,L,A)."""
    return f"{name}-{layer}"


def states(model: PreTrainedModel, inputs: Seen, names: Sequence[str]) -> dict[str, Tensor]:
    """Run a model: its `logits`, and the named hidden states and inputs of attentions."""
    found = families.blocks(model)
    attended = {name: found[_layer(name) - 1].query for name in names if name == attention(_layer(name))}
    with _recorded(attended, lambda inputs, _output: inputs[0]) as seen:
        output = model(**inputs, output_hidden_states=len(attended) < len(names))
    after = {name: output.hidden_states[_layer(name)] for name in names if name not in attended}
    return {"logits": output.logits, **after, **seen}


def attention_parts(model: PreTrainedModel, layer: int, read_NLH: Tensor) -> dict[str, Tensor]:
    """Compute a layer's queries, keys and values from what its attention reads."""
    block = families.blocks(model)[layer - 1]
    return {part(name, layer): getattr(block, name)(read_NLH) for name in PARTS}


class Observed(nn.Module):
    """A model that gives what the losses compare beside its logits; a projection to a wider teacher is trained along.

    As one module it is one thing to the training loop: wrapped for processes, saved and resumed whole.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        hidden_layers: Sequence[int],
        attention_layers: Sequence[int],
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.projection = model, projection
        self.hidden_layers, self.attention_layers = tuple(hidden_layers), tuple(attention_layers)

    def forward(self, inputs: Seen) -> dict[str, Tensor]:
        """Return `logits`, the (projected) hidden states, and queries, keys and values, by name.

        Args:
            inputs: a batch, of which the model takes what it knows.
        """
        found = families.blocks(self.model)
        watched = {part(name, at): getattr(found[at - 1], name) for at in self.attention_layers for name in PARTS}
        with _recorded(watched, lambda _inputs, output: output) as seen:
            taken = {name: inputs[name] for name in input_names(self.model) if name in inputs}
            output = self.model(**taken, output_hidden_states=bool(self.hidden_layers))
        after = {hidden(layer): self._projected(output.hidden_states[layer]) for layer in self.hidden_layers}
        return {"logits": output.logits, **after, **seen}

    def _projected(self, hidden_NLH: Tensor) -> Tensor:
        return hidden_NLH if self.projection is None else cast("Tensor", self.projection(hidden_NLH))


def _layer(name: str) -> int:
    return int(name.rsplit("-", 1)[1])


@contextmanager
def _recorded(
    modules: Mapping[str, nn.Module], pick: Callable[[tuple[Tensor, ...], Tensor], Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Record one tensor of each module's next call: what `pick` takes of its inputs and its output."""
    seen: dict[str, Tensor] = {}

    def recording(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = pick(inputs, output)

        return record

    handles = [module.register_forward_hook(recording(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
