"""No circle of imports: whatever module a process imports first comes up, by more than a lucky order."""

import ast
import graphlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """Name what a module imports as it is loaded: `from a import b` may mean the module a.b."""
    for statement in body:
        match statement:
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{each.name}" for each in names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.If() | ast.Try() | ast.With():
                yield from imported([node for node in ast.iter_child_nodes(statement) if isinstance(node, ast.stmt)])


def packages(name: str) -> list[str]:
    """Name a module and the packages that it is in, whose `__init__` runs before it: a, a.b, a.b.c."""
    return list(itertools.accumulate(name.split("."), lambda parent, part: f"{parent}.{part}"))


def load_order(root: Path, package: str) -> list[str]:
    """Order all modules so that each comes after what it imports.

    Raises:
        graphlib.CycleError: there is no such order.
    """
    files = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (root / package).rglob("*.py")
    }
    waits_for = {
        name: {
            loaded
            for found in imported(ast.parse(file.read_text()).body)
            for loaded in packages(found)
            if loaded in files and loaded not in packages(name)
        }
        for name, file in files.items()
    }
    return list(graphlib.TopologicalSorter(waits_for).static_order())


def test_no_module_waits_for_itself():
    assert len(load_order(ROOT, "deploykit")) > 100


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "import p.b", "b.py": "from p import a"},
        {
            "a.py": "if True:\n    from p.b import x",
            "b.py": "import p.sub.c",
            "sub/c.py": "",
            "sub/__init__.py": "import p.a",
        },
    ],
)
def test_a_circle_would_be_seen(tmp_path, files):
    (tmp_path / "p" / "sub").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "p" / name).write_text(text)
    with pytest.raises(graphlib.CycleError):
        load_order(tmp_path, "p")


def test_an_import_in_a_function_or_for_types_alone_makes_no_circle(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text("from p import b")
    (tmp_path / "p" / "b.py").write_text("if TYPE_CHECKING:\n    from p import a\ndef late():\n    import p.a")
    assert load_order(tmp_path, "p") == ["p.b", "p.a"]
