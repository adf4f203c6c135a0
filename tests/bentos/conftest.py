"""Fixtures: each service, started once a session, and the model that it serves."""

from collections.abc import Iterator

import pytest

from deploykit.artifact import Artifact
from deploykit.serve import started


@pytest.fixture(scope="session")
def served(bento: Artifact) -> Iterator[str]:
    """The URL of the tiny text classifier."""
    with started(bento.path) as url:
        yield url


@pytest.fixture(scope="session")
def served_ner(bento_ner: Artifact) -> Iterator[str]:
    """The URL of the tiny token classifier."""
    with started(bento_ner.path) as url:
        yield url
