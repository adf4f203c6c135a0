import json
from pathlib import Path
from typing import Any

import pytest

from deploykit import checkpoint as checkpoints
from deploykit import stage
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint, open_checkpoint
from deploykit.compress import language_model
from deploykit.compress.distil import Distil
from deploykit.compress.generate import _line, _row, generated_rows
from deploykit.data import open_dataset, read_split
from deploykit.errors import UsageError
from deploykit.tasks import task_named
from tests.models import NEGATIVE, POSITIVE, make_dataset, make_language_model

COUNT = 200


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny language model. Read only."""
    return open_checkpoint(make_language_model(tmp_path_factory.mktemp("gpt2") / "model"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Labelled sentences with one polar word each. Read only."""
    return open_dataset(make_dataset(tmp_path_factory.mktemp("many") / "data", rows=400))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(language_model, "LEARNING_RATE", 3e-3)
    monkeypatch.setattr(language_model, "TUNING_TEXTS", 320)


def teacher_of(folder: Path) -> Checkpoint:
    return checkpoints.load(open_checkpoint(folder))


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def share_with_one_polar_word(texts: list[str]) -> float:
    return sum(sum(word in POSITIVE + NEGATIVE for word in text.split()) == 1 for text in texts) / len(texts)


def test_rows_are_new_distinct_and_in_the_style_of_the_training_rows(
    gpt2: Artifact, bert: Path, many: Artifact, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(language_model, "TUNING_TEXTS", 6400)
    tuned = [row["text"] for row in read(generated_rows(gpt2, teacher_of(bert), many, COUNT, 0))]
    monkeypatch.setattr(language_model, "LEARNING_RATE", 1e-9)
    untuned = [row["text"] for row in read(generated_rows(gpt2, teacher_of(bert), many, COUNT, 1))]
    assert len(set(tuned)) == len(tuned) == COUNT
    assert not set(tuned) & {row["text"] for row in read_split(many.path, "train").rows}
    assert share_with_one_polar_word(tuned) > 0.7
    assert share_with_one_polar_word(untuned) < 0.5


def test_a_row_of_words_is_written_for_a_task_of_words(
    gpt2: Artifact, bert_ner: Path, entities: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = read(generated_rows(gpt2, teacher_of(bert_ner), open_dataset(entities), 5, 0))
    assert len(rows) == 5
    assert all(list(row) == ["tokens"] and all(row["tokens"]) for row in rows)


def test_rows_are_kept_by_what_they_were_made_from(
    gpt2: Artifact, bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, teacher = open_dataset(reviews), teacher_of(bert)
    first = generated_rows(gpt2, teacher, data, 5, 0)
    other = open_checkpoint(make_language_model(tmp_path / "other", seed=1))
    files = {first, *(generated_rows(model, teacher, data, 5, seed) for model, seed in ((gpt2, 1), (other, 0)))}
    assert len(files) == len({file.read_text() for file in files}) == 3
    text = first.read_text()
    first.unlink()
    assert generated_rows(gpt2, teacher, data, 5, 0).read_text() == text, "decided by the seed"
    monkeypatch.setattr(language_model, "load_language_model", lambda _: pytest.fail("the rows were there"))
    assert generated_rows(gpt2, teacher, data, 5, 0) == first
    assert [each.name for each in first.parent.iterdir() if not each.name.startswith(".")] == ["rows-5.jsonl"]


def test_what_was_stopped_goes_on_without_tuning_again(
    gpt2: Artifact, bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(language_model, "WRITTEN_TOGETHER", 4)
    teacher, data, write = teacher_of(bert), open_dataset(reviews), language_model.written
    file = generated_rows(gpt2, teacher, data, 9, 5)
    whole = file.read_text()
    file.unlink()
    calls = []

    def dying(*arguments: Any) -> list[str]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(language_model, "written", dying)
    with pytest.raises(KeyboardInterrupt):
        generated_rows(gpt2, teacher, data, 9, 5)
    with (file.parent / ".work" / "drafts.jsonl").open("a") as drafts:
        drafts.write('["a torn li')
    monkeypatch.setattr(language_model, "tune", lambda *_: pytest.fail("it was tuned"))
    assert generated_rows(gpt2, teacher, data, 9, 5).read_text() == whole
    again = [seed for _, seed in calls]
    assert len(set(again)) == len(again) - 1, "only the batch that was not written is written again"


def test_a_pair_is_one_line_of_text_and_back():
    task = task_named("text-classification")
    pair = {"text": "is it good ?", "text_pair": "it is fine", "label": "yes"}
    assert _row(task, _line(task, pair)) == {"text": "is it good ?", "text_pair": "it is fine"}
    assert _row(task, _line(task, {"text": "a\tb\n c", "text_pair": None})) == {"text": "a b c"}


def test_a_model_that_writes_nothing_is_said(
    gpt2: Artifact, bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(language_model, "written", lambda *_: ["", "   "])
    with pytest.raises(UsageError, match=r"distil\.generate: expected rows from the language model, found none"):
        generated_rows(gpt2, teacher_of(bert), open_dataset(reviews), 6, 9)


def test_a_student_learns_from_the_rows_and_the_generators_content_enters_the_digest(
    gpt2: Artifact, bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = open_checkpoint(make_language_model(tmp_path / "other", seed=1))
    made = [
        stage.run(
            Distil(layers=1, epochs=1, generator=str(model.path), generate=7),
            open_checkpoint(bert),
            open_dataset(reviews),
            model,
            out=tmp_path / name,
        )
        for name, model in (("first", gpt2), ("second", other))
    ]
    assert made[0].facts["rows"] == [48, 7]
    assert made[0].node.origin != made[1].node.origin
    assert "generator" not in made[0].node.settings
    with pytest.raises(UsageError, match=r"distil\.generator: expected its checkpoint among the sources, found 0"):
        stage.run(
            Distil(layers=1, generator=str(gpt2.path), generate=7),
            open_checkpoint(bert),
            open_dataset(reviews),
            out=tmp_path / "none",
        )


@pytest.mark.parametrize("half", [{"generate": 5}, {"generator": "gpt2"}])
def test_who_writes_and_how_much_need_each_other(half: dict[str, Any]):
    with pytest.raises(ValueError, match="generator and generate need each other"):
        Distil(layers=1, **half)
