"""ONNX Runtime sessions with everything that decides speed set on purpose, and no silent fall-back.

ONNX Runtime answers a provider that cannot start with a log line and the CPU. Here the provider asked for is
what the session got, or the session is refused.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from deploykit.environment import cache_dir, num_cores
from deploykit.errors import ArtifactError, DeploykitError, EnvironmentMissing, ResourceError

EXECUTION_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

_SOURCE_LINE = re.compile(r"^\S+\.cc:\d+ [^)]*\) ")
"""Where in its sources ONNX Runtime raised an error, and in which function: `/a/b.cc:7 void f(int) What is wrong`."""
_SLOWER_ON_CPU = "SkipLayerNormFusion"
"""On the CPU, SkipLayerNormalization is slower than the Add and LayerNormalization that it replaces: 0.86 to 0.96 times
as fast a model (onnxruntime 1.31, AVX2; benchmarks/results/export-variants.json), with AMX 0.77 to 0.89 times
(export-variants-amx.json). Graphs whose shapes ONNX Runtime cannot infer escape it anyway."""
_CACHE_PATHS = ("trt_engine_cache_path", "trt_timing_cache_path")

_FATAL = 4
_ERROR = 3

_BROKEN_MODEL = (
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelRequiresCompilation,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotFound,
    ort_errors.NotImplemented,
)
_BROKEN_DEVICE = (ort_errors.DeviceReset, ort_errors.EngineError, ort_errors.EPFail)
_OUR_BUG = (
    ort_errors.InvalidArgument,
    ort_errors.ModelLoadCanceled,
    ort_errors.ModelLoaded,
    ort_errors.RuntimeException,
)
ORT_ERRORS = (*_BROKEN_MODEL, *_BROKEN_DEVICE, *_OUR_BUG)
"""Every exception of ONNX Runtime, each mapped by `mapped`."""


def open_session(
    model: Path, *, provider: str, options: Mapping[str, Any], threads: int | None = None, profile: Path | None = None
) -> ort.InferenceSession:
    """Open a model on exactly one provider (TensorRT leaves what it cannot run to CUDA, visibly in provider truth).

    `options` are ONNX Runtime's for the provider; `threads` default to every core this process may use; with
    `profile` a file whose name starts so says what ran where.

    Raises:
        EnvironmentMissing: the provider cannot run here, or has no kernel for a node.
        ArtifactError: the model cannot be loaded.
    """
    wanted = EXECUTION_PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise _missing(provider, "an onnxruntime that was built without it")
    reason = "" if provider == "cpu" else _preload()
    # A provider that cannot start is reported by us, in one line; ONNX Runtime would print a screenful first.
    ort.set_default_logger_severity(_FATAL)
    settings = session_options(threads)
    if provider == "cpu":
        settings.add_session_config_entry("optimization.disable_specified_optimizers", _SLOWER_ON_CPU)
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    try:
        session = ort.InferenceSession(model, settings, providers=_providers(provider, options), enable_fallback=0)
    except ORT_ERRORS as error:
        # What has no kernel on the CPU, such as bf16, fails so where a GPU's provider could not start, too.
        if provider != "cpu" and isinstance(error, ort_errors.NotImplemented):
            raise _missing(provider, reason or str(error)) from error
        raise mapped(error, model) from error
    except (RuntimeError, ValueError) as error:
        raise _missing(provider, reason or str(error)) from error
    finally:
        ort.set_default_logger_severity(_ERROR)
    if session.get_providers()[0] != wanted:
        raise _missing(provider, reason or f"only {', '.join(session.get_providers())}")
    return session


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Return the options of every session.

    * Sequential execution: an encoder is one chain; parallelism lies inside the operators.
    * Intra-op threads: one per core that this process may use, and not pinned, so that neighbours do not collide.
    * No spinning: threads that wait busily between operators made MiniLM-L6 in int8 1.2 times as fast at 8 and 26
      tokens and 1.05 at 64 where nothing else ran on the 2 cores, and half as fast where something did; a server always
      runs something else. A bound on the wait (50 us) won a little less and did not save the busy case.
    * All graph optimizations: what export left to the runtime (layouts, constant folding) happens once, at load.
    """
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or num_cores()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERROR
    return options


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.int64]]
) -> list[NDArray[Any]]:
    """Run a session and map its errors.

    Raises:
        ResourceError: out of memory.
        EnvironmentMissing: the device failed.
        DeploykitError: anything else: the model or what we fed it is wrong.
    """
    try:
        return session.run(outputs, feeds)  # type: ignore[no-any-return]
    except ORT_ERRORS as error:
        raise mapped(error, "running the model") from error


def mapped(error: Exception, where: object) -> DeploykitError:
    """Turn an exception of ONNX Runtime into ours."""
    text = str(error)
    if any(sign in text for sign in ("bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory")):
        return ResourceError(where, expected="enough memory", found=text, next_step="use a smaller batch")
    if isinstance(error, _BROKEN_MODEL):
        return ArtifactError(
            where, expected="a model that ONNX Runtime loads", found=text, next_step="export the checkpoint anew"
        )
    if isinstance(error, _BROKEN_DEVICE):
        return EnvironmentMissing(
            where, expected="a working device", found=text, next_step="check the driver with `deploykit doctor`"
        )
    return DeploykitError(where, expected="inputs that the model takes", found=text, next_step="report this bug")


def _providers(provider: str, options: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    texts = {name: str(value) for name, value in options.items()}
    # A relative path is below our cache folder; ONNX Runtime would take the current one.
    texts |= {name: str(cache_dir() / texts[name]) for name in _CACHE_PATHS if name in texts}
    first = (EXECUTION_PROVIDERS[provider], texts)
    return [first, (EXECUTION_PROVIDERS["cuda"], {})] if provider == "tensorrt" else [first]


def _preload() -> str:
    """Load the CUDA libraries that lie in Python wheels; returns what onnxruntime said of those it missed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    return said.getvalue().partition("\n")[0]


def _missing(provider: str, found: str) -> EnvironmentMissing:
    return EnvironmentMissing(
        f"provider {provider}",
        expected=f"{EXECUTION_PROVIDERS[provider]} to start",
        found=_SOURCE_LINE.sub("", found.partition("\n")[0]),
        next_step="install its driver and libraries, or run on another machine",
    )
