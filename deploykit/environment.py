"""The machine: processor, instruction sets, memory, accelerator and the versions that matter.

`key` names the conditions under which two latencies may be compared.
"""

import functools
import os
import platform
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploykit.artifact import digest_of

_PACKAGES = (
    "deploykit",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tokenizers",
    "bentoml",
    "numpy",
)
_ISA_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "avx512_bf16": "AVX-512 bf16",
}


def host_name() -> str:
    """Return the machine's name."""
    return socket.gethostname()


def cache_dir() -> Path:
    """Return where reusable work is kept: `DEPLOYKIT_CACHE`, else the user's cache folder."""
    if path := os.environ.get("DEPLOYKIT_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deploykit"


def num_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def describe() -> dict[str, Any]:
    """Return the facts of this machine, ready for JSON."""
    return {
        "host": host_name(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "processor": _processor_name(),
        "cores": num_cores(),
        "isa": instruction_sets(),
        "memory_bytes": _memory_bytes(),
        "gpu": _gpu_name(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


@functools.cache
def key() -> str:
    """Return a short digest of the conditions that decide a latency: processor, cores, GPU, runtime versions."""
    facts = describe()
    runtime = {name: found for name, found in facts["packages"].items() if name.startswith("onnxruntime")}
    return digest_of([facts["processor"], facts["cores"], facts["isa"], facts["gpu"], facts["host"], runtime])[:16]


def instruction_sets() -> list[str]:
    """Return the vector instruction sets that decide int8 and bf16 speed."""
    flags = _cpuinfo("flags").split()
    return [name for flag, name in _ISA_FLAGS.items() if flag in flags]


def has_vnni() -> bool:
    """Tell whether uint8 x int8 products accumulate in 32 bits, without saturating at 16."""
    return any("VNNI" in name or "AMX int8" in name for name in instruction_sets()) or platform.machine() in (
        "arm64",
        "aarch64",
    )


def _processor_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return ""
    lines = path.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == field), "")


def _memory_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_name() -> str | None:
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    for card in cards:
        for line in card.read_text().splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
