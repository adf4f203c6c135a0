"""What the head does not read is not computed: the last layer of a sentence classifier, for its first token alone.

A classifier of these families reads the first token of the last layer. Only keys and values need the other tokens
there; query, attention output, feed-forward network and norms run on one row instead of L. In float the logits are
the same. In int8 the range of an activation is then the range of the rows that exist, so the fake-quantized reference
and the exported graph must both be rewritten, by this one function.

    N rows   L padded length   H hidden size   A heads * head size
"""

import copy
from dataclasses import replace
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from deploykit import families
from deploykit.checkpoint import Checkpoint
from deploykit.families import Family


def reads_first_token(model: PreTrainedModel) -> bool:
    """Tell whether the model's head reads nothing but the first token of the last layer."""
    return type(model).__name__.endswith("ForSequenceClassification")


def keep_first_token(model: PreTrainedModel) -> None:
    """Reduce the last layer to what the head reads, in place; names of modules stay. Nothing happens to other heads."""
    layers = families.layer_list(model)
    if reads_first_token(model) and not isinstance(layers[-1], FirstTokenLayer):
        layers[-1] = FirstTokenLayer(layers[-1], model)


def reduced(checkpoint: Checkpoint) -> Checkpoint:
    """Copy a checkpoint with its last layer reduced to what the head reads."""
    model = copy.deepcopy(checkpoint.model)
    keep_first_token(model)
    return replace(checkpoint, model=model)


class FirstTokenLayer(nn.Module):
    """A layer with its norms after the residual sums, as the families here have, for the first token of each row."""

    def __init__(self, layer: nn.Module, model: PreTrainedModel) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)
        self.config = model.config
        self.family: Family = families.FAMILIES[model.config.model_type]
        self.head_size = families.head_size(model)
        self.scaling = self.head_size**-0.5
        self.activation = ACT2FN[getattr(model.config, self.family.activation)]
        self.is_causal = False

    def forward(self, x_NLH: Tensor, mask: Tensor | None = None, *_: object, **__: object) -> Tensor:
        """Return (N,1,H). `mask` is whatever the attention implementation takes; the rest is what it may not use."""
        first_N1H = x_NLH[:, :1]
        context_N1A = self._attend(first_N1H, x_NLH, mask)
        attended_N1H = self._part("attention_norm")(self._part("attention_output")(context_N1A) + first_N1H)
        wide_N1F = self.activation(self._part("ffn_in")(attended_N1H))
        return cast("Tensor", self._part("ffn_norm")(self._part("ffn_out")(wide_N1F) + attended_N1H))

    def _attend(self, first_N1H: Tensor, x_NLH: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            self._part(name)(rows).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for name, rows in (("query", first_N1H), ("key", x_NLH), ("value", x_NLH))
        )
        if mask is not None and mask.ndim == 4:
            mask = mask[:, :, :1]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context_N1hd, _ = attend(self, query, key, value, mask, scaling=self.scaling, dropout=0.0)
        return cast("Tensor", context_N1hd.flatten(2))

    def _part(self, name: str) -> nn.Module:
        return self.get_submodule(getattr(self.family, name))
