"""Where translations are, where is told how they were made, and by which name."""

import argparse
from pathlib import Path

from fairseq_luna.text import recipes
from luna_tools.console import teller

say = teller("generate")


def file_name(args: argparse.Namespace, subset: str, lenpen: float, *more: str) -> str:
    return ".".join([f"{subset}.beam{args.beam}.lenpen{lenpen:g}", *more, recipes.load(args.data).target])


def record_of(out: Path) -> Path:
    """Where is told how translations were made."""
    return out.with_name(out.name + ".json")


def parts_of(out: Path) -> Path:
    """Where translations are kept until they are all there."""
    return out.with_name(out.name + ".parts")
