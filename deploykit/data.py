"""Labelled data: rows from JSONL, CSV or Parquet files, or from a `datasets` name.

A row is a dict of the task's fields. Every error names the file and the line.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit import artifact
from deploykit.artifact import Artifact, Node
from deploykit.environment import cache_dir
from deploykit.errors import DataError, EnvironmentMissing

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".csv", ".parquet")
TEXT = ".txt"
LABELS = "labels.json"


@dataclass(frozen=True)
class Split:
    """The rows of one file, with where each stood for error messages."""

    file: Path
    rows: tuple[Row, ...]
    first_line: int = 1

    def where(self, index: int) -> str:
        """Name the file and line of a row."""
        return f"{self.file}:{index + self.first_line}"


def open_dataset(source: str | Path) -> Artifact:
    """Adopt a data folder where it lies, or fetch a `datasets` name into the cache.

    Raises:
        DataError: the folder is missing or holds no split.
    """
    path = Path(source)
    if not path.is_dir():
        if path.suffix or path.is_absolute() or str(source).startswith(".") or str(source).count("/") > 1:
            raise DataError(
                path,
                expected="a folder with train, validation and test",
                found="no such folder",
                next_step="check the path",
            )
        path = _fetch(str(source))
    found = artifact.read(path) if artifact.is_sealed(path) else artifact.adopt(path, "dataset")
    if not split_names(path):
        raise DataError(
            path,
            expected="train, validation or test as .jsonl, .csv or .parquet",
            found="none",
            next_step="add the files",
        )
    return found


def open_unlabeled(source: str | Path) -> Artifact:
    """Adopt a file of rows that need no label, or every such file of a folder, where they lie.

    Raises:
        DataError: there is none.
    """
    path = Path(source)
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    files = [file for file in files if file.suffix in (*SUFFIXES, TEXT) and not file.name.startswith(".")]
    if not files:
        raise DataError(
            path,
            expected=f"a file ending in {', '.join((*SUFFIXES, TEXT))}, or a folder of them",
            found="none",
            next_step="check the path",
        )
    digests = {file.name: artifact.file_digest(file) for file in files}
    node = Node("dataset", artifact.IMPORT, {}, (), artifact.digest_of(digests))
    return Artifact(files[0].parent, node, digests)


def read_unlabeled(data: Artifact) -> list[Split]:
    """Read every file that `open_unlabeled` adopted; a line of a .txt file is a row's `text`, blank lines are none.

    Raises:
        DataError: a file is empty, not UTF-8, or a line is broken.
    """
    return [read_file(data.path / name, (*SUFFIXES, TEXT)) for name in sorted(data.files)]


def split_names(path: Path) -> list[str]:
    """List the splits of a data folder."""
    return sorted(file.stem for file in path.iterdir() if file.suffix in SUFFIXES)


def read_split(path: Path, name: str) -> Split:
    """Read one split.

    Raises:
        DataError: it is missing, empty, not UTF-8, or a line is broken.
    """
    files = [path / f"{name}{suffix}" for suffix in SUFFIXES if (path / f"{name}{suffix}").is_file()]
    if not files:
        raise DataError(
            path,
            expected=f"a split named {name}",
            found=", ".join(split_names(path)) or "no split",
            next_step=f"add {name}.jsonl or name another split",
        )
    return read_file(files[0])


def read_file(file: Path, suffixes: Sequence[str] = SUFFIXES) -> Split:
    """Read the rows of one file, by its suffix.

    Raises:
        DataError: it is missing, empty, not UTF-8, of another format, or a line is broken.
    """
    readers = {
        ".jsonl": (_read_jsonl, 1),
        ".csv": (_read_csv, 2),
        ".parquet": (_read_parquet, 1),
        TEXT: (_read_text, 1),
    }
    if file.suffix not in suffixes or not file.is_file():
        raise DataError(
            file,
            expected=f"a file ending in {', '.join(suffixes)}",
            found="another ending" if file.is_file() else "no such file",
            next_step="check the path",
        )
    reader, first_line = readers[file.suffix]
    rows = tuple(reader(file))
    if not rows:
        raise DataError(file, expected="at least one row", found="an empty split", next_step="add rows")
    return Split(file, rows, first_line)


def read_labels(path: Path) -> list[str] | None:
    """Read the label order of `labels.json`, where there is one."""
    if not (path / LABELS).is_file():
        return None
    value = artifact.read_json(path / LABELS, DataError)
    labels = value.get("labels") if isinstance(value, dict) else value
    if (
        not isinstance(labels, list)
        or not labels
        or not all(isinstance(label, str) for label in labels)
        or len(set(labels)) != len(labels)
    ):
        raise DataError(
            path / LABELS,
            expected="a list of distinct label names",
            found="something else",
            next_step='write {"labels": ["a", "b"]}',
        )
    return labels


def require_fields(split: Split, fields: Iterable[str]) -> None:
    """Check that every row has every field, and that none is null.

    Raises:
        DataError: one is missing.
    """
    for index, row in enumerate(split.rows):
        for field in fields:
            if row.get(field) is None:
                raise DataError(
                    split.where(index),
                    expected=f"a field {field!r}",
                    found=f"only {', '.join(sorted(row)) or 'nothing'}",
                    next_step="add the field to the row",
                )


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, naming the first that is not UTF-8."""
    with file.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as cause:
                raise DataError(
                    f"{file}:{number}",
                    expected="text in UTF-8",
                    found=str(cause),
                    next_step="convert the file to UTF-8",
                ) from cause


def _read_jsonl(file: Path) -> Iterator[Row]:
    for number, line in _lines(file):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as cause:
            raise DataError(
                f"{file}:{number}",
                expected="a JSON object",
                found=f"broken JSON, column {cause.colno}: {cause.msg.removesuffix(' at')}",
                next_step="repair the line",
            ) from cause
        if not isinstance(row, dict):
            raise DataError(
                f"{file}:{number}", expected="a JSON object", found=type(row).__name__, next_step="repair the line"
            )
        yield row


def _read_text(file: Path) -> Iterator[Row]:
    for _, line in _lines(file):
        if text := line.strip():
            yield {"text": text}


def _read_csv(file: Path) -> Iterator[Row]:
    reader = csv.DictReader((line for _, line in _lines(file)), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{file}:{reader.line_num}",
                    expected=f"{len(reader.fieldnames or ())} fields",
                    found="another number",
                    next_step="repair the line",
                )
            yield dict(row)
    except csv.Error as cause:
        raise DataError(
            f"{file}:{reader.line_num}", expected="valid CSV", found=str(cause), next_step="repair the line"
        ) from cause


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        yield from parquet.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as cause:
        raise DataError(
            file, expected="a Parquet file", found=str(cause).splitlines()[0], next_step="write the file anew"
        ) from cause


def _fetch(name: str) -> Path:
    """Fetch a `datasets` name into the cache as Parquet, with its label names beside it."""
    folder = cache_dir() / "datasets" / name.replace("/", "--")
    if not folder.is_dir():
        try:
            from datasets import ClassLabel, load_dataset
        except ImportError as cause:
            raise EnvironmentMissing(
                name, expected="the package datasets", found="none", next_step="pip install datasets"
            ) from cause
        try:
            splits = load_dataset(name)
        except Exception as cause:
            raise DataError(
                name,
                expected="a data folder or a name on the hub",
                found=f"{type(cause).__name__}: {cause}".splitlines()[0],
                next_step="check the path or the name",
            ) from cause
        folder.mkdir(parents=True)
        for split, table in splits.items():
            table.to_parquet(folder / f"{split}.parquet")
            if isinstance(feature := table.features.get("label"), ClassLabel):
                artifact.write_json(folder / LABELS, {"labels": feature.names})
    return folder
