"""Every command of deploykit as a Python function of the same name and meaning.

Heavy libraries are imported by the function that needs them: serving, predicting, benchmarking
and reporting load no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import artifact, evidence
from deploykit.artifact import Artifact
from deploykit.data import open_dataset
from deploykit.errors import ArtifactError, UnprovenModel, UsageError
from deploykit.stage import Stage
from deploykit.stage import run as run_stage

if TYPE_CHECKING:
    from deploykit.check.bench import Bench
    from deploykit.check.steps import Steps
    from deploykit.check.validate import Validate
    from deploykit.export.export import Export
    from deploykit.recipe import Pipeline
    from deploykit.report import Report, ReportSettings
    from deploykit.search.search import Found
    from deploykit.search.settings import SearchSettings
    from deploykit.train.finetune import Finetune

Source = str | Path


def finetune(base: Source, settings: "Finetune", *, data: Source, out: Path, force: bool = False) -> Artifact:
    """Make a fine-tuned checkpoint, with its task report."""
    from deploykit.checkpoint import open_checkpoint

    return run_stage(settings, open_checkpoint(base), open_dataset(data), out=out, force=force)


def compress(
    checkpoint: Source,
    stages: Sequence[Stage],
    *,
    data: Source,
    out: Path,
    unlabeled: Path | None = None,
    force: bool = False,
    on_row: Callable[[Mapping[str, Any]], None] | None = None,
) -> Artifact:
    """Distil, prune and decide the quantization, as the recipe says; `on_row` sees each waterfall row as it comes.

    `unlabeled` names rows without labels for the recipe's distillations, as their own field would.
    """
    from deploykit.checkpoint import open_checkpoint
    from deploykit.compress import compress as compressing

    if unlabeled is not None:
        stages = compressing.with_unlabeled(stages, str(unlabeled))
    return compressing.compress(
        open_checkpoint(checkpoint), open_dataset(data), stages, out, force=force, on_row=on_row
    )


def export(checkpoint: Source, settings: "Export", *, out: Path, force: bool = False) -> Artifact:
    """Lower a checkpoint to ONNX, fused for one provider."""
    from deploykit.checkpoint import open_checkpoint

    return run_stage(settings, open_checkpoint(checkpoint), out=out, force=force)


def validate(
    model: Path,
    settings: "Validate",
    *,
    reference: Source,
    data: Source,
    out: Path,
    source: Source | None = None,
    force: bool = False,
) -> Artifact:
    """Prove parity with the model's own reference and accuracy against the original; evidence either way."""
    from deploykit.checkpoint import open_checkpoint

    sources = [open_onnx(model), open_dataset(data), open_checkpoint(reference)]
    if source is not None:
        sources.append(open_checkpoint(source))
    return run_stage(settings, *sources, out=out, force=force)


def bench(
    model_or_url: str,
    settings: "Bench",
    *,
    data: Source,
    out: Path,
    against: Path | None = None,
    force: bool = False,
) -> Artifact:
    """Measure the latency and throughput of a model, or of a served one, on the user's own rows.

    Of a compressed checkpoint, every step that led to it is measured (see `bench_steps`).
    """
    if model_or_url.startswith(("http://", "https://")):
        from deploykit.check.bench import bench_url

        return bench_url(model_or_url, settings, open_dataset(data), out, force=force)
    path = Path(model_or_url)
    if artifact.is_sealed(path) and artifact.read(path).kind == "checkpoint":
        return bench_steps(path, _of_steps(settings, against), data=data, out=out, force=force)
    sources = [open_dataset(data), open_onnx(path)]
    if against is not None:
        sources.append(open_onnx(against))
    return run_stage(settings, *sources, out=out, force=force)


def bench_steps(checkpoint: Source, settings: "Steps", *, data: Source, out: Path, force: bool = False) -> Artifact:
    """Measure what each step gave that led to a compressed checkpoint."""
    from deploykit.checkpoint import open_checkpoint

    return run_stage(settings, open_dataset(data), open_checkpoint(checkpoint), out=out, force=force)


def _of_steps(settings: "Bench", against: Path | None) -> "Steps":
    """Take over what `bench` was told.

    Raises:
        UsageError: something has no effect here.
    """
    from deploykit.check.steps import Steps

    for name, value in (("scenarios", settings.scenarios), ("against", against)):
        if value is not None:
            raise UsageError(
                f"bench.{name}",
                expected="none for a checkpoint, all of whose steps are measured",
                found=str(value),
                next_step="remove it, or give an exported model",
            )
    shared = ("split", "calls", "rows", "passes", "batch_size", "seconds", "threads", "seed")
    return Steps(**{name: getattr(settings, name) for name in shared})


def package(model: Path, name: str, *, proof: Path, out: Path, force: bool = False) -> Artifact:
    """Build a Bento from a model and the evidence that it passed."""
    from deploykit.package import Package

    subject = open_onnx(model)
    if not artifact.is_sealed(proof):
        raise UnprovenModel(
            model,
            expected=f"evidence for it in {proof}",
            found="none",
            next_step="prove the model with `deploykit validate`",
        )
    return run_stage(Package(name), subject, artifact.verified(proof), out=out, force=force)


def serve(bento: Path, *, host: str = "127.0.0.1", port: int = 3000) -> int:
    """Serve a Bento until it is interrupted; returns the server's exit status."""
    from deploykit import serve as serving

    return serving.serve(bento, host, port)


def report(head: Path, settings: "ReportSettings", *, baseline: Path, out: Path, force: bool = False) -> "Report":
    """Compare evidence with evidence: `report.html`, `report.md`, `report.json` and a verdict."""
    from deploykit import report as reporting

    return reporting.report(head, baseline, out, settings, force=force)


def search(pipeline: "Pipeline", out: Path, settings: "SearchSettings", *, say: Callable[[str], None]) -> "Found":
    """Find the fastest model within an accuracy budget; the best so far is always in `out`, and a rerun goes on."""
    from deploykit.search import search as searching

    return searching.search(pipeline, out, settings, say=say)


def predict(model: Path, *, source: Path, out: Path) -> Mapping[str, Any]:
    """Score a file of rows, one JSON line a row, in order."""
    from deploykit.predict import predict_file

    return predict_file(model, source, out)


def inspect(path: Path) -> Artifact:
    """Read an artifact's lineage and facts."""
    return artifact.read(path)


def verify(path: Path) -> list[str]:
    """Re-hash an artifact; returns one line per changed, missing or added file."""
    return artifact.verify(artifact.read(path))


def open_onnx(path: Path) -> Artifact:
    """Open an exported model after checking every byte of it.

    Raises:
        ArtifactError: it is none, or is changed.
    """
    found = artifact.verified(path)
    if found.kind != "onnx":
        raise ArtifactError(
            path,
            expected="an exported model",
            found=f"an artifact of kind {found.kind}",
            next_step="give the folder that `deploykit export` wrote",
        )
    return found


def verdict_of(found: Artifact) -> evidence.Evidence:
    """Read the evidence that `validate` or `bench` wrote."""
    return evidence.load(found.path)
