"""Pruning in steps, of whole layers and hidden dimensions, and to a target: known answers on planted models."""

import json
import re
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from deploykit import artifact, families, stage
from deploykit import checkpoint as checkpoints
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint
from deploykit.compress import latency_probes, prune, waterfall
from deploykit.compress.budget import Served, size_costs
from deploykit.compress.distillation import distil_from
from deploykit.compress.embeddings import word_embeddings
from deploykit.compress.latency_table import Curve, LatencyTable, LayerCost, smallest
from deploykit.compress.prune import Prune
from deploykit.compress.prune_step import share_after, still_to_go
from deploykit.compress.shape import fewest_missed, mean_loss
from deploykit.data import open_dataset, open_unlabeled
from deploykit.errors import TrainingStopped, UsageError
from deploykit.families import Structure
from deploykit.train.labelled import Labelled, read_labelled
from tests.models import VOCABULARY, make_checkpoint, make_dataset

FULL = Structure((4, 4), (64, 64))
COST = LayerCost(0.1, Curve((4,), (0.1,)), Curve((64,), (0.01,)))
TABLE = LatencyTable(0.2, COST, LayerCost(0.0, Curve((4,), (0.02,)), Curve((64,), (0.001,))))
LEARNS: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 16}


def pruned(model: Path, data: Path, out: Path, **settings: Any) -> Artifact:
    given = {"multiple": 8, **settings}
    return stage.run(Prune(**given), checkpoints.open_checkpoint(model), open_dataset(data), out=out)


def structure_of(made: Artifact) -> Structure:
    return families.structure_of(checkpoints.load(made).model)


def saved(checkpoint: Checkpoint, folder: Path) -> Path:
    folder.mkdir()
    checkpoints.save(checkpoint, folder)
    return folder


def of_two_twins(folder: Path) -> Checkpoint:
    """A token classifier of four neurons that count: any of two twins finds places, both leave the answer as it is.

    The third makes sure of people, who are found without it too. Words, by kind, and what neurons say are orthogonal.
    """
    checkpoint = checkpoints.load(
        checkpoints.open_checkpoint(make_checkpoint(folder, task="token-classification", layers=1))
    )
    words, places, people, place, person = torch.tensor(hadamard(32)[1:6], dtype=torch.float32)
    model = checkpoint.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.zero_()
        table = families.word_embeddings(model)
        table[:] = words
        table[[VOCABULARY.index(word) for word in ("paris", "berlin")]] = places
        table[[VOCABULARY.index(word) for word in ("anna", "peter")]] = people
        (block,) = families.blocks(model)
        for neuron, (reads, says, how) in enumerate(
            [(places, place, 3.6), (places, place, 3.6), (people, person, 0.6)]
        ):
            block.ffn_in.weight[neuron] = reads / 32
            block.ffn_out.weight[:, neuron] = says * how
        head = model.get_submodule("classifier")
        assert isinstance(head, torch.nn.Linear)
        head.weight[1] = place * 10 / 32
        head.weight[3] = (person * 3 + people * 10) / 32
        head.bias[:] = torch.tensor([5.0, 0, -20, 0, -20])
    return checkpoint


@pytest.mark.parametrize("steps", [1, 4])
def test_the_last_of_two_twins_is_kept(entities: Path, tmp_path: Path, steps: int):
    model = saved(of_two_twins(tmp_path / "tiny"), tmp_path / "model")
    made = checkpoints.load(pruned(model, entities, tmp_path / "out", steps=steps, ffn=63 / 64, multiple=1, seed=0))
    assert made.spec.structure == Structure((4,), (1,))
    rows = read_labelled(made, open_dataset(entities), "train")
    assert mean_loss(made, rows) < 0.1
    neither = checkpoints.load(checkpoints.open_checkpoint(model))
    with torch.no_grad():
        families.blocks(neither.model)[0].ffn_out.weight[:, :2] = 0.0
    assert mean_loss(neither, rows) > 1


def test_the_layer_that_does_nothing_is_the_one_removed(reviews: Path, tmp_path: Path):
    before = checkpoints.load(checkpoints.open_checkpoint(make_checkpoint(tmp_path / "tiny", layers=4)))
    rows = read_labelled(before, open_dataset(reviews), "train")
    for idle in (0, 1, 3):
        model = checkpoints.load(checkpoints.open_checkpoint(tmp_path / "tiny"))
        with torch.no_grad():
            for linear in (
                families.blocks(model.model)[idle].attention_output,
                families.blocks(model.model)[idle].ffn_out,
            ):
                linear.weight.zero_()
                linear.bias.zero_()
        data = labelled_by(model, rows, tmp_path / f"data{idle}")
        made = pruned(saved(model, tmp_path / f"model{idle}"), data, tmp_path / f"out{idle}", layers=1)
        assert made.facts["steps"][-1]["layers"] == [layer for layer in (1, 2, 3, 4) if layer != idle + 1]
        found = checkpoints.load(made)
        ours, theirs = (np.array(checkpoints.logits(each, rows.encodings)) for each in (found, model))
        assert np.abs(ours - theirs).max() < 1e-4


def labelled_by(model: Checkpoint, rows: Labelled, folder: Path) -> Path:
    """Write rows with a model's own answers as labels, and make it as sure of them as can be."""
    make_dataset(folder)
    with torch.no_grad():
        model.model.get_parameter("classifier.weight").mul_(100)
    for split in ("train", "validation", "test"):
        file = folder / f"{split}.jsonl"
        texts = [row["text"] for row in open_rows(file)]
        answers = checkpoints.logits(model, model.tokenizer.encode(texts))
        labels = [model.labels[int(answer.argmax())] for answer in answers]
        lines = [artifact.canonical_json({"text": t, "label": label}) for t, label in zip(texts, labels, strict=True)]
        file.write_text("\n".join(lines) + "\n")
    return folder


def open_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_layers_that_do_the_same_are_measured_anew_when_one_is_gone():
    worth = {0: 5.0, 1: 3.0, 2: 3.0, 3: 1.0}

    def loss(kept: Any) -> float:
        twins = worth[1] if {1, 2} & set(kept) else 0.0
        return -sum(worth[layer] for layer in kept if layer in (0, 3)) - twins

    assert fewest_missed(4, 4, loss) == [0, 1, 2, 3]
    assert fewest_missed(4, 3, loss) == [0, 1, 3]
    assert fewest_missed(4, 2, loss) == [0, 1]
    assert fewest_missed(1, 1, loss) == [0]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_hidden_dimensions_layers_and_shares_go_together_in_steps_and_the_result_reloads(
    family: str, reviews: Path, tmp_path: Path
):
    model = make_checkpoint(tmp_path / "model", family=family, layers=3)
    asked = {"hidden_size": 16, "layers": 1, "heads": 0.25, "ffn": 0.5, "steps": 2, **LEARNS}
    made = pruned(model, reviews, tmp_path / "out", **asked)
    found = checkpoints.load(made)
    assert families.hidden_size(found.model) == 16
    structure = families.structure_of(found.model)
    assert (sum(structure.heads), sum(structure.ffn)) == (6, 64)
    assert [step["hidden_size"] for step in made.facts["steps"]] == [16, 16]
    assert [epoch["step"] for epoch in made.facts["history"]] == [1, 1, 2, 2]
    assert not list(made.path.rglob(".*"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_size_is_met_and_not_undershot_by_more_than_one_unit(
    precision: Served, bert: Path, reviews: Path, tmp_path: Path
):
    asked = 0.08 if precision == "fp32" else 0.025
    made = pruned(bert, reviews, tmp_path / "out", size_mb=asked, precision=precision, steps=2)
    found = checkpoints.load(made).model
    weighs = size_costs(found, precision)
    assert asked - weighs.heads[0].at(1) < weighs.of(families.structure_of(found)) <= asked
    if precision == "fp32":
        assert waterfall.read(made.path)[-1]["num_bytes"] <= asked * 1e6


@pytest.fixture
def fake_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        latency_probes,
        "measurements",
        lambda _model, structures, _under: repeat({each: TABLE.predict(each) for each in structures}),
    )


@pytest.mark.usefixtures("fake_machine")
def test_a_speed_is_met_by_the_latency_table_in_steps_ever_faster(bert: Path, reviews: Path, tmp_path: Path):
    made = pruned(bert, reviews, tmp_path / "out", speedup=2.0, steps=2)
    took = [TABLE.predict(Structure(tuple(step["heads"]), tuple(step["ffn"]))) for step in made.facts["steps"]]
    full = TABLE.predict(FULL)
    assert full * 0.95 / 2 < took[1] <= full / 2 < took[0] <= full - (full - full / 2) * share_after(1, 2)
    assert made.facts["latency"]["speedup"] >= 2
    assert made.facts["warnings"] == []
    same = pruned(bert, reviews, tmp_path / "same", target_ms=full / 2, steps=2)
    assert structure_of(same) == structure_of(made)


@pytest.mark.usefixtures("fake_machine")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"speedup": 50.0}, r"prune\.speedup 50 .* out of reach: at best 0\.508 ms, 2\.92 times as fast"),
        ({"size_mb": 0.001}, r"prune\.size_mb 0\.001 .* out of reach: at best .* MB"),
    ],
)
def test_out_of_reach_the_nearest_point_is_made_named_and_sealed(
    settings, said, bert: Path, reviews: Path, tmp_path: Path
):
    made = pruned(bert, reviews, tmp_path / "out", steps=2, **settings)
    assert structure_of(made) == smallest(FULL, 8)
    (line,) = waterfall.missed(waterfall.read(made.path))
    assert re.match(said, line)
    assert made.facts["warnings"] == [line]


def test_a_target_that_is_met_already_is_refused(bert: Path, reviews: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"prune\.size_mb: expected less than the .* MB of the checkpoint"):
        pruned(bert, reviews, tmp_path / "out", size_mb=100.0)
    assert not (tmp_path / "out").exists()


def test_killed_in_the_second_step_it_goes_on_there_to_the_same_digest(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"heads": 0.5, "ffn": 0.5, "layers": 1, "steps": 3, **LEARNS}
    whole = pruned(bert, reviews, tmp_path / "whole", **settings)
    trained: list[int] = []

    def killed_the_second_time(*given: Any):
        trained.append(len(trained) + 1)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return distil_from(*given)

    monkeypatch.setattr(prune, "distil_from", killed_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        pruned(bert, reviews, tmp_path / "killed", **settings)
    again = pruned(bert, reviews, tmp_path / "killed", **settings)
    assert again.digest == whole.digest
    assert len(trained) == 4  # one, the one that was killed, and the two that were left
    assert [epoch["step"] for epoch in again.facts["history"]] == [1, 1, 2, 2, 3, 3]


def test_stopped_in_the_second_step_only_the_last_good_weights_are_kept(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = Prune._training
    asked: list[int] = []

    def diverges_the_second_time(self: Prune, pad_id: int):
        asked.append(pad_id)
        found = training(self, pad_id)
        return found if len(asked) < 3 else replace(found, learning_rate=1e30)

    monkeypatch.setattr(Prune, "_training", diverges_the_second_time)
    with pytest.raises(TrainingStopped, match="last good weights are kept"):
        pruned(bert, reviews, tmp_path / "out", ffn=0.5, steps=2, **LEARNS)
    (kept,) = tmp_path.glob("out-stopped-*")
    assert sum(structure_of(artifact.verified(kept)).ffn) == 64
    assert not list(kept.rglob(".*"))


def test_shares_of_what_there_was_become_shares_of_what_there_is():
    assert still_to_go(0.5, (10, 10), (10, 10)) == 0.5
    assert still_to_go(0.5, (10, 10), (9, 5)) == pytest.approx(4 / 14)
    assert still_to_go(0.1, (10, 10), (9, 5)) == 0.0


def test_the_way_is_done_at_its_end_and_most_of_it_at_first():
    assert share_after(1, 1) == share_after(5, 5) == 1
    done = [share_after(step, 4) for step in range(5)]
    assert done[0] == 0
    assert np.all(np.diff(done) > 0)
    assert np.all(np.diff(done, 2) < 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layers": 2}, r"prune\.layers: expected at most 1"),
        ({"hidden_size": 12}, r"prune\.hidden_size: expected a multiple of 8"),
        ({"hidden_size": 32}, r"prune\.hidden_size: .* below 32"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused(settings, named: str, bert: Path, reviews: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=named):
        pruned(bert, reviews, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_recovery_learns_from_augmented_copies_of_the_rows_that_it_takes(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch
):
    learned = []

    def distil(teacher: Any, student: Any, rows: Any, *rest: Any) -> Any:
        learned.append([len(each) for each in rows])
        return distil_from(teacher, student, rows, *rest)

    monkeypatch.setattr(prune, "distil_from", distil)
    pruned(bert, reviews, tmp_path / "out", ffn=0.5, steps=2, epochs=1, augment=3, splice=5, max_train_samples=8)
    assert learned == [[8, 24, 5, 48], [8, 24, 5, 48]]


def test_recovery_learns_from_rows_without_labels_and_their_content_enters_the_digest(
    bert: Path, reviews: Path, tmp_path: Path
):
    more = [tmp_path / name / "more.txt" for name in ("one", "same", "other")]
    for file, text in zip(more, ("a good film\n", "a good film\n", "a bad film\n"), strict=True):
        file.parent.mkdir()
        file.write_text(text)
    source, data = checkpoints.open_checkpoint(bert), open_dataset(reviews)
    asked = [Prune(ffn=0.5, epochs=1, unlabeled=str(file)) for file in more]
    made = [
        stage.run(each, source, data, open_unlabeled(file), out=file.parent / "made")
        for each, file in zip(asked, more, strict=True)
    ]
    assert made[0].digest == made[1].digest != made[2].digest


def test_frozen_embeddings_stay_while_the_layers_recover(bert: Path, reviews: Path, tmp_path: Path):
    whole = checkpoints.load(checkpoints.open_checkpoint(bert)).model
    for frozen in (True, False):
        out = pruned(bert, reviews, tmp_path / str(frozen), ffn=0.5, epochs=1, freeze_embeddings=frozen)
        made = checkpoints.load(out).model
        tables = [word_embeddings(each).weight for each in (whole, made)]
        assert torch.equal(*tables) == frozen


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"speedup": 2.0, "target_ms": 1.0}, "more than one kind"),
        ({"speedup": 2.0, "ffn": 0.5}, "more than one kind"),
        ({"size_mb": 2.0, "heads": 0.5}, "more than one kind"),
        ({"speedup": 1.0}, "speedup must be above 1"),
        ({"size_mb": 0.0}, "size_mb must be above 0"),
        ({"target_ms": float("inf")}, "target_ms must be above 0"),
        ({"ffn": 0.5, "precision": "int8"}, "precision has no effect"),
        ({"ffn": 0.5, "threads": 1}, "threads has no effect"),
        ({"size_mb": 2.0, "threads": 1}, "threads has no effect"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"ffn": 0.5, "steps": 0}, "steps must be at least 1"),
        ({"ffn": 0.5, "augment": -1, "epochs": 1}, "augment must not be negative"),
        ({"ffn": 0.5, "augment": 1}, "augment has no effect"),
        ({"ffn": 0.5, "splice": -1, "epochs": 1}, "splice must not be negative"),
        ({"ffn": 0.5, "splice": 1}, "splice has no effect"),
        ({"ffn": 0.5, "unlabeled": "more.txt"}, "unlabeled has no effect"),
        ({"ffn": 0.5, "freeze_embeddings": True}, "freeze_embeddings has no effect"),
        ({"ffn": 0.5, "augment": 1, "epochs": 1, "alpha": 1.0, "hidden_weight": 0.0}, "augment has no effect"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named):
        Prune(**settings)
