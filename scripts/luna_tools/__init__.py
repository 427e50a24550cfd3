"""What the scripts here and in data-prep/ do, by purpose.

Importing this makes some modules of the plugin importable without the plugin, which takes seconds and needs fairseq.
They need the standard library only. So `--help` answers where nothing is installed, and the preparation of data starts
at once. The plugin takes the same modules where it is imported later."""

import os
import sys

# `python -m` puts the user's folder first, where a checkout of fairseq or a file random.py would be taken for another
if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

import importlib  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType  # noqa: E402

PACKAGE = Path(__file__).resolve().parent.parent.parent / "fairseq_luna"
LIGHT = (
    *("errors", "files", "archives", "renamed", "versions", "text.recipes"),
    *(f"generation.{name}" for name in ("options", "results", "inputs", "places", "packing")),
)


def lend() -> None:
    if PACKAGE.name in sys.modules:
        return
    package = ModuleType(PACKAGE.name)
    package.__path__ = [str(PACKAGE)]
    sys.modules[package.__name__] = package
    try:
        for name in LIGHT:
            importlib.import_module(f"{package.__name__}.{name}")
    finally:
        del sys.modules[package.__name__]


lend()
