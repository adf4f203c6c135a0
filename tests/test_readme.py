"""The README says what is there: its file tree and its stages are made of the first lines of docstrings.

python -m tests.test_readme     writes them anew
"""

import ast
import inspect
from pathlib import Path

import pytest

from deploykit.compress.compress import COMPRESS_STAGES

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FOLDERS = ("deploykit", "bentos", "benchmarks")


def tree() -> str:
    """Draw the packages, a line a file: its path and the first line of its docstring."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"), key=_order)]
    width = max(len(_path(file)) for file in files)
    lines = [f"{_path(file):{width}}  {_purpose(file)}" for file in files]
    return "```\n" + "\n".join(lines) + "\n```\n"


def stages() -> str:
    """List what a recipe may name, each with the first line of its docstring."""
    rows = [f"| `{verb}` | {_first_line(inspect.getdoc(stage))} |" for verb, stage in COMPRESS_STAGES.items()]
    return "\n| stage | what it does |\n|---|---|\n" + "\n".join(rows) + "\n\n"


PARTS = {"tree": tree, "stages": stages}


def _order(file: Path) -> tuple[str, bool, str]:
    return str(file.parent), file.name != "__init__.py", file.name


def _path(file: Path) -> str:
    path = file.relative_to(ROOT).as_posix()
    return path.removesuffix("__init__.py")


def _purpose(file: Path) -> str:
    return _first_line(ast.get_docstring(ast.parse(file.read_text())))


def _first_line(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0].removesuffix(".")


def _around(text: str, part: str) -> tuple[str, str, str]:
    """Cut a text at the marks of a part: up to it, the part, and what follows."""
    begin, end = f"<!-- {part}:begin -->\n", f"<!-- {part}:end -->\n"
    before, found, rest = text.partition(begin)
    assert found, f"README has no mark {begin}"
    inside, found, after = rest.partition(end)
    assert found, f"README has no mark {end}"
    return before + begin, inside, end + after


@pytest.mark.parametrize("part", PARTS)
def test_the_readme_is_what_is_there(part):
    assert _around(README.read_text(), part)[1] == PARTS[part](), "run python -m tests.test_readme"


def test_every_file_and_stage_says_its_purpose():
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert all(len(_purpose(file)) > 10 for file in files)
    assert all(len(_first_line(inspect.getdoc(stage))) > 10 for stage in COMPRESS_STAGES.values())


if __name__ == "__main__":
    for name, made in PARTS.items():
        before, _, after = _around(README.read_text(), name)
        README.write_text(before + made() + after)
