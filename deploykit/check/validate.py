"""Prove an exported model: parity with its own reference, accuracy against the original, provider truth.

The evidence is written whatever the verdict, and holds no time and no path: proving the same model again gives the
same bytes.

    N rows   C labels   L tokens of a row
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from deploykit import artifact, environment, evidence
from deploykit.artifact import Artifact, Kind, Node
from deploykit.check import accuracy, cascade_parity, outputs
from deploykit.check.case import Case, opened
from deploykit.check.parity import TOLERANCES
from deploykit.check.provider import encoded_truth
from deploykit.checkpoint import num_parameters
from deploykit.compress import waterfall
from deploykit.evidence import Evidence, Gate, Metric, subject_of
from deploykit.runtime import model_info
from deploykit.tasks import Score

TASK_REPORT = "task-report.json"
"""What `finetune` writes beside the weights."""


@dataclass(frozen=True)
class Validate:
    """Prove an exported model on labelled rows, against the checkpoint it came from and against the original."""

    max_drop: float = 0.01
    """How much of the task's primary metric may be lost against the original, absolute."""
    split: str = "test"
    require_significance: bool = False
    """Pass only where the 95% bound of the drop is within the budget too; else the verdict is inconclusive."""
    parity_rows: int = 512
    """How many rows, evenly over their lengths, parity is judged on. Accuracy is judged on all."""
    invariance_rows: int = 64
    against_original: Literal["auto", "accuracy"] = "auto"
    """auto: where nothing lossy lies between the two, the model must give the original's outputs. accuracy: the two are
    different models on purpose, such as one trained anew."""

    verb: ClassVar[str] = "validate"
    reads: ClassVar[tuple[Kind, ...]] = ("onnx", "dataset", "checkpoint")
    """The model, the labelled data, the original; and the model's own checkpoint, if it has moved."""
    makes: ClassVar[Kind] = "evidence"
    resumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be judged."""
        if not 0 <= self.max_drop < 1:
            raise ValueError(f"max_drop must be a share from 0 to 1, not {self.max_drop}")
        if min(self.parity_rows, self.invariance_rows) < 1:
            raise ValueError("parity_rows and invariance_rows must be positive")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write `evidence.json`, the outputs that parity compared, and every prediction."""
        case = opened(sources, self.split, self.parity_rows)
        own, original_parts = _parity(case, self.against_original)
        invariance, invariance_gates = _invariance(case, own.unit, self.invariance_rows)
        compared, labels_gate = _accuracy(case)
        truth = encoded_truth(case.exported.path, case.encodings)
        time_share = truth.pop("time_share")
        parts = [*own.parts, *original_parts]
        accuracy_gate = accuracy.judge(compared, self.max_drop, require_significance=self.require_significance)
        gates = (
            *_reading_gates(case),
            *(part.gate for part in parts),
            *invariance_gates,
            _provider_gate(truth),
            labels_gate,
            accuracy_gate,
        )
        details = {
            "parity": {"rows": len(case.picks), "parts": [outputs.table_of(part) for part in parts]},
            "accuracy": _accuracy_table(compared, self.max_drop),
            "invariance": asdict(invariance),
            "provider": truth,
            "waterfall": waterfall.read(case.own.path),
            "dropped": list(case.own.facts.get(waterfall.DROPPED, ())),
            "size_bytes": model_info.num_bytes(case.exported.path),
            "parameters": sum(num_parameters(each.model) for each in case.source.parts),
        }
        found = _evidence(case, gates, details)
        evidence.write(found, scratch)
        _write_samples(case, own, scratch)
        return {
            "metrics": [asdict(metric) for metric in found.metrics],
            "warnings": list(found.warnings),
            "verdict": found.verdict,
            "time_share": time_share,
        }


def _parity(case: Case, against_original: str) -> tuple[outputs.OwnParity, list[outputs.Part]]:
    """Compare with the model's own reference, and with the original where nothing lossy lies between."""
    rows = outputs.Rows(case.picks, case.picked(case.encodings), case.picked(case.own_encodings))
    own = cascade_parity.parity(case.model, case.exported.path, case.source, rows)
    if against_original == "accuracy" or not _owes_the_original(case):
        return own, []
    pair = case.picked(case.first_logits), case.picked(case.logits)
    return own, [outputs.with_original(case.model, *pair, case.picks)]


def _owes_the_original(case: Case) -> bool:
    """Tell whether the model must give the original's outputs: in float, of the same shape, nothing trained between."""
    if case.own.digest == case.original.digest:
        return False
    shapes = [
        {name: tensor.shape for name, tensor in found.model.state_dict().items()} for found in (case.source, case.first)
    ]
    imported = _only_imported(case.exported.node, case.original.node)
    return imported and case.model.info.precision in TOLERANCES and shapes[0] == shapes[1]


def _only_imported(exported: Node, original: Node) -> bool:
    """Tell whether every checkpoint on the way from the original is as its user gave it."""
    before = {node.digest for node in original.ancestors()}
    between = (node for node in exported.ancestors() if node.kind == "checkpoint" and node.digest not in before)
    return all(node.stage == artifact.IMPORT for node in between)


def _invariance(case: Case, unit: float | None, invariance_rows: int) -> tuple[Any, list[Gate]]:
    picks = outputs.evenly(case.encodings, invariance_rows)
    return outputs.invariance(case.model, [case.encodings[index] for index in picks], unit)


def _reading_gates(case: Case) -> list[Gate]:
    """Judge whether the model reads the very tokens, and names the very labels, that its checkpoint does."""
    pairs = zip(case.asked, case.own_encodings, strict=True)
    others = [
        index for index, (asked, own) in enumerate(pairs) if (asked.ids, asked.type_ids) != (own.ids, own.type_ids)
    ]
    where = f", first row {others[0]}" if others else ""
    tokens = f"{len(others)} of {len(case.asked)} rows are other tokens for the model than for its checkpoint{where}"
    names = _misnamed(case.model.info.labels, case.source.labels)
    labels = f"{names} of {len(case.source.labels)} outputs bear another label than in the checkpoint"
    return [_none_allowed("tokens", len(others), tokens), _none_allowed("label names", names, labels)]


def _misnamed(found: Sequence[str], expected: Sequence[str]) -> int:
    return sum(left != right for left, right in zip(found, expected, strict=False)) + abs(len(found) - len(expected))


def _none_allowed(name: str, count: int, reason: str) -> Gate:
    return Gate(name, count, 0.0, "lower", "fail" if count else "pass", reason)


def _provider_gate(truth: Mapping[str, Any]) -> Gate:
    misplaced = truth["misplaced"]
    where = f": {', '.join(misplaced[:3])}" if misplaced else ""
    reason = f"{len(misplaced)} of {truth['heavy']} matrix products ran elsewhere than on {truth['provider']}{where}"
    return Gate("provider", len(misplaced), 0.0, "lower", "pass" if truth["ok"] else "fail", reason)


def _accuracy(case: Case) -> tuple[accuracy.Accuracy, Gate]:
    fields = (*case.task.fields, *case.model.task.fields)
    compared = accuracy.compare(case.first_score, case.score, case.truth, case.rows, fields)
    related = accuracy.relation(case.first_score, case.truth)
    return compared, accuracy.judge_labels(related, case.first_score.metrics[0], _reported(case))


def _reported(case: Case) -> float | None:
    """Return the original's metric by its own task report, which a checkpoint that deploykit fine-tuned has."""
    file = case.original.path / TASK_REPORT
    if not file.is_file():
        return None
    values = {metric["name"]: metric["value"] for metric in artifact.read_json(file)["metrics"]}
    return values.get(case.task.primary)


def _accuracy_table(compared: accuracy.Accuracy, max_drop: float) -> dict[str, Any]:
    drop = compared.drop
    table = {**asdict(compared), "max_drop": max_drop}
    return table | {
        "drop": drop.value,
        "low": drop.low,
        "high": drop.high,
        "upper": drop.upper,
        "mdd": drop.detectable,
    }


def _evidence(case: Case, gates: tuple[Gate, ...], details: Mapping[str, Any]) -> Evidence:
    return Evidence(
        measure="validation",
        subject=subject_of(case.exported),
        verdict=evidence.overall(gates),
        gates=gates,
        metrics=_metrics(case.score, details["size_bytes"]),
        environment=environment.describe(),
        environment_key=environment.key(),
        reference=subject_of(case.original),
        data=subject_of(case.data),
        split=case.split.file.stem,
        warnings=tuple(_warnings(case, details)),
        details=details,
    )


def _metrics(score: Score, size_bytes: int) -> tuple[Metric, ...]:
    low, high = waterfall.interval(score)
    primary = replace(score.metrics[0], low=low, high=high)
    return (primary, *score.metrics[1:], Metric("size_bytes", size_bytes, "bytes", "lower"))


def _warnings(case: Case, details: Mapping[str, Any]) -> list[str]:
    table, invariance = details["accuracy"], details["invariance"]
    found = [refused["reason"] for refused in details["dropped"]]
    if table["drop"] <= table["max_drop"] < table["upper"]:
        found.append(
            f"{table['n']} rows cannot rule out a drop of {table['upper']:.3f}; use more rows, or require_significance"
        )
    if invariance["changed"]:
        found.append(
            f"{invariance['changed']} of {invariance['predictions']} predictions depend on the rows they are batched "
            "with; requests served alone are not affected"
        )
    if truncated := sum(encoding.truncated for encoding in case.encodings):
        found.append(f"{truncated} of {len(case.rows)} texts are longer than the model takes and were cut")
    return found


def _write_samples(case: Case, own: outputs.OwnParity, scratch: Path) -> None:
    """Write the outputs that parity compared (rows, or tokens of rows, by C), and every row's prediction."""
    for name, rows in (("reference", own.reference), ("candidate", own.candidate)):
        stacked = np.concatenate([row.reshape(-1, row.shape[-1]) for row in rows])
        np.save(scratch / f"parity.{name}.npy", stacked, allow_pickle=False)
    predictions = zip(case.truth, case.first_score.predictions, case.score.predictions, strict=True)
    lines = [
        artifact.canonical_json({"row": row, "label": label, "reference": reference, "candidate": candidate})
        for row, (label, reference, candidate) in enumerate(predictions)
    ]
    (scratch / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
