"""An exported model: rows in, predictions out. What the service, the benchmarks and the checks all run.

N rows   L padded length   C labels
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from deploykit.environment import num_cores
from deploykit.errors import ArtifactError
from deploykit.runtime import model_info
from deploykit.runtime.batching import blank, length_sorted_batches, pad
from deploykit.runtime.cascade import Answer, cascaded
from deploykit.runtime.model_info import FIRST, ModelInfo
from deploykit.runtime.one_thread import MOST_BYTES, ROWS_TOGETHER, Feeds, OneThread, fitted, side_by_side, tokens_of
from deploykit.runtime.session import open_session, run_session
from deploykit.runtime.tasks import RuntimeTask, decoder_of
from deploykit.runtime.tokenizer import Encoding, Tokenizer

Row = Mapping[str, Any]


class Model:
    """A loaded model; safe to share between threads."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: Tokenizer,
        session: ort.InferenceSession,
        *,
        one_thread: OneThread | None = None,
        is_small: bool = False,
        first: "Model | None" = None,
    ) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self.session = session
        self.one_thread = one_thread
        """Runs the inputs that are too short to share among threads, and small batches side by side."""
        self.is_small = is_small
        """Whether many rows are run in small batches."""
        self.first = first
        """A cascade's smaller model, which is asked first."""
        self.task: RuntimeTask = decoder_of(info.task)
        self._output = info.outputs[:1]

    @classmethod
    def open(cls, path: Path, *, threads: int | None = None, many: bool = True) -> "Model":
        """Load an exported model on the provider it was exported for.

        Args:
            path: the exported model.
            threads: the most that a call takes; every core this process may use, unless given.
            many: whether to measure how many rows are best shared among the threads.

        Raises:
            ArtifactError: the folder holds none, or its parts do not fit together.
            EnvironmentMissing: its provider cannot run here.
        """
        info = model_info.read(path)
        return cls._opened(
            path, Tokenizer.open(path, max_length=info.max_length, pad_id=info.pad_id), threads, many=many
        )

    @classmethod
    def _opened(cls, path: Path, tokenizer: Tokenizer, threads: int | None, *, many: bool) -> "Model":
        info = model_info.read(path)
        session = open_session(
            path / model_info.GRAPH, provider=info.provider, options=info.provider_options, threads=threads
        )
        _require_names(path, "inputs", info.inputs, [node.name for node in session.get_inputs()])
        _require_names(path, "outputs", info.outputs, [node.name for node in session.get_outputs()])
        first = None if info.threshold is None else cls._opened(path / FIRST, tokenizer, threads, many=many)
        if first is not None:
            _require_kindred(path, info, first.info)
        num_bytes = sum(file.stat().st_size for file in path.glob(f"{model_info.GRAPH}*"))
        is_small = info.provider == "cpu" and num_bytes <= MOST_BYTES
        one_thread = _fitted(path, info, session, threads or num_cores(), many=many) if is_small else None
        return cls(info, tokenizer, session, one_thread=one_thread, is_small=is_small, first=first)

    @property
    def last(self) -> "Model":
        """This model without a smaller one that is asked first."""
        info = dataclasses.replace(self.info, threshold=None)
        return Model(info, self.tokenizer, self.session, one_thread=self.one_thread, is_small=self.is_small)

    def encode(self, rows: Sequence[Row]) -> list[Encoding]:
        """Encode rows as the task does."""
        return self.task.encode(self.tokenizer, rows)

    def run(self, encodings: Sequence[Encoding]) -> list[NDArray[np.float32]]:
        """Run one padded batch of at least one row; per row (C,), or (L,C) without padding."""
        if self.first is not None:
            return self._cascaded(encodings, self.first.run, self._run)
        return self._run(encodings)

    def _run(
        self, encodings: Sequence[Encoding], session: ort.InferenceSession | None = None
    ) -> list[NDArray[np.float32]]:
        feeds = pad(encodings, self.info.pad_id, self.info.inputs)
        (outputs,) = run_session(session, self._output, feeds) if session else self.run_feeds(feeds)
        return self.task.unpad(outputs, encodings)

    def run_feeds(self, feeds: Feeds) -> list[NDArray[Any]]:
        """Run a padded input as it is, on the session that is faster for it; a cascade's smaller model is not asked."""
        tokens = tokens_of(feeds)
        choice = self.one_thread.choice_for(tokens) if self.one_thread else None
        if self.one_thread is None or choice is None:
            return run_session(self.session, self._output, feeds)
        alone = choice.next()
        started = time.perf_counter()
        found = run_session(self.one_thread.session if alone else self.session, self._output, feeds)
        choice.add((time.perf_counter() - started) / tokens, alone=alone)
        return found

    def session_for(self, feeds: Feeds) -> ort.InferenceSession:
        """Return the session that seems faster for an input now."""
        choice = self.one_thread.choice_for(tokens_of(feeds)) if self.one_thread else None
        return self.one_thread.session if self.one_thread and choice and choice.alone else self.session

    def logits(self, encodings: Sequence[Encoding], batch_size: int = 32) -> list[NDArray[np.float32]]:
        """Run any number of rows in length-sorted batches, side by side where that is faster, for the same answers.

        Answers are in the order given.
        """
        if len(encodings) == 1:
            return self.run(encodings)
        if self.first is not None:
            first, last = (partial(each.logits, batch_size=batch_size) for each in (self.first, self.last))
            return self._cascaded(encodings, first, last)
        places = length_sorted_batches([len(encoding.ids) for encoding in encodings], batch_size)
        answers: dict[int, NDArray[np.float32]] = {}
        found = self._each([[encodings[index] for index in indices] for indices in places])
        for indices, batch in zip(places, found, strict=True):
            answers.update(zip(indices.tolist(), batch, strict=True))
        return [answers[index] for index in range(len(encodings))]

    def _each(self, batches: Sequence[Sequence[Encoding]]) -> list[list[NDArray[np.float32]]]:
        """Run batches, in order."""
        if len(batches) == 1 or self.one_thread is None or self.one_thread.pool is None:
            return [self._run(batch) for batch in batches]
        run = partial(self._run, session=self.one_thread.session)
        return side_by_side(self.one_thread.pool, run, batches)

    def _cascaded(self, encodings: Sequence[Encoding], first: Answer, last: Answer) -> list[NDArray[np.float32]]:
        assert self.info.threshold is not None
        return cascaded(encodings, first, last, self.task, self.info.threshold)

    def answers(self, encodings: Sequence[Encoding], most_rows: int = 32) -> list[NDArray[np.float32]]:
        """Run any number of rows as `logits` does, in batches of the size that is fastest, of at most `most_rows`."""
        if self.first is not None:
            first, last = (partial(each.answers, most_rows=most_rows) for each in (self.first, self.last))
            return self._cascaded(encodings, first, last)
        return self.logits(encodings, self.rows_together(most_rows))

    def rows_together(self, most_rows: int) -> int:
        """Return how many rows a batch is to have to be fast: at most `most_rows`.

        It is the same on every machine: an int8 model's answers depend on what is batched together.
        """
        return min(most_rows, ROWS_TOGETHER) if self.is_small else most_rows

    def thread_plan(self) -> dict[str, Any]:
        """Say how calls are spread over threads, as far as it is measured.

        `threads` of a call, `alone_up_to_tokens` inputs run on one of them, `side_by_side` are the small batches of
        many rows; of a cascade's smaller model under `first`.
        """
        alone = self.one_thread
        plan = {
            "threads": self.session.get_session_options().intra_op_num_threads,
            "alone_up_to_tokens": alone.most_tokens if alone else 0,
            "side_by_side": alone is not None and alone.pool is not None,
        }
        return plan | ({"first": self.first.thread_plan()} if self.first else {})

    def predict(self, rows: Sequence[Row], batch_size: int = 32) -> list[dict[str, Any]]:
        """Answer rows, in order, with one JSON object each; in batches of at most `batch_size`.

        Raises:
            DataError: a row cannot be answered; none is.
        """
        for index, row in enumerate(rows):
            self.task.check(row, f"row {index}")
        encodings = self.encode(rows)
        return self.task.decode(self.answers(encodings, batch_size), encodings, rows, self.info.labels)


def _fitted(
    path: Path, info: ModelInfo, session: ort.InferenceSession, threads: int, *, many: bool
) -> OneThread | None:
    """Open a small model on one thread too, and keep what is faster."""
    if threads == 1:
        return None
    alone = open_session(path / model_info.GRAPH, provider=info.provider, options=info.provider_options, threads=1)
    limits = info.max_length, threads
    return fitted(session, alone, lambda tokens: blank(tokens, info.inputs), limits, many=many)


def _require_kindred(path: Path, info: ModelInfo, first: ModelInfo) -> None:
    """Check that a cascade's two models answer alike what they read alike."""
    wanted, found = ((each.task, each.labels, each.max_length, each.pad_id) for each in (info, first))
    if wanted != found:
        raise ArtifactError(
            path / FIRST,
            expected="a model of the same task, labels, length and padding",
            found="another",
            next_step="export the checkpoint anew",
        )


def _require_names(path: Path, what: str, expected: Sequence[str], found: Sequence[str]) -> None:
    if list(expected) != list(found):
        raise ArtifactError(
            path,
            expected=f"{what} {', '.join(expected)}",
            found=", ".join(found),
            next_step="export the checkpoint anew",
        )
