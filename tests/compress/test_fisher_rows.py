import json
from pathlib import Path

import numpy as np
import pytest

from deploykit import checkpoint as checkpoints
from deploykit.compress.calibrate import FEWEST_ROWS
from deploykit.compress.fisher import half_mean_square, mask_gradients
from deploykit.compress.fisher_rows import batches, calibration_rows, row_loss
from deploykit.data import open_dataset
from deploykit.errors import DataError
from deploykit.tasks.task import IGNORED
from deploykit.train.labelled import read_labelled
from tests.models import make_dataset


def drawn(model: Path, data: Path, labels, *, size: int = 40, seed: int = 0):
    found = checkpoints.load(checkpoints.open_checkpoint(model))
    return found, calibration_rows(found, open_dataset(data), size, labels, seed)


def test_the_models_own_labels_follow_its_probabilities(bert: Path, tmp_path: Path):
    rows = [{"text": text} for text in ("the film was good", "a sad story", "anna saw a plot") for _ in range(400)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, labelled = drawn(bert, tmp_path, "own", size=1200)
    logits = np.array(checkpoints.logits(found, labelled.encodings[::400]), np.float64)
    shares = np.array(labelled.targets).reshape(3, 400).mean(axis=1)
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    assert shares == pytest.approx(expected, abs=0.08)
    assert np.ptp(expected) > 0.1


def test_own_labels_need_none_in_the_file(bert: Path, reviews: Path, tmp_path: Path):
    unlabelled = tmp_path / "data"
    unlabelled.mkdir()
    rows = [json.loads(line) for line in (reviews / "train.jsonl").read_text().splitlines()]
    (unlabelled / "train.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    _, given = drawn(bert, reviews, "given")
    _, own = drawn(bert, unlabelled, "own")
    assert [row.ids for row in own.encodings] == [row.ids for row in given.encodings]
    with pytest.raises(DataError, match="label"):
        drawn(bert, unlabelled, "given")


def test_special_tokens_have_no_label_of_their_own(bert_ner: Path, entities: Path):
    _, rows = drawn(bert_ner, entities, "own")
    for encoding, target in zip(rows.encodings, rows.targets, strict=True):
        assert (target == IGNORED).tolist() == encoding.special
    assert {int(label) for target in rows.targets for label in target} > {IGNORED}


def test_the_same_seed_draws_the_same(bert: Path, reviews: Path):
    first, second, other = (drawn(bert, reviews, "own", seed=seed)[1].targets for seed in (0, 0, 1))
    assert first == second
    assert first != other


@pytest.mark.parametrize("labels", ["given", "own"])
def test_too_few_rows_are_refused_by_name(bert: Path, tmp_path: Path, labels):
    few = make_dataset(tmp_path / "few", rows=FEWEST_ROWS - 1)
    with pytest.raises(
        DataError, match=rf"train\.jsonl: expected at least {FEWEST_ROWS} rows .* found {FEWEST_ROWS - 1}"
    ):
        drawn(bert, few, labels)


def test_rows_of_another_kind_are_refused_by_name(bert: Path, entities: Path):
    for labels in ("given", "own"):
        with pytest.raises(DataError, match=r"train\.jsonl:1.*text"):
            drawn(bert, entities, labels)


def test_padded_batches_score_as_row_by_row(bert_ner: Path, entities: Path):
    found = checkpoints.load(checkpoints.open_checkpoint(bert_ner))
    rows = read_labelled(found, open_dataset(entities), "train").sample(10, 0)
    alone, together = (mask_gradients(found.model, batches(found, rows, size), row_loss(found)) for size in (1, 10))
    for a, b in zip((*alone.heads, *alone.neurons), (*together.heads, *together.neurons), strict=True):
        assert half_mean_square(a) == pytest.approx(half_mean_square(b), rel=1e-3, abs=1e-9)
