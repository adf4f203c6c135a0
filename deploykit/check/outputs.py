"""An exported model's outputs beside its own reference, and beside themselves in other batches."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import checkpoint
from deploykit.check import int8, parity
from deploykit.check.parity import TOLERANCES, Invariance, Outputs, Parity, compare
from deploykit.checkpoint import Checkpoint
from deploykit.evidence import Gate
from deploykit.runtime.model import Model
from deploykit.runtime.tokenizer import Encoding
from deploykit.spec import Quantization, quantization_from

BATCH_SIZE = 32
"""The model and its reference run the very same batches: an int8 activation's scale depends on its batch."""
_PRODUCT_ROWS = 8
_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Part:
    """One comparison, and what came of it."""

    name: str
    found: Parity
    gate: Gate


@dataclass(frozen=True)
class Rows:
    """The rows that parity is judged on."""

    numbers: Sequence[int]
    """Where they stand in the data, from 0."""
    encodings: Sequence[Encoding]
    """As the exported model reads them."""
    own: Sequence[Encoding]
    """As its own checkpoint reads them."""


@dataclass(frozen=True)
class OwnParity:
    """A model beside its own reference."""

    parts: tuple[Part, ...]
    reference: Outputs
    candidate: Outputs
    unit: float | None
    """The error that int8 activations make, as a share of the root mean square; None for a graph in float."""


def own_parity(model: Model, folder: Path, source: Checkpoint, rows: Rows) -> OwnParity:
    """Compare an exported model, which lies in `folder`, with the checkpoint that it was exported from."""
    candidate = model.logits(rows.encodings, BATCH_SIZE)
    lowered = decision(model)
    quantization = (source.spec.quantization or lowered) if lowered else None
    if quantization is None:
        reference = _logits(source, rows)
        part = _tight("outputs", model, compare(reference, candidate, rows.numbers))
        return OwnParity((part,), reference, candidate, None)
    if quantization.scheme == "int4":  # activations are in float: nothing amplifies rounding
        reference = _logits(int8.weights_reference(source, quantization), rows)
        part = _tight("outputs", model, compare(reference, candidate, rows.numbers))
        return OwnParity((part,), reference, candidate, None)
    scaled_back = _logits(int8.weights_reference(source, quantization), rows)
    reference = _logits(int8.quantized_reference(source, quantization), rows)
    in_float = int8.float_activations(model, folder).logits(rows.encodings, BATCH_SIZE)
    unit, found = compare(scaled_back, reference).typical, compare(reference, candidate, rows.numbers)
    parts = (
        _tight("outputs with float activations", model, compare(scaled_back, in_float, rows.numbers)),
        _products(model, folder, rows, quantization),
        Part("outputs", found, parity.judge_rounding("parity: outputs", found, unit)),
    )
    return OwnParity(parts, reference, candidate, unit)


def with_original(model: Model, reference: Outputs, candidate: Outputs, numbers: Sequence[int]) -> Part:
    """Compare an exported model with the original, where nothing lossy lies between the two."""
    return _tight("outputs against the original", model, compare(reference, candidate, numbers))


def invariance(model: Model, encodings: Sequence[Encoding], unit: float | None) -> tuple[Invariance, list[Gate]]:
    """Run rows alone, padded to the longest of them, and in batches of all lengths; at least one row."""
    longest = max(encodings, key=lambda encoding: len(encoding.ids))
    alone = [model.run([encoding])[0] for encoding in encodings]
    padded = [model.run([encoding, longest])[0] for encoding in encodings]
    found = parity.invariance(alone, padded, _mixed(model, encodings))
    if unit is None:
        return found, parity.judge_invariance(found, _tolerance(model))
    return found, parity.judge_rounded_invariance(found, unit)


def decision(model: Model) -> Quantization | None:
    """Return the quantization that a graph was lowered with."""
    value = model.info.quantization
    return quantization_from(value) if value else None


def in_vocabulary(encodings: Sequence[Encoding], size: int, pad_id: int) -> list[Encoding]:
    """Replace ids that the model has no embedding for, so that a wrong tokenizer can still be measured."""
    return [
        replace(encoding, ids=[index if index < size else pad_id for index in encoding.ids])
        if max(encoding.ids, default=0) >= size
        else encoding
        for encoding in encodings
    ]


def evenly(encodings: Sequence[Encoding], count: int) -> list[int]:
    """Pick row indices evenly over the lengths, in the order of the rows."""
    order = np.argsort([len(encoding.ids) for encoding in encodings], kind="stable")
    picks = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return sorted(int(order[pick]) for pick in picks)


def table_of(part: Part) -> Mapping[str, Any]:
    """Lay a comparison out for the evidence."""
    return {"part": part.name, **asdict(part.found), "value": part.gate.value, "budget": part.gate.budget}


def _logits(source: Checkpoint, rows: Rows) -> Outputs:
    return checkpoint.logits(source, rows.own, batch_size=BATCH_SIZE)


def _tight(name: str, model: Model, found: Parity) -> Part:
    return Part(name, found, parity.judge(f"parity: {name}", found, _tolerance(model)))


def _tolerance(model: Model) -> float:
    """Return the tolerance of a float precision; int4 graphs and the parts of int8 graphs are held to that of fp32."""
    return TOLERANCES.get(model.info.precision, TOLERANCES["fp32"])


def _products(model: Model, folder: Path, rows: Rows, quantization: Quantization) -> Part:
    found = int8.product_parity(model, folder, rows.encodings[:_PRODUCT_ROWS], quantization.activations)
    node, worst = int8.worst_of(found)
    return Part(
        f"{len(found)} integer products",
        worst,
        parity.judge(f"parity: integer product {node.strip('/')}", worst, TOLERANCES["fp32"]),
    )


def _mixed(model: Model, encodings: Sequence[Encoding]) -> Outputs:
    """Run rows in shuffled batches, so that each has batch-mates of all lengths; answers are in the order given."""
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(encodings)).tolist()
    answers: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        answers.update(zip(batch, model.run([encodings[index] for index in batch]), strict=True))
    return [answers[index] for index in range(len(encodings))]
