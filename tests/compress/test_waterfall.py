from pathlib import Path

import numpy as np
import pytest

from deploykit import checkpoint as checkpoints
from deploykit.compress import waterfall
from deploykit.compress.fake_quant import decide
from deploykit.tasks import Score, task_named

TASK = task_named("text-classification")


def scored(right: int, rows: int) -> Score:
    logits = [np.array([0.0, 1.0], np.float32)] * rows
    targets = [np.array(1 if index < right else 0) for index in range(rows)]
    return TASK.score(logits, targets, ["negative", "positive"])


def test_the_interval_holds_the_value_and_narrows_with_rows():
    widths = []
    for rows in (50, 5000):
        low, high = waterfall.interval(scored(rows * 4 // 5, rows))
        assert low < 0.8 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    error = 1.96 * (0.8 * 0.2 / 5000) ** 0.5
    assert widths[1] == pytest.approx(2 * error, rel=0.1)


def test_the_interval_of_one_row_is_that_row():
    assert waterfall.interval(scored(1, 1)) == (1.0, 1.0)


def test_bytes_count_int8_weights_and_their_scales(bert: Path):
    model = checkpoints.load(checkpoints.open_checkpoint(bert)).model
    parameters = checkpoints.num_parameters(model)
    assert waterfall.exported_bytes(model, None) == 4 * parameters
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 32  # two layers and the pooler
    channels = 2 * (4 * 32 + 64 + 32) + 32
    in_float = decide(model, embeddings="float32")
    assert waterfall.exported_bytes(model, in_float) == 4 * parameters - 3 * matrices + 4 * channels
    rows = model.config.vocab_size
    saved = waterfall.exported_bytes(model, in_float) - waterfall.exported_bytes(model, decide(model))
    assert saved == 3 * 32 * rows - 4 * rows


def test_an_original_has_no_waterfall(bert: Path):
    assert waterfall.read(bert) == []
