"""A Bento holds exactly a proven model and what serving it needs; everything else is refused."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import bentoml
import pytest
from bentoml._internal.bento import Bento, BentoStore

import deploykit
from deploykit import artifact, commands
from deploykit.artifact import Artifact
from deploykit.errors import ArtifactError, UnprovenModel, UsageError
from deploykit.evidence import Verdict
from deploykit.package import SERVICES, Package, require_proof, requirements, services_folder, source_files
from deploykit.runtime.tasks import RUNTIME_TASKS
from deploykit.stage import run
from tests.onnx_models import make_onnx, make_proof

SERVING = {"bentoml", "numpy", "onnxruntime", "pydantic", "starlette", "tokenizers"}


@pytest.fixture
def proof(onnx_model: Artifact, tmp_path: Path) -> Artifact:
    return make_proof(onnx_model, tmp_path / "proof")


def test_a_bento_holds_the_models_bytes_and_its_lineage(bento: Artifact, onnx_model: Artifact):
    inside = {Path(name).name: digest for name, digest in bento.files.items() if name.startswith("src/model/")}
    assert inside == onnx_model.files
    assert [parent.kind for parent in bento.node.parents] == ["onnx", "evidence"]
    assert bento.node.parents[0].digest == onnx_model.digest
    assert not artifact.verify(bento)


def test_the_same_package_twice_is_the_same_bytes(bento: Artifact, tmp_path: Path):
    model = make_onnx(tmp_path / "elsewhere" / "model")
    again = run(Package("reviews"), model, make_proof(model, tmp_path / "proof"), out=tmp_path / "out" / "bento")
    assert again.digest == bento.digest


def test_a_bento_names_no_folder_of_this_machine(bento: Artifact):
    for name in bento.files:
        content = (bento.path / name).read_bytes()
        assert str(Path(bentoml.__file__).parent).encode() not in content, name
        assert b"/tmp/" not in content, name


def test_bentoml_takes_the_folder_and_its_archive_for_a_bento(bento: Artifact, onnx_model: Artifact, tmp_path: Path):
    found = Bento.from_path(str(bento.path))
    assert str(found.tag) == bento.facts["tag"] == f"reviews:{onnx_model.digest[:16]}"
    archive = shutil.make_archive(str(tmp_path / "reviews"), "gztar", bento.path)
    imported = bentoml.import_bento(archive, _bento_store=BentoStore(tmp_path))
    assert imported.info.labels["deploykit.model"] == onnx_model.digest


def test_every_task_has_a_service():
    assert set(SERVICES) == set(RUNTIME_TASKS)


def test_requirements_are_pinned_and_nothing_but_serving(bento: Artifact):
    lines = (bento.path / "env/python/requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} == {"onnxruntime", "tokenizers", "numpy", "bentoml"}
    assert all("==" in line for line in lines)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_provider_requires_the_gpu_wheel(provider: str):
    assert requirements(provider)[0].startswith("onnxruntime-gpu[cuda,cudnn]==")


@pytest.mark.parametrize("service", SERVICES.values())
def test_a_services_modules_may_import_nothing_but_what_serves(service: str):
    files = source_files(service.partition(":")[0])
    assert _foreign(files.values()) <= SERVING
    assert not [
        name
        for name in files
        if name.startswith("deploykit/")
        and "runtime" not in name.split("/")[1:-1]
        and name.removeprefix("deploykit/") not in {"__init__.py", "artifact.py", "environment.py", "errors.py"}
    ]


def test_a_heavy_import_inside_a_function_is_seen(tmp_path: Path):
    file = tmp_path / "planted.py"
    file.write_text("def late():\n    import torch.nn\n")
    assert "torch" in _foreign([file])


def test_imports_are_followed_through_functions_and_packages():
    files = source_files("deploykit.commands")
    assert {"deploykit/__init__.py", "deploykit/check/__init__.py", "deploykit/checkpoint.py"} <= set(files)


def test_the_services_are_found_inside_the_package_as_a_wheel_lays_them(tmp_path: Path):
    wheel = shutil.copytree(Path(deploykit.__file__).parent, tmp_path / "deploykit")
    shutil.copytree(services_folder(), wheel / "bentos", dirs_exist_ok=True)
    code = "from deploykit.package import source_files; print(*source_files('bentos.token_classification'))"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert set(said.stdout.split()) == set(source_files("bentos.token_classification")), said.stderr


@pytest.mark.parametrize("name", ["", "Reviews", "a b", "-a", "a" * 64, "../up", "a:b"])
def test_a_name_that_bentoml_does_not_take_is_a_usage_error(name: str):
    with pytest.raises(UsageError, match="name"):
        Package(name)


def test_passing_evidence_about_this_model_is_accepted(onnx_model: Artifact, proof: Artifact):
    require_proof(onnx_model, proof)


@pytest.mark.parametrize(
    ("verdict", "gate"),
    [("fail", "fail"), ("inconclusive", "inconclusive"), ("pass", "fail"), ("pass", "inconclusive"), ("fail", "pass")],
)
def test_evidence_that_does_not_pass_is_refused(onnx_model: Artifact, tmp_path: Path, verdict: Verdict, gate: Verdict):
    proof = make_proof(onnx_model, tmp_path / "proof", verdict=verdict, gate=gate)
    _refused(UnprovenModel, onnx_model, proof, tmp_path, "verdict pass")


def test_latency_evidence_is_refused(onnx_model: Artifact, tmp_path: Path):
    proof = make_proof(onnx_model, tmp_path / "proof", measure="latency")
    _refused(UnprovenModel, onnx_model, proof, tmp_path, "evidence of latency")


def test_evidence_about_other_bytes_is_refused(onnx_model: Artifact, tmp_path: Path):
    other = make_onnx(tmp_path / "other", "token-classification")
    _refused(UnprovenModel, onnx_model, make_proof(other, tmp_path / "proof"), tmp_path, other.digest[:12])


def test_evidence_that_only_claims_to_be_about_the_model_is_refused(onnx_model: Artifact, tmp_path: Path):
    proof = make_proof(onnx_model, tmp_path / "proof")
    unrelated = artifact.Node("evidence", "validate", {}, (), "")
    moved = artifact.seal(_unsealed(proof, tmp_path / "copy"), tmp_path / "claim", unrelated, {})
    _refused(UnprovenModel, onnx_model, moved, tmp_path, "evidence about model")


def test_evidence_without_a_gate_is_refused(onnx_model: Artifact, tmp_path: Path):
    folder = _unsealed(make_proof(onnx_model, tmp_path / "proof"), tmp_path / "copy")
    value = artifact.read_json(folder / "evidence.json")
    artifact.write_json(folder / "evidence.json", value | {"gates": []})
    node = artifact.Node("evidence", "validate", {}, (onnx_model.node,), "")
    _refused(UnprovenModel, onnx_model, artifact.seal(folder, tmp_path / "empty", node, {}), tmp_path, "no gate")


def test_a_changed_model_is_refused(onnx_model: Artifact, proof: Artifact, tmp_path: Path):
    model = artifact.copy(onnx_model, tmp_path / "model")
    _flip(model.path / "model.onnx")
    _refused(ArtifactError, model, proof, tmp_path, "model.onnx: changed")


def test_changed_evidence_is_refused(onnx_model: Artifact, proof: Artifact, tmp_path: Path):
    _flip(proof.path / "evidence.json")
    _refused(ArtifactError, onnx_model, proof, tmp_path, "evidence.json: changed")


def test_missing_evidence_is_refused(onnx_model: Artifact, tmp_path: Path):
    with pytest.raises(UnprovenModel, match="found none"):
        commands.package(onnx_model.path, "reviews", proof=tmp_path / "none", out=tmp_path / "bento")
    assert not list(tmp_path.iterdir())


def _refused(error: type[Exception], model: Artifact, proof: Artifact, folder: Path, match: str) -> None:
    with pytest.raises(error, match=match):
        run(Package("reviews"), model, proof, out=folder / "bento")
    assert not [path for path in folder.iterdir() if "bento" in path.name], "something is left behind"


def _unsealed(sealed: Artifact, out: Path) -> Path:
    shutil.copytree(sealed.path, out)
    (out / artifact.MANIFEST).unlink()
    return out


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _foreign(files) -> set[str]:
    """The top-level names of everything outside the standard library and deploykit that files may import."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"deploykit", "bentos"}
