import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deploykit import checkpoint as checkpoints
from deploykit import families, stage
from deploykit.compress import prune_step
from deploykit.compress.prune import Prune
from deploykit.compress.quantize import Quantize
from deploykit.data import open_dataset
from deploykit.errors import UsageError
from deploykit.families import Structure
from deploykit.train.labelled import read_labelled
from tests.models import make_checkpoint, make_dataset

PRINTS_LOGITS = """
import json, sys
from pathlib import Path
from deploykit import artifact, checkpoint
found = checkpoint.load(artifact.verified(Path(sys.argv[1])))
rows = found.tokenizer.encode(["the film was good", "a sad story"])
print(json.dumps([row.tolist() for row in checkpoint.logits(found, rows)]))
"""


def pruned(model: Path, data: Path, out: Path, **settings):
    made = stage.run(Prune(**settings), checkpoints.open_checkpoint(model), open_dataset(data), out=out)
    return made, checkpoints.load(made)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_matrices_really_get_smaller_and_reload_exactly(family: str, task: str, tmp_path: Path):
    model = make_checkpoint(tmp_path / "model", family=family, task=task)
    data = make_dataset(tmp_path / "data", task=task, rows=16)
    made, found = pruned(model, data, tmp_path / "out", heads=0.25, ffn=0.5)
    structure = families.structure_of(found.model)
    assert sum(structure.heads) == 6
    assert structure.ffn == (32, 32)
    assert found.spec.structure == structure
    assert (made.path / "model.safetensors").stat().st_size < (model / "model.safetensors").stat().st_size


def test_a_fresh_process_gets_the_same_logits(bert: Path, reviews: Path, tmp_path: Path):
    made, found = pruned(bert, reviews, tmp_path / "out", heads=0.5, ffn=0.5)
    rows = found.tokenizer.encode(["the film was good", "a sad story"])
    ours = checkpoints.logits(found, rows)
    result = subprocess.run(
        [sys.executable, "-c", PRINTS_LOGITS, made.path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.array(json.loads(result.stdout), np.float32), np.array(ours))


def test_parts_that_do_nothing_go_first_and_cost_nothing(bert: Path, reviews: Path, tmp_path: Path):
    before = checkpoints.load(checkpoints.open_checkpoint(bert))
    size = families.head_size(before.model)
    with torch.no_grad():
        for block in families.blocks(before.model):
            block.attention_output.weight[:, :size] = 0.0
            block.ffn_out.weight[:, 10:42] = 0.0
    planted = tmp_path / "planted"
    planted.mkdir()
    checkpoints.save(before, planted)
    _, after = pruned(planted, reviews, tmp_path / "out", heads=0.25, ffn=0.5)
    assert after.spec.structure == Structure((3, 3), (32, 32))
    rows = read_labelled(before, open_dataset(reviews), "test").encodings
    for ours, theirs in zip(checkpoints.logits(after, rows), checkpoints.logits(before, rows), strict=True):
        assert np.abs(ours - theirs).max() < 1e-5


def test_what_stays_is_fitted_to_make_up_for_what_goes(bert: Path, reviews: Path, tmp_path: Path, monkeypatch):
    before = checkpoints.load(checkpoints.open_checkpoint(bert))
    rows = read_labelled(before, open_dataset(reviews), "test").encodings
    theirs = np.array(checkpoints.logits(before, rows))

    def distance(name: str) -> float:
        _, found = pruned(bert, reviews, tmp_path / name, heads=0.25, ffn=0.5)
        return float(np.abs(np.array(checkpoints.logits(found, rows)) - theirs).mean())

    fitted = distance("fitted")
    monkeypatch.setattr(prune_step, "tune", lambda *_: [])
    assert fitted < 0.8 * distance("sliced")


def test_recovery_brings_the_pruned_model_nearer_to_its_parent(bert: Path, reviews: Path, tmp_path: Path):
    settings = {"heads": 0.5, "ffn": 0.5, "epochs": 6, "alpha": 0.0, "learning_rate": 3e-3, "batch_size": 16}
    made, found = pruned(bert, reviews, tmp_path / "out", **settings)
    losses = [epoch["loss"] for epoch in made.facts["history"]]
    assert losses[-1] < 0.7 * losses[0]
    assert families.structure_of(found.model) == found.spec.structure


def test_the_same_work_gives_the_same_digest(bert: Path, reviews: Path, tmp_path: Path):
    first, second = (pruned(bert, reviews, tmp_path / name, ffn=0.5)[0] for name in ("first", "second"))
    assert first.digest == second.digest


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "heads or ffn"),
        ({"heads": 0.0}, "heads"),
        ({"heads": 1.0}, "heads"),
        ({"ffn": -0.5}, "ffn"),
        ({"ffn": 1}, "ffn"),
        ({"ffn": 0.5, "epochs": -1}, "epochs"),
        ({"ffn": 0.5, "multiple": 0}, "multiple"),
        ({"ffn": 0.5, "temperature": 0.0}, "temperature"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(settings: dict[str, float], named: str):
    with pytest.raises(ValueError, match=named):
        Prune(**settings)  # type: ignore[arg-type]


def test_a_share_that_cannot_be_reached_is_refused_before_any_work(bert: Path, reviews: Path, tmp_path: Path):
    for name, share in (("heads", 0.9), ("ffn", 0.9), ("heads", 0.01)):
        with pytest.raises(UsageError, match=rf"prune\.{name}"):
            pruned(bert, reviews, tmp_path / "out", **{name: share})
    assert not (tmp_path / "out").exists()


def test_a_quantized_checkpoint_is_not_pruned(bert: Path, reviews: Path, tmp_path: Path):
    decided = stage.run(Quantize(), checkpoints.open_checkpoint(bert), open_dataset(reviews), out=tmp_path / "int8")
    with pytest.raises(UsageError, match="put quantize last"):
        stage.run(Prune(ffn=0.5), decided, open_dataset(reviews), out=tmp_path / "out")
