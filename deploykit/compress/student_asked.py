"""What `distil` asks of a student, held against the model that it is cut from and the teacher.

Each function raises a UsageError that names the setting that does not fit.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deploykit import checkpoint, families
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint
from deploykit.compress.distillation import Objective, matching_layers, reads_alike
from deploykit.compress.source import load_float
from deploykit.compress.student import Widths, spread
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.compress.distil import Distil


def start_of(asked: "Distil", teacher: Checkpoint, found: Artifact) -> Checkpoint:
    """Open another model to cut the student from; of the same vocabulary, with the teacher's tokenizer."""
    base = _taught(asked, found, teacher) or checkpoint.load_base(found, teacher.spec.task, teacher.labels, asked.seed)
    vocabularies = [checkpoint.tokenizer_json(each)["model"]["vocab"] for each in (base, teacher)]
    most = base.spec.max_length
    fits = teacher.spec.max_length <= most
    require(fits, "student", f"a model that takes {teacher.spec.max_length} tokens, as the teacher", most)
    if vocabularies[0] != vocabularies[1]:
        return checkpoint.shortened(base, teacher.spec.max_length)
    spec = replace(teacher.spec, structure=base.spec.structure)
    return replace(base, path=teacher.path, tokenizer=teacher.tokenizer, spec=spec)


def layers_of(asked: "Distil", start: Checkpoint) -> list[int]:
    """Choose the layers to start from, counted from 0."""
    depth = len(families.blocks(start.model))
    most = asked.layers if isinstance(asked.layers, int) else max(asked.layers)
    require(most <= depth, "layers", f"at most {depth}, {_whose(asked)}", most)
    return spread(asked.layers, depth) if isinstance(asked.layers, int) else [layer - 1 for layer in asked.layers]


def widths_of(asked: "Distil", start: Checkpoint) -> Widths | None:
    """Return how wide the student is; None where it is as wide as its start."""
    if (asked.hidden_size, asked.heads, asked.ffn) == (None, None, None):
        return None
    structure, size = families.structure_of(start.model), families.head_size(start.model)
    most_hidden, most_heads, most_ffn = families.hidden_size(start.model), min(structure.heads), min(structure.ffn)
    hidden = asked.hidden_size or most_hidden
    heads = asked.heads or (min(hidden // size, most_heads) if asked.hidden_size else most_heads)
    ffn = asked.ffn or most_ffn
    fits = hidden <= most_hidden and hidden % size == 0
    require(fits, "hidden_size", f"a multiple of {size}, the size of a head, up to {most_hidden}", hidden)
    require(heads <= most_heads, "heads", f"at most {most_heads}, {_whose(asked)}", heads)
    require(ffn <= most_ffn, "ffn", f"at most {most_ffn}, {_whose(asked)}", ffn)
    return Widths(hidden, heads, ffn)


def objective_of(asked: "Distil", teacher: Checkpoint, start: Checkpoint, widths: Widths | None) -> Objective:
    """Return what the student learns; each of its layers from the teacher's that stands as deep."""
    if not reads_alike(start, teacher):
        for name in ("hidden_weight", "attention_weight", "relation_weight"):
            weight = getattr(asked, name)
            require(weight == 0, name, "0 for a student of another vocabulary, whose tokens are others", weight)
    kept, theirs = layers_of(asked, start), families.structure_of(teacher.model).heads
    starts = families.structure_of(start.model).heads
    own = [widths.heads if widths else starts[layer] for layer in kept]
    sizes = families.head_size(start.model), families.head_size(teacher.model)
    matched, last = matching_layers(len(kept), len(theirs)), asked.relation_layer or len(theirs)
    require(last <= len(theirs), "relation_layer", f"at most {len(theirs)}, the teacher's layers", last)
    relation_heads = asked.relation_heads or own[-1]
    if asked.relation_weight > 0:
        ours, its = own[-1] * sizes[0], theirs[last - 1] * sizes[1]
        divides = ours % relation_heads == its % relation_heads == 0
        require(divides, "relation_heads", f"a divisor of {ours} and {its}, both models' widths", relation_heads)
    if asked.attention_weight > 0:
        _require_same_heads(matched, own, theirs)
    return Objective(
        asked.temperature,
        asked.alpha,
        asked.hidden_weight,
        matched,
        asked.attention_weight,
        asked.relation_weight,
        (len(kept), last),
        relation_heads,
    )


def require(fits: bool, setting: str, expected: str, found: object) -> None:  # noqa: FBT001 - what was checked
    """Raise a UsageError that names a setting of `distil`, unless it fits."""
    if not fits:
        raise UsageError(
            f"distil.{setting}",
            expected=expected,
            found=str(found),
            next_step="ask for a student that fits its teacher",
        )


def _taught(asked: "Distil", source: Artifact, teacher: Checkpoint) -> Checkpoint | None:
    """Load a model that answers what the teacher does; None where it is another one."""
    if not (source.path / checkpoint.SPEC).is_file():
        return None
    found = load_float(source, asked.verb)
    wanted = teacher.spec.task, teacher.labels
    return found if (found.spec.task, found.labels) == wanted else None


def _whose(asked: "Distil") -> str:
    return "the student's" if asked.student else "the teacher's"


def _require_same_heads(matched: Sequence[tuple[int, int]], own: Sequence[int], theirs: Sequence[int]) -> None:
    for mine, layer in matched:
        expected = f"{theirs[layer - 1]} heads in layer {mine}, as the teacher's layer {layer} has (or relation_weight)"
        require(own[mine - 1] == theirs[layer - 1], "attention_weight", expected, f"{own[mine - 1]} heads")
