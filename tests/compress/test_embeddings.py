from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from deploykit.compress.embeddings import slice_rows, token_ids, word_embeddings
from tests.models import CLASS_LABELS, VOCABULARY, tiny_config

ORDER = [0, 1, 2, 3, 5, 8, 13, 21]
"""The old ids in the order of the new ones."""


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=32, n_layer=1, n_head=2, n_positions=16, eos_token_id=13))


def masked_bert() -> PreTrainedModel:
    return BertForMaskedLM(cast("BertConfig", tiny_config("bert", CLASS_LABELS)))


def t5(*, tied: bool) -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 30, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**sizes, **ids))
    if not tied:
        model.config.tie_word_embeddings = False
        model.set_output_embeddings(nn.Linear(32, 30, bias=False))
    return model


def head_of(model: PreTrainedModel) -> nn.Linear:
    return cast("nn.Linear", model.get_output_embeddings())


def run(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    given = {"input_ids": torch.tensor([ids])}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"]
    with torch.inference_mode():
        return cast("torch.Tensor", model.eval()(**given).logits)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_pieces_left_give_bitwise_the_same_logits(family: str):
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, CLASS_LABELS))
    before = run(model, [2, 5, 13, 8, 3])
    slice_rows(model, ORDER)
    assert torch.equal(run(model, [2, 4, 6, 5, 3]), before)
    assert not torch.equal(run(model, [2, 4, 5, 6, 3]), before)
    assert model.get_input_embeddings().weight.shape == (8, 32)
    assert model.config.vocab_size == 8


@pytest.mark.parametrize(
    ("make", "tied"),
    [(gpt2, True), (lambda: t5(tied=True), True), (lambda: t5(tied=False), False), (masked_bert, True)],
    ids=["gpt2", "t5-tied", "t5-untied", "bert-mlm"],
)
def test_a_head_over_the_vocabulary_keeps_the_same_rows(make: Callable[[], PreTrainedModel], *, tied: bool):
    torch.manual_seed(0)
    model = make()
    before = run(model, [5, 13, 8])[..., ORDER]
    slice_rows(model, ORDER)
    assert torch.equal(run(model, [4, 6, 5]), before)
    assert (head_of(model).weight is word_embeddings(model).weight) == tied
    assert not [name for name, tensor in model.named_parameters() if 30 in tensor.shape]
    if tied:  # the untied head was put there by hand
        type(model)(model.config).load_state_dict(model.state_dict(), strict=True)


def test_the_ids_of_the_configuration_follow_and_one_without_a_row_is_none():
    model = gpt2()
    model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id = 21, 29, [13, 5]
    slice_rows(model, ORDER)
    assert token_ids(model.config) == {"pad_token_id": [7], "eos_token_id": [6, 4]}
    assert model.generation_config.eos_token_id == 6


def test_the_padding_row_of_an_embedding_follows():
    model = AutoModelForSequenceClassification.from_config(tiny_config("bert", CLASS_LABELS))
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    slice_rows(model, [5, 4, 3, 0])
    assert (table.padding_idx, table.num_embeddings, model.config.pad_token_id) == (3, 4, 3)
    assert len(VOCABULARY) > 4
