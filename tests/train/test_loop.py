import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.errors import TrainingStopped
from deploykit.train.loop import Epoch, Evaluation, History, Training, adamw, learning_rate_at, train
from tests.train import subject

QUICK = Training(epochs=3, learning_rate=5e-2, batch_size=8, save_every_s=1e9)


def trained(folder, settings=QUICK, *, loss=subject.loss, evaluate=subject.evaluate, seed=0):
    model = subject.make_model(seed)
    history = train(
        model, subject.make_examples(), loss, lambda: Evaluation(evaluate(model)), settings, folder / ".train"
    )
    return model, history


def metrics(*values):
    """A metric that takes these values, whatever the model."""
    given = iter(values)
    return lambda _model: next(given)


def epoch(number: int, metric: float, divergence: float | None = None) -> Epoch:
    return Epoch(metric, divergence, epoch=number, loss=0.0)


def test_the_loss_falls_and_the_state_is_gone_at_the_end(tmp_path):
    model, history = trained(tmp_path, evaluate=metrics(0.1, 0.2, 0.3))
    assert history.epochs[2].loss < 0.7 * history.epochs[0].loss
    assert not (tmp_path / ".train").exists()
    assert not model.training


def test_the_same_seed_gives_the_same_weights_whatever_the_random_state_before(tmp_path):
    torch.manual_seed(5)
    first, _ = trained(tmp_path)
    torch.manual_seed(6)
    again, _ = trained(tmp_path)
    other, _ = trained(tmp_path, dataclasses.replace(QUICK, seed=1))
    assert subject.digest(first) == subject.digest(again)
    assert subject.digest(first) != subject.digest(other)


def test_a_training_killed_in_an_epoch_ends_with_the_weights_of_one_that_was_not(tmp_path):
    whole, whole_history = trained(tmp_path / "whole", subject.SETTINGS)
    command = [sys.executable, "-m", "tests.train.subject", str(tmp_path / "killed"), "11"]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout.splitlines()[-1] == "step 11"
    assert (tmp_path / "killed" / ".train").is_dir()

    steps = []

    def counted(model, batch):
        steps.append(1)
        return subject.loss(model, batch)

    model, history = trained(tmp_path / "killed", subject.SETTINGS, loss=counted, seed=1)
    assert subject.digest(model) == subject.digest(whole)
    assert history == whole_history
    assert len(steps) == 24 - 10, "it went on from the state after ten steps, in the second of three epochs of 8"


def test_two_processes_train_one_model_together(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.train.subject"]
    done = subprocess.run([*launcher, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    weights = [line for line in done.stdout.splitlines() if line.startswith("weights")]
    assert len(weights) == 2
    assert len(set(weights)) == 1, "each began with its own weights, so alone they would differ"


def test_a_lost_step_would_be_seen(tmp_path):
    whole, _ = trained(tmp_path / "whole", subject.SETTINGS)
    calls = []

    def skipping(model, batch):
        calls.append(1)
        return subject.loss(model, batch) * (0.0 if len(calls) == 11 else 1.0)

    model, _ = trained(tmp_path / "lost", subject.SETTINGS, loss=skipping)
    assert subject.digest(model) != subject.digest(whole)


def test_the_weights_of_the_best_epoch_are_kept(tmp_path):
    model = subject.make_model()
    after: list[str] = []
    values = metrics(0.1, 0.9, 0.3)

    def evaluate():
        after.append(subject.digest(model))
        return Evaluation(values(model))

    history = train(model, subject.make_examples(), subject.loss, evaluate, QUICK, tmp_path / ".train")
    assert history.best == history.epochs[1]
    assert subject.digest(model) == after[1] != after[2]


def test_the_first_of_equal_epochs_is_the_best():
    assert History((epoch(1, 0.5), epoch(2, 0.5))).best.epoch == 1


def test_where_there_is_a_teacher_the_epoch_nearest_to_it_is_the_best():
    history = History((epoch(1, 0.9, 0.3), epoch(2, 0.5, 0.1), epoch(3, 0.6, 0.2)))
    assert history.best.epoch == 2
    assert Evaluation(0.0, 0.1).rank > Evaluation(1.0, 0.2).rank


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (2, 3), (3, 4)])
def test_training_stops_after_as_many_epochs_without_a_better_metric_as_patience_says(tmp_path, patience, epochs):
    settings = dataclasses.replace(QUICK, epochs=9, patience=patience)
    _, history = trained(tmp_path, settings, evaluate=metrics(0.5, 0.4, 0.5, 0.3, 0.2, 0.9))
    assert len(history.epochs) == epochs


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
@pytest.mark.parametrize(("step", "kept"), [(5, 4), (11, 8), (17, 8)])
def test_a_loss_that_is_not_finite_stops_with_the_best_epoch_kept_or_the_step_before(tmp_path, fault, step, kept):
    model = subject.make_model()
    before: list[str] = []

    def failing(wrapped, batch):
        before.append(subject.digest(model))
        return subject.loss(wrapped, batch) * (fault if len(before) == step else 1.0)

    worse = metrics(0.9, 0.1)
    with pytest.raises(TrainingStopped, match=rf"step {step} of 24: expected a finite loss .* lower the learning rate"):
        train(model, subject.make_examples(), failing, lambda: Evaluation(worse(model)), QUICK, tmp_path / ".train")
    assert subject.digest(model) == before[kept]
    assert not (tmp_path / ".train").exists()


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    model = subject.make_model()

    def failing(wrapped, batch):
        loss = subject.loss(wrapped, batch)
        loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    started = subject.digest(model)
    with pytest.raises(TrainingStopped, match="gradient norm nan"):
        train(model, subject.make_examples(), failing, lambda: Evaluation(0.0), QUICK, tmp_path / ".train")
    assert subject.digest(model) == started


def test_the_learning_rate_rises_in_warm_up_and_falls_to_almost_nothing():
    settings = Training(learning_rate=1.0, warmup_ratio=0.2)
    rates = [learning_rate_at(step, 20, settings) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert np.all(np.diff(rates[4:]) < 0)
    assert 0 < rates[-1] < 0.1


def test_there_may_be_no_warm_up():
    assert learning_rate_at(0, 10, Training(learning_rate=1.0, warmup_ratio=0.0)) == 1.0


def test_only_matrices_decay():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = adamw(model, Training(weight_decay=0.3))
    decayed, others = (sorted(p.ndim for p in group["params"]) for group in optimizer.param_groups)
    assert (decayed, others) == ([2, 2], [1, 1, 1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"patience": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup_ratio": 1.0},
        {"weight_decay": -1.0},
        {"seed": -1},
        {"max_grad_norm": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(QUICK, **wrong)
