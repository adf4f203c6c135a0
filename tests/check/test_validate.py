import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from deploykit import artifact, commands, evidence
from deploykit.check.validate import Validate
from deploykit.errors import ArtifactError
from tests.check.known import (
    exported,
    flip_weight,
    forget_mask,
    make_known,
    other_tokenizer,
    spoiled,
    swap_labels,
    write_rows,
)

LOOSE = Validate(max_drop=0.1, parity_rows=64, invariance_rows=24)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return make_known(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def models(known, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {precision: exported(known[0], folder / precision, precision) for precision in ("fp32", "int8")}


def validated(model, known, out, settings=LOOSE, **paths):
    source, data = known
    given = {"reference": source.path, "data": data.path} | paths
    return commands.verdict_of(commands.validate(model.path, settings, out=out, **given))


def failed(found):
    return {gate.name.split(": integer")[0] for gate in found.gates if gate.verdict == "fail"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_sound_model_passes_every_gate(known, models, precision, tmp_path):
    found = validated(models[precision], known, tmp_path / "proof")
    assert found.verdict == "pass", found.gates
    assert found.subject.digest == models[precision].digest
    assert found.reference is not None
    assert found.reference.digest == known[0].digest
    assert {metric.name for metric in found.metrics} >= {"accuracy", "macro_f1", "size_bytes"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_sound_entity_tagger_passes_every_gate(tmp_path, precision):
    known = make_known(tmp_path, "token-classification")
    found = validated(exported(known[0], tmp_path / "onnx", precision), known, tmp_path / "proof")
    assert found.verdict == "pass", found.gates
    assert found.details["accuracy"]["metric"] == "entity_f1"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_proving_a_model_again_gives_the_same_bytes(known, models, precision, tmp_path):
    source, data = known
    proofs = [
        commands.validate(models[precision].path, LOOSE, reference=source.path, data=data.path, out=tmp_path / name)
        for name in ("one", "two")
    ]
    assert proofs[0].digest == proofs[1].digest


@pytest.mark.parametrize(
    ("precision", "gate"), [("fp32", "parity: outputs"), ("int8", "parity: outputs with float activations")]
)
@pytest.mark.parametrize("where", ["layer.0/attention/self", "layer.0/intermediate", "layer.1/dense", "pooler"])
def test_one_flipped_weight_fails_parity(known, models, precision, gate, where, tmp_path):
    model = spoiled(models[precision], tmp_path / "onnx", flip_weight(where))
    found = validated(model, known, tmp_path / "proof")
    assert found.verdict == "fail"
    assert gate in failed(found)


def test_a_flipped_weight_in_a_copy_of_the_checkpoint_fails_parity_with_the_original(known, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(known[0].path, copy)
    tensors = load_file(copy / "model.safetensors")
    weight = tensors["bert.encoder.layer.0.intermediate.dense.weight"]
    weight[3, 5] = -weight[3, 5]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    model = exported(artifact.adopt(copy, "checkpoint"), tmp_path / "onnx")
    found = validated(model, known, tmp_path / "proof")
    assert failed(found) == {"parity: outputs against the original"}
    on_purpose = dataclasses.replace(LOOSE, against_original="accuracy")
    assert validated(model, known, tmp_path / "other", on_purpose).verdict == "pass"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_model_that_reads_padding_fails_invariance(known, models, precision, tmp_path):
    model = spoiled(models[precision], tmp_path / "onnx", forget_mask)
    found = validated(model, known, tmp_path / "proof")
    assert failed(found) >= {"invariance padded", "invariance mixed"}


def test_shuffled_labels_of_the_data_fail(known, models, tmp_path):
    _, data = known
    shuffled = tmp_path / "data"
    shutil.copytree(data.path, shuffled)
    rows = [json.loads(line) for line in (shuffled / "test.jsonl").read_text().splitlines()]
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)
    write_rows(shuffled, [row | {"label": label} for row, label in zip(rows, labels, strict=True)])
    found = validated(models["fp32"], known, tmp_path / "proof", data=shuffled)
    assert failed(found) == {"labels"}


def test_an_original_that_never_knew_better_is_no_doubt_about_the_labels(tmp_path):
    known = make_known(tmp_path)
    rows = [json.loads(line) for line in (known[1].path / "test.jsonl").read_text().splitlines()]
    rng = random.Random(1)
    write_rows(known[1].path, [row | {"label": rng.choice(["negative", "positive"])} for row in rows])
    model = exported(known[0], tmp_path / "onnx")
    assert failed(validated(model, known, tmp_path / "proof")) == {"labels"}
    report = {"metrics": [{"name": "accuracy", "value": 0.5}]}
    (known[0].path / "task-report.json").write_text(json.dumps(report))
    again = artifact.adopt(known[0].path, "checkpoint")
    model = exported(again, tmp_path / "onnx2")
    assert validated(model, known, tmp_path / "proof2").verdict == "pass"


def test_swapped_label_names_of_the_model_fail(known, models, tmp_path):
    model = spoiled(models["fp32"], tmp_path / "onnx", swap_labels)
    found = validated(model, known, tmp_path / "proof")
    assert failed(found) == {"label names", "accuracy"}
    assert found.details["accuracy"]["flips_total"] == found.details["accuracy"]["n"]


@pytest.mark.parametrize("shift", [5, 10_000], ids=["the same size", "out of the vocabulary"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_wrong_tokenizer_fails_and_is_named(shift, task, tmp_path):
    known = make_known(tmp_path, task)
    model = spoiled(exported(known[0], tmp_path / "sound"), tmp_path / "onnx", other_tokenizer(shift))
    found = validated(model, known, tmp_path / "proof")
    assert failed(found) >= {"tokens", "parity: outputs", "accuracy"}
    assert "120 of 120 rows" in next(gate.reason for gate in found.gates if gate.name == "tokens")


def test_evidence_keeps_raw_outputs_and_every_prediction(known, models, tmp_path):
    found = validated(models["fp32"], known, tmp_path / "proof")
    reference, candidate = (np.load(tmp_path / "proof" / f"parity.{name}.npy") for name in ("reference", "candidate"))
    assert reference.shape == candidate.shape == (found.details["parity"]["rows"], 2)
    lines = [json.loads(line) for line in (tmp_path / "proof" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 120
    assert all(line["reference"] == line["candidate"] == line["label"] for line in lines)
    assert {one["value"] for one in found.details["accuracy"]["slices"]} == {"even", "odd"}


def test_a_small_set_is_inconclusive_where_significance_is_required(known, models, tmp_path):
    strict = dataclasses.replace(LOOSE, max_drop=0.01, require_significance=True)
    found = validated(models["fp32"], known, tmp_path / "proof", strict)
    assert found.verdict == "inconclusive"
    assert [gate.name for gate in found.gates if gate.verdict == "inconclusive"] == ["accuracy"]
    lenient = dataclasses.replace(strict, require_significance=False)
    found = validated(models["fp32"], known, tmp_path / "other", lenient)
    assert found.verdict == "pass"
    assert any("cannot rule out" in warning for warning in found.warnings)


def test_the_model_s_own_checkpoint_may_be_given_but_no_other(known, models, bert, tmp_path):
    assert validated(models["fp32"], known, tmp_path / "proof", source=known[0].path).verdict == "pass"
    with pytest.raises(ArtifactError, match="the checkpoint"):
        validated(models["fp32"], known, tmp_path / "other", source=bert)


def test_a_failing_proof_is_sealed_evidence(known, models, tmp_path):
    model = spoiled(models["fp32"], tmp_path / "onnx", swap_labels)
    validated(model, known, tmp_path / "proof")
    assert evidence.load(tmp_path / "proof").verdict == "fail"


@pytest.mark.parametrize("settings", [{"max_drop": -0.1}, {"max_drop": 1.0}, {"parity_rows": 0}])
def test_settings_that_judge_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        Validate(**settings)
