"""deploykit's training loop beside a plain Hugging Face Trainer: rows a second on the same work.

    python -m benchmarks.training BASE --data D [--task text-classification] [--rows 640] [--rounds 3] [--out F]

Both fine-tune the same base on the same labelled rows for one epoch, each with its own defaults for all that changes
no answer (how rows are grouped), at equal batch size, learning rate, weight decay and precision.
Rounds alternate. Seconds are those of training alone, without loading and encoding; `speed` is the Trainer's time over
deploykit's in the same round: the median, and the lowest and highest. Prints a table, then one line of JSON.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from benchmarks.table import grid
from benchmarks.turns import report
from deploykit import environment
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint, input_names, load_base, open_checkpoint
from deploykit.data import open_dataset, read_labels
from deploykit.tasks import task_named
from deploykit.train.batch import Example, collate, examples_of
from deploykit.train.finetune import cross_entropy
from deploykit.train.labelled import labelled
from deploykit.train.loop import Evaluation, Training, precision, train

OURS, THEIRS = "deploykit", "Trainer"
BATCH_SIZE = 32
LEARNING_RATE = 5e-5

Train = Callable[[Checkpoint, Sequence[Example]], object]


def train_ours(checkpoint: Checkpoint, examples: Sequence[Example]) -> object:
    """Train for one epoch with deploykit's loop; its one evaluation costs nothing here."""
    settings = Training(epochs=1, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, pad_id=checkpoint.spec.pad_id)
    with tempfile.TemporaryDirectory() as folder:
        return train(
            checkpoint.model, examples, cross_entropy, lambda: Evaluation(0.0), settings, Path(folder) / "work"
        )


def train_theirs(checkpoint: Checkpoint, examples: Sequence[Example]) -> object:
    """Train for one epoch with the Trainer, batches padded to their longest row."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            weight_decay=0.01,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            bf16=precision() == "bf16",
            use_cpu=not torch.accelerator.is_available(),
        )
        trainer = Trainer(
            checkpoint.model,
            arguments,
            train_dataset=list(examples),
            data_collator=lambda batch: dict(collate(batch, checkpoint.spec.pad_id)),
        )
        return trainer.train()


LOOPS: dict[str, Train] = {OURS: train_ours, THEIRS: train_theirs}


def run(base: Artifact, data: Artifact, task_name: str, size: int, rounds: int) -> dict[str, Any]:
    """Train with both in turn; returns the result as JSON has it."""
    task = task_named(task_name)
    split = task.read(data.path, "train")
    labels = read_labels(data.path) or task.labels_of(split)
    rows = labelled(load_base(base, task.name, labels, 0), split).trainable().sample(size, 0)
    seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
    for number in range(rounds):
        for name in list(LOOPS)[:: 1 if number % 2 else -1]:
            started_from = load_base(base, task.name, labels, 0)
            examples = examples_of(rows.encodings, rows.targets, input_names(started_from.model))
            started = time.perf_counter()
            LOOPS[name](started_from, examples)
            seconds[name].append(time.perf_counter() - started)
    speeds = np.array(seconds[THEIRS]) / np.array(seconds[OURS])
    return {
        "benchmark": "training",
        "base": base.path.resolve().name,
        "data": data.path.resolve().name,
        "task": task.name,
        "rows": len(rows),
        "batch_size": BATCH_SIZE,
        "environment": environment.describe(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "seconds": seconds,
        "speed": {"value": float(np.median(speeds)), "lowest": float(speeds.min()), "highest": float(speeds.max())},
    }


def table(result: dict[str, Any]) -> str:
    """Draw the rows a second of both, and deploykit's speed."""
    lines = [("loop", "rows/s", "seconds of each round")]
    for name, seconds in result["seconds"].items():
        each = ", ".join(f"{second:.1f}" for second in seconds)
        lines.append((name, f"{result['rows'] / np.median(seconds):.1f}", each))
    speed = result["speed"]
    return f"{grid(lines)}\n\ndeploykit: {speed['value']:.2f}x ({speed['lowest']:.2f} to {speed['highest']:.2f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="a pretrained model's folder or hub name")
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", default="text-classification")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        base, data = open_checkpoint(arguments.base), open_dataset(arguments.data)
        return run(base, data, arguments.task, arguments.rows, arguments.rounds)

    return report(measured, table, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
