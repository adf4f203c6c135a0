"""Evidence as `validate` and `bench` write it, made up: what the tests of the report read."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import artifact, evidence
from deploykit.artifact import Node
from deploykit.check.latency import summary
from deploykit.evidence import Evidence, Gate, Metric, Subject

MACHINE = {"processor": "Example CPU", "cores": 2, "isa": ["AVX2"], "packages": {"onnxruntime": "1.30.0"}}
TEXTS = Subject("d" * 64, "dataset", "reviews")
ORIGINAL = Subject("0" * 64, "checkpoint", "original")
SCORED = {"metric": "accuracy", "low": 0.88, "high": 0.93, "n": 400}
WATERFALL = [
    {"stage": "original", "settings": {}, "value": 0.91, "parameters": 22_700_000, "num_bytes": 90_900_000, **SCORED},
    {"stage": "distil", "settings": {"layers": 3}, "value": 0.9, "parameters": 17_400_000, "num_bytes": 69_500_000}
    | SCORED,
    {"stage": "quantize", "settings": {}, "value": 0.9, "parameters": 17_400_000, "num_bytes": 53_000_000, **SCORED},
]


def model(name: str) -> Subject:
    """A model that was measured."""
    return Subject(artifact.digest_of(name), "onnx", name)


def latencies(median_ms: float, *, n: int = 500, spread: float = 0.02, seed: int = 0) -> np.ndarray:
    """Log-normal latencies in milliseconds."""
    return median_ms * np.exp(spread * np.random.default_rng(seed).standard_normal(n))


def latency(subject: Subject, head: np.ndarray, against: np.ndarray | None = None, **changes: Any) -> tuple[Any, ...]:
    """Latency evidence of the scenario `single`, with its raw samples."""
    samples = {"head": head} | ({} if against is None else {"against": against})
    systems = {name: summary(values) for name, values in samples.items()}
    found = Evidence(
        measure="latency",
        subject=subject,
        verdict="pass",
        gates=(),
        metrics=(Metric("p50_ms", systems["head"]["p50_ms"], "ms", "lower", n=len(head)),),
        environment=MACHINE,
        environment_key="machine-1",
        data=TEXTS,
        split="test",
        details={"scenarios": {"single": {"systems": systems, "null_ms": 0.001}}},
    )
    arrays = {f"single.{name}": values for name, values in samples.items()}
    return dataclasses.replace(found, **changes), arrays


def validation(subject: Subject, score: float, **changes: Any) -> tuple[Any, ...]:
    """Validation evidence in which the original scores 0.91 and the model `score`."""
    accuracy = {
        "metric": "accuracy", "reference": 0.91, "candidate": score, "drop": 0.91 - score, "low": -0.01, "high": 0.02,
        "max_drop": 0.02, "mdd": 0.02, "n": 400, "flips_total": 1,
        "flips": [{"row": 3, "text": "fine <script>alert(1)</script> | film", "label": "positive"}
                  | {"reference": "positive", "candidate": "negative"}],
        "classes": [
            {"label": "negative", "f1_reference": 0.9, "f1_candidate": score - 0.01, "support": 200},
            {"label": "positive", "f1_reference": 0.92, "f1_candidate": score + 0.01, "support": 200},
        ],
        "slices": [
            {"field": "source", "value": "films", "n": 250, "reference": 0.93, "candidate": score + 0.02},
            {"field": "source", "value": "tweets", "n": 150, "reference": 0.88, "candidate": score - 0.03},
        ],
    }  # fmt: skip
    details = {
        "accuracy": accuracy,
        "parity": {"max_abs": 2.1e-6, "tolerance": 1e-4, "worst": [{"row": 7, "difference": 2.1e-6, "text": "a film"}]},
        "invariance": {"max_abs": 0.0, "rows": 64},
        "provider": {
            "provider": "cpu",
            "fusions": {"Attention": 3},
            "ok": True,
            "nodes": {"CPUExecutionProvider": 41},
            "operators": {"MatMulIntegerToFloat": 13, "SkipLayerNormalization": 6},
            "heavy": 19,
            "misplaced": [],
            "copies": 0,
            "time_share": {"CPUExecutionProvider": 1.0},
        },
        "waterfall": WATERFALL,
    }
    found = Evidence(
        measure="validation",
        subject=subject,
        verdict="pass",
        gates=(Gate("parity", 2.1e-6, 1e-4, "lower", "pass", "Largest difference 2.1e-06, tolerance 1e-04."),),
        metrics=(Metric("accuracy", score, n=400), Metric("size_bytes", 53e6, "B", "lower")),
        environment=MACHINE,
        environment_key="machine-1",
        reference=ORIGINAL,
        data=TEXTS,
        split="test",
        details=details,
    )
    return dataclasses.replace(found, **changes), {"predictions": answers(score)}


def answers(score: float, n: int = 400) -> list[dict[str, Any]]:
    """Predictions of which a share `score` is right, the first ones."""
    right = round(score * n)
    names = ("negative", "positive")
    return [
        {"row": row, "label": names[row % 2], "reference": names[row % 2]}
        | {"candidate": names[row % 2] if row < right else names[1 - row % 2]}
        for row in range(n)
    ]


def seal(out: Path, found: Evidence, arrays: Mapping[str, Any], **settings: Any) -> Path:
    """Seal evidence as an artifact."""
    scratch = out.parent / f".{out.name}.partial"
    scratch.mkdir(parents=True)
    evidence.write(found, scratch)
    for name, values in arrays.items():
        if isinstance(values, list):
            (scratch / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
        else:
            np.save(scratch / f"{name}.npy", values)
    artifact.seal(scratch, out, Node("evidence", found.measure, settings, (), ""), {})
    return out
