"""Padding loses nothing, and every row is in exactly one batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.runtime.batching import INPUTS, length_sorted_batches, pad
from deploykit.runtime.token_classification import unpad
from deploykit.runtime.tokenizer import Encoding

ROWS = st.lists(st.lists(st.integers(5, 30_000), min_size=1, max_size=12), min_size=1, max_size=9)
LENGTHS = st.lists(st.integers(0, 512), max_size=40)


def encoding_of(ids: list[int]) -> Encoding:
    return Encoding(ids, [token % 2 for token in ids], [(0, 1)] * len(ids), [0] * len(ids), [False] * len(ids), False)


@given(ROWS)
def test_unpadding_what_was_padded_gives_it_back(rows: list[list[int]]) -> None:
    encodings = [encoding_of(ids) for ids in rows]
    padded = pad(encodings, 3, ("input_ids",))["input_ids"]
    outputs = padded[:, :, None].astype(np.float32)
    assert [row[:, 0].tolist() for row in unpad(outputs, encodings)] == rows


@given(ROWS)
def test_padding_agrees_with_a_slow_obvious_one(rows: list[list[int]]) -> None:
    width = max(map(len, rows))
    padded = pad([encoding_of(ids) for ids in rows], 3, INPUTS)
    for row, ids in enumerate(rows):
        for column in range(width):
            inside = column < len(ids)
            assert padded["input_ids"][row, column] == (ids[column] if inside else 3)
            assert padded["attention_mask"][row, column] == (1 if inside else 0)
            assert padded["token_type_ids"][row, column] == (ids[column] % 2 if inside else 0)
    assert all(array.dtype == np.int64 and array.shape == (len(rows), width) for array in padded.values())


def test_only_the_named_inputs_are_made_in_their_order() -> None:
    names = ("attention_mask", "input_ids")
    assert tuple(pad([encoding_of([5])], 0, names)) == names


def test_an_unknown_input_is_refused() -> None:
    with pytest.raises(ValueError, match="position_ids"):
        pad([encoding_of([5])], 0, ("position_ids",))


def test_no_row_pads_to_nothing() -> None:
    assert pad([], 0, ("input_ids",))["input_ids"].shape == (0, 0)


@given(LENGTHS, st.integers(1, 9))
def test_every_row_is_in_one_full_batch_with_its_like(lengths: list[int], batch_size: int) -> None:
    batches = length_sorted_batches(lengths, batch_size)
    order = [index for batch in batches for index in batch.tolist()]
    assert sorted(order) == list(range(len(lengths)))
    assert order == sorted(range(len(lengths)), key=lambda index: -lengths[index])
    assert all(len(batch) == batch_size for batch in batches[:-1])
