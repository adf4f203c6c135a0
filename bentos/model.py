"""Load the model that lies in the Bento and make it ready before the first request."""

import os
import sys
from pathlib import Path

from deploykit.errors import DeploykitError
from deploykit.runtime.model import Model

FOLDER = Path(__file__).parent.parent / "model"


def open_model() -> Model:
    """Load the model and run its shortest and its longest input once: memory, kernels and engines are then there.

    A model that cannot run here ends the process with the error's exit code and one line, because uvicorn answers a
    failed start with a traceback and status 0.
    """
    try:
        model = Model.open(FOLDER)
        for text in ("warm", "warm " * model.info.max_length):
            model.predict([{"text": text}])
    except DeploykitError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    return model
