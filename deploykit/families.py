"""What a model family is: where its layers, attention, feed-forward network and head are.

One entry per family; distil, prune, quantize and export read the entry and know no model by name.
A new family is a new entry. Paths are dotted attribute names of the transformers modules.

    H hidden size   A heads * head size   F feed-forward width
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Where the parts of one model type are."""

    model_type: str
    backbone: str
    """The encoder, relative to the model with its head."""
    embeddings: str
    """The embedding module, relative to the backbone."""
    layers: str
    """The list of layers, relative to the backbone."""
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    ffn_in: str
    ffn_out: str
    ffn_norm: str
    """All eight relative to a layer: linear modules (A,H) (A,H) (A,H) (H,A), (F,H), (H,F), and two norms."""
    num_layers: str
    num_heads: str
    hidden_size: str
    ffn_width: str
    """Names of the configuration's attributes."""
    activation: str = "hidden_act"
    """Likewise: the activation of the feed-forward network."""
    pooler: str = ""
    """The pooler, relative to the backbone, where the backbone has one."""
    heads: tuple[str, ...] = ("classifier",)
    """Modules on top of the backbone, relative to the model."""


BERT = Family(
    model_type="bert",
    backbone="bert",
    embeddings="embeddings",
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
    num_layers="num_hidden_layers",
    num_heads="num_attention_heads",
    hidden_size="hidden_size",
    ffn_width="intermediate_size",
    pooler="pooler",
)

ROBERTA = Family(**{**BERT.__dict__, "model_type": "roberta", "backbone": "roberta", "pooler": ""})

DISTILBERT = Family(
    model_type="distilbert",
    backbone="distilbert",
    embeddings="embeddings",
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    ffn_norm="output_layer_norm",
    num_layers="n_layers",
    num_heads="n_heads",
    hidden_size="dim",
    ffn_width="hidden_dim",
    activation="activation",
    heads=("pre_classifier", "classifier"),
)

FAMILIES = {family.model_type: family for family in (BERT, ROBERTA, DISTILBERT)}


@dataclass(frozen=True)
class Block:
    """One layer's modules, found through its family."""

    query: "nn.Linear"
    key: "nn.Linear"
    value: "nn.Linear"
    attention_output: "nn.Linear"
    ffn_in: "nn.Linear"
    ffn_out: "nn.Linear"

    def linears(self) -> tuple["nn.Linear", ...]:
        """Return the six matrices, in the order of the forward pass."""
        return (self.query, self.key, self.value, self.attention_output, self.ffn_in, self.ffn_out)


@dataclass(frozen=True)
class Structure:
    """How many heads and feed-forward neurons each layer keeps; layers may differ."""

    heads: tuple[int, ...]
    ffn: tuple[int, ...]


def family_of(config: "PretrainedConfig", where: object) -> Family:
    """Return the entry of a configuration's model type.

    Raises:
        CheckpointError: there is none.
    """
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise CheckpointError(
            where,
            expected=f"a model type of {known}",
            found=repr(config.model_type),
            next_step="use a checkpoint of a supported family",
        )
    return FAMILIES[config.model_type]


def layer_list(model: "PreTrainedModel") -> "nn.ModuleList":
    """Return the model's layers."""
    family = FAMILIES[model.config.model_type]
    return cast("nn.ModuleList", getattr(model, family.backbone).get_submodule(family.layers))


def blocks(model: "PreTrainedModel") -> list[Block]:
    """Return each layer's matrices, first layer first."""
    family = FAMILIES[model.config.model_type]
    names = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
    return [Block(*(_linear(layer, getattr(family, name)) for name in names)) for layer in layer_list(model)]


def _linear(layer: "nn.Module", path: str) -> "nn.Linear":
    return cast("nn.Linear", layer.get_submodule(path))


def block_linears(model: "PreTrainedModel") -> Iterator[tuple[str, "nn.Linear"]]:
    """Yield the name, relative to the model, and the module of every matrix in the layers."""
    names = {id(module): name for name, module in model.named_modules()}
    for block in blocks(model):
        for linear in block.linears():
            yield names[id(linear)], linear


def hidden_size(model: "PreTrainedModel") -> int:
    """Return the width of the hidden states."""
    return int(getattr(model.config, FAMILIES[model.config.model_type].hidden_size))


def word_embeddings(model: "PreTrainedModel") -> "Tensor":
    """Return the word embeddings (V,H), without a gradient."""
    return cast("nn.Embedding", model.get_input_embeddings()).weight.detach()


def head_size(model: "PreTrainedModel") -> int:
    """Return the width of one attention head, which nothing here ever changes."""
    return hidden_size(model) // int(getattr(model.config, FAMILIES[model.config.model_type].num_heads))


def structure_of(model: "PreTrainedModel") -> Structure:
    """Read the kept heads and widths from the model's own matrices."""
    size = head_size(model)
    found = blocks(model)
    return Structure(
        tuple(block.query.out_features // size for block in found), tuple(block.ffn_in.out_features for block in found)
    )


def full_structure(config: "PretrainedConfig") -> Structure:
    """Return the structure of an unpruned model."""
    family = FAMILIES[config.model_type]
    layers = getattr(config, family.num_layers)
    return Structure((getattr(config, family.num_heads),) * layers, (getattr(config, family.ffn_width),) * layers)


def resize(model: "PreTrainedModel", structure: Structure) -> None:
    """Give every layer the widths of `structure`, in place, with new uninitialized matrices."""
    size = head_size(model)
    for block, num_heads, width in zip(blocks(model), structure.heads, structure.ffn, strict=True):
        for linear in (block.query, block.key, block.value):
            _resize_linear(linear, num_heads * size, linear.in_features)
        _resize_linear(block.attention_output, block.attention_output.out_features, num_heads * size)
        _resize_linear(block.ffn_in, width, block.ffn_in.in_features)
        _resize_linear(block.ffn_out, block.ffn_out.out_features, width)


def _resize_linear(linear: "nn.Linear", out_features: int, in_features: int) -> None:
    from torch import nn

    weight = linear.weight.new_empty(out_features, in_features)
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_empty(out_features), requires_grad=linear.bias.requires_grad)
    linear.out_features, linear.in_features = out_features, in_features
