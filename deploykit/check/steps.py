"""Measure what each step of compression gave: latency, throughput, size and memory, beside the metric it cost.

The first system is the original in PyTorch as its users run it (float32, padded to the longest row of a batch); then
come the original and every later checkpoint, each as `export` would write it. All are timed in turn in one run, one row
a call (latency) and many rows a pass (throughput), rows in and answers out.

    N turns or passes
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from deploykit import checkpoint, environment, evidence, stage
from deploykit.artifact import Artifact, Kind
from deploykit.check import closed_loop, latency
from deploykit.check.closed_loop import Predict, Row, opened, shuffled
from deploykit.check.latency import Milliseconds, Rounds
from deploykit.check.latency_tables import throughput_of
from deploykit.check.memory import peak_bytes
from deploykit.check.ratio import ratio_of_interleaved
from deploykit.compress import waterfall
from deploykit.data import read_split
from deploykit.errors import ArtifactError
from deploykit.evidence import Evidence, subject_of
from deploykit.export.write import Target, write_model
from deploykit.runtime.model_info import Provider, num_bytes
from deploykit.runtime.tasks import decoder_of

PYTORCH = "PyTorch"
TURN = 5
"""Calls of one row that a system makes, after some that are not timed, before the next one has its turn."""


@dataclass(frozen=True)
class Steps:
    """Measure every checkpoint from the original to a compressed one."""

    provider: Provider = "cpu"
    split: str = "test"
    calls: int = 60
    """Calls of one row, in turns of `TURN`; of each turn the mean is kept."""
    rows: int = 64
    """Rows of one pass."""
    passes: int = 6
    batch_size: int = 32
    seconds: float = 60.0
    """Turns, and passes, end after so long, but not before there are six."""
    threads: int | None = None
    """Every core that the process may use if not given."""
    seed: int = 0

    verb: ClassVar[str] = "bench steps"
    reads: ClassVar[tuple[Kind, ...]] = ("dataset", "checkpoint")
    makes: ClassVar[Kind] = "evidence"
    resumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("calls", "rows", "passes", "batch_size", "seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError("threads must be positive")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write `evidence.json` and the raw samples.

        Raises:
            ArtifactError: a checkpoint on the way has moved or changed.
            EnvironmentMissing: the provider cannot run here.
        """
        dataset, last = sources
        split = read_split(dataset.path, self.split)
        chain = chain_of(last)
        with tempfile.TemporaryDirectory() as folder:
            folders = [chain[0].path, *(self._exported(each, Path(folder)) for each in chain)]
            models: list[Predict] = [
                partial(opened(path, split, self.threads).predict, batch_size=self.batch_size) for path in folders[1:]
            ]
            systems = {str(index): each for index, each in enumerate([_in_pytorch(chain[0], self), *models])}
            samples = self._samples(systems, shuffled(split, self.seed))
            memory = [peak_bytes(path, split.rows[: self.batch_size]) for path in folders]
            sizes = [checkpoint_bytes(folders[0]), *map(num_bytes, folders[1:])]
        rows = rows_of(waterfall.read(last.path), samples, sizes, memory)
        return _written(self, rows, samples, (dataset, last), scratch)

    def _exported(self, source: Artifact, folder: Path) -> Path:
        path = folder / source.digest
        path.mkdir()
        write_model(checkpoint.load(source), path, Target(self.provider))
        return path

    def _samples(self, systems: Mapping[str, Predict], rows: Sequence[Row]) -> dict[str, list[Milliseconds]]:
        """Time all systems in turn: milliseconds a row (N) each, by scenario."""
        calls = math.ceil(self.calls / TURN) * TURN
        turns = Rounds(calls, TURN, self.seconds, self.seed, untimed=closed_loop.UNTIMED, turn=TURN)
        passes = Rounds(self.passes, 1, self.seconds, self.seed)
        return {
            "single": list(closed_loop.means_of_turns(systems, rows, turns).values()),
            "offline": list(closed_loop.offline(systems, rows[: self.rows], passes).values()),
        }


def chain_of(last: Artifact) -> list[Artifact]:
    """Return the checkpoints from the original to `last`, in order.

    Raises:
        ArtifactError: it is an original itself, or one before it has moved or changed.
    """
    steps = waterfall.read(last.path)
    if not steps:
        raise ArtifactError(
            last.path, expected="a compressed checkpoint", found="an original", next_step="compress it first"
        )
    chain = [last]
    for _ in steps[1:]:
        chain.append(stage.parent(chain[-1], "checkpoint"))
    return chain[::-1]


def rows_of(
    steps: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Sequence[Milliseconds]],
    sizes: Sequence[int],
    memory: Sequence[int],
) -> list[dict[str, Any]]:
    """Lay the steps out, PyTorch first; speed-ups are against PyTorch, in pairs of samples taken in turn.

    Args:
        steps: the waterfall, the original first.
        samples: per scenario and system milliseconds a row (N); one system more than there are steps.
        sizes: bytes of the weights on disk, per system.
        memory: peak resident bytes, per system.
    """
    named = [{**steps[0], "stage": PYTORCH}, *steps]
    rows = []
    for index, step in enumerate(named):
        single, offline = samples["single"][index], samples["offline"][index]
        summary = latency.summary(single)
        ratios = {
            f"{name}_speedup": asdict(ratio_of_interleaved(samples[name][0], own, 0.5))
            for name, own in (("single", single), ("offline", offline))
        }
        speed = {f"p50_ms{end}": summary[f"p50_ms{end}"] for end in ("", "_low", "_high")}
        rate = throughput_of(latency.summary(offline))
        rows.append({**step, **speed, **rate, **ratios, "size_bytes": sizes[index], "memory_bytes": memory[index]})
    return rows


def slower(rows: Sequence[Mapping[str, Any]], single: Sequence[Milliseconds]) -> list[str]:
    """Say which stages made one row take longer, measurably, than it did before them.

    Args:
        rows: PyTorch, the original, every stage.
        single: of each milliseconds a row (N), measured in turn.
    """
    said = []
    for row, before_N, own_N in zip(rows[2:], single[1:], single[2:], strict=False):
        ratio = ratio_of_interleaved(own_N, before_N, 0.5)
        if ratio.low is not None and ratio.low > 1:
            interval = f"95% {ratio.low:.3g} to {ratio.high:.3g}"
            said.append(f"after {row['stage']} a row takes {ratio.value:.3g} times as long as before it ({interval})")
    return said


def _in_pytorch(original: Artifact, settings: Steps) -> Predict:
    opened = checkpoint.load(original)
    opened.model.set_attn_implementation("sdpa")
    task = decoder_of(opened.spec.task)
    if settings.threads:
        torch.set_num_threads(settings.threads)

    def predict(rows: Sequence[Row]) -> object:
        encodings = task.encode(opened.tokenizer, rows)
        logits = checkpoint.logits(opened, encodings, batch_size=settings.batch_size)
        return task.decode(logits, encodings, rows, opened.labels)

    return predict


def checkpoint_bytes(folder: Path) -> int:
    """Add up the files that hold a checkpoint's weights; exports that lie beside or below them are not its own."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _written(
    settings: Steps,
    rows: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Sequence[Milliseconds]],
    sources: tuple[Artifact, Artifact],
    scratch: Path,
) -> Mapping[str, Any]:
    """Write the evidence and every raw sample (`single.0.npy`, milliseconds (N); PyTorch is 0)."""
    dataset, last = sources
    dropped = list(last.facts.get(waterfall.DROPPED, ()))
    found = Evidence(
        measure="steps",
        subject=subject_of(last),
        verdict=evidence.overall(()),
        gates=(),
        metrics=(),
        environment=environment.describe(),
        environment_key=environment.key(),
        data=subject_of(dataset),
        split=settings.split,
        warnings=(*(refused["reason"] for refused in dropped), *slower(rows, samples["single"])),
        details={"steps": list(rows), "dropped": dropped},
    )
    evidence.write(found, scratch)
    for scenario, systems in samples.items():
        for index, each_N in enumerate(systems):
            np.save(scratch / f"{scenario}.{index}.npy", each_N, allow_pickle=False)
    return {}
