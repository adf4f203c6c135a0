"""How much memory answering takes: the peak of a process that does nothing else, in bytes.

    python -m deploykit.check.memory FOLDER --rows ROWS.json

FOLDER is an exported model, or a checkpoint, which PyTorch then runs. Everything counts that the process needs:
Python, the libraries, the weights, the tensors of a batch.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit import artifact
from deploykit.errors import DeploykitError
from deploykit.runtime import model_info

_BATCH_SIZE = 32


def peak_bytes(folder: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Answer `rows` in a new process and return the most memory that it held resident.

    Raises:
        DeploykitError: the process failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.json"
        artifact.write_json(file, list(rows))
        command = [sys.executable, "-m", "deploykit.check.memory", str(folder), "--rows", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DeploykitError(
            folder, expected="a process that answers", found=said[-1], next_step="check the model by itself"
        )
    return int(done.stdout.split()[-1])


def _answer(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if (folder / model_info.GRAPH).is_file():
        from deploykit.runtime.model import Model

        Model.open(folder).predict(rows, _BATCH_SIZE)
        return
    from deploykit import checkpoint
    from deploykit.runtime.tasks import decoder_of

    opened = checkpoint.load(checkpoint.open_checkpoint(folder))
    encodings = decoder_of(opened.spec.task).encode(opened.tokenizer, rows)
    checkpoint.logits(opened, encodings, batch_size=_BATCH_SIZE)


def _peak_bytes_here() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss counts what the process was before exec: its parent
        return 1024 * int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(argv: Sequence[str] | None = None) -> int:
    """Answer the rows and print the peak."""
    parser = argparse.ArgumentParser(prog="python -m deploykit.check.memory")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    given = parser.parse_args(argv)
    _answer(given.folder, json.loads(given.rows.read_text(encoding="utf-8")))
    print(_peak_bytes_here())
    return 0


if __name__ == "__main__":
    sys.exit(main())
