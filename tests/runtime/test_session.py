"""A session runs where it was asked to, or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deploykit.environment import num_cores
from deploykit.errors import ArtifactError, DeploykitError, EnvironmentMissing, ResourceError
from deploykit.runtime.session import EXECUTION_PROVIDERS, ORT_ERRORS, mapped, open_session, run_session
from deploykit.runtime.session import session_options as options_of


class FallenBack:
    """What onnxruntime gives when a provider could not start: a session on the CPU and no error."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        pass

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def refusing(error: Exception) -> Any:
    def refuse(*arguments: object, **settings: object) -> None:
        raise error

    return refuse


@pytest.fixture
def every_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(EXECUTION_PROVIDERS.values()))
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)


def test_the_cpu_is_what_was_asked_for_and_got(bert_onnx: Path) -> None:
    session = open_session(bert_onnx / "model.onnx", provider="cpu", options={})
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_silent_fall_back_to_the_cpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, every_provider: None, provider: str
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", FallenBack)
    with pytest.raises(EnvironmentMissing, match="only CPUExecutionProvider"):
        open_session(Path("model.onnx"), provider=provider, options={})


def test_a_provider_that_refuses_to_start_is_an_error(monkeypatch: pytest.MonkeyPatch, every_provider: None) -> None:
    said = "/src/state.cc:729 void ort::start(const Options&) Please install TensorRT\nand more"
    monkeypatch.setattr(ort, "InferenceSession", refusing(RuntimeError(said)))
    with pytest.raises(EnvironmentMissing, match="found Please install TensorRT;"):
        open_session(Path("model.onnx"), provider="tensorrt", options={})


def test_the_missing_library_is_named_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, every_provider: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcublas.so\nPlease follow"))
    monkeypatch.setattr(ort, "InferenceSession", FallenBack)
    with pytest.raises(EnvironmentMissing, match=r"found Failed to load libcublas\.so;"):
        open_session(Path("model.onnx"), provider="cuda", options={})
    assert capsys.readouterr() == ("", "")


def test_a_wheel_without_the_provider_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EnvironmentMissing, match="built without it"):
        open_session(Path("model.onnx"), provider="cuda", options={})


def test_a_missing_or_broken_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        open_session(file, provider="cpu", options={})
    file.write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        open_session(file, provider="cpu", options={})


def test_idle_threads_leave_the_cores_to_others() -> None:
    assert options_of().get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_threads_default_to_the_processes_cores() -> None:
    assert options_of().intra_op_num_threads == num_cores()
    assert options_of(3).intra_op_num_threads == 3


def test_every_error_of_onnxruntime_is_mapped() -> None:
    theirs = {
        found for found in vars(ort_errors).values() if isinstance(found, type) and issubclass(found, BaseException)
    }
    assert theirs == set(ORT_ERRORS)
    assert all(isinstance(mapped(kind("why"), "here"), DeploykitError) for kind in ORT_ERRORS)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ort_errors.InvalidProtobuf("broken"), ArtifactError),
        (ort_errors.EPFail("CUDA error"), EnvironmentMissing),
        (ort_errors.RuntimeException("Failed to allocate memory for requested buffer"), ResourceError),
        (ort_errors.InvalidArgument("unexpected rank"), DeploykitError),
    ],
)
def test_an_error_is_mapped_by_its_cause(error: Exception, expected: type[DeploykitError]) -> None:
    assert type(mapped(error, "here")) is expected


def test_a_wrong_input_at_run_time_is_mapped(bert_onnx: Path) -> None:
    session = open_session(bert_onnx / "model.onnx", provider="cpu", options={})
    feeds = {node.name: np.zeros(3, np.int64) for node in session.get_inputs()}
    with pytest.raises(DeploykitError, match="running the model"):
        run_session(session, ["logits"], feeds)
