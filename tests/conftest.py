"""Fixtures: tiny checkpoints and data sets, made once a session; a cache of its own."""

from pathlib import Path

import pytest

from tests.models import make_checkpoint, make_dataset


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("BENTOML_DO_NOT_TRACK", "True")
        yield


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT for text classification: a plain Hugging Face folder. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="session")
def bert_ner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT for token classification. Read only."""
    return make_checkpoint(tmp_path_factory.mktemp("bert-ner") / "model", task="token-classification")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny labelled set for text classification. Read only."""
    return make_dataset(tmp_path_factory.mktemp("reviews") / "data")


@pytest.fixture(scope="session")
def entities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny labelled set for token classification. Read only."""
    return make_dataset(tmp_path_factory.mktemp("entities") / "data", task="token-classification")
