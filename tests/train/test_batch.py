import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.tokenizer import Encoding
from deploykit.tasks.task import IGNORED
from deploykit.train.batch import collate, examples_of, grouped_batches


def encoding_of(ids):
    count = len(ids)
    return Encoding(ids, [0] * count, [(0, 1)] * count, [None] * count, [False] * count, False)


def padded_tokens(lengths, batches):
    return sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 9))
def test_an_epoch_holds_every_example_once(lengths, batch_size, seed):
    batches = grouped_batches(lengths, batch_size, seed, 0)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_do_not():
    lengths = list(range(1, 200))
    first, again, later, other = (
        [batch.tolist() for batch in grouped_batches(lengths, 4, seed, epoch)]
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert first == again
    assert first not in (later, other)


def test_grouping_by_length_leaves_little_padding():
    lengths = np.random.default_rng(0).geometric(0.05, 2000).tolist()
    order = np.random.default_rng(1).permutation(2000)
    unsorted = [order[start : start + 32] for start in range(0, 2000, 32)]
    assert padded_tokens(lengths, grouped_batches(lengths, 32, 0, 0)) < 1.15 * sum(lengths)
    assert padded_tokens(lengths, unsorted) > 2 * sum(lengths)


def test_batches_do_not_come_in_the_order_of_length():
    lengths = list(range(320))
    longest = [max(batch) for batch in grouped_batches(lengths, 32, 0, 0)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_inputs_labels_and_added_arrays_are_padded_each_with_its_own_fill():
    examples = [
        {"input_ids": np.array([5, 6]), "labels": np.array([1, 2]), "hidden": np.ones((2, 3), np.float16)},
        {"input_ids": np.array([7]), "labels": np.array([3]), "hidden": np.ones((1, 3), np.float16)},
    ]
    batch = collate(examples, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert batch["labels"].tolist() == [[1, 2], [3, IGNORED]]
    assert batch["hidden"].shape == (2, 2, 3)
    assert batch["hidden"].dtype == torch.float16
    assert batch["hidden"][1, 1].tolist() == [0, 0, 0]


def test_scalars_are_stacked_and_fixed_arrays_are_not_padded():
    examples = [{"input_ids": np.array([1]), "labels": np.array(k), "logits": np.full(4, k)} for k in (0, 1)]
    batch = collate(examples, pad_id=0)
    assert batch["labels"].tolist() == [0, 1]
    assert batch["logits"].tolist() == [[0] * 4, [1] * 4]


@pytest.mark.parametrize("names", [("input_ids", "attention_mask"), ("input_ids", "attention_mask", "token_type_ids")])
def test_an_example_has_the_inputs_that_the_model_takes(names):
    (example,) = examples_of([encoding_of([1, 2, 3])], [np.array(1)], names)
    assert tuple(example) == (*names, "labels")
    assert example["attention_mask"].tolist() == [1, 1, 1]
