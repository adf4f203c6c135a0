"""Load the model that lies in the Bento and make it ready before the first request."""

import os
import signal
import sys
import threading
from pathlib import Path

from deploykit.errors import DeploykitError
from deploykit.runtime.model import Model

FOLDER = Path(__file__).parent.parent / "model"
LIFELINE = "DEPLOYKIT_LIFELINE"
"""The environment variable that names the reading end of a pipe whose other end `deploykit serve` holds."""


def open_model() -> Model:
    """Load the model and run its shortest and its longest input once: memory, kernels and engines are then there.

    A model that cannot run here ends the process with the error's exit code and one line, because uvicorn answers a
    failed start with a traceback and status 0.
    """
    _end_with_the_parent()
    try:
        model = Model.open(FOLDER)
        for text in ("warm", "warm " * model.info.max_length):
            model.predict([{"text": text}])
    except DeploykitError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    return model


def _end_with_the_parent() -> None:
    """End this process when the one that started it is gone, however it went: the pipe's other end closes with it."""
    if LIFELINE in os.environ:
        threading.Thread(target=_wait_for_the_end, args=[int(os.environ[LIFELINE])], daemon=True).start()


def _wait_for_the_end(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
