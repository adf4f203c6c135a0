"""Which graph is the fastest on this machine: every choice of `deploykit.export` beside its alternatives.

    python -m benchmarks.export_variants CHECKPOINT [--threads 1 2] [--turns 8] [--out F]

CHECKPOINT is a BERT's folder or hub name; it gets a new head, whose weights do not matter here. Graphs take turns (see
`benchmarks.turns`). Times are medians in milliseconds of the graph alone; `speed` is that of deploykit's graph of the
same precision over a variant's time, with a 95% interval: above 1, the variant is faster. `error` is the largest
difference of a logit from eager PyTorch in float32 on random tokens. `from reference` is that from the fake-quantized
model, where there is one: each int8 product agrees with it bit for bit on the same input, but a float rounding between
two products can move an activation to the next integer, and later layers amplify that; with 8-bit weights and no VNNI,
saturation comes on top.

The bound is `rates_gops`: what one large matrix product reaches here, in GOP/s (a multiplication and an addition are
two operations). The last lines say which share of it deploykit's int8 graph reaches: its int8 operations over its time.
Takes three minutes on two idle cores. Prints a table, then one line of JSON; `--out` keeps the JSON.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from benchmarks.export_graphs import VARIANTS, Variant, fresh, large_product
from benchmarks.turns import TURN, Call, report, samples_ms
from deploykit import environment
from deploykit.artifact import Artifact
from deploykit.check.ratio import ratio_of_interleaved
from deploykit.checkpoint import open_checkpoint
from deploykit.compress.fake_quant import decide, fake_quantize
from deploykit.export.lower_int8 import ATTENTION, PRODUCT
from deploykit.runtime.session import open_session

SHAPES = ((1, 8), (1, 26), (1, 64), (32, 26))
LARGE = (832, 384, 1536)
"""M, K, N of the product whose rate is the bound: the widest one of MiniLM at 32 rows of 26 tokens."""
BATCH_TURNS = 2
"""Turns of a batch of 32 rows: one call takes a tenth of a second."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OURS = "deploykit"
_REFERENCES = {OURS: 7, "ours, 8-bit weights": 8}
"""int8 variants with an exact reference, and the bits of it."""

Feeds = Mapping[str, NDArray[np.int64]]


def feeds(num_rows: int, length: int) -> dict[str, NDArray[np.int64]]:
    """Make rows of random tokens without padding: int64 (N,L) each."""
    ids_NL = np.random.default_rng(0).integers(1000, 20000, (num_rows, length))
    return dict(zip(INPUTS, (ids_NL, np.ones_like(ids_NL), np.zeros_like(ids_NL)), strict=True))


def run(source: Artifact, threads: Sequence[int], turns: int) -> dict[str, Any]:
    """Make every graph, compare it with PyTorch, and time it; returns the result as JSON has it."""
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as folder:
        files = {variant: Path(folder) / f"{index}.onnx" for index, variant in enumerate(VARIANTS)}
        rows = [_made(variant, source, file) for variant, file in files.items()]
        for count in threads:
            for row, timed in zip(rows, _timed(files, count, turns), strict=True):
                row["threads"][str(count)] = timed
        rates = {str(count): product_rates(count, Path(folder)) for count in threads}
        work = {_named(shape): int8_operations(files[_ours("int8")], feeds(*shape)) / 1e9 for shape in SHAPES}
    return {
        "benchmark": "export_variants",
        "checkpoint": source.path.name,
        "environment": environment.describe(),
        "load_before": load_before,
        "calls": turns * TURN,
        "rates_gops": rates,
        "int8_gop": work,
        "variants": rows,
    }


def table(result: Mapping[str, Any]) -> str:
    """Draw the result: times and speeds, then the rates and how much of them deploykit's int8 graph reaches."""
    columns = [(count, shape) for count in result["rates_gops"] for shape in result["int8_gop"]]
    lines = [["graph", "precision", "error", "from reference", *(f"{count} thr. {shape}" for count, shape in columns)]]
    for row in result["variants"]:
        apart = "" if row["from_reference"] is None else f"{row['from_reference']:.0e}"
        cells = [_cell(row["threads"][count][shape]) for count, shape in columns]
        lines.append([row["name"], row["precision"], f"{row['error']:.0e}", apart, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    drawn = [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]
    return "\n".join([*drawn, "", *(_bound(result, count) for count in result["rates_gops"])])


def int8_operations(file: Path, inputs: Feeds) -> int:
    """Count the multiplications and additions of a graph's integer products on a batch."""
    graph = onnx.load(file)
    sizes = {tensor.name: np.prod(tensor.dims) for tensor in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type in (PRODUCT, ATTENTION)]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.output[0]) for node in nodes)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run([node.output[0] for node in nodes], inputs)
    return sum(
        2 * int(sizes[node.input[1]]) * made.size // made.shape[-1] for node, made in zip(nodes, found, strict=True)
    )


def _ours(precision: str) -> Variant:
    return next(variant for variant in VARIANTS if (variant.name, variant.precision) == (OURS, precision))


def _key(variant: Variant) -> str:
    return f"{variant.name}, {variant.precision}"


def _named(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


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
        "threads": {},
    }


def _timed(files: Mapping[Variant, Path], threads: int, turns: int) -> list[dict[str, Any]]:
    """Time all graphs on all shapes; per graph and shape the median, and the speed over deploykit's."""
    sessions = {variant: _open(variant, file, threads) for variant, file in files.items()}
    timed: list[dict[str, Any]] = [{} for _ in files]
    for shape in SHAPES:
        calls = {_key(variant): partial(session.run, None, feeds(*shape)) for variant, session in sessions.items()}
        samples = samples_ms(calls, turns if shape[0] == 1 else BATCH_TURNS)
        for variant, found in zip(files, timed, strict=True):
            own, ours = samples[_key(variant)], samples[_key(_ours(variant.precision))]
            speed = ratio_of_interleaved(ours, own, 0.5)
            found[_named(shape)] = {"median_ms": float(np.median(own)), "speed": asdict(speed)}
    return timed


def product_rates(threads: int, folder: Path) -> dict[str, float]:
    """Measure what one large matrix product reaches: GOP/s by precision."""
    calls = {name: product_call(name, folder / f"{name}.onnx", threads) for name in ("int8", "fp32")}
    return {name: rate_of(found) for name, found in samples_ms(calls, BATCH_TURNS).items()}


def rate_of(samples_ms_N: NDArray[np.float64]) -> float:
    """Return the rate of the large product, GOP/s, at its best of N samples."""
    return float(2 * np.prod(LARGE) / samples_ms_N.min() / 1e6)


def product_call(precision: str, file: Path, threads: int) -> Call:
    """Write the large product to `file`, and return a call of it."""
    x, graph = large_product(precision, LARGE)
    onnx.save(graph, file)
    session = open_session(file, provider="cpu", options={}, threads=threads)
    return partial(session.run, None, {"x": x})


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


def _cell(timed: Mapping[str, Any]) -> str:
    speed = timed["speed"]
    between = "" if speed["low"] is None else f" ({speed['low']:.2f} to {speed['high']:.2f})"
    return f"{timed['median_ms']:.2f} {speed['value']:.2f}x{between}"


def _bound(result: Mapping[str, Any], threads: str) -> str:
    rates = result["rates_gops"][threads]
    ours = next(row for row in result["variants"] if (row["name"], row["precision"]) == (OURS, "int8"))
    shares = [
        f"{shape} {1000 * gop / ours['threads'][threads][shape]['median_ms'] / rates['int8']:.0%}"
        for shape, gop in result["int8_gop"].items()
    ]
    return (
        f"{threads} threads: a large product runs at {rates['int8']:.0f} GOP/s in int8, {rates['fp32']:.0f} in fp32; "
        f"deploykit's int8 graph reaches, of the first: {', '.join(shares)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_variants")
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    return report(
        lambda: run(open_checkpoint(arguments.checkpoint), arguments.threads, arguments.turns), table, arguments.out
    )


if __name__ == "__main__":
    sys.exit(main())
