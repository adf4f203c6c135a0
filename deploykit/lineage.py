"""An artifact's history drawn as a tree: what it is, what made it, and what that was made from."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from deploykit.artifact import Artifact, Node

_SHOWN_SETTINGS = 6


def tree_of(found: Artifact) -> Tree:
    """Draw an artifact, its files and facts, and its parents below it."""
    root = Tree(f"[bold]{found.path.name}[/] {_title(found.node)}")
    files = root.add(f"{len(found.files)} files, {_size(found.num_bytes)}")
    for name, digest in sorted(found.files.items()):
        files.add(f"{name}  [dim]{digest[:12]}[/]")
    if "seconds" in found.facts:
        root.add(f"made in {found.facts['seconds']:.1f} s on {found.facts.get('host', 'an unknown machine')}")
    _grow(root, found.node)
    return root


def _grow(tree: Tree, node: Node) -> None:
    for parent in node.parents:
        _grow(tree.add(f"from {_title(parent)}"), parent)


def _title(node: Node) -> str:
    return f"[cyan]{node.kind}[/] by {node.stage}{_settings(node.settings)} [dim]{node.digest[:12]}[/]"


def _settings(settings: Mapping[str, Any]) -> str:
    shown = [f"{name}={value}" for name, value in settings.items() if value is not None][:_SHOWN_SETTINGS]
    return escape(f" ({', '.join(shown)})") if shown else ""


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"
