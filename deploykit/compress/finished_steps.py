"""What a stage of several trainings has finished, so that it need not be done again after a kill."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploykit import artifact, processes
from deploykit.checkpoint import Checkpoint, load, open_checkpoint, save
from deploykit.errors import CheckpointError

_FACTS = "facts.json"

Found = tuple[Checkpoint, Any]
"""What a step made, and what is to be known of it, as JSON."""


def once(folder: Path, work: Callable[[], Found], path: Path) -> Found:
    """Return what an earlier call left in `folder`; else do the work and leave it there.

    The result is always the one that was read back, so a stopped run and one that was not go on from the same bytes.
    Of several processes each calls this, and all get what the first one made.

    Args:
        folder: of this step alone.
        work: what to do.
        path: where the checkpoint's tokenizer is found when `folder` is gone.
    """
    folder = Path(processes.from_first(str(folder)))
    if not json.loads(processes.from_first(json.dumps(folder.is_dir()))):
        made, facts = work()
        if processes.is_first():
            _leave(made, facts, folder)
    processes.wait()
    found = load(open_checkpoint(folder))
    return replace(found, path=path), artifact.read_json(folder / _FACTS, CheckpointError)


def forget(folder: Path) -> None:
    """Remove the steps' folder, when every process has read it."""
    processes.wait()
    if processes.is_first():
        shutil.rmtree(folder, ignore_errors=True)


def _leave(made: Checkpoint, facts: Any, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(made, partial)
    artifact.write_json(partial / _FACTS, facts)
    partial.rename(folder)
