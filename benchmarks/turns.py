"""What the benchmarks of calls share: calls timed in turns, and a command that ends in a table and one line of JSON.

A turn begins with a pause and one untimed call: the threads of the system before it come to rest, and the caches hold
this one's weights, as they do in a process that serves one model.
"""

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import artifact
from deploykit.check.latency import Clock
from deploykit.errors import DeploykitError

TURN = 5
"""Timed calls of a turn."""
PAUSE_S = 0.01

Call = Callable[[], object]
"""Answer one batch, to the end."""
Json = dict[str, Any]


def samples_ms(calls: Mapping[str, Call], turns: int, clock: Clock = time.perf_counter) -> dict[str, NDArray[Any]]:
    """Time calls in turns, in an order drawn anew for each turn; per call (turns * TURN,), of equal index in a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    rng = random.Random(0)  # noqa: S311 - an order, not a secret
    for _ in range(turns):
        for name in rng.sample(list(calls), len(calls)):
            time.sleep(PAUSE_S)
            calls[name]()
            for _ in range(TURN):
                started = clock()
                calls[name]()
                seconds[name].append(clock() - started)
    return {name: 1000 * np.array(found) for name, found in seconds.items()}


def report(make: Callable[[], Json], draw: Callable[[Json], str], out: Path | None) -> int:
    """Make a result, print its table, then one line of JSON, and keep it in `out`; returns the exit code.

    What is printed on the way, as exporters and NNCF do, goes to stderr.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = artifact.finite(make())
    except DeploykitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if out:
        artifact.write_json(out, result)
    print(draw(result))
    print(json.dumps(result, allow_nan=False))
    return 0
