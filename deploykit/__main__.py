"""`python -m deploykit`."""

from deploykit.cli import run

if __name__ == "__main__":  # workers of a search import this module anew
    run()
