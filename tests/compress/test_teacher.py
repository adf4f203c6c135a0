from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit import checkpoint as checkpoints
from deploykit.checkpoint import Checkpoint, collate, input_names
from deploykit.compress import teacher as module
from deploykit.compress.teacher import teacher_outputs
from deploykit.data import open_dataset
from deploykit.train.labelled import Labelled, read_labelled


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))


def opened(model: Path, data: Path) -> tuple[str, Checkpoint, Labelled]:
    source = checkpoints.open_checkpoint(model)
    found = checkpoints.load(source)
    return source.digest, found, read_labelled(found, open_dataset(data), "train")


class Counter:
    """Counts a model's forward passes."""

    def __init__(self, found: Checkpoint) -> None:
        self.calls = 0
        found.model.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1


def test_the_second_time_the_teacher_does_not_run(bert: Path, reviews: Path):
    digest, found, rows = opened(bert, reviews)
    counter = Counter(found)
    first = teacher_outputs(digest, found, rows.encodings, [1, 2])
    assert counter.calls == 2  # 48 rows in batches of 32: one pass
    second = teacher_outputs(digest, found, rows.encodings, [1, 2])
    assert counter.calls == 2
    assert all(np.array_equal(a, b) for a, b in zip(first.logits, second.logits, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first.hidden[1], second.hidden[1], strict=True))


def test_another_student_of_the_same_teacher_reuses_what_is_there(bert: Path, reviews: Path):
    digest, found, rows = opened(bert, reviews)
    teacher_outputs(digest, found, rows.encodings, [1, 2])
    counter = Counter(found)
    assert list(teacher_outputs(digest, found, rows.encodings, [2]).hidden) == [2]
    assert teacher_outputs(digest, found, rows.encodings, []).hidden == {}
    assert counter.calls == 0


@pytest.mark.parametrize("change", ["teacher", "rows"])
def test_another_teacher_or_other_rows_are_computed_anew(bert: Path, reviews: Path, change: str):
    digest, found, rows = opened(bert, reviews)
    teacher_outputs(digest, found, rows.encodings, [])
    counter = Counter(found)
    if change == "teacher":
        teacher_outputs("0" * 64, found, rows.encodings, [])
    else:
        teacher_outputs(digest, found, rows.encodings[1:], [])
    assert counter.calls > 0


@pytest.mark.parametrize(("model", "data"), [("bert", "reviews"), ("bert_ner", "entities")])
def test_each_row_gets_its_own_outputs(model: str, data: str, request: pytest.FixtureRequest):
    digest, found, rows = opened(request.getfixturevalue(model), request.getfixturevalue(data))
    outputs = teacher_outputs(digest, found, rows.encodings, [2])
    expected = checkpoints.logits(found, rows.encodings)
    for index, (logits, hidden) in enumerate(zip(outputs.logits, outputs.hidden[2], strict=True)):
        assert np.array_equal(logits, expected[index])
        inputs = collate([rows.encodings[index]], found.spec.pad_id, input_names(found.model))
        with torch.inference_mode():
            alone = found.model(**inputs, output_hidden_states=True).hidden_states[2][0].numpy()
        assert np.abs(hidden - alone).max() < 2e-3 * np.abs(alone).max()


def test_a_pass_that_dies_leaves_no_output_behind(bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch):
    digest, found, rows = opened(bert, reviews)
    forward = module._forward

    def dying(*arguments):
        yield next(forward(*arguments))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_forward", dying)
        with pytest.raises(OSError, match="No space"):
            teacher_outputs(digest, found, rows.encodings, [1])
    outputs = teacher_outputs(digest, found, rows.encodings, [1])
    assert np.array_equal(outputs.logits[0], checkpoints.logits(found, rows.encodings)[0])
