"""The whole line of `deploykit run`: each step is a command, each result an artifact in the output folder.

    OUT/checkpoint   the fine-tuned checkpoint (with `base`)
    OUT/compressed   after the recipe's stages (with `compress`)
    OUT/model        the exported model
    OUT/validation   its evidence
    OUT/original     the checkpoint before compression: exported in fp32, validated, packaged and served likewise
    OUT/bento        the package (with `package`)
    OUT/steps        what each stage of compression gave (with `compress` and `bench`)
    OUT/bench        latency evidence, measured in turn with the original
    OUT/bench-server the same for the served package (with the scenario `server`)
    OUT/report       the regression report (with `report`)

A finished step is found again by its origin, so a stopped run goes on where it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploykit import artifact, commands, evidence, processes
from deploykit.artifact import Artifact
from deploykit.check.bench import Scenario
from deploykit.check.steps import Steps
from deploykit.check.validate import Validate
from deploykit.checkpoint import open_checkpoint
from deploykit.compress import waterfall
from deploykit.data import open_dataset
from deploykit.errors import GateFailed, InconclusiveError
from deploykit.evidence import Evidence, Verdict
from deploykit.export.export import Export
from deploykit.recipe import ORIGINAL, Pipeline
from deploykit.report import Report
from deploykit.serve import started

Say = Callable[[str], None]
LOCAL: tuple[Scenario, ...] = ("single", "offline")
SERVER: Scenario = "server"


@dataclass(frozen=True)
class Line:
    """What a run of the line made."""

    original: Artifact
    """The checkpoint before compression."""
    model: Artifact
    validation: Evidence
    bento: Artifact | None
    steps: Evidence | None
    """What each stage of compression gave."""
    latency: Evidence | None
    served: Evidence | None
    report: Report | None

    @property
    def verdict(self) -> Verdict:
        """The report's verdict where there is one, else the validation's."""
        return self.report.verdict if self.report else self.validation.verdict


def run_pipeline(pipeline: Pipeline, out: Path, *, say: Say, force: bool = False) -> Line:
    """Do the line; a failed gate stops it before anything is packaged.

    Raises:
        GateFailed: validation failed, the evidence is in `out/validation`; or the recipe has a target out of reach.
        InconclusiveError: validation could not tell.
        UsageError: several processes were started to do it.
    """
    processes.require_one("deploykit run")
    steps = PipelineSteps(pipeline, out, say, force)
    original = steps.checkpoint()
    compressed = steps.compressed(original)
    model = steps.model(compressed)
    validation = steps.validation(model, original, compressed)
    _require_pass(validation, out / "validation")
    bento = steps.bento(model, out)
    baseline = steps.original_model(original) if pipeline.bench or pipeline.report else None
    each_step = steps.each_step(compressed)
    latency = steps.latency(model, baseline)
    served = steps.served(bento, out)
    if served is not None and baseline is not None:
        steps.served(steps.bento(baseline, out / ORIGINAL), out / ORIGINAL)
    return Line(original, model, validation, bento, each_step, latency, served, steps.report())


@dataclass(frozen=True)
class PipelineSteps:
    """The commands of a pipeline, each into its folder."""

    pipeline: Pipeline
    out: Path
    say: Say
    force: bool

    def checkpoint(self) -> Artifact:
        """Fine-tune the base, or open the checkpoint that is given."""
        pipeline = self.pipeline
        if pipeline.finetune is None:
            return open_checkpoint(pipeline.checkpoint or "")
        self.say(f"finetune: {pipeline.base} on {pipeline.data}")
        out = self.out / "checkpoint"
        return self._told(
            commands.finetune(pipeline.base or "", pipeline.finetune, data=pipeline.data, out=out, force=self.force)
        )

    def compressed(self, original: Artifact) -> Artifact:
        """Carry the recipe out.

        Raises:
            GateFailed: a target is out of reach; the nearest point is in `out/compressed`.
        """
        stages = self.pipeline.compress
        if not stages:
            return original
        self.say(f"compress: {', '.join(stage.verb for stage in stages)}")
        out = self.out / "compressed"
        made = commands.compress(
            original.path, stages, data=self.pipeline.data, out=out, force=self.force, on_row=self._row
        )
        before, rows = waterfall.read(original.path), waterfall.read(made.path)
        kept = "the nearest point is kept there, and nothing was exported"
        waterfall.require_reached(rows[len(before) :], out, kept)
        return made

    def model(self, compressed: Artifact) -> Artifact:
        """Export the compressed checkpoint."""
        export = self.pipeline.export
        self.say(f"export: for {export.provider}, {export.precision or 'as compressed'}")
        return self._told(commands.export(compressed.path, export, out=self.out / "model", force=self.force))

    def validation(self, model: Artifact, original: Artifact, source: Artifact) -> Evidence:
        """Prove the exported model."""
        self.say("validate: parity with its own reference, accuracy against the original")
        return self._validated(model, original, source, self.pipeline.validate, self.out / "validation")

    def original_model(self, original: Artifact) -> Artifact:
        """Export and validate the original in fp32 for the CPU: what the report compares with."""
        model = self.exported_original(original)
        self._validated(model, original, original, self.pipeline.validate, self.out / ORIGINAL / "validation")
        return model

    def exported_original(self, original: Artifact) -> Artifact:
        """Export the original in fp32."""
        self.say("original: exported as it is, to compare with")
        export = Export(provider=self.pipeline.export.provider, precision="fp32")
        return commands.export(original.path, export, out=self.out / ORIGINAL / "model", force=self.force)

    def bento(self, model: Artifact, folder: Path) -> Artifact | None:
        """Package a model that `folder` has the proof of, where the pipeline asks for it."""
        package = self.pipeline.package
        if package is None:
            return None
        self.say(f"package: {package.name}")
        proof, out = folder / "validation", folder / "bento"
        return self._told(commands.package(model.path, package.name, proof=proof, out=out, force=self.force))

    def latency(self, model: Artifact, baseline: Artifact | None) -> Evidence | None:
        """Measure the model in turn with the original; `server` is measured apart, see `served`."""
        bench = self.pipeline.bench
        scenarios = tuple(name for name in (bench.scenarios or LOCAL) if name != SERVER) if bench else ()
        if bench is None or not scenarios:
            return None
        self.say(f"bench: {', '.join(scenarios)}, in turn with the original")
        return self._judged(
            commands.bench(
                str(model.path),
                replace(bench, scenarios=scenarios),
                data=self.pipeline.data,
                out=self.out / "bench",
                against=baseline.path if baseline else None,
                force=self.force,
            )
        )

    def each_step(self, compressed: Artifact) -> Evidence | None:
        """Measure what each stage of compression gave, in turn with PyTorch and the original."""
        bench, export = self.pipeline.bench, self.pipeline.export
        if bench is None or not waterfall.read(compressed.path):  # no stage, or every one was dropped
            return None
        self.say("bench: every step of compression, in turn")
        settings = Steps(export.provider, bench.split, threads=bench.threads, seed=bench.seed)
        data, out = self.pipeline.data, self.out / "steps"
        made = commands.bench_steps(compressed.path, settings, data=data, out=out, force=self.force)
        return evidence.load(made.path)

    def served(self, bento: Artifact | None, folder: Path) -> Evidence | None:
        """Serve a Bento and measure it, where the pipeline asks for it."""
        bench = self.pipeline.bench
        if bento is None or bench is None or SERVER not in (bench.scenarios or ()):
            return None
        out = folder / "bench-server"
        self.say(f"bench: {bento.path} served, requests at random times")
        if artifact.is_sealed(out) and not self.force:
            return self._judged(artifact.read(out))
        with started(bento.path) as url:
            settings = replace(bench, scenarios=(SERVER,), threads=None)  # the server sets its own
            return self._judged(commands.bench(url, settings, data=self.pipeline.data, out=out, force=self.force))

    def report(self) -> Report | None:
        """Compare with the baseline, where the pipeline asks for it."""
        settings = self.pipeline.report
        if settings is None:
            return None
        self.say("report")
        chosen = self.pipeline.baseline
        baseline = self.out / ORIGINAL if chosen == ORIGINAL else Path(chosen)
        return commands.report(self.out, settings, baseline=baseline, out=self.out / "report", force=True)

    def _validated(
        self, model: Artifact, original: Artifact, source: Artifact, settings: Validate, out: Path
    ) -> Evidence:
        made = commands.validate(
            model.path,
            settings,
            reference=original.path,
            data=open_dataset(self.pipeline.data).path,
            out=out,
            source=source.path,
            force=self.force,
        )
        return self._judged(made)

    def _judged(self, made: Artifact) -> Evidence:
        found = evidence.load(made.path)
        shown = ", ".join(f"{metric.name} {metric.value:.4g}" for metric in found.metrics[:4])
        self.say(f"  {shown}" + (f": {found.verdict}" if found.gates else ""))
        return found

    def _told(self, made: Artifact) -> Artifact:
        shown = [f"{metric['name']} {metric['value']:.4g}" for metric in made.facts.get("metrics", ())[:3]]
        self.say(f"  {made.digest[:12]}" + (f"  {', '.join(shown)}" if shown else ""))
        return made

    def _row(self, row: Mapping[str, Any]) -> None:
        if waterfall.DROPPED in row:
            self.say(f"  {row[waterfall.DROPPED]}")
            return
        size = f"{row['parameters'] / 1e6:.1f} M parameters, {row['num_bytes'] / 1e6:.1f} MB"
        self.say(f"  {row['stage']}: {row['metric']} {row['value']:.4f}, {size}")


def _require_pass(found: Evidence, where: Path) -> None:
    if found.verdict == "pass":
        return
    reasons = "; ".join(gate.reason for gate in found.gates if gate.verdict != "pass")
    error = GateFailed if found.verdict == "fail" else InconclusiveError
    raise error(
        where,
        expected="every gate to pass",
        found=reasons,
        next_step="change the recipe or the budget; nothing was packaged",
    )
