"""Passes over the traced graph: attention as one kernel, nothing that is idle or computed twice, and the count of it.

N rows   Q query length   h heads   d head size   A = h * d
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.errors import DeploykitError
from deploykit.export import operators

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_CLEANING = (
    common.IdentityEliminationPass,
    common.LiftConstantsToInitializersPass,
    common.CommonSubexpressionEliminationPass,
    common.RemoveUnusedNodesPass,
    common.RemoveUnusedOpsetsPass,
    common.ClearMetadataAndDocStringPass,
)


def fuse_attention(model: ir.Model) -> None:
    """Turn each traced attention into MultiHeadAttention, in place, without the reshapes around it.

    transformers splits heads, (N,Q,A) to (N,Q,h,d), and joins them again; the kernel takes and gives (N,Q,A).
    """
    for node in _nodes(model, operators.DOMAIN, operators.ATTENTION):
        query, key, value, mask = node.inputs
        rows = [_before_reshapes(given) for given in (query, key, value)]
        attributes = {"num_heads": node.attributes["num_heads"].as_int()}
        fused = ir.node("MultiHeadAttention", [*rows, None, mask], attributes, domain=CONTRIB, name=node.name)
        replace(model, node, [fused], _after_reshapes(node.outputs[0]))


def clean(model: ir.Model) -> None:
    """Remove what is unused or there twice, in place; declare the domain of ONNX Runtime's operators."""
    model.opset_imports[CONTRIB] = 1
    for cleaning in _CLEANING:
        cleaning()(model)


def shorten(model: ir.Model) -> None:
    """Take the detours out of what feeds the layers, in place; before `clean`, which removes what is left unused.

    At one row and few layers each node costs as much as a small product. transformers makes the mask boolean before
    attention casts it to int32, and looks positions up one by one where they are the table's first rows.
    """
    for cast in _nodes(model, "", "Cast"):
        inner = cast.inputs[0].producer() if cast.inputs[0] is not None else None
        if _casts_to(cast, ir.DataType.INT32) and inner is not None and _casts_to(inner, ir.DataType.BOOL):
            cast.replace_input_with(0, inner.inputs[0])
    for gather in _nodes(model, "", "Gather"):
        table, positions = gather.inputs
        slicing = positions.producer() if positions is not None else None
        if slicing is not None and slicing.op_type == "Slice" and _counts_from_zero(slicing.inputs[0]):
            _ids, starts, ends, _axes, *steps = slicing.inputs
            first_axis = ir.Value(name=f"{gather.name}.axes", const_value=ir.tensor([0], dtype=ir.DataType.INT64))
            model.graph.register_initializer(first_axis)
            rows = ir.node("Slice", [table, starts, ends, first_axis, *steps], name=f"{gather.name}.rows")
            replace(model, gather, [rows], gather.outputs[0])


def _casts_to(node: ir.Node, dtype: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].as_int() == dtype


def _counts_from_zero(value: ir.Value | None) -> bool:
    """Tell whether a value is the constant 0, 1, 2 and so on, in one row."""
    if value is None or (constant := ir.convenience.get_const_tensor(value)) is None:
        return False
    found = constant.numpy()
    return found.shape == (1, found.size) and bool((found[0] == np.arange(found.size)).all())


def count(model: ir.Model) -> dict[str, int]:
    """Count the graph's nodes by operator."""
    return dict(sorted(Counter(node.op_type for node in model.graph).items()))


def require_fusions(found: Mapping[str, int], expected: Mapping[str, int], where: object) -> None:
    """Check that every layer was fused.

    Raises:
        DeploykitError: an operator is there more or less often than expected.
    """
    for operator, number in expected.items():
        if found.get(operator, 0) != number:
            raise DeploykitError(
                where,
                expected=f"{number} nodes {operator} in the exported graph",
                found=str(found.get(operator, 0)),
                next_step="report this bug with the checkpoint's config.json",
            )


def replace(model: ir.Model, old: ir.Node, new: list[ir.Node], outcome: ir.Value) -> None:
    """Put nodes in the place of one; the last one's output takes over the uses of `outcome`."""
    model.graph.insert_before(old, new)
    outcome.replace_all_uses_with(new[-1].outputs[0])
    new[-1].outputs[0].type = old.outputs[0].type


def _nodes(model: ir.Model, domain: str, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == domain and node.op_type == op_type]


def _before_reshapes(value: ir.Value | None) -> ir.Value | None:
    """Walk up a chain of reshapes; a transpose in it would mean another layout, and ends the walk."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Reshape":
        value = node.inputs[0]
    return value


def _after_reshapes(value: ir.Value) -> ir.Value:
    """Walk down a chain of reshapes of which each has one consumer beside those of its shape."""
    while True:
        reshapes = [node for node, index in value.uses() if node.op_type == "Reshape" and index == 0]
        others = [node for node, _ in value.uses() if node.op_type not in ("Reshape", "Shape")]
        if others or len(reshapes) != 1:
            return value
        value = reshapes[0].outputs[0]
