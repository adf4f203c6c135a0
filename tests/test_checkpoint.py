"""Checkpoints load exactly or not at all, and every fault is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from deploykit import artifact, checkpoint, families
from deploykit.errors import CheckpointError
from deploykit.families import Structure
from tests.models import make_checkpoint, tiny_config, write_tokenizer

TEXTS = ["the film was good", "a sad story", "anna saw berlin with peter and a superb plot"]


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def edited(source: Path, tmp_path: Path, edit) -> Path:
    """Copy a checkpoint with its tensors passed through `edit`."""
    folder = copied(source, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def loaded(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.open_checkpoint(folder))


def logits_of(found: checkpoint.Checkpoint, batch_size: int = 32) -> list[np.ndarray]:
    return checkpoint.logits(found, found.tokenizer.encode(TEXTS), batch_size=batch_size)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_what_is_saved_is_what_is_loaded(tmp_path, family, task):
    first = loaded(make_checkpoint(tmp_path / "plain", family=family, task=task))
    (tmp_path / "saved").mkdir()
    checkpoint.save(first, tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    assert again.spec == first.spec
    assert again.labels == first.labels
    for before, after in zip(logits_of(first), logits_of(again), strict=True):
        np.testing.assert_array_equal(before, after)


def test_saving_twice_gives_the_same_bytes(bert, tmp_path):
    found = loaded(bert)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        checkpoint.save(found, tmp_path / name)
    assert artifact.adopt(tmp_path / "a", "checkpoint").digest == artifact.adopt(tmp_path / "b", "checkpoint").digest


def test_a_pruned_structure_reloads(bert, tmp_path):
    found = loaded(bert)
    structure = Structure((1, 3), (16, 48))
    families.resize(found.model, structure)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.normal_(0, 0.1)
    (tmp_path / "pruned").mkdir()
    checkpoint.save(replace(found, spec=replace(found.spec, structure=structure)), tmp_path / "pruned")
    again = loaded(tmp_path / "pruned")
    assert families.structure_of(again.model) == structure
    np.testing.assert_array_equal(logits_of(found)[2], logits_of(again)[2])


def test_padding_does_not_change_a_row(bert):
    found = loaded(bert)
    for together, alone in zip(logits_of(found), logits_of(found, batch_size=1), strict=True):
        np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_saved_tokenizer_neither_pads_nor_truncates(bert, tmp_path):
    folder = copied(bert, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["padding"] = {
        "strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = loaded(folder)
    assert [len(encoding.ids) for encoding in found.tokenizer.encode(TEXTS)] == [6, 5, 11]
    (tmp_path / "saved").mkdir()
    checkpoint.save(found, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["padding"] is None


WORD = "bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.weight"), r"missing: bert\.encoder\.layer\.1"),
        (lambda tensors: tensors.pop("classifier.weight"), r"missing: classifier\.weight"),
        (lambda tensors: tensors.update({"bert.encoder.layer.9.x": torch.ones(1)}), r"unexpected: .*layer\.9"),
        (lambda tensors: tensors.update({"classifier.weight": torch.ones(3, 32)}), r"another shape: classifier"),
        (lambda tensors: tensors[WORD][3].fill_(float("nan")), f"32 NaN or infinite values in {WORD}"),
        (lambda tensors: tensors[WORD][3, 0].fill_(float("inf")), "1 NaN or infinite"),
    ],
)
def test_a_wrong_tensor_is_named(bert, tmp_path, edit, found):
    with pytest.raises(CheckpointError, match=found):
        loaded(edited(bert, tmp_path, edit))


def test_a_truncated_file_is_refused(bert, tmp_path):
    folder = copied(bert, tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        loaded(folder)


def test_a_corrupt_header_is_refused(bert, tmp_path):
    folder = copied(bert, tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 16 + file.read_bytes()[16:])
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        loaded(folder)


def test_pickled_weights_are_never_read(bert, tmp_path):
    folder = copied(bert, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        loaded(folder)


def test_a_model_without_head_is_refused(tmp_path):
    AutoModel.from_config(tiny_config("bert", ["a", "b"])).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    with pytest.raises(CheckpointError, match="architecture BertModel"):
        loaded(tmp_path / "base")


@pytest.mark.parametrize("tokens", [-3, 2000])
def test_a_tokenizer_of_another_vocabulary_is_refused(bert, tmp_path, tokens):
    def resize(tensors):
        table = tensors[WORD]
        tensors[WORD] = table[:tokens].clone() if tokens < 0 else torch.randn(tokens, 32)

    folder = edited(bert, tmp_path, resize)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = len(load_file(folder / "model.safetensors")[WORD])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="a tokenizer of about"):
        loaded(folder)


def test_a_tokenizer_with_another_padding_token_is_refused(bert, tmp_path):
    folder = copied(bert, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 1}))
    with pytest.raises(CheckpointError, match="whose padding is 1"):
        loaded(folder)


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "mamba"}', '{"model_type": "nonsense"}'])
def test_a_broken_or_foreign_configuration_is_refused(bert, tmp_path, content):
    folder = copied(bert, tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        loaded(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere", "a/b/c"])
def test_a_missing_folder_never_asks_the_hub(name):
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.open_checkpoint(name)


def test_a_hub_name_that_cannot_be_fetched_is_told(monkeypatch):
    with pytest.raises(CheckpointError, match="the name of a model on the hub"):
        checkpoint.open_checkpoint("nobody/no-such-model")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        checkpoint.open_checkpoint(tmp_path)


@pytest.mark.parametrize("pooler", [True, False])
def test_a_base_gets_a_new_head_from_the_seed(tmp_path, pooler):
    base = AutoModel.from_config(tiny_config("bert", ["a", "b"]), add_pooling_layer=pooler)
    base.save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    source = checkpoint.open_checkpoint(tmp_path / "base")
    made = [checkpoint.load_base(source, "text-classification", ["x", "y", "z"], seed) for seed in (0, 0, 1)]
    first, again, other = (found.model.state_dict() for found in made)
    assert made[0].labels == ("x", "y", "z")
    assert torch.equal(first["classifier.weight"], again["classifier.weight"])
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert torch.equal(first[WORD], base.state_dict()["embeddings.word_embeddings.weight"])


def test_a_base_with_a_broken_backbone_is_refused(tmp_path):
    base = AutoModel.from_config(tiny_config("bert", ["a", "b"]))
    base.save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    folder = edited(tmp_path / "base", tmp_path, lambda tensors: tensors.pop("encoder.layer.0.output.dense.bias"))
    with pytest.raises(CheckpointError, match=r"missing: .*encoder\.layer\.0\.output\.dense\.bias"):
        checkpoint.load_base(checkpoint.open_checkpoint(folder), "text-classification", ["x", "y"], 0)
