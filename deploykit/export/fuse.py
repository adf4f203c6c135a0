"""Passes over the traced graph: attention as one kernel, nothing that is idle or computed twice, and the count of it.

N rows   Q query length   h heads   d head size   A = h * d
"""

from collections import Counter
from collections.abc import Mapping

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
    """Put nodes in the place of one; the last one's output takes over the uses of `outcome`, and its name outside."""
    made, name, is_output = new[-1].outputs[0], outcome.name, outcome.is_graph_output()
    model.graph.insert_before(old, new)
    outcome.replace_all_uses_with(made, replace_graph_outputs=is_output)
    made.type = old.outputs[0].type
    if is_output:
        outcome.name, made.name, made.shape = None, name, outcome.shape


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
