"""The commands: each parses, calls the function of the same name in `commands`, and prints."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deploykit import __version__, commands
from deploykit.cli import output
from deploykit.cli.output import Result, emit, result_of

app = typer.Typer(
    name="deploykit",
    help="A fine-tuned checkpoint in; a smaller, faster, proven and servable model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
progress = Console(stderr=True, highlight=False)

Data = Annotated[str, typer.Option("--data", help="Folder with train, validation, test; or a datasets name.")]
Out = Annotated[Path, typer.Option("--out", help="The folder to make.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output in one step.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Task = Annotated[str, typer.Option("--task", help="A task by its transformers name.")]


@app.callback()
def root(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from (any command).")
    ] = False,
) -> None:
    """Take --traceback, which `main` reads wherever it stands."""


@app.command()
def finetune(
    base: str,
    task: Task,
    data: Data,
    out: Out,
    method: Annotated[str, typer.Option(help="full")] = "full",
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    max_length: Annotated[int | None, typer.Option(min=4)] = None,
    max_train_samples: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Make the fine-tuned checkpoint, with its task report."""
    from deploykit.train.finetune import Finetune

    given = {
        "task": task, "method": method, "epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size,
        "max_length": max_length, "max_train_samples": max_train_samples, "seed": seed,
    }  # fmt: skip
    made = commands.finetune(base, _settings(Finetune, given), data=data, out=out, force=force)
    result = result_of(made)
    return emit(result, [output.metrics_table(result.metrics)], as_json=json)


@app.command()
def compress(
    checkpoint: str,
    data: Data,
    recipe: Annotated[str, typer.Option("--recipe", help="A recipe file, or the name of a shipped one.")],
    out: Out,
    unlabeled: Annotated[
        Path | None, typer.Option(help="Rows without labels, a file or folder, for the teacher to judge in distil.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Distil, prune and decide the quantization, as the recipe says."""
    from deploykit.compress import waterfall
    from deploykit.recipe import load_recipe

    stages = load_recipe(recipe)
    made = commands.compress(checkpoint, stages, data=data, out=out, unlabeled=unlabeled, force=force, on_row=_say_row)
    before, rows = waterfall.read(Path(checkpoint)), waterfall.read(made.path)
    result = replace(result_of(made), verdict="fail" if waterfall.missed(rows[len(before) :]) else None)
    return emit(result, [output.waterfall_table(rows, made.facts.get(waterfall.DROPPED, ()))], as_json=json)


@app.command()
def export(
    checkpoint: str,
    out: Out,
    provider: Annotated[str, typer.Option(help="cpu, cuda or tensorrt")] = "cpu",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; default: what compress decided")] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Lower a checkpoint to ONNX, fused for one provider."""
    from deploykit.export.export import Export

    settings = _settings(Export, {"provider": provider, "precision": precision})
    result = result_of(commands.export(checkpoint, settings, out=out, force=force))
    return emit(result, [output.metrics_table(result.metrics)], as_json=json)


@app.command()
def validate(
    model: Path,
    reference: Annotated[str, typer.Option("--reference", help="The original checkpoint.")],
    data: Data,
    out: Out,
    source: Annotated[str | None, typer.Option(help="The checkpoint the model was exported from, if it moved.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="How much of the metric may be lost.")] = None,
    split: Annotated[str | None, typer.Option(help="The split to judge on.")] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Prove parity with the model's own reference and accuracy against the original."""
    from deploykit.check.validate import Validate

    settings = _settings(Validate, {"max_drop": max_drop, "split": split})
    made = commands.validate(model, settings, reference=reference, data=data, out=out, source=source, force=force)
    found = commands.verdict_of(made)
    return emit(result_of(made, found), output.evidence_tables(found), as_json=json)


@app.command()
def bench(
    model_or_url: str,
    data: Data,
    out: Out,
    scenario: Annotated[list[str] | None, typer.Option(help="single, offline or server; may be repeated.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another exported model, measured in turn.")] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    split: Annotated[str | None, typer.Option(help="The split whose rows are used.")] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Measure latency and throughput on the user's own rows."""
    from deploykit.check.bench import Bench

    given = {"scenarios": tuple(scenario) if scenario else None, "threads": threads, "split": split}
    made = commands.bench(model_or_url, _settings(Bench, given), data=data, out=out, against=against, force=force)
    found = commands.verdict_of(made)
    return emit(result_of(made, found), output.evidence_tables(found), as_json=json)


@app.command()
def package(
    model: Path,
    evidence: Annotated[Path, typer.Option("--evidence", help="The evidence that `validate` wrote.")],
    name: Annotated[str, typer.Option("--name", help="The Bento's name.")],
    out: Out,
    force: Force = False,
    json: Json = False,
) -> int:
    """Build a Bento; refuses a model without passing evidence for its exact bytes."""
    return emit(result_of(commands.package(model, name, proof=evidence, out=out, force=force)), [], as_json=json)


@app.command()
def serve(
    bento: Path,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 3000,
) -> int:
    """Serve a Bento."""
    return commands.serve(bento, host=host, port=port)


@app.command()
def report(
    head: Path,
    baseline: Annotated[Path, typer.Option("--baseline", help="The folder of evidence to compare with.")],
    out: Out,
    max_slowdown: Annotated[float | None, typer.Option(help="How much longer it may take, as a share.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="How much of the metric may be lost.")] = None,
    max_growth: Annotated[float | None, typer.Option(help="How much larger the model may be, as a share.")] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Compare evidence with evidence: report.html, report.md, report.json."""
    from deploykit.report import ReportSettings

    given = {"max_slowdown": max_slowdown, "max_drop": max_drop, "max_growth": max_growth}
    made = commands.report(head, _settings(ReportSettings, given), baseline=baseline, out=out, force=force)
    result = Result(str(out), verdict=made.verdict, metrics=tuple(made.metrics), warnings=tuple(made.warnings))
    return emit(result, [output.gates_table(made.gates)], as_json=json)


@app.command()
def run(
    pipeline: Path,
    out: Out,
    assign: Annotated[list[str] | None, typer.Option("--set", help="a.b=c, may be repeated.")] = None,
    force: Force = False,
    json: Json = False,
) -> int:
    """Do the whole line, resuming where it was stopped."""
    from deploykit.cli import line_output
    from deploykit.pipeline import run_pipeline
    from deploykit.recipe import load_pipeline

    line = run_pipeline(load_pipeline(pipeline, assign or ()), out, force=force, say=_say)
    return emit(line_output.result_of(line), line_output.tables(line, out), as_json=json)


@app.command()
def search(
    pipeline: Path,
    out: Out,
    max_drop: Annotated[float | None, typer.Option(help="How much of the metric may be lost; else validate's.")] = None,
    target_ms: Annotated[float | None, typer.Option(help="How long one row may take, in the median.")] = None,
    minutes: Annotated[float | None, typer.Option(help="No trial starts that would end later.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, earlier runs' among them; else 40.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that try recipes at the same time.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    assign: Annotated[list[str] | None, typer.Option("--set", help="a.b=c, may be repeated.")] = None,
    json: Json = False,
) -> int:
    """Find the fastest model within an accuracy budget; goes on where it was stopped."""
    from deploykit.cli import search_output
    from deploykit.recipe import load_pipeline
    from deploykit.search.settings import SearchSettings

    given = {
        "max_drop": max_drop, "target_ms": target_ms, "minutes": minutes, "trials": trials, "workers": workers,
        "seed": seed,
    }  # fmt: skip
    settings = _settings(SearchSettings, given)
    found = commands.search(load_pipeline(pipeline, assign or ()), out, settings, say=_say)
    return emit(search_output.result_of(found, out), search_output.tables(found, out), as_json=json)


@app.command()
def demo(out: Out = Path("demo-run"), force: Force = False, json: Json = False) -> int:
    """Do the main job on the shipped data, from fine-tuning to a served, measured model."""
    from deploykit.cli import line_output
    from deploykit.demo import demo as run_demo

    line = run_demo(out, force=force, say=_say)
    return emit(line_output.result_of(line), line_output.tables(line, out), as_json=json)


@app.command()
def predict(
    model: Path,
    source: Annotated[Path, typer.Option("--input", help="Rows as JSON lines.")],
    out: Annotated[Path, typer.Option("--output", help="One JSON line a row, in order.")],
) -> None:
    """Score a file of rows."""
    commands.predict(model, source=source, out=out)


@app.command()
def inspect(path: Path, json: Json = False) -> int:
    """Draw an artifact's lineage and facts."""
    from deploykit.lineage import tree_of

    found = commands.inspect(path)
    return emit(result_of(found), [tree_of(found)], as_json=json)


@app.command()
def verify(path: Path, json: Json = False) -> int:
    """Re-hash an artifact and name any changed byte's file."""
    problems = tuple(commands.verify(path))
    result = Result(str(path), commands.inspect(path).digest, verdict="fail" if problems else "pass", warnings=problems)
    return emit(result, problems, as_json=json)


@app.command()
def doctor(json: Json = False) -> int:
    """Show the environment and run one node on each provider."""
    from deploykit.doctor import examine, shown

    found = examine()
    return emit(Result(verdict=found.verdict, warnings=found.warnings), [shown(found)], as_json=json)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _settings(cls: Any, given: dict[str, Any]) -> Any:
    """Make a stage from the flags that were given; the stage's own defaults fill the rest."""
    from deploykit.settings import make

    present = {name: value for name, value in given.items() if value is not None}
    return make(cls, present, lambda name: f"--{name.replace('_', '-')}" if name else "the flags")


def _say(line: str) -> None:
    progress.print(line, markup=False, soft_wrap=True)


def _say_row(row: Any) -> None:
    if "dropped" in row:
        _say(row["dropped"])
        return
    value = f"{row['metric']} {row['value']:.4f}, {row['parameters'] / 1e6:.1f} M parameters"
    _say(f"{row['stage']}: {value}, {row['num_bytes'] / 1e6:.1f} MB")
