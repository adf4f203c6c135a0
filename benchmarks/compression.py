"""How far compression goes: deploykit's models against the aims that it set itself, beside PyTorch and every int8 peer.

    python -m benchmarks.compression PLAN.yaml [--threads 2] [--rows 300] [--out F.json] [--chart F.svg]

PLAN lists the studies; paths are relative to it:

    - name: MiniLM-L6, sentiment
      data: review_sentiment          # train, validation, test
      checkpoint: original            # fine-tuned, sealed or plain
      chosen: fastest                 # an export; the fastest within the accuracy budget
      post_training: pruned           # optional: an export pruned without retraining, then int8
      int8: int8                      # the same without pruning, where post_training is given

Each study is one interleaved run of `benchmarks.peers` on the test split, which nothing was chosen on. Aims are bars on
the lower end of a 95% interval, and hold only where the model keeps 99% of the original's metric. Where a bar is
missed, the table says by how much; `time` says where a call of one row goes, from ONNX Runtime's own profile. Batch 1
is judged by the mean over rows, not the median. The int8 share is the rate of the model's integer products at batch 32,
over that of one large product on the same threads: in their kernels' own time, and in the time of whole calls; of a
cascade, over both models.
Run it on an idle machine. Prints tables, then one line of JSON.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.aims import CHOSEN, INT8, ROLES, Json, aims_of, chart, tables
from benchmarks.export_variants import int8_operations, product_call, rate_of
from benchmarks.peers import BATCH_SIZE, Question, asked_of, compare, opened, prepared, warm
from benchmarks.systems import BASELINE, PEERS, open_model
from benchmarks.turns import Call, report, samples_ms
from deploykit import artifact, checkpoint, environment, stage
from deploykit.artifact import Artifact
from deploykit.check.provider import node_runs, operator_of
from deploykit.check.steps import chain_of
from deploykit.data import open_dataset
from deploykit.runtime.batching import length_sorted_batches, pad
from deploykit.runtime.model import Model
from deploykit.runtime.model_info import FIRST, GRAPH
from deploykit.runtime.session import open_session
from deploykit.runtime.tokenizer import Encoding

SHARE_BATCHES, SHARE_TURNS = 3, 8
"""Batches of 32 whose integer products are timed, spread over the lengths, and the turns of each."""
INT8_KERNELS = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention")
"""Operators of integer products in ONNX Runtime's graph, with what quantizes their inputs."""
MACHINE = "machine"
"""The large product among the timed calls."""


@dataclass(frozen=True)
class Study:
    """One original, and what deploykit made of it."""

    name: str
    data: Path
    checkpoint: Path
    models: Mapping[str, Path]
    """Role to export."""


def read_plan(file: Path) -> list[Study]:
    """Read the studies; paths are relative to the file."""
    studies = []
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")):
        paths = {key: file.parent / value for key, value in entry.items() if key != "name"}
        models = {role: paths[role] for role in ROLES if role in paths}
        studies.append(Study(entry["name"], paths["data"], paths["checkpoint"], models))
    return studies


def run(studies: Sequence[Study], threads: int, num_rows: int) -> dict[str, Any]:
    """Do every study; returns the result as JSON has it.

    Raises:
        DeploykitError: a checkpoint, a model or the data cannot be used.
    """
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "benchmark": "compression",
        "threads": threads,
        "environment": environment.describe(),
        "load_before": load_before,
        "studies": [_study(study, threads, num_rows) for study in studies],
    }


def _study(study: Study, threads: int, num_rows: int) -> dict[str, Any]:
    original, data = checkpoint.open_checkpoint(study.checkpoint), open_dataset(study.data)
    recipes = {role: recipe_of(path) for role, path in study.models.items()}  # first: what is missing costs no timing
    with tempfile.TemporaryDirectory() as folder:
        source, question = prepared(original, data, num_rows, Path(folder))
        systems, failed = opened(PEERS, source, threads, question)
        for role, path in study.models.items():
            ours = dataclasses.replace(open_model(path, source.checkpoint, threads), name=role)
            systems.append(warm(ours, question))
        found = compare(systems, question, time.perf_counter, {"over_int8": INT8})
        chosen = study.models[CHOSEN]
        share = int8_share(chosen, question, threads, Path(folder))
    by_name = {system["name"]: system for system in found["systems"]}
    original_bytes = by_name[BASELINE]["size_bytes"]
    by_name[CHOSEN] |= {f"int8_{key}": share[key] for key in ("share", "kernels")}
    by_name[CHOSEN] |= {"smaller": original_bytes / by_name[CHOSEN]["size_bytes"]}
    return {
        "name": study.name,
        **asked_of(original, data, source, question),
        "recipes": recipes,
        **found,
        "failed": failed,
        "int8_rate": share,
        "time": profile(chosen, question, threads, by_name[CHOSEN]["single"]),
        "aims": aims_of(by_name, recipes),
    }


def recipe_of(model: Path) -> dict[str, Any]:
    """Say which stages made an export from its original, and the seconds that they took together."""
    compressed = stage.parent(artifact.read(model), "checkpoint")
    steps: list[Artifact] = chain_of(compressed)[1:]
    return {
        "stages": [{each.node.stage: dict(each.node.settings)} for each in steps],
        "seconds": sum(each.facts["seconds"] for each in steps),
    }


def int8_share(path: Path, question: Question, threads: int, folder: Path) -> dict[str, Any]:
    """Measure the rate of a model's integer products, over whole calls of 32 rows, against one large product's.

    Both on the same threads; where the model runs its rows in small batches, a thread each, so they are here.

    They are timed in turn: on a machine with neighbours the product's own rate was 252 to 364 GOP/s within hours.
    `kernels` is the share that the products reach in their own time, that of quantizing their inputs included: the
    part of a call that they take is from ONNX Runtime's profile.
    """
    spread = np.linspace(0, len(question.offline) - 1, SHARE_BATCHES + 2).astype(int)[1:-1]
    operations, calls, events = 0.0, dict[str, Call](), []
    for part, model in parts_of(path, Model.open(path, threads=threads)).items():
        batches = [model.encode([question.rows[row] for row in question.offline[at]]) for at in spread]
        together = model.rows_together(BATCH_SIZE)
        inputs = [each for batch in batches for each in _inputs(model, batch, together)]
        operations += sum(int8_operations(part / GRAPH, each) for each in inputs)
        calls |= {f"{part} {at}": partial(model.answers, batch) for at, batch in enumerate(batches)}
        events += _profiled(
            part, model, 1 if model.one_thread and model.one_thread.pool else threads, inputs * SHARE_TURNS
        )
    machine = product_call("int8", folder / "product.onnx", threads)
    samples = samples_ms({MACHINE: machine, **calls}, SHARE_TURNS)
    rate = rate_of(samples.pop(MACHINE))
    reached = operations / sum(float(np.median(found)) for found in samples.values()) / 1e6
    kernels = sum(event["dur"] for event in node_runs(events) if operator_of(event) in INT8_KERNELS)
    share = reached / rate
    return {
        "gops": reached,
        "machine_gops": rate,
        "share": share,
        "kernels": share * _micros(events) / kernels if kernels else None,
        "batch_size": BATCH_SIZE,
    }


def profile(path: Path, question: Question, threads: int, single: Json) -> dict[str, float]:
    """Split the mean call of one row: milliseconds of tokenizing and decoding, of each kind of node, and of the rest.

    Nodes' shares are those of a profiled session, which is slower; they are scaled to the call that was timed.
    """
    model, events = Model.open(path, threads=threads), []
    asked = asked_of_parts(path, model, model.encode([question.rows[index] for (index,) in question.single]))
    for part, (own, encodings) in asked.items():
        inputs = [pad([encoding], own.info.pad_id, own.info.inputs) for encoding in encodings]
        short = [each for each in inputs if own.session_for(each) is not own.session]
        events += _profiled(part, own, 1, short)
        events += _profiled(part, own, threads, [each for each in inputs if own.session_for(each) is own.session])
    spent: Counter[str] = Counter()
    for event in node_runs(events):
        spent[operator_of(event)] += event["dur"]
    whole = _micros(events)
    model_ms = single["mean"]["model_ms"]
    nodes = {name: model_ms * micros / whole for name, micros in spent.most_common()}
    return {
        "tokenize and decode": single["mean"]["ms"] - model_ms,
        **nodes,
        "between nodes": model_ms - sum(nodes.values()),
    }


def parts_of(path: Path, model: Model) -> dict[Path, Model]:
    """Return every model that may answer, alone, by its folder."""
    return {part: own for part, (own, _) in asked_of_parts(path, model, []).items()}


def asked_of_parts(
    path: Path, model: Model, encodings: Sequence[Encoding]
) -> dict[Path, tuple[Model, Sequence[Encoding]]]:
    """Return every model that may answer, alone, by its folder, with the rows that reach it one by one."""
    if model.first is None or model.info.threshold is None:
        return {path: (model, encodings)}
    rest = [row for row in encodings if model.task.confidence(model.first.run([row])[0], row) < model.info.threshold]
    return {**asked_of_parts(path / FIRST, model.first, encodings), path: (model.last, rest)}


def _micros(events: Iterable[Json]) -> float:
    """Return how long a profile's calls took, in microseconds."""
    return float(sum(event["dur"] for event in events if event["name"] == "model_run"))


def _profiled(path: Path, model: Model, threads: int, inputs: Sequence[Json]) -> list[Json]:
    """Return ONNX Runtime's profile of one model's calls."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            path / GRAPH,
            provider=model.info.provider,
            options=model.info.provider_options,
            threads=threads,
            profile=Path(folder) / "profile",
        )
        for each in inputs:
            session.run(None, each)
        events: list[Json] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _inputs(model: Model, encodings: Sequence[Encoding], together: int) -> list[dict[str, NDArray[np.int64]]]:
    """Pad rows in the batches that the model runs them in."""
    batches = length_sorted_batches([len(encoding.ids) for encoding in encodings], together)
    return [pad([encodings[at] for at in batch], model.info.pad_id, model.info.inputs) for batch in batches]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__.partition("\n")[0])
    parser.add_argument("plan", type=Path, help="a YAML list of studies")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=300, help="how many texts are timed one by one")
    parser.add_argument("--out", type=Path, help="where the JSON is kept")
    parser.add_argument("--chart", type=Path, help="where the chart is drawn, as SVG")
    arguments = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        result = run(read_plan(arguments.plan), arguments.threads, arguments.rows)
        if arguments.chart:
            arguments.chart.write_text(chart(result), encoding="utf-8")
        return result

    return report(measured, tables, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
