"""`python -m deploykit`."""

from deploykit.cli import run

run()
