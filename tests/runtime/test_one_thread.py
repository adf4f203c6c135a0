"""Short inputs take one thread where that is faster, and answer alike."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from deploykit import stage
from deploykit.checkpoint import open_checkpoint
from deploykit.compress.compress import Quantize
from deploykit.data import open_dataset
from deploykit.errors import DataError
from deploykit.export.export import Export
from deploykit.runtime import model as models
from deploykit.runtime.batching import blank
from deploykit.runtime.model import Model
from deploykit.runtime.one_thread import ROWS_TOGETHER, Choice, OneThread, fitted, side_by_side
from tests.models import CLASS_LABELS, VOCABULARY, tiny_config, write_tokenizer


class Session:
    """Takes `fixed` seconds and `each` a token, on a clock that it moves."""

    now = 0.0
    lock = Lock()

    def __init__(self, fixed: float, each: float) -> None:
        self.fixed, self.each = fixed, each

    def run(self, _outputs: None, feeds: dict[str, Any]) -> None:
        with Session.lock:
            Session.now += self.fixed + self.each * feeds["input_ids"].size


def fit(shared: Session, alone: Session, longest: int = 512, threads: int = 2) -> OneThread | None:
    limits = longest, threads
    return fitted(shared, alone, lambda tokens: blank(tokens, ["input_ids"]), limits, clock=lambda: Session.now)


def choice(alone: bool) -> Choice:
    """Make a choice that starts so."""
    return Choice(1.2 if alone else 0.8)


def up_to_15_tokens(_shared: Any, alone: Any, *_: Any, **__: Any) -> OneThread:
    """Stand in for what is measured: one thread is faster for fewer than 16 tokens."""
    return OneThread(alone, (choice(True), choice(True)))


@pytest.mark.parametrize(("even", "most"), [(13, 15), (23, 15), (25, 31), (49, 63), (97, 127)])
def test_the_break_even_is_found(even: int, most: int) -> None:
    # Waking costs what the second thread saves at `even` tokens: alone 2 a token, shared 1 a token and `even`.
    found = fit(Session(even, 1.0), Session(0.0, 2.0))
    assert found is not None
    assert found.most_tokens == most
    assert found.session.fixed == 0.0
    choices = [found.choice_for(tokens) for tokens in (1, most, most + 1, 128)]
    assert [each.alone for each in choices[:2] if each] == [True, True]
    assert choices[2] is None or not choices[2].alone
    assert choices[3] is None


def test_a_choice_is_put_right_by_three_calls() -> None:
    found = choice(alone=True)
    answered = []
    for call in range(1, 9):
        alone = found.next()
        found.add(1.5 if alone else 1.2, alone=alone)
        answered.append(alone)
        assert found.alone == (call < 8)
    assert answered == [True, False, True, False, True, True, True, False]


def test_what_was_timed_at_first_is_not_compared_with_calls() -> None:
    found = Choice(1e9)
    for _ in range(2):
        found.add(1.0, alone=True)
        found.add(0.5, alone=False)
    assert found.alone
    found.add(1.0, alone=True)
    assert found.alone
    found.add(0.5, alone=False)
    assert not found.alone


def test_one_slow_call_changes_nothing() -> None:
    found = choice(alone=False)
    for seconds in (2.0, 100.0, 2.0):
        found.add(seconds, alone=False)
    for _ in range(3):
        found.add(2.5, alone=True)
    assert not found.alone


def test_one_slow_turn_when_it_is_opened_changes_nothing() -> None:
    class Interrupted(Session):
        calls = 0

        def run(self, outputs: None, feeds: dict[str, Any]) -> None:
            self.calls += 1
            super().run(outputs, feeds)
            Session.now += 1e6 if 4 < self.calls <= 12 else 0  # two of five turns

    found = fit(Session(1000.0, 1.0), Interrupted(0.0, 2.0), longest=8)
    assert found is not None
    assert all(each.alone for each in found.choices)


def test_the_session_that_seems_slower_is_tried_ever_more_rarely() -> None:
    found = choice(alone=False)
    others = sum(found.next() for _ in range(4096))
    assert others == 8 - 1 + 4096 // 256  # 2, 4, ... 128, and each 256th
    assert not found.next()


def test_a_session_that_is_much_slower_is_tried_when_the_calls_have_doubled() -> None:
    found = Choice(0.6)
    assert [call for call in range(1, 4097) if found.next()] == [2**power for power in range(1, 13)]


def test_a_choice_that_was_far_off_is_put_right() -> None:
    found = Choice(0.1)
    for _ in range(8):
        alone = found.next()
        found.add(1.0 if alone else 2.0, alone=alone)
    assert found.alone
    assert sum(not found.next() for _ in range(9, 4097)) == 9, "it is now known to be far from the other"


class Counted(Session):
    calls = 0

    def run(self, _outputs: None, feeds: dict[str, Any]) -> None:
        Counted.calls += 1
        super().run(_outputs, feeds)


def test_many_rows_are_timed_only_where_some_are_to_come() -> None:
    calls = {}
    for many in (False, True):
        Counted.calls = 0
        sessions = Counted(9.0, 1.0), Counted(0.0, 2.0)
        found = fitted(
            *sessions, lambda tokens: blank(tokens, ["input_ids"]), (4, 2), many=many, clock=lambda: Session.now
        )
        assert found is not None
        assert found.most_tokens == 15
        assert len(found.choices) == 2
        calls[many] = Counted.calls
    assert calls[False] < calls[True] // 2


def test_where_one_thread_never_pays_there_is_none() -> None:
    assert fit(Session(3.9, 1.0), Session(0.0, 2.0)) is None


def test_where_it_might_pay_it_is_there_to_be_tried() -> None:
    found = fit(Session(4.1, 1.0), Session(0.0, 2.0))
    assert found is not None
    assert found.most_tokens == 0
    assert [each.alone for each in found.choices] == [False, False]


def test_where_it_always_pays_the_longest_that_was_timed_is_the_most() -> None:
    for longest, most in ((512, 127), (40, 63), (4, 15)):
        found = fit(Session(1000.0, 1.0), Session(0.0, 2.0), longest)
        assert found is not None
        assert found.most_tokens == most


@pytest.mark.parametrize("threads", [2, 5])
def test_small_batches_run_side_by_side_only_where_that_is_faster(threads: int) -> None:
    tokens = ROWS_TOGETHER * threads * 32  # of the whole that is timed; the clock adds up what all threads do
    for fixed, pays in ((tokens - 1.0, False), (tokens + 1.0, True)):
        found = fit(Session(fixed, 1.0), Session(0.0, 2.0), threads=threads)
        assert found is not None
        assert (found.pool is not None) == pays


def test_side_by_side_keeps_the_order_and_raises_what_a_batch_raises() -> None:
    found = fit(Session(10_000.0, 1.0), Session(0.0, 1.0))
    assert found is not None
    assert found.pool is not None
    assert side_by_side(found.pool, lambda batch: batch * 2, range(50)) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        side_by_side(found.pool, lambda batch: 1 // batch, [1, 0, 1])


def test_no_length_is_timed_after_the_first_that_costs() -> None:
    found = fit(Session(20.0, 1.0), Session(0.0, 2.0))
    assert found is not None
    assert [each.alone for each in found.choices] == [True, True, False, False]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def folder(request: pytest.FixtureRequest, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model wide enough for its products to be shared among threads."""
    made = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = tiny_config("bert", CLASS_LABELS)
    config.update({"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 1024})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(made / "checkpoint")
    write_tokenizer(made / "checkpoint")
    checkpoint = open_checkpoint(made / "checkpoint")
    if request.param == "int8":
        checkpoint = stage.run(Quantize(), checkpoint, open_dataset(reviews), out=made / "quantized")
    return stage.run(Export(), checkpoint, out=made / "model").path


def test_answers_are_the_same_bit_for_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "fitted", up_to_15_tokens)
    model = Model.open(folder, threads=3)
    assert model.one_thread is not None
    for tokens in range(2, 64):
        feeds = blank(tokens, model.info.inputs)
        feeds["input_ids"] = np.random.default_rng(tokens).integers(5, len(VOCABULARY), (1, tokens))
        assert (model.session_for(feeds) is model.session) == (tokens > 15)
        shared, alone = (each.run(None, feeds)[0] for each in (model.session, model.one_thread.session))
        assert np.array_equal(shared, alone)


def test_the_plan_is_what_was_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        models,
        "fitted",
        lambda _shared, alone, *_, **__: OneThread(alone, (choice(True), choice(True)), ThreadPoolExecutor(3)),
    )
    plan = {"threads": 3, "alone_up_to_tokens": 15, "side_by_side": True}
    assert Model.open(folder, threads=3).thread_plan() == plan
    plan = {"threads": 1, "alone_up_to_tokens": 0, "side_by_side": False}
    assert Model.open(folder, threads=1).thread_plan() == plan


def both_ways(folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> tuple[Model, Model]:
    """Open a model with small batches shared among threads, and one with them side by side."""
    monkeypatch.setattr(models, "fitted", lambda *_, **__: None)
    shared = Model.open(folder, threads=threads)
    monkeypatch.setattr(
        models, "fitted", lambda _shared, alone, *_, **__: OneThread(alone, (), ThreadPoolExecutor(threads))
    )
    return shared, Model.open(folder, threads=threads)


def test_batches_side_by_side_answer_the_same_bit_for_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, apart = both_ways(folder, monkeypatch, threads=3)
    encodings = shared.encode([{"text": "good bad " * (1 + number % 9)} for number in range(37)])
    for batch_size in (1, 4, 32):
        pairs = zip(shared.logits(encodings, batch_size), apart.logits(encodings, batch_size), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)


def test_a_large_batch_is_answered_in_small_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, apart = both_ways(folder, monkeypatch, threads=2)
    ran: list[tuple[bool, int]] = []

    def run(session: Any, outputs: Any, feeds: Any) -> Any:
        ran.append((session is not apart.session and session is not shared.session, len(feeds["input_ids"])))
        return session.run(outputs, feeds)

    monkeypatch.setattr(models, "run_session", run)
    rows = [{"text": "good " * (1 + number % 5)} for number in range(2 * ROWS_TOGETHER + 1)]
    expected = shared.predict(rows)
    assert sorted(ran) == [(False, 1), (False, ROWS_TOGETHER), (False, ROWS_TOGETHER)]
    ran.clear()
    found = apart.predict(rows)
    assert sorted(ran) == [(True, 1), (True, ROWS_TOGETHER), (True, ROWS_TOGETHER)]
    assert found == expected
    ran.clear()
    apart.predict(rows, batch_size=4)
    assert max(count for _, count in ran) == 4
    with pytest.raises(DataError):
        apart.predict([*rows, {"text": " "}])


def test_a_row_is_answered_by_the_session_that_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "fitted", up_to_15_tokens)
    ran = []

    def run(session: Any, outputs: Any, feeds: Any) -> Any:
        ran.append(session)
        return session.run(outputs, feeds)

    monkeypatch.setattr(models, "run_session", run)
    model = Model.open(folder, threads=2)
    for text in ("good", "good " * 30):
        model.predict([{"text": text}])
    model.predict([{"text": "good " * 8}] * 3)  # ten tokens a row, thirty together
    assert model.one_thread is not None
    assert ran == [model.one_thread.session, model.session, model.session]


def test_a_model_learns_from_what_it_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "fitted", up_to_15_tokens)
    model = Model.open(folder, threads=2)
    now = 0.0

    def run(session: Any, outputs: Any, feeds: Any) -> Any:
        nonlocal now
        now += 1.0 if session is model.session else 2.0
        return session.run(outputs, feeds)

    monkeypatch.setattr(models, "run_session", run)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    feeds = blank(10, model.info.inputs)
    for _ in range(8):
        assert model.session_for(feeds) is not model.session
        model.predict([{"text": "good " * 8}])
    assert model.session_for(feeds) is model.session
    assert model.thread_plan()["alone_up_to_tokens"] == 7


def test_a_model_on_one_thread_or_of_many_bytes_has_nothing_to_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "fitted", up_to_15_tokens)
    assert Model.open(folder, threads=2).one_thread is not None
    assert Model.open(folder, threads=1).one_thread is None
    monkeypatch.setattr(models, "MOST_BYTES", (folder / "model.onnx").stat().st_size - 1)
    large = Model.open(folder, threads=2)
    assert large.one_thread is None
    assert (large.rows_together(32), large.rows_together(4)) == (32, 4)
