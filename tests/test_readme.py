"""The README says what is there: its file tree is made of the files' own first lines.

python -m tests.test_readme     writes the tree anew
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- tree:begin -->\n", "<!-- tree:end -->\n"
FOLDERS = ("deploykit", "bentos", "benchmarks")


def tree() -> str:
    """Draw the packages, a line a file: its path and the first line of its docstring."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"), key=_order)]
    width = max(len(_path(file)) for file in files)
    lines = [f"{_path(file):{width}}  {_purpose(file)}" for file in files]
    return "```\n" + "\n".join(lines) + "\n```\n"


def _order(file: Path) -> tuple[str, bool, str]:
    return str(file.parent), file.name != "__init__.py", file.name


def _path(file: Path) -> str:
    path = file.relative_to(ROOT).as_posix()
    return path.removesuffix("__init__.py")


def _purpose(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return docstring.partition("\n")[0].removesuffix(".")


def between(text: str) -> tuple[str, str, str]:
    before, _, rest = text.partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


def test_the_tree_is_what_is_there():
    assert between((ROOT / "README.md").read_text())[1] == tree(), "run python -m tests.test_readme"


def test_every_file_says_its_purpose():
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            assert len(_purpose(file)) > 10, file


if __name__ == "__main__":
    before, _, after = between((ROOT / "README.md").read_text())
    (ROOT / "README.md").write_text(before + BEGIN + tree() + END + after)
