import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploykit import artifact, checkpoint, commands
from deploykit.errors import DataError, TrainingStopped, UsageError
from deploykit.tasks import task_named
from deploykit.train.finetune import TASK_REPORT, Finetune, cross_entropy
from tests.models import make_checkpoint, make_dataset

CLASSIFY = Finetune(task="text-classification", epochs=1, batch_size=8)
TAG = Finetune(task="token-classification", epochs=1, batch_size=8)
LONG = Finetune(task="text-classification", epochs=6, batch_size=8, learning_rate=5e-3, patience=6, seed=1)

DIES_IN_THE_SECOND_EPOCH = """
import sys
from pathlib import Path
from deploykit import commands
from deploykit.train import finetune
from tests.dying import die_at_call
from tests.train.test_finetune import LONG
die_at_call(40, finetune, "cross_entropy")
commands.finetune(sys.argv[1], LONG, data=sys.argv[2], out=Path(sys.argv[3]))
"""


def rewritten(folder, source, split, change):
    """Copy a data folder with every row of one split changed."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    rows = [json.loads(line) for line in (source / f"{split}.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(change(index, row)) + "\n" for index, row in enumerate(rows))
    (folder / f"{split}.jsonl").write_text(text)
    return folder


def value_of(made, name):
    return next(metric["value"] for metric in made.facts["metrics"] if metric["name"] == name)


@pytest.fixture(scope="module")
def many_reviews(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("many") / "data", rows=200)


@pytest.fixture(scope="module")
def long(bert, many_reviews, tmp_path_factory):
    return commands.finetune(bert, LONG, data=many_reviews, out=tmp_path_factory.mktemp("long") / "out")


def test_the_loss_falls_and_the_task_is_learned(long):
    losses = [epoch["loss"] for epoch in long.facts["history"]]
    assert losses[-1] < 0.5 * losses[0]
    assert value_of(long, "accuracy") > 0.85


def test_a_run_killed_in_the_middle_and_started_again_has_the_same_digest(long, bert, many_reviews, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", DIES_IN_THE_SECOND_EPOCH, str(bert), str(many_reviews), str(out)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(tmp_path.glob(".out.*/.train/state.safetensors"))
    assert not out.exists()
    assert commands.finetune(bert, LONG, data=many_reviews, out=out).digest == long.digest
    assert not list(tmp_path.glob(".out.*"))


def test_shuffled_labels_are_not_learned(bert, many_reviews, tmp_path):
    labels = np.random.default_rng(0).permutation(["negative", "positive"] * 100)
    data = rewritten(tmp_path / "data", many_reviews, "train", lambda i, row: {**row, "label": str(labels[i])})
    assert value_of(commands.finetune(bert, LONG, data=data, out=tmp_path / "out"), "accuracy") < 0.7


def test_entities_are_learned(bert_ner, entities, tmp_path):
    settings = Finetune(task="token-classification", epochs=5, batch_size=8, learning_rate=1e-2)
    made = commands.finetune(bert_ner, settings, data=entities, out=tmp_path / "out")
    assert value_of(made, "entity_f1") > 0.9


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("settings", [CLASSIFY, TAG], ids=["text", "token"])
def test_every_family_learns_every_task_and_is_read_back_as_it_was(family, settings, reviews, entities, tmp_path):
    base = make_checkpoint(tmp_path / "base", family=family)
    data = reviews if settings is CLASSIFY else entities
    made = commands.finetune(base, settings, data=data, out=tmp_path / "out")
    loaded, task = checkpoint.load(made), task_named(settings.task)
    split = task.read(data, "validation")
    encodings = task.encode(loaded.tokenizer, split.rows)
    score = task.score(
        checkpoint.logits(loaded, encodings), task.targets(split, encodings, loaded.labels), loaded.labels
    )
    report = json.loads((made.path / TASK_REPORT).read_text())
    assert loaded.spec.task == report["task"] == settings.task
    assert [metric.value for metric in score.metrics] == [metric["value"] for metric in report["metrics"]]
    assert list(score.table) == report["table"]
    assert made.facts["metrics"] == report["metrics"]


def test_the_payload_is_the_checkpoint_and_its_report(long):
    assert sorted(long.files) == [
        "config.json",
        "deploykit.json",
        "model.safetensors",
        TASK_REPORT,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert artifact.verify(long) == []


def test_pairs_of_texts_are_trained_on(bert, reviews, tmp_path):
    data = rewritten(tmp_path / "data", reviews, "train", lambda _, row: {**row, "text_pair": "the film"})
    without = commands.finetune(bert, CLASSIFY, data=reviews, out=tmp_path / "without")
    paired = commands.finetune(bert, CLASSIFY, data=data, out=tmp_path / "with")
    assert paired.facts["history"] != without.facts["history"]


def test_labels_are_those_of_the_list_or_found_in_the_training_rows(bert, reviews, tmp_path):
    data = rewritten(tmp_path / "data", reviews, "train", lambda _, row: row)
    (data / "labels.json").write_text('{"labels": ["positive", "negative", "neutral"]}')
    made = commands.finetune(bert, CLASSIFY, data=data, out=tmp_path / "listed")
    assert checkpoint.load(made).labels == ("positive", "negative", "neutral")
    (data / "labels.json").unlink()
    made = commands.finetune(bert, CLASSIFY, data=data, out=tmp_path / "found")
    assert checkpoint.load(made).labels == ("negative", "positive")


def test_an_unknown_label_leaves_nothing_behind(bert, reviews, tmp_path):
    change = lambda index, row: {**row, "label": "mixed"} if index == 4 else row  # noqa: E731
    data = rewritten(tmp_path / "data", reviews, "validation", change)
    with pytest.raises(DataError, match=r"validation\.jsonl:5: expected a label of negative, positive, found 'mixed'"):
        commands.finetune(bert, CLASSIFY, data=data, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_row_without_a_word_that_counts_does_not_break_the_loss(bert_ner, entities, tmp_path):
    change = lambda index, row: {"tokens": ["\u200b"], "ner_tags": ["O"]} if index == 0 else row  # noqa: E731
    data = rewritten(tmp_path / "data", entities, "train", change)
    settings = Finetune(task="token-classification", epochs=1, batch_size=1)
    made = commands.finetune(bert_ner, settings, data=data, out=tmp_path / "out")
    assert np.isfinite(made.facts["history"][0]["loss"])


def test_only_as_many_rows_as_asked_for_are_trained_on(bert, reviews, tmp_path, capsys):
    settings = Finetune(task="text-classification", epochs=2, batch_size=4, max_train_samples=10)
    commands.finetune(bert, settings, data=reviews, out=tmp_path / "out")
    assert "step 6/6" in capsys.readouterr().err


def test_rows_that_are_cut_are_told_and_the_limit_is_saved(bert, reviews, tmp_path):
    settings = Finetune(task="text-classification", epochs=1, max_length=6)
    made = commands.finetune(bert, settings, data=reviews, out=tmp_path / "out")
    assert made.facts["warnings"][0].endswith("rows were cut to 6 tokens")
    assert checkpoint.load(made).spec.max_length == 6


def test_more_tokens_than_the_model_takes_are_refused(bert, reviews, tmp_path):
    settings = Finetune(task="text-classification", max_length=65)
    with pytest.raises(UsageError, match="at most 64"):
        commands.finetune(bert, settings, data=reviews, out=tmp_path / "out")


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"learning_rate": -1.0}, {"max_length": 0}, {"max_train_samples": 0}, {"patience": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Finetune(task="text-classification", **wrong)


def test_a_loss_that_is_not_finite_leaves_a_checkpoint_that_loads(bert, reviews, tmp_path, monkeypatch):
    calls = []

    def failing(model, batch):
        calls.append(1)
        return cross_entropy(model, batch) * (float("nan") if len(calls) == 9 else 1.0)

    monkeypatch.setattr("deploykit.train.finetune.cross_entropy", failing)
    settings = Finetune(task="text-classification", epochs=2, batch_size=8)
    with pytest.raises(TrainingStopped, match=r"step 9 of 12.*last good weights are kept in") as told:
        commands.finetune(bert, settings, data=reviews, out=tmp_path / "out")
    kept = checkpoint.open_checkpoint(str(told.value).rsplit(" ", 1)[1])
    once = commands.finetune(bert, dataclasses.replace(settings, epochs=1), data=reviews, out=tmp_path / "one")
    assert kept.files.keys() == once.files.keys() - {TASK_REPORT}
    assert checkpoint.load(kept).labels == ("negative", "positive")
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_is_refused_before_anything_starts():
    with pytest.raises(UsageError, match="token-classification"):
        Finetune(task="summarization")
