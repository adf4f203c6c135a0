"""The last layer computes what the head reads, and the logits stay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from deploykit import artifact, checkpoint, families
from deploykit.compress import first_token
from deploykit.compress.first_token import FirstTokenLayer, keep_first_token
from tests.models import make_checkpoint

IDS_NL = torch.tensor([[2, 5, 11, 17, 3], [2, 6, 3, 0, 0]])
MASK_NL = (IDS_NL != 0).long()


def load(folder: Path) -> PreTrainedModel:
    return checkpoint.load(artifact.adopt(folder, "checkpoint")).model


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Any:
    return model(input_ids=IDS_NL, attention_mask=MASK_NL).logits


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param) / "model", family=request.param)


def test_logits_stay_the_same(folder: Path):
    model = load(folder)
    before = logits(model)
    keep_first_token(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_only_one_row_leaves_the_last_layer(folder: Path):
    model = load(folder)
    keep_first_token(model)
    seen = []
    families.layer_list(model)[-1].register_forward_hook(lambda *call: seen.append(call[2].shape))
    logits(model)
    assert seen == [(2, 1, 32)]


def test_the_matrices_keep_their_names(folder: Path):
    model = load(folder)
    before = [name for name, _ in families.block_linears(model)]
    keep_first_token(model)
    assert [name for name, _ in families.block_linears(model)] == before


def test_a_layer_for_another_token_would_be_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = load(folder)
    before = logits(model)
    keep_first_token(model)
    forward = FirstTokenLayer.forward
    monkeypatch.setattr(
        first_token.FirstTokenLayer,
        "forward",
        lambda self, x, *given, **named: forward(self, x.flip(1), *given, **named),
    )
    assert (logits(model) - before).abs().max() > 1e-2


def test_token_classification_needs_every_row(bert_ner: Path):
    model = load(bert_ner)
    keep_first_token(model)
    assert not isinstance(families.layer_list(model)[-1], FirstTokenLayer)


def test_doing_it_twice_changes_nothing(bert: Path):
    model = load(bert)
    keep_first_token(model)
    once = families.layer_list(model)[-1]
    keep_first_token(model)
    assert families.layer_list(model)[-1] is once
