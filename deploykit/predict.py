"""Batch scoring: a file of rows to one JSON line a row, in order."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploykit.data import Row, Split, read_file
from deploykit.errors import OutputExists, resources_mapped
from deploykit.runtime.model import Model

CHUNK = 4096
"""Rows that are encoded and sorted by length together: bounds the memory of a long file."""


def predict_file(model: Path, source: Path, out: Path) -> dict[str, Any]:
    """Score the rows of `source` (.jsonl, .csv or .parquet) and write `out` in one step; returns counts and seconds.

    Raises:
        OutputExists: `out` is there.
        DataError: a row cannot be answered (file and line); nothing is written.
    """
    if out.exists():
        raise OutputExists(out, expected="a new file", found="an existing one", next_step="choose another --output")
    split = read_file(source)
    loaded = Model.open(model)
    _require_rows(split, loaded)
    started = time.monotonic()
    num_truncated = _write(out, _predictions(loaded, split.rows))
    seconds = time.monotonic() - started
    return {
        "rows": len(split.rows),
        "truncated": num_truncated,
        "seconds": round(seconds, 3),
        "throughput_per_s": round(len(split.rows) / seconds, 1),
    }


def _require_rows(split: Split, model: Model) -> None:
    for index, row in enumerate(split.rows):
        model.task.check(row, split.where(index))


def _predictions(model: Model, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), CHUNK):
        yield from model.predict(rows[start : start + CHUNK])


def _write(out: Path, predictions: Iterator[dict[str, Any]]) -> int:
    """Write to a file beside `out`, fsync, rename; returns how many rows were truncated."""
    scratch = out.parent / f".{out.name}.partial"
    num_truncated = 0
    try:
        with resources_mapped(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("w", encoding="utf-8") as handle:
                for prediction in predictions:
                    num_truncated += "truncated" in prediction
                    handle.write(json.dumps(prediction, ensure_ascii=False, allow_nan=False) + "\n")
                handle.flush()
                os.fsync(handle.fileno())
            scratch.rename(out)
    finally:
        scratch.unlink(missing_ok=True)
    return num_truncated
