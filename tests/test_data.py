"""Data folders: every format reads alike, every broken row is named by file and line."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from deploykit import data
from deploykit.errors import DataError

ROWS = [{"text": 'a, "b"', "label": "x"}, {"text": "ü\u2028c", "label": "y"}]


def write_jsonl(folder):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_csv(folder):
    (folder / "train.csv").write_text('text,label\n"a, ""b""",x\nü\u2028c,y\n', encoding="utf-8-sig")


def write_parquet(folder):
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "train.parquet")


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_every_format_gives_the_same_rows(tmp_path, write):
    write(tmp_path)
    assert list(data.read_split(tmp_path, "train").rows) == ROWS


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        (b'{"text": "a"}\n{"text": \n', 2, "broken JSON"),
        (b'{"text": "a"}\n[1]\n', 2, "list"),
        (b'{"text": "a"}\n\n', 2, "broken JSON"),
        (b'{"text": "\xff"}\n', 1, "can't decode"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, line, found):
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=found) as caught:
        data.read_split(tmp_path, "train")
    assert caught.value.where == f"{tmp_path / 'train.jsonl'}:{line}"


def test_a_csv_row_of_another_width_is_named(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\nb\n")
    with pytest.raises(DataError, match=r"train\.csv:3"):
        data.read_split(tmp_path, "train")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text("text")
    with pytest.raises(DataError, match="a Parquet file"):
        data.read_split(tmp_path, "train")


def test_an_empty_split_and_a_missing_one_are_told_apart(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match="an empty split"):
        data.read_split(tmp_path, "train")
    with pytest.raises(DataError, match="a split named test"):
        data.read_split(tmp_path, "test")


def test_a_missing_field_is_named_by_line(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n')
    split = data.read_split(tmp_path, "train")
    data.require_fields(split, ["text"])
    with pytest.raises(DataError, match=r"train\.jsonl:2: expected a field 'label'"):
        data.require_fields(split, ["text", "label"])


@pytest.mark.parametrize("content", ['{"labels": []}', '{"labels": ["a", "a"]}', '{"labels": [1]}', "{}"])
def test_a_wrong_label_list_is_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(DataError, match="distinct label names"):
        data.read_labels(tmp_path)


def test_labels_keep_their_order(tmp_path):
    (tmp_path / "labels.json").write_text('["z", "a"]')
    assert data.read_labels(tmp_path) == ["z", "a"]


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_told_without_asking_a_hub(source, monkeypatch):
    monkeypatch.setattr(data, "_fetch", lambda name: pytest.fail(f"asked for {name}"))
    with pytest.raises(DataError, match="no such folder"):
        data.open_dataset(source)


def test_a_folder_without_splits_is_refused(tmp_path):
    with pytest.raises(DataError, match="train, validation or test"):
        data.open_dataset(tmp_path)


def test_the_digest_follows_the_rows(reviews, tmp_path):
    first = data.open_dataset(reviews)
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert first.kind == "dataset"
    assert data.open_dataset(tmp_path).digest != first.digest


def test_rows_without_labels_come_from_any_file_or_every_file_of_a_folder(tmp_path):
    (tmp_path / "b.txt").write_text("one text\n\n  another  \n")
    (tmp_path / "a.csv").write_text("text,label\nthird,never read\n")
    (tmp_path / "labels.json").write_text("[]")
    alone, both = data.open_unlabeled(tmp_path / "b.txt"), data.open_unlabeled(tmp_path)
    assert list(alone.files) == ["b.txt"]
    assert list(both.files) == ["a.csv", "b.txt"]
    assert [row["text"] for split in data.read_unlabeled(both) for row in split.rows] == [
        "third",
        "one text",
        "another",
    ]
    assert alone.digest != both.digest
    (tmp_path / "b.txt").write_text("other\n")
    assert data.open_unlabeled(tmp_path / "b.txt").digest != alone.digest


@pytest.mark.parametrize("name", ["none", "notes.md", "empty"])
def test_a_place_without_rows_is_refused(tmp_path, name):
    (tmp_path / "notes.md").write_text("text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"\.txt, or a folder of them, found none"):
        data.open_unlabeled(tmp_path / name)
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match="at least one row"):
        data.read_unlabeled(data.open_unlabeled(tmp_path / "blank.txt"))


def test_a_split_may_not_be_plain_text(tmp_path):
    (tmp_path / "rows.txt").write_text("text\n")
    with pytest.raises(DataError, match="another ending"):
        data.read_file(tmp_path / "rows.txt")
