"""The one training loop: AdamW, warm-up and linear decay, early stopping, exact resumption.

The learning rate, the batches and the random numbers of a step (dropout) are functions of the
settings and the step alone. So parameters and the optimizer's moments are all the state there is,
and a training that was killed and goes on ends with bitwise the weights of one that was not.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deploykit import environment, processes
from deploykit.errors import TrainingStopped
from deploykit.train import progress, state
from deploykit.train.batch import LENGTH_KEY, Batch, Example, collate, grouped_batches

Loss = Callable[[nn.Module, Batch], Tensor]
"""The model (wrapped for devices and processes: call it, do not look inside) and a batch to a mean loss ()."""
_STATE, _BEST = "state.safetensors", "best.safetensors"


@dataclass(frozen=True)
class Training:
    """How to train."""

    epochs: int = 3
    learning_rate: float = 5e-5
    """The highest, reached when warm-up ends."""
    batch_size: int = 32
    """Over all processes."""
    warmup_ratio: float = 0.1
    """The share of steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """On matrices; biases and norms have none."""
    patience: int = 2
    """Stop after this many epochs without a better one."""
    seed: int = 0
    max_grad_norm: float = 1.0
    pad_id: int = 0
    """What `input_ids` are padded with."""
    save_every_s: float = 60.0
    """Seconds between saved states; each epoch's end is saved too."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf or self.max_grad_norm <= 0:
            raise ValueError(f"learning_rate and max_grad_norm must be above 0, not {self.learning_rate}")
        if not 0 <= self.warmup_ratio < 1 or not 0 <= self.weight_decay < math.inf or self.seed < 0:
            raise ValueError("warmup_ratio must be in [0, 1), weight_decay and seed must not be negative")


def training_of(stage: object, pad_id: int) -> Training:
    """Take the loop's settings from a stage's fields of the same names; without `patience` it never stops early.

    Args:
        stage: a dataclass instance that has at least `epochs`.
        pad_id: what `input_ids` are padded with.

    Raises:
        ValueError: one is out of range.
    """
    own = {each.name: getattr(stage, each.name) for each in fields(Training) if hasattr(stage, each.name)}
    return Training(**{"patience": own["epochs"], **own, "pad_id": pad_id})


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on validation."""

    metric: float
    """Higher is better."""
    divergence: float | None = None
    """From its teacher's answers, where it has a teacher. It then says which epoch is better, not the metric, which a
    thousand rows know to a point: of six epochs of a pruned MiniLM-L6 on sentiment the metric chose the third."""

    @property
    def rank(self) -> float:
        """Higher is better."""
        return self.metric if self.divergence is None else -self.divergence


Evaluate = Callable[[], Evaluation]
"""Evaluate the model as it is now; it is in evaluation mode."""


@dataclass(frozen=True)
class Epoch(Evaluation):
    """What an epoch came to."""

    epoch: int = field(kw_only=True)
    """Counted from 1."""
    loss: float = field(kw_only=True)
    """The mean over its steps."""


@dataclass(frozen=True)
class History:
    """What a training came to."""

    epochs: tuple[Epoch, ...]

    @property
    def best(self) -> Epoch:
        """The first epoch of the highest rank: the one whose weights are kept."""
        return max(self.epochs, key=lambda epoch: epoch.rank)


def train(
    model: nn.Module, examples: Sequence[Example], loss: Loss, evaluate: Evaluate, settings: Training, workdir: Path
) -> History:
    """Train `model` in place, leaving it on the CPU, in evaluation mode, with the weights of its best epoch.

    `workdir` holds the state while training lasts; a training that finds one there goes on from it,
    and removes it at the end.

    Raises:
        TrainingStopped: the loss or the gradient is not finite. The model has the weights of its best epoch or,
            where none had ended, those before that step; `workdir` is gone, as the same steps would end there again.
    """
    run = _Run(model, examples, loss, settings, workdir)
    run.resume()
    try:
        with progress.shown(run.total, run.step) if run.is_main else nullcontext(progress.unseen) as advance:
            while not run.is_done:
                run.epoch(advance)
                run.close_epoch(evaluate)
    except TrainingStopped:
        run.finish()
        raise
    run.finish()
    return History(tuple(run.history))


def learning_rate_at(step: int, total: int, settings: Training) -> float:
    """Return the learning rate of a step (from 0): a rise to the highest, then a straight fall towards 0."""
    warmup = int(total * settings.warmup_ratio)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return settings.learning_rate * (total - step) / (total - warmup)


def precision() -> str:
    """Return `bf16` where the hardware multiplies it faster than fp32, else `no`."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if {"AMX bf16", "AVX-512 bf16"} & set(environment.instruction_sets()) else "no"


def adamw(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    """Build the optimizer; only matrices decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


@dataclass
class _Run:
    """A training under way: step, loss_sum, history and the tensors are its whole state."""

    model: nn.Module
    examples: Sequence[Example]
    loss: Loss
    settings: Training
    workdir: Path
    step: int = 0
    loss_sum: float = 0.0
    """Over the steps of the epoch under way."""
    history: list[Epoch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._accelerator = Accelerator(mixed_precision=precision(), cpu=not torch.accelerator.is_available())
        self.workdir = Path(processes.from_first(str(self.workdir)))  # all resume from what the first one saved
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._wrapped, self._optimizer = self._accelerator.prepare(self.model, adamw(self.model, self.settings))
        self._lengths = [len(example[LENGTH_KEY]) for example in self.examples]
        self._steps_per_epoch = math.ceil(len(self.examples) / self.settings.batch_size)
        self._saved_at = time.monotonic()

    @property
    def total(self) -> int:
        return self._steps_per_epoch * self.settings.epochs

    @property
    def is_main(self) -> bool:
        return bool(self._accelerator.is_main_process)

    @property
    def is_done(self) -> bool:
        if not self.history:
            return False
        waited = len(self.history) - History(tuple(self.history)).best.epoch
        return len(self.history) >= self.settings.epochs or waited >= self.settings.patience

    def resume(self) -> None:
        """Take up a saved state, if there is one."""
        if (self.workdir / _STATE).is_file():
            found = state.load_state(self.workdir / _STATE, self.model, self._optimizer)
            self.step, self.loss_sum = found["step"], found["loss_sum"]
            self.history = [Epoch(**epoch) for epoch in found["history"]]

    def epoch(self, advance: progress.Advance) -> None:
        """Do the steps that are left of the epoch under way."""
        number, settings = len(self.history), self.settings
        batches = grouped_batches(self._lengths, settings.batch_size, settings.seed, number)
        self._wrapped.train()
        for indices in batches[self.step - number * self._steps_per_epoch :]:
            loss = self._one_step(indices.tolist())
            self.step, self.loss_sum = self.step + 1, self.loss_sum + loss
            advance(self.step, f"loss {loss:.4f}")
            if time.monotonic() - self._saved_at >= settings.save_every_s:
                self._save()

    def close_epoch(self, evaluate: Evaluate) -> None:
        """Evaluate, keep the weights if they are the best so far, and save."""
        self._wrapped.eval()
        found = json.loads(processes.from_first(json.dumps(asdict(evaluate()))))  # all stop early, or none
        self.history.append(Epoch(**found, epoch=len(self.history) + 1, loss=self.loss_sum / self._steps_per_epoch))
        is_best = History(tuple(self.history)).best is self.history[-1]
        self.loss_sum = 0.0
        if is_best and self.is_main:
            state.save_weights(self.workdir / _BEST, self.model)
        self._save()

    def finish(self) -> None:
        """Leave the model with its best weights and the disk without the state."""
        self._accelerator.wait_for_everyone()
        self._accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        if self.history:
            state.load_weights(self.workdir / _BEST, self.model)
        self.model.cpu().eval()
        self._accelerator.wait_for_everyone()
        if self.is_main:
            shutil.rmtree(self.workdir)

    def _one_step(self, indices: list[int]) -> float:
        """Do one step and return its loss."""
        accelerator, settings = self._accelerator, self.settings
        with accelerator.split_between_processes(indices, apply_padding=True) as own:
            batch = collate([self.examples[index] for index in own], settings.pad_id)
        torch.manual_seed(_seed(settings.seed, self.step, accelerator.process_index))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.total, settings)
        loss = self.loss(self._wrapped, {key: value.to(accelerator.device) for key, value in batch.items()})
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self._require_finite(float(loss.detach()), float(norm))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def _require_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise TrainingStopped(
            f"training, step {self.step + 1} of {self.total}",
            expected=f"a finite loss and gradient at learning rate {self.settings.learning_rate}",
            found=f"loss {loss}, gradient norm {norm}",
            next_step="lower the learning rate",
        )

    def _save(self) -> None:
        if self.is_main:
            done: dict[str, Any] = {"step": self.step, "loss_sum": self.loss_sum, "history": []}
            done["history"] = [asdict(epoch) for epoch in self.history]
            state.save_state(self.workdir / _STATE, self.model, self._optimizer, done)
        self._saved_at = time.monotonic()


def _seed(*parts: int) -> int:
    """Mix a seed, a step and a process number into one seed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
