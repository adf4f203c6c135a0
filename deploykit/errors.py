"""The exceptions of deploykit, and the exit code of each.

    DeploykitError            70  a bug: nothing below fits
      GateFailed               1  a gate failed or a regression was found
        UnprovenModel             no passing evidence for these exact bytes
      UsageError               2  the command line asks for the impossible
        RecipeError               a recipe or pipeline (file, line, field)
        OutputExists              the output folder is already there
        TrainingStopped           a loss or gradient that is not finite
      InputError               3  something handed in is unusable
        CheckpointError           weights, configuration or tokenizer
        DataError                 rows or labels
        ArtifactError             a sealed folder that is not what it says
      EnvironmentMissing       4  a provider, wheel or driver is missing
      ResourceError            5  disk full or out of memory
      InconclusiveError        6  could not tell

Every message is one line: where, what was expected, what was found, the next step.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class DeploykitError(Exception):
    """An error that is told in one line."""

    exit_code: ClassVar[int] = 70

    def __init__(self, where: object, *, expected: str, found: str, next_step: str) -> None:
        self.where, self.expected, self.found, self.next_step = str(where), expected, found, next_step
        super().__init__(" ".join(f"{where}: expected {expected}, found {found}; {next_step}".split()))


class GateFailed(DeploykitError):
    """A gate failed or a regression was found."""

    exit_code = 1


class UnprovenModel(GateFailed):
    """A model has no passing evidence for its exact bytes."""


class UsageError(DeploykitError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or pipeline holds an unknown key or a wrong value."""


class OutputExists(UsageError):
    """The output folder exists and is not the finished artifact that was asked for."""


class TrainingStopped(UsageError):
    """A loss or gradient is not finite with these settings; the last good weights are kept."""


class InputError(DeploykitError):
    """Something handed in is unusable."""

    exit_code = 3


class CheckpointError(InputError):
    """A checkpoint cannot be loaded exactly as it says it is."""


class DataError(InputError):
    """A row, label or split cannot be used."""


class ArtifactError(InputError):
    """A sealed folder is missing, changed or of another kind."""


class EnvironmentMissing(DeploykitError):
    """A provider, wheel or driver that was asked for is not on this machine."""

    exit_code = 4


class ResourceError(DeploykitError):
    """The disk or the memory is exhausted."""

    exit_code = 5


class InconclusiveError(DeploykitError):
    """The measurement cannot tell."""

    exit_code = 6


BUG = "a bug in deploykit"


def as_bug(error: Exception) -> str:
    """Tell in one line of an exception that is none of these: it begins with `BUG`."""
    return " ".join(f"{BUG}: {type(error).__name__}: {error}".split())


_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def resources_mapped(where: object) -> Iterator[None]:
    """Turn a full disk or exhausted memory, whichever library met it, into a `ResourceError`."""
    try:
        yield
    except DeploykitError:
        raise
    except MemoryError as error:
        raise _out_of_memory(where) from error
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full(where, error) from error
        raise
    except Exception as error:
        # torch, safetensors and onnx wrap the system's error in one of their own and keep only its text.
        text = str(error)
        if "No space left on device" in text or "os error 28" in text:
            raise _disk_full(where, error) from error
        if "can't allocate memory" in text or "out of memory" in text:
            raise _out_of_memory(where) from error
        raise


def _disk_full(where: object, error: Exception) -> ResourceError:
    return ResourceError(
        where, expected="room on the disk", found=str(error), next_step="free some space and run the same command again"
    )


def _out_of_memory(where: object) -> ResourceError:
    return ResourceError(
        where, expected="enough memory", found="none left", next_step="use a smaller batch or a larger machine"
    )
