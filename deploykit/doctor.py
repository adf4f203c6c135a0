"""`deploykit doctor`: the environment, and a one-node model really run on each provider."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.table import Table

from deploykit import environment
from deploykit.errors import DeploykitError
from deploykit.evidence import Verdict
from deploykit.runtime.session import open_session

PROVIDERS = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True)
class Examination:
    """The facts of the machine, and what each provider answered."""

    facts: dict[str, str]
    providers: dict[str, str]
    """Provider to "ok", or to why it cannot run here."""

    @property
    def verdict(self) -> Verdict:
        """`pass` where the CPU provider runs; the others are optional."""
        return "pass" if self.providers["cpu"] == "ok" else "fail"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Name the providers that cannot run."""
        return tuple(f"{name}: {answer}" for name, answer in self.providers.items() if answer != "ok")


def examine() -> Examination:
    """Describe the machine and run one matrix product on each provider."""
    described = environment.describe()
    facts = {name: _text(value) for name, value in described.items()}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "one-node.onnx"
        onnx.save(_one_node(), model)
        return Examination(facts, {name: _answer(model, name) for name in PROVIDERS})


def shown(found: Examination) -> Table:
    """Draw an examination."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in {**found.facts, **found.providers}.items():
        table.add_row(name, value)
    return table


def _answer(model: Path, provider: str) -> str:
    try:
        session = open_session(model, provider=provider, options={})
    except DeploykitError as error:
        return str(error)
    (product,) = session.run(None, {"x": np.eye(4, dtype=np.float32)})
    return "ok" if np.array_equal(product, np.ones((4, 4), np.float32)) else "a wrong product"


def _one_node() -> onnx.ModelProto:
    """Build x @ ones: (4,4) float32."""
    square = [4, 4]
    weight = helper.make_tensor("w", TensorProto.FLOAT, square, [1.0] * 16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, square) for name in "xy"]
    graph = helper.make_graph([node], "one-node", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {found}" for name, found in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
