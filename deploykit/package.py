"""Package an exported model and the proof that it does its job as a Bento; nothing unproven gets in.

The Bento is built by BentoML from one service of `bentos/`, the few modules of deploykit that the
service imports, and the model. The same model and evidence give the same bytes.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import deploykit
from deploykit import artifact, evidence
from deploykit.artifact import Artifact, Kind
from deploykit.errors import ArtifactError, DeploykitError, EnvironmentMissing, UnprovenModel, UsageError
from deploykit.evidence import Metric
from deploykit.runtime import model_info

SERVICES: Mapping[str, str] = {
    "text-classification": "bentos.text_classification:service",
    "token-classification": "bentos.token_classification:service",
}
"""The service of each task."""

MODEL = "src/model"
"""Where the model lies in a Bento."""

_NAME = re.compile(r"[a-z0-9]([-._a-z0-9]{0,61}[a-z0-9])?")
_CREATED = "1980-01-01T00:00:00+00:00"
"""Every Bento's creation time, so that the same work gives the same bytes; the manifest's facts say when it was."""

_BUILD = "import bentoml, json, sys; print(bentoml.build(**json.load(sys.stdin)).path)"


@dataclass(frozen=True)
class Package:
    """Build a Bento from an exported model and its passing evidence.

    Raises:
        UsageError: the name is none that BentoML takes.
    """

    verb: ClassVar[str] = "package"
    reads: ClassVar[tuple[Kind, ...]] = ("onnx", "evidence")
    makes: ClassVar[Kind] = "bento"
    resumes: ClassVar[bool] = False

    name: str
    """The Bento's name; its version is the model's digest."""

    def __post_init__(self) -> None:
        """Check the name before any work."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                "name",
                expected="1 to 63 lower-case letters, digits, '-', '_' or '.', with a letter or digit at both ends",
                found=repr(self.name),
                next_step="choose another name",
            )

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the Bento into `scratch`.

        Raises:
            UnprovenModel: the evidence is not a passing validation of exactly this model.
            ArtifactError: a byte of either changed since it was sealed.
        """
        model, proof = sources[:2]
        require_proof(model, proof)
        info = model_info.read(model.path)
        with tempfile.TemporaryDirectory(prefix="deploykit-package-") as folder:
            options = self._options(info, model, proof)
            built = _build(options, Path(folder), SERVICES[info.task])
            shutil.copytree(built, scratch, dirs_exist_ok=True)
        _fix_creation_time(scratch / "bento.yaml")
        for file in model.files:
            (scratch / MODEL / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.path / file, scratch / MODEL / file)
        size = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
        return {
            "tag": f"{self.name}:{_tag_version(model)}",
            "metrics": [asdict(Metric("size_bytes", size, "B", "lower"))],
        }

    def _options(self, info: model_info.ModelInfo, model: Artifact, proof: Artifact) -> dict[str, Any]:
        """Return the arguments of `bentoml.build`."""
        return {
            "service": SERVICES[info.task],
            "name": self.name,
            "version": _tag_version(model),
            "description": _readme(self.name, info, model, proof),
            "labels": {"deploykit.model": model.digest, "deploykit.evidence": proof.digest},
            # Locking would ask a package index for the dependencies' dependencies.
            "python": {"packages": requirements(info.provider), "lock_packages": False},
        }


def require_proof(model: Artifact, proof: Artifact) -> None:
    """Check that `proof` is a passing validation of exactly the bytes of `model`.

    Raises:
        UnprovenModel: it is not.
        ArtifactError: a byte of either changed since it was sealed.
    """
    if artifact.verified(model.path).digest != model.digest:
        raise ArtifactError(
            model.path, expected=f"model {model.digest[:12]}", found="another", next_step="run the command again"
        )
    found = evidence.load(proof.path)
    measured = any(parent.digest == model.digest for parent in proof.node.parents)
    if found.measure != "validation":
        raise _unproven(proof, "evidence of a validation", f"evidence of {found.measure}")
    if not measured or found.subject.digest != model.digest:
        raise _unproven(proof, f"evidence about model {model.digest[:12]}", f"about {found.subject.digest[:12]}")
    if found.verdict != "pass" or evidence.overall(found.gates) != "pass":
        reasons = "; ".join(gate.reason for gate in found.gates if gate.verdict != "pass") or "no gate"
        raise _unproven(proof, "the verdict pass", f"{found.verdict} ({reasons})")


def _unproven(proof: Artifact, expected: str, found: str) -> UnprovenModel:
    return UnprovenModel(
        proof.path, expected=expected, found=found, next_step="validate this model and give that evidence"
    )


def requirements(provider: str) -> list[str]:
    """Return what the service needs beside BentoML (which pins itself), at the versions installed here."""
    runtime = "onnxruntime" if provider == "cpu" else "onnxruntime-gpu[cuda,cudnn]"
    return [f"{runtime}=={_onnxruntime_version()}", *(f"{name}=={version(name)}" for name in ("tokenizers", "numpy"))]


def _onnxruntime_version() -> str:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise EnvironmentMissing(
        "onnxruntime", expected="one of its two wheels", found="none", next_step="install deploykit anew"
    )


def services_folder() -> Path:
    """Return the folder of services: inside the package in a wheel, beside it in a checkout."""
    package = Path(deploykit.__file__).parent
    inside = package / "bentos"
    return inside if inside.is_dir() else package.parent / "bentos"


def source_files(service: str) -> dict[str, Path]:
    """Find the modules that a service needs, by following imports: module path in the Bento to file here."""
    roots = {"bentos": services_folder(), "deploykit": Path(deploykit.__file__).parent}
    found: dict[str, Path] = {}
    waiting = [service]
    while waiting:
        file = _module_file(waiting.pop(), roots)
        if file is not None and file not in found.values():
            root = next(name for name in roots if file.is_relative_to(roots[name]))
            found[f"{root}/{file.relative_to(roots[root]).as_posix()}"] = file
            waiting.extend(_imports(file))
    return found


def _module_file(module: str, roots: Mapping[str, Path]) -> Path | None:
    """Return the file of one of our modules; None for others' modules and for names that are no module."""
    root, *parts = module.split(".")
    if root not in roots:
        return None
    path = roots[root].joinpath(*parts)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imports(file: Path) -> Iterator[str]:
    """Yield every module, its packages too, that a file may import, inside functions as well."""
    for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _build(options: Mapping[str, Any], folder: Path, service: str) -> Path:
    """Let BentoML build the Bento, without the model, in a process and a store of its own."""
    context = folder / "context"
    for name, file in source_files(service.partition(":")[0]).items():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, context / name)
    own = {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD],
        input=json.dumps({**options, "build_ctx": str(context)}),
        capture_output=True,
        text=True,
        cwd=context,
        env={**os.environ, **own},
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise DeploykitError("bentoml build", expected="a Bento", found=lines[-1], next_step="report this bug")
    return Path(done.stdout.splitlines()[-1])


def _fix_creation_time(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    fixed, count = re.subn(r"^creation_time: .*$", f"creation_time: {_CREATED}", text, flags=re.MULTILINE)
    if count != 1:
        raise DeploykitError(file, expected="one creation time", found=str(count), next_step="report this bug")
    file.write_text(fixed, encoding="utf-8")


def _tag_version(model: Artifact) -> str:
    return model.digest[:16]


def _readme(name: str, info: model_info.ModelInfo, model: Artifact, proof: Artifact) -> str:
    """Return the Bento's own description."""
    return f"""# {name}

{info.task}, {info.precision}, for the provider {info.provider}. Labels: {", ".join(info.labels)}.

    curl -H "Content-Type: application/json" -d '{{"rows": [{{"text": "..."}}]}}' http://127.0.0.1:3000/predict

Model {model.digest}
Evidence {proof.digest}
"""
