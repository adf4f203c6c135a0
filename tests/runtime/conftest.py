"""Tiny exported models and tokenizers. Read only."""

from pathlib import Path

import pytest

from deploykit.runtime.tokenizer import Tokenizer
from tests.models import write_tokenizer
from tests.plain_export import export_plain


@pytest.fixture(scope="session")
def bert_onnx(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_plain(bert, tmp_path_factory.mktemp("bert-onnx") / "model", "text-classification")


@pytest.fixture(scope="session")
def ner_onnx(bert_ner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_plain(bert_ner, tmp_path_factory.mktemp("ner-onnx") / "model", "token-classification")


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny WordPiece tokenizer, cutting to 16 tokens."""
    folder = tmp_path_factory.mktemp("wordpiece")
    write_tokenizer(folder)
    return Tokenizer.open(folder, max_length=16, pad_id=0)
