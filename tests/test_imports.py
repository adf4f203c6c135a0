"""Whatever module a process imports first, it must come up: no circle of imports hides behind a lucky order."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "deploykit"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{name}: {error}")
"""


def test_every_module_can_be_the_first_to_be_imported():
    files = [file.relative_to(ROOT) for file in (ROOT / "deploykit").rglob("*.py") if file.name != "__main__.py"]
    names = sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)
    found = subprocess.run([sys.executable, "-c", CODE, *names], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
