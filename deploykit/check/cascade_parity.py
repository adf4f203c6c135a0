"""Parity of a cascade: each of its models beside its own reference, and what the two answer together.

The models are proven one by one, as if each were alone. Then the cascade is held to the rule, by the threshold of its
checkpoint: with its two models already proven, it must answer exactly as one of them does.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deploykit import checkpoint
from deploykit.check import outputs
from deploykit.check.outputs import BATCH_SIZE, OwnParity, Part, Rows
from deploykit.check.parity import TOLERANCES, Outputs, compare, judge
from deploykit.checkpoint import Checkpoint
from deploykit.compress.waterfall import as_exported
from deploykit.runtime.model import Model
from deploykit.runtime.model_info import FIRST
from deploykit.runtime.tokenizer import Encoding


def parity(model: Model, folder: Path, source: Checkpoint, rows: Rows) -> OwnParity:
    """Compare an exported model, which lies in `folder`, with its checkpoint: a cascade part by part."""
    if model.first is None or source.first is None:
        return outputs.own_parity(model, folder, source, rows)
    first = parity(model.first, folder / FIRST, source.first, rows)
    last = outputs.own_parity(model.last, folder, source.last, rows)
    answers = model.logits(rows.encodings, BATCH_SIZE)
    together = compare(handed_on(model, source, rows.encodings), answers, rows.numbers)
    units = [found.unit for found in (first, last) if found.unit is not None]
    return OwnParity(
        (
            *(_of_first(part) for part in first.parts),
            *last.parts,
            Part("cascade", together, judge("parity: cascade", together, TOLERANCES["fp32"])),
        ),
        checkpoint.logits(as_exported(source), rows.own, batch_size=BATCH_SIZE),
        answers,
        max(units, default=None),
    )


def handed_on(model: Model, source: Checkpoint, encodings: Sequence[Encoding]) -> Outputs:
    """Answer by the two models of a cascade apart, as its checkpoint decided."""
    assert model.first is not None
    assert source.spec.threshold is not None
    answers = model.first.logits(encodings, BATCH_SIZE)
    sure = [
        model.task.confidence(answer, encoding) >= source.spec.threshold
        for answer, encoding in zip(answers, encodings, strict=True)
    ]
    rest = [encoding for encoding, is_sure in zip(encodings, sure, strict=True) if not is_sure]
    last = iter(model.last.logits(rest, BATCH_SIZE))
    return [answer if is_sure else next(last) for answer, is_sure in zip(answers, sure, strict=True)]


def _of_first(part: Part) -> Part:
    """Name a comparison after the smaller model."""
    gate = replace(part.gate, name=part.gate.name.replace("parity: ", f"parity: {FIRST}, ", 1))
    return replace(part, name=f"{FIRST}, {part.name}", gate=gate)
