"""Provider truth: where ONNX Runtime ran each node of a model, from its own profile of a real run.

ONNX Runtime places a node that a provider has no kernel for on the CPU, with copies around it, and says nothing.
"""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploykit.runtime import model_info
from deploykit.runtime.model import Model, Row
from deploykit.runtime.session import EXECUTION_PROVIDERS, open_session
from deploykit.runtime.tasks import decoder_of
from deploykit.runtime.tokenizer import Encoding, Tokenizer

_HEAVY = (
    "Attention",
    "Conv",
    "DynamicQuantizeMatMul",
    "FusedGemm",
    "FusedMatMul",
    "Gemm",
    "MatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MultiHeadAttention",
    "QAttention",
)
"""Operators whose work grows with the square of a width."""
_ROWS = 32


@dataclass(frozen=True)
class Placement:
    """Which provider ran what."""

    nodes: Mapping[str, int]
    """Provider to its nodes, copies apart."""
    operators: Mapping[str, int]
    """What the runtime made of the graph: operator to nodes."""
    heavy: int
    """Nodes with matrix products inside."""
    misplaced: tuple[str, ...]
    """Those of them that another provider than the one asked for ran."""
    copies: int
    """Nodes that copy between devices."""
    time_share: Mapping[str, float]
    """Provider to its share of the profiled time: a measurement, other in each run where several providers ran."""


def provider_truth(model: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """Profile an exported model on a batch of rows; see `encoded_truth`."""
    info = model_info.read(model)
    tokenizer = Tokenizer.open(model, max_length=info.max_length, pad_id=info.pad_id)
    return encoded_truth(model, decoder_of(info.task).encode(tokenizer, rows[:_ROWS]))


def encoded_truth(model: Path, encodings: Sequence[Encoding]) -> dict[str, Any]:
    """Profile an exported model on a batch of encoded rows.

    Returns:
        The fields of `Placement`, the `provider` asked for, the `fusions` that export found, and `ok`: every heavy
        node ran where it was asked to. All but `time_share` is the same in every run. Of a cascade, both models run on
        the whole batch, and count together.

    Raises:
        EnvironmentMissing: the provider cannot run here.
    """
    info = model_info.read(model)
    tokenizer = Tokenizer.open(model, max_length=info.max_length, pad_id=info.pad_id)
    parts, events = model_info.folders(model), []
    for part in parts:
        events += _profiled(part, tokenizer, encodings[:_ROWS])
    found = placement(events, EXECUTION_PROVIDERS[info.provider])
    ok = found.heavy > 0 and not found.misplaced
    fusions = _added([model_info.read(part).fusions for part in parts])
    return {"provider": info.provider, "fusions": fusions, "ok": ok, **asdict(found)}


def _added(fusions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what was fused, and of how many layers."""
    found: Counter[str] = Counter()
    for each in fusions:
        found.update(each.get("found", {}))
    return {"found": dict(found), "layers": sum(each.get("layers", 0) for each in fusions)}


def _profiled(model: Path, tokenizer: Tokenizer, encodings: Sequence[Encoding]) -> list[Mapping[str, Any]]:
    """Run one model on a batch and return ONNX Runtime's profile of it."""
    info = replace(model_info.read(model), threshold=None)
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            model / model_info.GRAPH,
            provider=info.provider,
            options=info.provider_options,
            profile=Path(folder) / "profile",
        )
        Model(info, tokenizer, session).run(encodings)
        profile: list[Mapping[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return profile


def placement(events: Iterable[Mapping[str, Any]], wanted: str) -> Placement:
    """Read ONNX Runtime's profile events of one run; `wanted` is the execution provider that was asked for."""
    ran = node_runs(events)
    copies = [event for event in ran if operator_of(event).startswith("Memcpy")]
    nodes = [event for event in ran if not operator_of(event).startswith("Memcpy")]
    heavy = [event for event in nodes if _is_heavy(operator_of(event))]
    micros: dict[str, float] = defaultdict(float)
    for event in ran:
        micros[_provider(event)] += event["dur"]
    return Placement(
        nodes=_counted(map(_provider, nodes)),
        operators=_counted(map(operator_of, nodes)),
        heavy=len(heavy),
        misplaced=tuple(event["name"].removesuffix("_kernel_time") for event in heavy if _provider(event) != wanted),
        copies=len(copies),
        time_share={name: micros[name] / (sum(micros.values()) or 1.0) for name in sorted(micros)},
    )


def node_runs(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the events of a profile that are runs of nodes; `dur` is in microseconds."""
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def operator_of(event: Mapping[str, Any]) -> str:
    """Return the operator of a node's run."""
    return str(event["args"]["op_name"])


def _provider(event: Mapping[str, Any]) -> str:
    return str(event["args"]["provider"])


def _is_heavy(operator: str) -> bool:
    """TensorRT runs whole subgraphs as one node of its own."""
    return operator in _HEAVY or operator.startswith("TRTKernel")


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
