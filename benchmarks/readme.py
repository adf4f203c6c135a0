"""Keep the README's copy of the results: those of `benchmarks.peers`, and the aims of `benchmarks.compression`.

    python -m benchmarks.readme README.md benchmarks/results/*.json

writes their tables between the README's two markers; a test checks that they agree.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import aims, table
from benchmarks.table import Json
from deploykit.artifact import read_json
from deploykit.errors import DataError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def rendered(results: Iterable[Json]) -> str:
    """Render the results that the README shows: the aims of all studies in one table, then every run of the peers."""
    by_name: dict[str, list[Json]] = {}
    for result in results:
        by_name.setdefault(result.get("benchmark", ""), []).append(result)
    studies, runs = (by_name.get(name, []) for name in ("compression", "peers"))
    drawn = [aims.summary(studies)] if studies else []
    return "\n\n".join([*drawn, *map(table.markdown, runs)])


def read(text: str) -> str:
    """Return what stands between a page's markers; nothing where there are none."""
    _, found, rest = text.partition(BEGIN)
    return rest.partition(END)[0].strip() if found else ""


def replaced(text: str, where: object, new: str) -> str:
    """Return a page with `new` between its markers.

    Raises:
        DataError: it has no markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DataError(where, expected=f"{BEGIN} and {END}", found="no such markers", next_step="add them")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def main(argv: Sequence[str]) -> int:
    """Rewrite the part of a page that lies between the markers."""
    page, *files = map(Path, argv)
    text = page.read_text(encoding="utf-8")
    page.write_text(replaced(text, page, rendered(map(read_json, sorted(files)))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
