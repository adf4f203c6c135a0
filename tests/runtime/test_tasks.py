"""Tasks are found by name."""

import pytest

from deploykit.errors import UsageError
from deploykit.runtime.tasks import RUNTIME_TASKS, decoder_of


def test_a_known_task_is_found() -> None:
    assert all(decoder_of(name) is task for name, task in RUNTIME_TASKS.items())
    assert set(RUNTIME_TASKS) == {"text-classification", "token-classification"}


def test_an_unknown_task_is_a_usage_error_that_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"text-classification, token-classification.*'telepathy'"):
        decoder_of("telepathy")
