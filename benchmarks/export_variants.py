"""Which graph is the fastest on this machine: every choice of `deploykit.export` beside its alternatives.

    python -m benchmarks.export_variants CHECKPOINT [--threads 1 2] [--turns 20] [--out F]

CHECKPOINT is a BERT's folder or hub name; it gets a new head, whose weights do not matter here. Sessions take turns in
an order drawn anew for each turn; a turn starts with a pause and one untimed run, then five timed ones. Times are
medians in milliseconds of the graph alone. `error` is the largest difference of a logit from eager PyTorch in float32
on random tokens. `from reference` is that from the fake-quantized model, where there is one: each int8 product agrees
with it bit for bit on the same input, but a float rounding between two products can move an activation to the next
integer, and later layers amplify that; with 8-bit weights and no VNNI, saturation comes on top. Prints a table, then
one line of JSON; `--out` keeps the JSON.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from benchmarks.export_graphs import VARIANTS, Variant, fresh
from deploykit import artifact, environment
from deploykit.artifact import Artifact
from deploykit.checkpoint import open_checkpoint
from deploykit.compress.fake_quant import decide, fake_quantize
from deploykit.errors import DeploykitError
from deploykit.runtime.session import open_session

SHAPES = ((1, 8), (1, 26), (1, 64), (32, 26))
RUNS = 5
PAUSE_S = 0.02
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_REFERENCES = {"deploykit": 7, "ours, 8-bit weights": 8}
"""int8 variants with an exact reference, and the bits of it."""

Feeds = Mapping[str, NDArray[np.int64]]
Sessions = Mapping[tuple[str, str], ort.InferenceSession]


def feeds(num_rows: int, length: int) -> dict[str, NDArray[np.int64]]:
    """Make rows of random tokens without padding: int64 (N,L) each."""
    ids_NL = np.random.default_rng(0).integers(1000, 20000, (num_rows, length))
    return dict(zip(INPUTS, (ids_NL, np.ones_like(ids_NL), np.zeros_like(ids_NL)), strict=True))


def medians_ms(sessions: Sessions, asked: Feeds, turns: int) -> dict[tuple[str, str], float]:
    """Time every session on the same tensors, in turns."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in sessions}
    rng = random.Random(0)  # noqa: S311 - an order, not a secret
    for _ in range(turns):
        for name in rng.sample(list(sessions), len(sessions)):
            time.sleep(PAUSE_S)
            sessions[name].run(None, asked)
            for _ in range(RUNS):
                started = time.perf_counter()
                sessions[name].run(None, asked)
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(found) for name, found in seconds.items()}


def run(source: Artifact, threads: Sequence[int], turns: int) -> dict[str, Any]:
    """Make every graph, compare it with PyTorch, and time it; returns the result as JSON has it."""
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as folder:
        files = {_key(variant): Path(folder) / f"{index}.onnx" for index, variant in enumerate(VARIANTS)}
        rows = [_made(variant, source, files[_key(variant)]) for variant in VARIANTS]
        for count in threads:
            sessions = {_key(variant): _open(variant, files[_key(variant)], count) for variant in VARIANTS}
            for shape in SHAPES:
                found = medians_ms(sessions, feeds(*shape), turns if shape[0] == 1 else max(2, turns // 4))
                for variant, row in zip(VARIANTS, rows, strict=True):
                    row["median_ms"][f"{count} threads, {shape[0]} x {shape[1]}"] = found[_key(variant)]
            del sessions
    return {
        "benchmark": "export_variants",
        "checkpoint": source.path.name,
        "environment": environment.describe(),
        "load_before": load_before,
        "runs_each": turns * RUNS,
        "variants": rows,
    }


def table(result: Mapping[str, Any]) -> str:
    """Draw the result: times, and below them the speed over the first variant."""
    columns = list(result["variants"][0]["median_ms"])
    first = result["variants"][0]["median_ms"]
    lines = [["graph", "precision", "export s", "error", "from reference", *columns]]
    for row in result["variants"]:
        apart = "" if row["from_reference"] is None else f"{row['from_reference']:.0e}"
        cells = [f"{row['median_ms'][name]:.2f} ({first[name] / row['median_ms'][name]:.2f}x)" for name in columns]
        lines.append([row["name"], row["precision"], f"{row['export_s']:.1f}", f"{row['error']:.0e}", apart, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _key(variant: Variant) -> tuple[str, str]:
    return variant.name, variant.precision


def _made(variant: Variant, source: Artifact, file: Path) -> dict[str, Any]:
    started = time.perf_counter()
    variant.make(source, file)
    seconds = time.perf_counter() - started
    asked = feeds(4, 19)
    (logits,) = _open(variant, file, 1).run(None, asked)
    bits = _REFERENCES.get(variant.name) if variant.precision == "int8" else None
    return {
        "name": variant.name,
        "precision": variant.precision,
        "export_s": seconds,
        "error": float(np.abs(logits - _reference(source, asked, None)).max()),
        "from_reference": float(np.abs(logits - _reference(source, asked, bits)).max()) if bits else None,
        "size_bytes": file.stat().st_size,
        "median_ms": {},
    }


@torch.inference_mode()
def _reference(source: Artifact, asked: Feeds, bits: int | None) -> NDArray[np.float32]:
    model = fresh(source).model
    if bits is not None:
        fake_quantize(model, decide(model, weight_bits=bits))
    tensors = {name: torch.from_numpy(value) for name, value in asked.items()}
    return model(**tensors).logits.numpy()  # type: ignore[no-any-return]


def _open(variant: Variant, file: Path, threads: int) -> ort.InferenceSession:
    if variant.session == "deploykit":
        return open_session(file, provider="cpu", options={}, threads=threads)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_variants")
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    try:
        result = artifact.finite(run(open_checkpoint(arguments.checkpoint), arguments.threads, arguments.turns))
    except DeploykitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.out:
        artifact.write_json(arguments.out, result)
    print(table(result))
    print(json.dumps(result, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
