"""Batch scoring of files."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import ArtifactError, DataError, OutputExists
from deploykit.predict import predict_file
from deploykit.runtime.model import Model
from tests.plain_export import export_plain

ROWS: list[dict[str, Any]] = [
    {"text": "the film was good"},
    {"text": "film " * 90},
    {"text": "sad « é »", "label": "negative", "id": 7},
]


@pytest.fixture(scope="module")
def exported(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_plain(bert, tmp_path_factory.mktemp("predict") / "model", "text-classification")


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_every_row_has_its_line_in_order(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.jsonl"
    facts = predict_file(exported, write(tmp_path / "rows.jsonl", ROWS * 5), out)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    expected = Model.open(exported).predict(ROWS) * 5
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)
    assert [answer.get("truncated", False) for answer in answers] == [False, True, False] * 5
    assert (facts["rows"], facts["truncated"]) == (15, 5)


def test_csv_is_read_too(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nthe film,good\n")
    assert predict_file(exported, tmp_path / "rows.csv", tmp_path / "out.jsonl")["rows"] == 1


@pytest.mark.parametrize(
    ("line", "found"),
    [('{"text": ""}', "blank"), ('{"title": "a"}', "no such field"), ("{", "broken JSON"), ("[]", "list")],
)
def test_a_bad_row_is_named_by_line_and_nothing_is_left(exported: Path, tmp_path: Path, line: str, found: str) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "the film"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{found}"):
        predict_file(exported, source, tmp_path / "out.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_error_midway_leaves_nothing(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.setattr(Model, "predict", lambda *_: [{"label": "a", "score": float("nan")}])
    with pytest.raises(ValueError, match="JSON compliant"):
        predict_file(exported, source, tmp_path / "out.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_output_that_exists_is_kept(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("precious")
    with pytest.raises(OutputExists):
        predict_file(exported, write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "precious"


def test_a_missing_file_or_model_is_named(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        predict_file(exported, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(ArtifactError, match="no such file"):
        predict_file(tmp_path, write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl")
