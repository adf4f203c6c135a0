"""Serving: verified before anything starts, ready only when warm, one quiet process that leaves nothing behind."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploykit import artifact
from deploykit.artifact import Artifact
from deploykit.errors import ArtifactError, EnvironmentMissing, UsageError
from deploykit.serve import running, started
from tests.onnx_models import resealed

HEAVY = {"torch", "transformers", "onnx", "optimum", "sklearn", "scipy", "datasets", "accelerate", "pandas"}
INFO = "src/model/deploykit.json"


def test_a_started_bento_answers_and_ends_with_the_block(bento: Artifact):
    with started(bento.path) as url:
        assert url.startswith("http://127.0.0.1:")
        status, answer = _post(url, {"rows": [{"text": "a good film"}]})
    assert status == 200
    assert [prediction["label"] for prediction in answer["predictions"]] == ["positive"]
    with pytest.raises(OSError, match=r".*"):
        _post(url, {"rows": [{"text": "a good film"}]})


def test_serving_changes_no_byte_and_keeps_no_trace_in_the_home(
    bento: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("BENTOML_HOME", "BENTOML_DO_NOT_TRACK", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with started(bento.path) as url:
        _post(url, {"rows": [{"text": "a good film"}]})
    assert not artifact.verify(bento)
    assert not list(tmp_path.iterdir())


def test_ready_means_loaded_and_warm_from_the_code_inside_the_bento(bento: Artifact, tmp_path: Path):
    slow = "        __import__('time').sleep(0.5)\n        FOLDER.parent.joinpath('warm').touch()\n"
    end = "    except DeploykitError"
    changed = resealed(bento, tmp_path / "slow", lambda folder: _replace(folder, end, slow + end))
    with started(changed):
        assert (changed / "src/warm").exists()


def test_the_served_process_imports_nothing_heavy(bento: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    imported, mapped = _imports(bento.path, tmp_path, monkeypatch)
    assert {"onnxruntime", "tokenizers", "bentoml", "deploykit"} <= imported, "the log of imports is not one"
    assert not imported & (HEAVY | {"wave"})
    assert not re.search(r"/(lib)?torch", mapped)


def test_an_import_during_the_start_would_be_seen(bento: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    late = "import wave\n        model = Model.open("
    changed = resealed(bento, tmp_path / "planted", lambda folder: _replace(folder, "model = Model.open(", late))
    imported, _ = _imports(changed, tmp_path, monkeypatch)
    assert "wave" in imported


def test_a_taken_port_is_a_usage_error_before_anything_starts(bento: Artifact):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"{port}: expected a free port .* in use"), started(bento.path, port):
            pass


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machines_is_a_usage_error(bento: Artifact, host: str):
    with pytest.raises(UsageError, match="of this machine"), started(bento.path, host=host):
        pass


def test_a_folder_that_is_no_bento_is_refused(onnx_model: Artifact, tmp_path: Path):
    with pytest.raises(ArtifactError, match="expected a Bento"), started(onnx_model.path):
        pass
    with pytest.raises(ArtifactError, match=r"without manifest\.json"), started(tmp_path):
        pass


@pytest.mark.parametrize("name", ["src/model/model.onnx", "src/bentos/http.py", "bento.yaml"])
def test_a_changed_bento_is_not_served(bento: Artifact, tmp_path: Path, name: str):
    changed = artifact.copy(bento, tmp_path / "changed")
    with (changed.path / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ArtifactError, match=f"{name}: changed"), started(changed.path):
        pass


def test_a_provider_that_cannot_run_here_is_told_with_its_own_exit_code(
    bento: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    changed = resealed(bento, tmp_path / "gpu", lambda folder: _replace(folder, '"cpu"', '"cuda"', INFO))
    with pytest.raises(EnvironmentMissing, match="found provider cuda: expected"), started(changed):
        pass


@pytest.fixture
def _interruptible():
    """Processes started here can be interrupted, also where the tests run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("_interruptible")
def test_the_command_prints_the_url_and_ends_with_the_signal(bento: Artifact, number: signal.Signals):
    command = [sys.executable, "-m", "deploykit", "serve", str(bento.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        status, _ = _post(url, {"rows": [{"text": "a good film"}]})
        process.send_signal(number)
        try:
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (status, process.returncode, rest) == (200, 128 + number, "")
    with pytest.raises(OSError, match=r".*"):
        _post(url, {"rows": [{"text": "a good film"}]})


def test_a_service_ends_and_frees_its_port_when_the_command_is_killed(bento: Artifact):
    command = [sys.executable, "-m", "deploykit", "serve", str(bento.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert _post(url, {"rows": [{"text": "a good film"}]})[0] == 200
        process.kill()
    assert any(_is_silent(url) for _ in range(600))


@pytest.mark.slow
def test_bentoml_itself_serves_the_folder(bento: Artifact, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", str(bento.path), "--host", "127.0.0.1", "--port", str(port)]
    own = {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "True", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL) as process:
        try:
            status, answer = _post_when_up(f"http://127.0.0.1:{port}", {"rows": [{"text": "a good film"}]})
        finally:
            process.terminate()
    assert (status, answer["predictions"][0]["label"]) == (200, "positive")
    assert not artifact.verify(bento)


def _is_silent(url: str) -> bool:
    """Tell whether nobody answers there, after a moment."""
    time.sleep(0.1)
    try:
        _post(url, {"rows": [{"text": "a good film"}]})
    except OSError:
        return True
    return False


def _post_when_up(url: str, value: object) -> tuple[int, Any]:
    for _ in range(300):
        try:
            return _post(url, value)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("it never came up")


def _replace(folder: Path, old: str, new: str, name: str = "src/bentos/model.py") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def _post(url: str, value: object) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("POST", "/predict", json.dumps(value), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _imports(bento: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], str]:
    """Serve, answer once, and return the packages that the process imported and, on Linux, the files it has mapped."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with (folder / "log").open("w+b") as log, running(bento, log=log) as server:
        _post(server.url, {"rows": [{"text": "a good film"}]})
        maps = Path(f"/proc/{server.process.pid}/maps")
        mapped = maps.read_text() if maps.is_file() else ""
    names = re.findall(r"^import time:.*\|\s*([\w.]+)$", (folder / "log").read_text(), re.MULTILINE)
    return {name.partition(".")[0] for name in names}, mapped
