"""The table of word embeddings: where it is, and with fewer rows.

V pieces before   K pieces kept   H hidden size
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def slice_rows(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Keep rows `order` (K) of the word embeddings (V,H) and of a head over the vocabulary, in place.

    Modules that share a table still share it. The configuration's size and token ids follow; the id of a token
    without a row becomes None.
    """
    kept, table_VH = torch.tensor(order), word_embeddings(model).weight
    tables = list(dict.fromkeys(module for _, module in _holders(model)))
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    new = {old: index for index, old in enumerate(order)}
    if head is not None and head not in tables:
        _set_rows(head, _rows(head.weight, kept), new)
    rows_KH = _rows(table_VH, kept)
    for module in tables:
        _set_rows(module, rows_KH, new)
    if (bias := getattr(head, "bias", None)) is not None:
        _replace_everywhere(model, bias, _rows(bias, kept))
    model.config.vocab_size = len(order)
    for config in (model.config, getattr(model, "generation_config", None)):
        _renumber(config, new)


def word_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """Return the model's table of word embeddings (V,H)."""
    return cast("nn.Embedding", model.get_input_embeddings())


def lookups(model: PreTrainedModel) -> list[str]:
    """Name the modules, relative to the model, that look pieces up in the table; an encoder and a decoder share it."""
    return [name for name, module in _holders(model) if isinstance(module, nn.Embedding)]


def is_tied(model: PreTrainedModel) -> bool:
    """Tell whether a head over the vocabulary multiplies by the same table."""
    return any(not isinstance(module, nn.Embedding) for _, module in _holders(model))


def token_ids(config: Any) -> dict[str, list[int]]:
    """Return the token ids that a configuration names, by its attributes (pad_token_id and the like)."""
    named = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    return {name: value if isinstance(value, list) else [value] for name, value in named.items() if value is not None}


def _holders(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    table_VH = word_embeddings(model).weight
    named = model.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in named if getattr(module, "weight", None) is table_VH]


def _rows(table: Tensor, kept: Tensor) -> nn.Parameter:
    return nn.Parameter(table.detach()[kept].clone(), requires_grad=table.requires_grad)


def _set_rows(module: Any, rows_KH: nn.Parameter, new: dict[int, int]) -> None:
    module.weight = rows_KH
    if isinstance(module, nn.Embedding):
        module.num_embeddings = len(rows_KH)
        module.padding_idx = None if module.padding_idx is None else new.get(module.padding_idx)
    else:
        module.out_features = len(rows_KH)


def _replace_everywhere(model: PreTrainedModel, old: Tensor, new: nn.Parameter) -> None:
    """Put a parameter in the place of another wherever it is held."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is old:
                setattr(module, name, new)


def _renumber(config: Any, new: dict[int, int]) -> None:
    for name, ids in token_ids(config).items() if config is not None else ():
        found = [new[old] for old in ids if old in new]
        setattr(config, name, found if isinstance(getattr(config, name), list) else found[0] if found else None)
