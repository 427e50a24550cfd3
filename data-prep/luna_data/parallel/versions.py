"""Versions of what the steps are done with: by another the result might be another."""

from importlib import metadata
from typing import Dict

from fairseq_luna.versions import versions


def versions_of(*names: str) -> Dict[str, str]:
    """Those of some tools, as a step notes them."""
    known = all_versions()
    return {f"version of {name}": known[name] for name in names}


def all_versions() -> Dict[str, str]:
    return {**versions(), **{name: version_of(name) for name in ("sacremoses", "subword-nmt")}}


def version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
