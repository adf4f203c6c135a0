"""A small training that a test can start in a process of its own.

`python -m tests.train.subject FOLDER [STEP]` prints a line a step, then the digest of the weights; at STEP it
kills itself (see `tests.dying`). Of several processes each begins with weights of its own.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.artifact import digest_of
from deploykit.train.batch import Batch, Example, collate
from deploykit.train.loop import Evaluation, Training, train

SETTINGS = Training(epochs=3, learning_rate=5e-2, batch_size=8, seed=3, save_every_s=0.0)
"""State saved after every step."""


class Model(nn.Module):
    """The mean of embeddings, dropout, a linear layer: it depends on batches, padding and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(16, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids (N,L) to logits (N,2)."""
        logits: Tensor = self.classifier(self.dropout(self.embedding(input_ids).mean(1)))
        return logits


def make_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model()


def make_examples() -> list[Example]:
    """64 rows of 2 to 9 ids; the label is whether their mean is above 9."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 20, rng.integers(2, 10)) for _ in range(64)]
    return [{"input_ids": row, "labels": np.array(int(row.mean() > 9))} for row in rows]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"])


@torch.inference_mode()
def evaluate(model: nn.Module) -> float:
    """Minus the loss on all examples: bitwise another number when any weight is another."""
    return -float(loss(model, collate(make_examples(), pad_id=0)))


def digest(model: nn.Module) -> str:
    return digest_of([parameter.detach().numpy().tobytes().hex() for parameter in model.parameters()])


def main(folder: Path, last: int | None = None) -> None:
    done = 0

    def watched(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal done
        done += 1
        print(f"step {done}", flush=True)
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, batch)

    model = make_model(int(os.environ.get("RANK", "0")))
    train(model, make_examples(), watched, lambda: Evaluation(evaluate(model)), SETTINGS, folder / ".train")
    print(f"weights {digest(model)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
