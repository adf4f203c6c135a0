"""Serve a Bento: one BentoML process on a socket that is bound here, ready when the model has answered once.

`bentoml serve` starts a supervisor that loads the service, then a worker that loads it again. Here BentoML's own worker
is started alone: half the time and memory, and a taken port is known before anything is loaded.
"""

import http.client
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deploykit import artifact
from deploykit.artifact import Artifact
from deploykit.errors import (
    ArtifactError,
    DeploykitError,
    EnvironmentMissing,
    InputError,
    ResourceError,
    UsageError,
)

READY_SECONDS = 600
"""How long a model may take to become ready: a TensorRT engine is built at its first start."""
STOP_SECONDS = 15
"""How long running requests may take to end after a signal."""

_WORKER = "_bentoml_impl.worker.service"
_LIFELINE = "DEPLOYKIT_LIFELINE"
"""As in `bentos.model`: a service whose parent was killed ends too, and frees its port."""
_ERRORS = {error.exit_code: error for error in (InputError, EnvironmentMissing, ResourceError)}
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a server that binds every address is asked


@dataclass(frozen=True)
class Server:
    """A service that answers."""

    url: str
    process: "subprocess.Popen[bytes]"


def serve(bento: Path, host: str = "127.0.0.1", port: int = 3000) -> int:
    """Serve a Bento until it is interrupted; prints the URL on stdout once it answers, the service's log on stderr.

    Port 0 takes any free one. What interrupts this process (KeyboardInterrupt, SystemExit) ends the service too.

    Returns:
        The exit status of a service that ended by itself, as a shell tells it.

    Raises:
        DeploykitError: as `running`.
    """
    with running(bento, port, host=host) as server:
        print(server.url, flush=True)
        status = server.process.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def started(bento: Path, port: int = 0, *, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve a Bento for the length of a `with` block, which gets the URL once the service answers.

    Raises:
        DeploykitError: as `running`.
    """
    with tempfile.TemporaryFile() as log, running(bento, port, host=host, log=log) as server:
        yield server.url


@contextmanager
def running(bento: Path, port: int = 0, *, host: str = "127.0.0.1", log: BinaryIO | None = None) -> Iterator[Server]:
    """Run a Bento's service for the length of a `with` block; `log` gets what it says, default stderr.

    Raises:
        ArtifactError: `bento` is no Bento, or a byte of it changed since it was sealed.
        UsageError: the port is taken, or the host is not this machine's.
        DeploykitError: the service did not start; the exit code is the reason's.
    """
    sealed = open_bento(bento)
    with tempfile.TemporaryDirectory(prefix="deploykit-serve-") as home, _lifeline() as lifeline:
        with _listening(host, port) as listener:
            address = listener.getsockname()[:2]
            process = _launch(sealed, listener, lifeline, Path(home), log)
        try:
            _wait_until_ready(sealed, process, address, log)
            shown = f"[{address[0]}]" if ":" in address[0] else address[0]
            yield Server(f"http://{shown}:{address[1]}", process)
        finally:
            _stop(process)


def open_bento(path: Path) -> Artifact:
    """Open a Bento after checking every byte of it.

    Raises:
        ArtifactError: it is none, or is changed.
    """
    found = artifact.verified(path)
    if found.kind != "bento":
        raise ArtifactError(
            path,
            expected="a Bento",
            found=f"an artifact of kind {found.kind}",
            next_step="give the folder that `deploykit package` wrote",
        )
    return found


def _listening(host: str, port: int) -> socket.socket:
    """Bind; connections wait in the socket until the service takes them."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"{host}:{port}",
            expected="a free port of this machine",
            found=str(error),
            next_step="choose another --port or --host",
        ) from error


@contextmanager
def _lifeline() -> Iterator[int]:
    """Make a pipe that nobody writes to; its reading end, which the service inherits, ends when this process does."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def _launch(
    bento: Artifact, listener: socket.socket, lifeline: int, home: Path, log: BinaryIO | None
) -> "subprocess.Popen[bytes]":
    output = 2 if log is None else log.fileno()
    handle = listener.fileno()
    command = [sys.executable, "-m", _WORKER, str(bento.path.resolve()), "--fd", str(handle), "--worker-id", "1"]
    command += ["--timeout-graceful-shutdown", str(STOP_SECONDS)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=[handle, lifeline],
        cwd=home,
        env={**os.environ, **_environment(home), _LIFELINE: str(lifeline)},
    )


def _environment(home: Path) -> Mapping[str, str]:
    """Return what keeps the service off the network, out of the user's home and the Bento as it was sealed."""
    counters = home / "prometheus"
    counters.mkdir()
    return {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "PROMETHEUS_MULTIPROC_DIR": str(counters),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _wait_until_ready(
    bento: Artifact, process: "subprocess.Popen[bytes]", address: tuple[str, int], log: BinaryIO | None
) -> None:
    """Ask once: the request waits in the socket until the service takes it, and breaks off if the service ends."""
    connection = http.client.HTTPConnection(_ANY_HOST.get(address[0], address[0]), address[1], timeout=READY_SECONDS)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except TimeoutError as error:
        raise _not_started(bento, 1, f"nothing for {READY_SECONDS} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise _not_started(bento, process.wait(STOP_SECONDS), _last_line(log)) from error
    finally:
        connection.close()
    if status != http.client.OK:
        raise _not_started(bento, 1, f"status {status} from /readyz")


def _not_started(bento: Artifact, status: int, found: str) -> DeploykitError:
    error = _ERRORS.get(status, DeploykitError)
    return error(
        bento.path,
        expected="a service that starts",
        found=found,
        next_step="see what the service said and package the model anew where it has to run",
    )


def _last_line(log: BinaryIO | None) -> str:
    if log is None:
        return "what it said above"
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no word of it"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the service, kindly first."""
    try:
        process.terminate()
        process.wait(2 * STOP_SECONDS)
    finally:
        process.kill()
        process.wait()
