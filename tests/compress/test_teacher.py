import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deploykit import checkpoint as checkpoints
from deploykit import families
from deploykit.checkpoint import Checkpoint, collate, input_names
from deploykit.compress import observe
from deploykit.compress import teacher as module
from deploykit.compress.teacher import states_to_keep, teacher_outputs
from deploykit.data import open_dataset
from deploykit.train.labelled import Labelled, read_labelled
from tests.models import make_checkpoint

BOTH = [observe.hidden(1), observe.hidden(2)]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "precision", lambda: "no")  # whatever this processor multiplies faster


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
    first = teacher_outputs(digest, found, rows.encodings, BOTH)
    assert counter.calls == 2  # 48 rows in batches of 32: one pass
    second = teacher_outputs(digest, found, rows.encodings, BOTH)
    assert counter.calls == 2
    assert all(np.array_equal(a, b) for a, b in zip(first.logits, second.logits, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first.states[BOTH[0]], second.states[BOTH[0]], strict=True))


def test_another_student_of_the_same_teacher_reuses_what_is_there(bert: Path, reviews: Path):
    digest, found, rows = opened(bert, reviews)
    teacher_outputs(digest, found, rows.encodings, BOTH)
    counter = Counter(found)
    assert list(teacher_outputs(digest, found, rows.encodings, BOTH[1:]).states) == BOTH[1:]
    assert teacher_outputs(digest, found, rows.encodings, []).states == {}
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


def test_a_teacher_that_multiplies_in_bf16_is_close_on_every_row_and_cached_apart(
    bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
):
    digest, found, rows = opened(bert, reviews)
    exact = teacher_outputs(digest, found, rows.encodings, BOTH)
    monkeypatch.setattr(module, "precision", lambda: "bf16")
    rounded = teacher_outputs(digest, found, rows.encodings, BOTH)
    for name in BOTH:
        for ours, theirs in zip(rounded.states[name], exact.states[name], strict=True):
            difference = np.abs(ours.astype(np.float32) - theirs).mean()
            assert 1e-4 < difference / np.abs(theirs).mean() < 0.02


@pytest.mark.parametrize(("model", "data"), [("bert", "reviews"), ("bert_ner", "entities")])
def test_each_row_gets_its_own_outputs(model: str, data: str, request: pytest.FixtureRequest):
    digest, found, rows = opened(request.getfixturevalue(model), request.getfixturevalue(data))
    outputs = teacher_outputs(digest, found, rows.encodings, BOTH[1:])
    expected = checkpoints.logits(found, rows.encodings)
    for index, (logits, hidden) in enumerate(zip(outputs.logits, outputs.states[BOTH[1]], strict=True)):
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
            teacher_outputs(digest, found, rows.encodings, BOTH[:1])
    outputs = teacher_outputs(digest, found, rows.encodings, BOTH[:1])
    assert np.array_equal(outputs.logits[0], checkpoints.logits(found, rows.encodings)[0])


def test_states_above_the_limit_are_not_kept_and_the_logits_are(bert: Path, reviews: Path, monkeypatch, tmp_path: Path):
    digest, found, rows = opened(bert, reviews)
    one = 2 * 32 * sum(len(encoding.ids) for encoding in rows.encodings)
    monkeypatch.setattr(module, "MOST_BYTES", one)
    assert states_to_keep(found, [rows.encodings], BOTH[:1]) == BOTH[:1]
    assert states_to_keep(found, [rows.encodings], BOTH) == ()
    assert states_to_keep(found, [rows.encodings[:20], rows.encodings[20:]], BOTH[:1]) == BOTH[:1]
    assert states_to_keep(found, [rows.encodings, rows.encodings[:1]], BOTH[:1]) == (), "all sets together count"
    outputs = teacher_outputs(digest, found, rows.encodings, BOTH[:1])
    assert len(outputs.logits) == len(rows)
    kept = sum(file.stat().st_size for file in (tmp_path / "cache" / "teacher").rglob("hidden-*.npy"))
    assert one <= kept < one + 200


def test_what_was_used_longest_ago_makes_room_and_what_is_open_or_in_another_process_stays(
    bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    _, found, rows = opened(bert, reviews)
    cache = tmp_path / "cache" / "teacher"
    kept: dict[Any, Any] = {}
    for name in "abc":
        before = set(cache.glob("*/"))
        kept[name] = teacher_outputs(name, found, rows.encodings, BOTH)
        (folder,) = set(cache.glob("*/")) - before
        os.utime(folder, (0, ord(name)))
        kept[name, "folder"] = folder
    teacher_outputs("a", found, rows.encodings, BOTH)  # b is now the oldest
    one = sum(file.stat().st_size for file in kept["b", "folder"].iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * one))  # room for two and a half
    with module._turn(kept["c", "folder"]):
        teacher_outputs("d", found, rows.encodings, BOTH)
    assert [kept[name, "folder"].is_dir() for name in "abc"] == [False, False, True]
    assert np.array_equal(kept["b"].states[BOTH[1]][3], kept["c"].states[BOTH[1]][3])
    assert len(list(cache.glob("*/"))) == 2
    counter = Counter(found)
    teacher_outputs("c", found, rows.encodings, BOTH)
    assert counter.calls == 0
    teacher_outputs("b", found, rows.encodings, BOTH)
    assert counter.calls > 0


def test_where_there_is_room_nothing_is_removed(bert: Path, reviews: Path, tmp_path: Path):
    _, found, rows = opened(bert, reviews)
    for name in "abcd":
        teacher_outputs(name, found, rows.encodings, BOTH)
    assert len(list((tmp_path / "cache" / "teacher").glob("*/"))) == 4


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_what_an_attention_read_gives_its_queries_keys_and_values_again(family: str, tmp_path: Path):
    found = checkpoints.load(checkpoints.open_checkpoint(make_checkpoint(tmp_path / "model", family=family)))
    inputs = {"input_ids": torch.arange(2, 22).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    with torch.inference_mode():
        seen = observe.states(found.model, inputs, [observe.attention(2), observe.hidden(1), observe.hidden(2)])
        parts = observe.attention_parts(found.model, 2, seen["attention-2"])
        watched = observe.Observed(found.model, [2], [2])(inputs)
    assert torch.equal(seen["attention-2"], seen["hidden-1"]), "as norms stand after the residual sums here"
    assert list(parts) == ["query-2", "key-2", "value-2"]
    assert all(torch.equal(watched[name], parts[name]) for name in parts)
    assert torch.equal(watched["hidden-2"], seen["hidden-2"])
    assert torch.equal(watched["logits"], seen["logits"])
    assert not any(block.query._forward_hooks for block in families.blocks(found.model))
