"""`deploykit.json` of an exported model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import ArtifactError
from deploykit.runtime import model_info
from deploykit.runtime.model_info import ModelInfo

INFO = ModelInfo(
    "text-classification",
    ("negative", "positive"),
    128,
    0,
    ("input_ids", "attention_mask"),
    ("logits",),
    "cuda",
    "int8",
    {"device_id": 0},
    {"found": {"Attention": 6}, "layers": 6},
    {"scheme": "dynamic-int8", "weight_bits": 7, "keep_float": []},
)


@pytest.mark.parametrize("info", [INFO, replace(INFO, quantization=None, provider_options={}, fusions={})])
def test_what_is_written_is_read(tmp_path: Path, info: ModelInfo) -> None:
    model_info.write(info, tmp_path)
    assert model_info.read(tmp_path) == info


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"provider": "tpu"}, {"precision": "int3"}, {"labels": None}, {"surprise": 1}]
)
def test_a_broken_field_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    model_info.write(INFO, tmp_path)
    file = tmp_path / model_info.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ArtifactError, match=r"deploykit\.json"):
        model_info.read(tmp_path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    model_info.write(INFO, tmp_path)
    file = tmp_path / model_info.FILE
    file.write_text(json.dumps({key: item for key, item in json.loads(file.read_text()).items() if key != "pad_id"}))
    with pytest.raises(ArtifactError, match="pad_id"):
        model_info.read(tmp_path)


def test_a_folder_without_a_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        model_info.read(tmp_path)


def test_a_checkpoints_file_is_no_exported_model(tmp_path: Path) -> None:
    (tmp_path / model_info.FILE).write_text(
        '{"format": 1, "task": "text-classification", "max_length": 64, "pad_id": 0}'
    )
    with pytest.raises(ArtifactError, match="broken field"):
        model_info.read(tmp_path)
