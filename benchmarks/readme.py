"""Keep the README's copy of the results: those of `benchmarks.peers`, and the aims of `benchmarks.compression`.

    python -m benchmarks.readme README.md benchmarks/results/*.json

writes their tables between the README's two markers; a test checks that they agree.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from benchmarks import aims, table
from benchmarks.table import Json
from deploykit.artifact import read_json
from deploykit.errors import DataError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

_DRAWN: Mapping[str, Callable[[Json], str]] = MappingProxyType({"peers": table.markdown, "compression": aims.summary})


def rendered(results: Iterable[Json]) -> str:
    """Render every result that the README shows, in the order given."""
    drawn = [_DRAWN[result["benchmark"]](result) for result in results if result.get("benchmark") in _DRAWN]
    return "\n\n".join(drawn)


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
