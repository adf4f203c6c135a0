from pathlib import Path

import numpy as np
import pytest

from deploykit import checkpoint
from deploykit.checkpoint import Checkpoint
from deploykit.compress.reread import moved, reread
from deploykit.data import open_dataset
from deploykit.runtime.token_classification import word_starts
from deploykit.tasks.task import IGNORED, UNLABELED
from deploykit.train.labelled import Labelled, read_labelled, without_labels
from tests.models import make_checkpoint, make_dataset, of_other_pieces

TAGS = "token-classification"


def both(folder: Path, task: str) -> tuple[Checkpoint, Checkpoint, Labelled]:
    """Return two checkpoints of different vocabularies, and rows as the first reads them."""
    models = [make_checkpoint(folder / name, task=task) for name in ("teacher", "student")]
    of_other_pieces(models[1])
    teacher, student = (checkpoint.load(checkpoint.open_checkpoint(model)) for model in models)
    return teacher, student, read_labelled(teacher, open_dataset(make_dataset(folder / "data", task=task)), "train")


def at_words(values, encoding):
    return [values[at].tolist() for at in word_starts(encoding).values()]


def test_a_words_target_and_logits_stand_at_its_first_token_for_either_reader(tmp_path: Path):
    teacher, student, rows = both(tmp_path, TAGS)
    found = reread(rows, student)
    lengths = [[len(each.ids) for each in read.encodings] for read in (rows, found)]
    assert lengths[0] != lengths[1]
    logits = [np.random.default_rng(at).normal(size=(length, 5)) for at, length in enumerate(lengths[0])]
    again = moved(rows, found.encodings, logits, 0)
    for at, (old, new) in enumerate(zip(rows.encodings, found.encodings, strict=True)):
        assert at_words(found.targets[at], new) == at_words(rows.targets[at], old)
        assert (found.targets[at] != IGNORED).sum() == len(word_starts(new))
        assert at_words(again[at], new) == at_words(logits[at], old)
        assert again[at].shape == (len(new.ids), 5)
    bare = reread(without_labels(teacher, rows.rows, rows.file), student)
    assert all(
        (target == UNLABELED).sum() == len(row["tokens"]) for target, row in zip(bare.targets, bare.rows, strict=True)
    )


def test_a_word_that_a_reader_cuts_off_has_no_target(tmp_path: Path):
    _, student, rows = both(tmp_path, TAGS)
    found = reread(rows, checkpoint.shortened(student, 5))
    assert all(len(each.ids) <= 5 for each in found.encodings)
    assert all((target != IGNORED).sum() <= 3 for target in found.targets)


@pytest.mark.parametrize("num_labels", [2, 5, 9])
def test_a_rows_own_target_and_logits_stay_as_they_are(tmp_path: Path, num_labels: int):
    _, student, rows = both(tmp_path, "text-classification")
    found = reread(rows, student)
    assert found.targets == rows.targets
    logits = list(np.random.default_rng(0).normal(size=(len(rows), num_labels)))
    assert moved(rows, found.encodings, logits, 0) is logits, "also where a row has as many tokens as there are labels"
