"""Recipes and pipelines: YAML into validated stages, with the file, line and field of every mistake.

Everything is checked before anything starts. A recipe lists the stages of `compress`; a pipeline
has a section for each command of the line. Paths are relative to the file.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from deploykit import settings
from deploykit.check.bench import Bench
from deploykit.check.validate import Validate
from deploykit.compress.compress import COMPRESS_STAGES
from deploykit.errors import RecipeError, UsageError
from deploykit.export.export import Export
from deploykit.package import Package
from deploykit.report import ReportSettings
from deploykit.search.narrowing import Narrowing, read_narrowing
from deploykit.search.space import ENTRIES
from deploykit.stage import Stage, further_sources, settings_of
from deploykit.tasks import TASKS
from deploykit.train.finetune import Finetune

T = TypeVar("T")
Field = tuple[str | int, ...]
ORIGINAL = "original"
"""The baseline of a report that means the checkpoint before compression."""


@dataclass(frozen=True)
class Pipeline:
    """The whole line of `deploykit run`. One of `base` (with `finetune`) and `checkpoint` is given."""

    task: str
    data: str
    base: str | None = None
    finetune: Finetune | None = None
    checkpoint: str | None = None
    compress: tuple[Stage, ...] = ()
    export: Export = field(default_factory=Export)
    validate: Validate = field(default_factory=Validate)
    bench: Bench | None = None
    package: Package | None = None
    report: ReportSettings | None = None
    search: Narrowing = field(default_factory=Narrowing)
    """What `deploykit search` may try; `run` leaves it aside."""
    baseline: str = ORIGINAL
    """`original`, or a folder of evidence from an earlier run."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its value, and the line of every field."""

    file: str
    value: Any
    lines: Mapping[Field, int]

    def where(self, path: Field) -> str:
        """Name file, line and field."""
        known = next(path[:end] for end in range(len(path), -1, -1) if path[:end] in self.lines)
        dotted = ".".join(map(str, path))
        return f"{self.file}:{self.lines[known]}" + (f": {dotted}" if dotted else "")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but with the floats of YAML 1.2 (1e-4)."""


_FLOAT = re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse(text: str, file: str) -> Document:
    """Parse YAML and remember where each field stands.

    Raises:
        RecipeError: the text is not YAML, or a key stands twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Field, int] = {(): 1}
        _locate(node, (), lines, file)
        return Document(file, loader.construct_document(node) if node else {}, lines)
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise RecipeError(
            where, expected="valid YAML", found=getattr(cause, "problem", str(cause)), next_step="repair the line"
        ) from cause
    finally:
        loader.dispose()


def read(file: Path) -> Document:
    """Read and parse a YAML file."""
    try:
        return parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as cause:
        raise RecipeError(
            file, expected="a YAML file in UTF-8", found=str(cause), next_step="check the path"
        ) from cause


def override(document: Document, assignments: Iterable[str]) -> Document:
    """Apply `a.b=c` assignments, each value read as YAML; a missing section is made."""
    value, lines = document.value, dict(document.lines)
    for assignment in assignments:
        dotted, separator, text = assignment.partition("=")
        if not separator or not dotted:
            raise UsageError(
                f"--set {assignment}",
                expected="a.b=c",
                found="no assignment",
                next_step="write the field, = and the value",
            )
        value = _assigned(value, dotted.split("."), parse(text, f"--set {dotted}").value, f"--set {dotted}")
    return Document(document.file, value, lines)


def load_recipe(source: str | Path) -> tuple[Stage, ...]:
    """Load the stages of a recipe file, or of a recipe shipped by that name.

    Raises:
        RecipeError: an unknown stage or key, a wrong type or value.
    """
    path = Path(source)
    if not path.is_file():
        path = shipped(str(source))
    document = read(path)
    _require_keys(document, (), {"stages"})
    return _stages(document, ("stages",))


def recipe_of(stages: Iterable[Stage]) -> list[dict[str, Any]]:
    """List stages as a recipe does: of their settings, those that are not defaults."""
    return [{stage.verb: _given(stage)} for stage in stages]


def stages_of(items: Iterable[Mapping[str, Mapping[str, Any]]]) -> tuple[Stage, ...]:
    """Make the stages of what `recipe_of` listed."""
    named = [(verb, given) for item in items for verb, given in item.items()]
    return tuple(settings.make(COMPRESS_STAGES[verb], given, lambda name: name) for verb, given in named)


def in_words(items: Iterable[Mapping[str, Mapping[str, Any]]]) -> str:
    """Say in one line what `recipe_of` listed: distil layers=3 epochs=2, quantize."""
    named = [(verb, given) for item in items for verb, given in item.items()]
    said = (" ".join([verb, *(f"{name}={value}" for name, value in given.items())]) for verb, given in named)
    return ", ".join(said) or "as it is"


def recipe_names() -> list[str]:
    """List the shipped recipes."""
    return sorted(file.name.removesuffix(".yaml") for file in _recipes().iterdir() if file.name.endswith(".yaml"))


def shipped(name: str) -> Path:
    """Return the file of a shipped recipe."""
    if name not in recipe_names():
        raise RecipeError(
            name,
            expected=f"a recipe file, or one of {', '.join(recipe_names())}",
            found="neither",
            next_step="check the path",
        )
    return Path(str(_recipes() / f"{name}.yaml"))


def load_pipeline(file: Path, assignments: Iterable[str] = ()) -> Pipeline:
    """Load a pipeline, with `a.b=c` assignments applied.

    Raises:
        RecipeError: an unknown section or key, a wrong type or value.
    """
    document = override(read(file), assignments)
    sections = {item.name for item in dataclasses.fields(Pipeline)} - {"baseline"}
    _require_keys(document, (), sections)
    value: Mapping[str, Any] = document.value
    task = _scalar(document, "task", required=True)
    if task not in TASKS:
        raise RecipeError(
            document.where(("task",)),
            expected=f"one of {', '.join(TASKS)}",
            found=repr(task),
            next_step="name the task",
        )
    _require_start(document)
    report = dict(value.get("report") or {}) if isinstance(value.get("report") or {}, dict) else value["report"]
    baseline = report.pop("baseline", ORIGINAL) if isinstance(report, dict) else ORIGINAL
    return Pipeline(
        task=str(task),
        data=_located(file, _scalar(document, "data", required=True)),
        base=_located(file, _scalar(document, "base")) if value.get("base") else None,
        finetune=build(Finetune, document, ("finetune",), {"task": task}) if value.get("base") else None,
        checkpoint=_located(file, _scalar(document, "checkpoint")) if value.get("checkpoint") else None,
        compress=_compress(document, file),
        export=build(Export, document, ("export",)),
        validate=build(Validate, document, ("validate",)),
        bench=build(Bench, document, ("bench",)) if "bench" in value else None,
        package=build(Package, document, ("package",)) if "package" in value else None,
        report=build(ReportSettings, dataclasses.replace(document, value={**value, "report": report}), ("report",))
        if "report" in value
        else None,
        search=read_narrowing(
            value.get("search") or {},
            {entry.stage.verb: entry for entry in ENTRIES},
            document.where,
            partial(_located, file),
        ),
        baseline=baseline if baseline == ORIGINAL else _located(file, baseline),
    )


def build(cls: type[T], document: Document, path: Field, given: Mapping[str, Any] | None = None) -> T:
    """Make a settings dataclass from a section, `given` fields added.

    Raises:
        RecipeError: naming file, line and field.
    """
    section = _at(document.value, path)
    if not isinstance(section, dict | None):
        raise RecipeError(
            document.where(path), expected="settings as key: value", found=repr(section), next_step="write a mapping"
        )
    values = {**(section or {}), **(given or {})}
    return settings.make(cls, values, lambda name: document.where((*path, name) if name else path), RecipeError)


def _stages(document: Document, path: Field) -> tuple[Stage, ...]:
    items = _at(document.value, path)
    if not isinstance(items, list) or not items:
        raise RecipeError(
            document.where(path), expected="a list of stages", found=repr(items), next_step="write at least one stage"
        )
    return tuple(_stage(document, (*path, index)) for index in range(len(items)))


def _stage(document: Document, path: Field) -> Stage:
    item = _at(document.value, path)
    if not isinstance(item, dict) or len(item) != 1:
        raise RecipeError(
            document.where(path),
            expected="one stage as name: settings",
            found=repr(item),
            next_step="write e.g. - quantize: {scheme: dynamic-int8}",
        )
    (name,) = item
    if name not in COMPRESS_STAGES:
        raise settings.unknown(str(name), COMPRESS_STAGES, document.where((*path, name)), RecipeError)
    made: Stage = build(COMPRESS_STAGES[name], document, (*path, name))
    further = {name: _located(Path(document.file), value) for name, value in further_sources(made).items() if value}
    return dataclasses.replace(made, **further) if further else made  # type: ignore[type-var]


def _given(stage: Stage) -> dict[str, Any]:
    fields = {item.name: item for item in dataclasses.fields(stage)}  # type: ignore[arg-type]
    known = {**settings_of(stage), **further_sources(stage)}
    return {name: known[name] for name, item in fields.items() if getattr(stage, name) != item.default}


def _compress(document: Document, file: Path) -> tuple[Stage, ...]:
    value = document.value.get("compress")
    if value is None:
        return ()
    if isinstance(value, str):
        beside = file.parent / value
        return load_recipe(beside if beside.is_file() else value)
    if isinstance(value, dict):
        _require_keys(document, ("compress",), {"stages"})
        return _stages(document, ("compress", "stages"))
    return _stages(document, ("compress",))


def _require_start(document: Document) -> None:
    value = document.value
    if bool(value.get("base")) == bool(value.get("checkpoint")):
        found = "both" if value.get("base") else "neither"
        raise RecipeError(
            document.where(()), expected="base (with finetune) or checkpoint", found=found, next_step="give one of them"
        )
    if value.get("checkpoint") and "finetune" in value:
        raise RecipeError(
            document.where(("finetune",)),
            expected="base, to be fine-tuned",
            found="checkpoint",
            next_step="remove one of them",
        )


def _scalar(document: Document, name: str, *, required: bool = False) -> str:
    value = document.value.get(name)
    if value is None and required:
        raise RecipeError(document.where(()), expected=f"a section {name!r}", found="none", next_step="add it")
    if not isinstance(value, str):
        raise RecipeError(document.where((name,)), expected="text", found=repr(value), next_step="change the value")
    return value


def _located(file: Path, name: str) -> str:
    """Resolve a path relative to the file; a name that is no folder there stays as it is."""
    beside = file.parent / name
    return str(beside) if beside.exists() or name.startswith(".") else name


def _require_keys(document: Document, path: Field, known: Iterable[str]) -> None:
    section = _at(document.value, path)
    if not isinstance(section, dict):
        raise RecipeError(document.where(path), expected="key: value", found=repr(section), next_step="write a mapping")
    for name in section:
        if name not in set(known):
            raise settings.unknown(str(name), known, document.where((*path, name)), RecipeError)


def _at(value: Any, path: Field) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else value[step]
    return value


def _assigned(value: Any, steps: list[str], new: Any, where: str) -> Any:
    """Copy `value` with the field at `steps` replaced; digits index a list."""
    if not steps:
        return new
    step, rest = steps[0], steps[1:]
    if isinstance(value, list):
        if not step.isdigit() or int(step) >= len(value):
            raise UsageError(where, expected=f"an index below {len(value)}", found=repr(step), next_step="count from 0")
        return [_assigned(item, rest, new, where) if index == int(step) else item for index, item in enumerate(value)]
    if not isinstance(value, dict | None):
        raise UsageError(where, expected="a section", found=repr(value), next_step="check the field")
    section = value or {}
    return {**section, step: _assigned(section.get(step), rest, new, where)}


def _locate(node: yaml.Node | None, path: Field, lines: dict[Field, int], file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise RecipeError(
                    f"{file}:{key.start_mark.line + 1}",
                    expected="each key once",
                    found=f"{key.value!r} again",
                    next_step="remove one",
                )
            seen.add(key.value)
            lines[*path, key.value] = key.start_mark.line + 1
            _locate(value, (*path, key.value), lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[*path, index] = value.start_mark.line + 1
            _locate(value, (*path, index), lines, file)


def _recipes() -> Any:
    return resources.files("deploykit") / "recipes"
