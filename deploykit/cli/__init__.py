"""The command line: `main` runs a command and turns what it raises into one line and an exit code."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import typer

from deploykit import processes
from deploykit.errors import DeploykitError, UsageError, as_bug, resources_mapped

TRACEBACK = "--traceback"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code of DESIGN's table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = TRACEBACK in given
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return _run([argument for argument in given if argument != TRACEBACK])
    except KeyboardInterrupt:
        return _told("interrupted", 128 + signal.SIGINT, show_traceback=show_traceback)
    except DeploykitError as error:
        return _told(str(error), error.exit_code, show_traceback=show_traceback)
    except typer.TyperException as error:
        print(f"deploykit: {error}; see `deploykit --help`", file=sys.stderr)
        return UsageError.exit_code
    except Exception as error:  # noqa: BLE001 - the last edge: whatever is left is our bug
        text = f"{as_bug(error)}; run again with {TRACEBACK} and report it"
        return _told(text, DeploykitError.exit_code, show_traceback=show_traceback)


def _run(arguments: list[str]) -> int:
    from deploykit.cli.app import app

    with resources_mapped("deploykit"), _quiet_beside_the_first():
        result = app(arguments, standalone_mode=False)
    return result if isinstance(result, int) else 0


@contextlib.contextmanager
def _quiet_beside_the_first() -> Iterator[None]:
    """Of several processes only the first one prints its result and progress; an error is told by whoever meets it."""
    if processes.is_first():
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _told(line: str, code: int, *, show_traceback: bool) -> int:
    if show_traceback:
        traceback.print_exc()
    print(f"deploykit: {line}", file=sys.stderr)
    return code


def _terminated(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def run() -> None:
    """Run as a console script."""
    sys.exit(main())
