"""The processes of one command, as `torchrun` and `accelerate launch` start them. The first one writes; all train.

torch is only loaded where there are several.
"""

import os
from typing import Any

from deploykit.errors import UsageError

_LONGEST = 4096


def count() -> int:
    """Return how many processes run this command."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def index() -> int:
    """Return which of them this one is, counted from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_first() -> bool:
    """Tell whether this is the process that writes and prints."""
    return index() == 0


def require_one(command: str) -> None:
    """Refuse a command that several processes would run side by side, each doing all of it.

    Raises:
        UsageError: there are several.
    """
    if count() > 1:
        raise UsageError(
            command,
            expected="one process",
            found=f"{count()} of a launcher (WORLD_SIZE)",
            next_step="start it without torchrun; finetune and compress are what train in several",
        )


def wait() -> None:
    """Return when every process is here."""
    if count() > 1:
        _state().wait_for_everyone()


def from_first(text: str) -> str:
    """Return what the first process gave, in every process; at most 4096 bytes."""
    if count() == 1:
        return text
    import torch
    from accelerate.utils import broadcast

    given = text.encode()
    assert len(given) <= _LONGEST
    padded = torch.tensor([*given, *[0] * (_LONGEST - len(given))], dtype=torch.uint8, device=_state().device)
    return bytes(broadcast(padded).tolist()).rstrip(b"\0").decode()


def _state() -> Any:
    """Return accelerate's own state, which connects the processes when it is first asked for."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
