"""The benchmark of the training loop: both loops really train, on the same rows."""

import json
from pathlib import Path

import torch

from benchmarks import training
from deploykit import families
from deploykit.checkpoint import input_names, load, open_checkpoint
from deploykit.data import open_dataset
from deploykit.train.batch import examples_of
from deploykit.train.labelled import read_labelled


def test_both_loops_change_the_weights(bert: Path, reviews: Path):
    for loop in training.LOOPS.values():
        before, trained = (load(open_checkpoint(bert)) for _ in range(2))
        rows = read_labelled(trained, open_dataset(reviews), "train")
        loop(trained, examples_of(rows.encodings, rows.targets, input_names(trained.model)))
        assert not torch.equal(*(families.blocks(each.model)[0].ffn_in.weight for each in (before, trained)))


def test_the_speed_is_the_trainers_time_over_ours(bert: Path, reviews: Path, tmp_path: Path, capsys):
    out = tmp_path / "result.json"
    arguments = [str(bert), "--data", str(reviews), "--rows", "16", "--rounds", "2", "--out", str(out)]
    assert training.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    ours, theirs = (result["seconds"][name] for name in (training.OURS, training.THEIRS))
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    assert result["speed"]["lowest"] == min(ratios)
    assert result["speed"]["highest"] == max(ratios)
    assert result == json.loads(out.read_text(encoding="utf-8"))
