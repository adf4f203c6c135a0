"""More rows for small sets, written by a language model in the style of the rows that are there.

As in "Generate, Annotate, and Learn" (He et al. 2022, TACL 10, section 3): a pretrained causal language model is tuned
on the text of the training rows without their labels, then writes new rows. They have no label: the teacher says what
they are. Validation rows only choose the pass that is kept, and test rows are never read. The rows are kept in the
cache by what they were made from, and shared by recipes.

MiniLM-L6 on sentence sentiment (12,485 rows): a student of three layers, 6 heads and 384 neurons, that had learned from
four augmented copies, went on for 7,000 steps. With 48,000 rows that a SmolLM2-135M had written (for a script that was
there before this module: nucleus sampling, each kind of source asked for by name; and 3,500 real ones besides) its
divergence from the teacher fell from 0.066 to 0.058 on validation and from 0.084 to 0.073 on tweets; with augmented
copies alone, as many steps, to 0.066 and 0.079.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from deploykit import artifact, environment, processes
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint
from deploykit.compress import language_model
from deploykit.compress.language_model import LanguageModel
from deploykit.data import Row
from deploykit.errors import DataError, UsageError
from deploykit.runtime.tasks import decoder_of
from deploykit.tasks import task_named
from deploykit.tasks.task import Task
from deploykit.train import progress, state
from deploykit.train.loop import precision

TRIES = 3
"""Texts written at most for each row that was asked for: a copy of another, and what is no row, count for nothing."""
_BETWEEN = "\t"
"""Stands between the two texts of a pair."""
_FORMAT = 1


def generated_rows(generator: Artifact, teacher: Checkpoint, data: Artifact, count: int, seed: int) -> Path:
    """Return a file of rows without labels (`.jsonl`) in the style of a data set's training rows.

    Args:
        generator: a pretrained causal language model.
        teacher: names the task, which says what a row is.
        data: its training rows are learned; its validation rows only choose the best pass over these.
        count: of rows, at least 1; fewer are written where the model repeats itself.
        seed: of tuning and writing.

    Raises:
        CheckpointError: the generator is no causal language model.
        TrainingStopped: its loss is not finite.
        UsageError: it wrote nothing that could be used.
    """
    task = task_named(teacher.spec.task)
    texts = {name: [_line(task, row) for row in task.read(data.path, name).rows] for name in ("train", "validation")}
    key = artifact.digest_of([_FORMAT, generator.digest, texts, seed, torch.__version__, precision()])
    folder = environment.cache_dir() / "generated" / key
    folder.mkdir(parents=True, exist_ok=True)
    file, work = folder / f"rows-{count}.jsonl", folder / ".work"
    with FileLock(folder / ".lock") if processes.is_first() else nullcontext():
        if not _agreed(file.is_file()):
            language = _tuned(generator, texts, seed, work)
            if processes.is_first():
                rows = _rows(task, language, texts["train"], (count, seed), work / "drafts.jsonl")
                _write(rows, file, generator)
                shutil.rmtree(work)
            processes.wait()
    return file


def _tuned(generator: Artifact, texts: dict[str, list[str]], seed: int, work: Path) -> LanguageModel:
    """Tune the generator, or take it up as it was tuned before the work was stopped."""
    language, weights = language_model.load_language_model(generator), work / "tuned.safetensors"
    if _agreed(weights.is_file()):
        state.load_weights(weights, language.model)
    else:
        language_model.tune(language, texts["train"], texts["validation"], seed, work / "tuning")
        if processes.is_first():
            state.save_weights(weights, language.model)
    return language


def _rows(task: Task, language: LanguageModel, known: Sequence[str], asked: tuple[int, int], drafts: Path) -> list[Row]:
    """Collect rows that are new, of each only one."""
    count, seed = asked
    language_model.for_writing(language)
    seen, rows, num_texts = set(known), list[Row](), 0
    with progress.shown(count, 0, work="writing: row") as advance:
        for texts in _drafts(language, seed, drafts):
            for text in texts:
                row = _row(task, text)
                if row is not None and text not in seen:
                    seen.add(text)
                    rows.append(row)
            num_texts += language_model.WRITTEN_TOGETHER
            advance(min(len(rows), count), f"{len(rows) / num_texts:.0%} of the texts new and whole")
            if len(rows) >= count or num_texts >= TRIES * count:
                break
    return rows[:count]


def _drafts(language: LanguageModel, seed: int, file: Path) -> Iterator[list[str]]:
    """Write batches of texts without end, a line of `file` each; those that are there already are read."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]  # the last one may be torn
    file.write_text("".join(whole), encoding="utf-8")
    yield from map(json.loads, whole)
    batch = len(whole)
    while True:
        texts = language_model.written(language, int(np.random.SeedSequence([seed, batch]).generate_state(1)[0]))
        with file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(texts) + "\n")
        yield texts
        batch += 1


def _line(task: Task, row: Row) -> str:
    """Return a row's input in one line of text, as a language model learns it."""
    return _BETWEEN.join(" ".join(text.split()) for text in task.texts_of(row))


def _row(task: Task, text: str) -> Row | None:
    """Return the row that a line says; None where the task cannot use it."""
    row = task.row_of([[f" {word}" for word in part.split()] for part in text.split(_BETWEEN, 1)])
    try:
        decoder_of(task.name).check(row, "a generated row")
    except DataError:
        return None
    return row


def _write(rows: Sequence[Row], file: Path, generator: Artifact) -> None:
    if not rows:
        raise UsageError(
            "distil.generate",
            expected="rows from the language model",
            found=f"none that is new and can be used ({generator.path})",
            next_step="name another generator or leave generate out",
        )
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(file)


def _agreed(here: bool) -> bool:  # noqa: FBT001 - what this process sees
    """Return what the first process sees, in every process."""
    return processes.from_first(str(here)) == str(True)
