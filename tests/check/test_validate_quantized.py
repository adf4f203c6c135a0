"""Validation of the schemes that need more than the weights: calibrated activations, int4 blocks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit import checkpoint as checkpoints
from deploykit import stage
from deploykit.artifact import read_json
from deploykit.check.validate import Validate
from deploykit.compress.quantize import Quantize
from deploykit.export.export import Export
from tests.check.known import make_known, spoiled

LOOSE = Validate(max_drop=0.3, invariance_rows=16)
SCHEMES = {
    "static-int8": Quantize(scheme="static-int8", calibration="minmax"),
    "int4": Quantize(scheme="int4"),
}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("known")
    source, data = make_known(folder)
    (data.path / "validation.jsonl").write_text((data.path / "train.jsonl").read_text())
    return checkpoints.open_checkpoint(source.path), data


@pytest.fixture(scope="module", params=list(SCHEMES))
def model(request: pytest.FixtureRequest, known, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    decided = stage.run(SCHEMES[request.param], *known, out=folder / "decided")
    return stage.run(Export(), decided, out=folder / "model"), request.param


def failed(found) -> set[str]:
    evidence = read_json(found.path / "evidence.json")
    return {gate["name"] for gate in evidence["gates"] if gate["verdict"] == "fail"}


def test_a_sound_model_passes_every_gate(known, model, tmp_path: Path):
    found = stage.run(LOOSE, model[0], known[1], known[0], out=tmp_path / "evidence")
    assert failed(found) == set()


def test_one_wrong_number_of_its_scheme_fails_parity(known, model, tmp_path: Path):
    sealed, scheme = model

    def change(folder: Path) -> None:
        graph = onnx.load(folder / "model.onnx")
        wanted = "QuantizeLinear" if scheme == "static-int8" else "MatMulNBits"
        node = next(node for node in graph.graph.node if node.op_type == wanted)
        tensor = next(one for one in graph.graph.initializer if one.name == node.input[1])
        value = numpy_helper.to_array(tensor).copy()
        if scheme == "static-int8":
            value = np.asarray(value * np.float32(1.1))  # product and quantization share it: they still agree
        else:
            value.flat[0] ^= 0x88  # two weights of the first block move by half of the range
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        onnx.save(graph, folder / "model.onnx")

    found = stage.run(
        LOOSE, spoiled(sealed, tmp_path / "faulty", change), known[1], known[0], out=tmp_path / "evidence"
    )
    assert {name for name in failed(found) if name.startswith("parity")}
