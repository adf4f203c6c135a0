"""What a stage that changes weights starts from."""

from deploykit import checkpoint
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint
from deploykit.errors import UsageError


def load_float(source: Artifact, verb: str) -> Checkpoint:
    """Load a checkpoint for which no quantization is decided yet: what changes weights comes before it.

    Raises:
        CheckpointError: it cannot be used.
        UsageError: a quantization is decided, or a smaller model stands before it.
    """
    found = checkpoint.load(source)
    if found.first is not None:
        raise UsageError(
            verb, expected="one model", found=f"a cascade of two ({found.path})", next_step="put cascade last"
        )
    if found.spec.quantization is not None:
        raise UsageError(
            verb,
            expected="a checkpoint in float",
            found=f"one that is decided to be {found.spec.quantization.scheme} ({found.path})",
            next_step="put quantize last in the recipe",
        )
    return found
