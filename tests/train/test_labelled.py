from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import DataError
from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks.task import IGNORED
from deploykit.train.labelled import Labelled

ENCODING = Encoding(
    ids=[2, 5, 3],
    type_ids=[0] * 3,
    offsets=[(0, 0), (0, 4), (0, 0)],
    word_ids=[None, 0, None],
    special=[True, False, True],
    truncated=False,
)


def rows(*targets):
    found = [np.array(target) for target in targets]
    return Labelled([{"text": "good"}] * len(found), [ENCODING] * len(found), found, Path("data/train.jsonl"))


def test_rows_in_which_nothing_counts_are_left_out():
    kept = rows([IGNORED, 1, IGNORED], [IGNORED] * 3).trainable()
    assert [target.tolist() for target in kept.targets] == [[IGNORED, 1, IGNORED]]


def test_a_split_in_which_nothing_counts_is_bad_data():
    with pytest.raises(DataError, match=r"data/train\.jsonl"):
        rows([IGNORED] * 3).trainable()


def test_a_sample_keeps_the_order_and_is_decided_by_the_seed():
    many = rows(*range(20))
    drawn = [int(target) for target in many.sample(5, seed=1).targets]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 5
    assert drawn == [int(target) for target in many.sample(5, seed=1).targets]
    assert drawn != [int(target) for target in many.sample(5, seed=2).targets]
    assert many.sample(None, seed=0) is many
