"""Every quantization that deploykit offers, on one checkpoint: what it costs, what it gives, whether it has a point.

    python -m benchmarks.quantization CHECKPOINT --data D [--threads 2] [--rows 300] [--max-drop 0.005]
        [--train-quantized EPOCHS] [--models DIR] [--out F]

Every row is a recipe, made from the checkpoint and exported for the CPU; what cannot be made or run here is named with
its reason. All rows answer the same test split in one interleaved run, as in `benchmarks.peers`: batch 1 is the median
of calls of one text at its own length, offline the whole split in batches of 32. Ratios are speeds: above 1 is faster
than our own float32, or dynamic int8, export. The drop is against float32, positive where it is worse. Intervals are
95%. `in float` counts matrices.

A row is pointless here where it is the same graph as one before, where it is neither measurably faster nor smaller than
float32, or where another row dominates it: measurably faster at batch 1 or offline and slower at neither, no larger,
and its metric no lower. Measurably is: beyond both intervals.

Quantization-aware training takes minutes and is left out without `--train-quantized`. `--models` keeps what was made,
for a rerun. Run it on an idle machine. Prints a table, then one line of JSON; `--out` keeps the JSON.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import asked_of, compare, prepared, warm
from benchmarks.systems import open_model
from benchmarks.table import grid, heading, ratio
from benchmarks.turns import report
from deploykit import environment, stage
from deploykit.artifact import Artifact
from deploykit.checkpoint import open_checkpoint
from deploykit.compress.calibrate import CALIBRATIONS
from deploykit.compress.compress import Quantize, Smooth, TrainQuantized
from deploykit.data import open_dataset
from deploykit.environment import cache_dir
from deploykit.errors import DeploykitError
from deploykit.export.export import Export
from deploykit.runtime import model_info
from deploykit.stage import Stage

FP32, INT8 = "fp32", "dynamic int8"
SCENARIOS = ("single", "offline")
SAME_SIZE = 1.01
"""Graphs that differ by less differ in names and scales only."""

Json = Mapping[str, Any]
Recipes = Mapping[str, tuple[Stage, ...]]


def recipes(max_drop: float, epochs: int) -> dict[str, tuple[Stage, ...]]:
    """List what is compared: name to stages, none for float32; `epochs` of quantization-aware training, 0 without."""
    trained: Recipes = {"trained for int8": (TrainQuantized(epochs=epochs), Quantize())} if epochs else {}
    static: Recipes = {
        f"static int8, {each}": (Quantize(scheme="static-int8", calibration=each),)  # type: ignore[arg-type]
        for each in CALIBRATIONS
    }
    return {
        FP32: (),
        INT8: (Quantize(),),
        "dynamic int8, float embeddings": (Quantize(embeddings="float32"),),
        "dynamic int8, int4 embeddings": (Quantize(embeddings="int4"),),
        "dynamic int8, 8-bit weights": (Quantize(weight_bits=8),),
        "smooth, dynamic int8": (Smooth(), Quantize()),
        **trained,
        **static,
        "static int8, 8-bit weights": (Quantize(scheme="static-int8", weight_bits=8),),
        f"static int8, minmax, drop {max_drop:g}": (
            Quantize(scheme="static-int8", calibration="minmax", max_drop=max_drop),
        ),
        "smooth, static int8": (Smooth(), Quantize(scheme="static-int8")),
        "int4, nearest": (Quantize(scheme="int4", rounding="nearest"),),
        "int4, gptq": (Quantize(scheme="int4", rounding="gptq"),),
        "fp16": (Quantize(scheme="fp16"),),
    }


def made(
    asked: Recipes, original: Artifact, data: Artifact, folder: Path
) -> tuple[dict[str, Artifact], list[dict[str, str]]]:
    """Compress and export each recipe; returns the models by name, and the name and reason of each that there is not.

    What is finished in `folder` or in the cache is used again.

    Raises:
        DeploykitError: there is no float32 or no dynamic int8 model to compare with.
    """
    models, failed = {}, []
    for name, stages in asked.items():
        own = name.replace(",", "").replace(" ", "-")
        try:
            models[name] = stage.run(Export(), _compressed(original, data, stages), out=folder / own)
        except DeploykitError as error:
            if name in (FP32, INT8):
                raise
            failed.append({"name": name, "reason": str(error)})
    return models, failed


def _compressed(original: Artifact, data: Artifact, stages: Sequence[Stage]) -> Artifact:
    """Run stages into the cache, where `compress` looks too, and keep what that would drop as not worth it."""
    source = original
    for each in stages:
        source = stage.run(
            each, source, data, out=cache_dir() / "stages" / stage.node_before(each, source, data).origin
        )
    return source


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make and compare everything; returns the result as JSON has it.

    Raises:
        DeploykitError: the checkpoint or the data cannot be used.
    """
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    data, original = open_dataset(arguments.data), open_checkpoint(arguments.checkpoint)
    asked = recipes(arguments.max_drop, arguments.train_quantized)
    with tempfile.TemporaryDirectory() as folder:
        models, failed = made(asked, original, data, arguments.models or Path(folder))
        source, question = prepared(original, data, arguments.rows, Path(folder))
        systems = [
            warm(dataclasses.replace(open_model(each.path, source.checkpoint, arguments.threads), name=name), question)
            for name, each in models.items()
        ]
        found = compare(systems, question, time.perf_counter, {"over_int8": INT8}, FP32)["systems"]
        rows = [row | _facts(asked[row["name"]], models[row["name"]]) for row in found]
    reasons = pointless(rows)
    return {
        "benchmark": "quantization",
        **asked_of(original, data, source, question),
        "threads": arguments.threads,
        "environment": environment.describe(),
        "load_before": load_before,
        "systems": [row | {"pointless": reasons.get(row["name"])} for row in rows],
        "failed": failed,
    }


def _facts(stages: Sequence[Stage], model: Artifact) -> dict[str, Any]:
    """Say how a model was made, which matrices it keeps in float, and which graph it is."""
    decision = model_info.read(model.path).quantization
    return {
        "stages": [{each.verb: stage.settings_of(each)} for each in stages],
        "keep_float": list(decision["keep_float"]) if decision else [],
        "graph": [digest for file, digest in model.files.items() if file.startswith(model_info.GRAPH)],
    }


def pointless(rows: Sequence[Json]) -> dict[str, str]:
    """Name the rows that have no point on this machine, with the reason; float32, the first row, is what they replace.

    Args:
        rows: of `compare`, with `graph`, the digests of the files of the model's.
    """
    found = {}
    for index, row in enumerate(rows[1:], 1):
        same = next((other["name"] for other in rows[:index] if other["graph"] == row["graph"]), None)
        better = next((other["name"] for other in rows if _dominates(other, row)), None)
        if same:
            found[row["name"]] = f"the same graph as {same}"
        elif not any(_faster(row, rows[0], each) for each in SCENARIOS) and _no_larger(rows[0], row):
            found[row["name"]] = f"neither measurably faster nor smaller than {rows[0]['name']}"
        elif better:
            found[row["name"]] = f"{better} is faster, no larger and loses no more"
    return found


def _dominates(one: Json, other: Json) -> bool:
    return (
        one["graph"] != other["graph"]
        and any(_faster(one, other, each) for each in SCENARIOS)
        and not any(_faster(other, one, each) for each in SCENARIOS)
        and _no_larger(one, other)
        and one["metric"]["value"] >= other["metric"]["value"]
    )


def _no_larger(one: Json, other: Json) -> bool:
    return bool(one["size_bytes"] <= SAME_SIZE * other["size_bytes"])


def _faster(one: Json, other: Json, scenario: str) -> bool:
    """Compare speeds over float32; without an interval nothing can be told."""
    low, high = one[scenario]["over_baseline"]["low"], other[scenario]["over_baseline"]["high"]
    return low is not None and high is not None and low > high


def table(result: Json) -> str:
    """Draw the result, what could not be made last."""
    metric = result["systems"][0]["metric"]["name"].replace("_", " ")
    speeds = ("x fp32", "x dynamic int8")
    columns = ("drop", "MB", "in float", "batch 1, ms", *speeds, "offline, rows/s", *speeds, "pointless here")
    header = ("quantization", metric, *columns)
    rows = [_row(each) for each in result["systems"]]
    rows += [(each["name"], f"not run: {each['reason']}", *[""] * (len(header) - 2)) for each in result["failed"]]
    return f"{heading(result['checkpoint']['name'], result, result['threads'])}\n\n{grid([header, *rows])}"


def _row(system: Json) -> tuple[str, ...]:
    single, offline = system["single"], system["offline"]
    return (
        system["name"],
        f"{system['metric']['value']:.4f}",
        f"{system['drop']['value']:+.4f} ({system['drop']['low']:+.4f} to {system['drop']['high']:+.4f})",
        f"{system['size_bytes'] / 1e6:.1f}",
        str(len(system["keep_float"])),
        f"{single['p50_ms']:.2f}",
        ratio(single["over_baseline"]),
        ratio(single["over_int8"]),
        f"{offline['rows_per_s']:.0f}",
        ratio(offline["over_baseline"]),
        ratio(offline["over_int8"]),
        system["pointless"] or "",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", help="a fine-tuned checkpoint in float")
    parser.add_argument("--data", required=True, help="a folder with train, validation and test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=300, help="how many texts are timed one by one")
    parser.add_argument(
        "--max-drop",
        type=float,
        default=0.005,
        help="what static int8 by minmax may lose, at the cost of layers in float",
    )
    parser.add_argument("--train-quantized", type=int, default=0, metavar="EPOCHS", help="of training under rounding")
    parser.add_argument("--models", type=Path, help="where the models are kept")
    parser.add_argument("--out", type=Path, help="where the JSON is kept")
    arguments = parser.parse_args(argv)
    return report(lambda: run(arguments), table, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
