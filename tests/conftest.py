"""Fixtures: tiny checkpoints and data sets, made once a session; a cache of its own."""

from pathlib import Path

import pytest
import torch

from deploykit.artifact import Artifact
from deploykit.package import Package
from deploykit.stage import run
from tests.models import make_checkpoint, make_dataset
from tests.onnx_models import make_onnx, make_proof


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


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny exported text classifier. Read only."""
    return make_onnx(tmp_path_factory.mktemp("onnx") / "model")


@pytest.fixture(scope="session")
def bento(onnx_model: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny text classifier, proven and packaged. Read only."""
    folder = tmp_path_factory.mktemp("bento")
    return run(Package("reviews"), onnx_model, make_proof(onnx_model, folder / "proof"), out=folder / "bento")


@pytest.fixture(scope="session")
def bento_ner(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny token classifier, proven and packaged. Read only."""
    folder = tmp_path_factory.mktemp("bento-ner")
    model = make_onnx(folder / "model", "token-classification")
    return run(Package("entities"), model, make_proof(model, folder / "proof"), out=folder / "bento")


@pytest.fixture(autouse=True)
def _own_threads():
    """Give PyTorch its threads back: sums, and so digests of trained weights, depend on how many there are."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
