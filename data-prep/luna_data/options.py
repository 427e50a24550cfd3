"""The options that several preparations have."""

import argparse
import os
from pathlib import Path

from luna_tools.console import count


def absolute(text: str) -> Path:
    return Path(text).absolute()


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=count,
        default=os.cpu_count(),
        metavar="N",
        help="processes; the result does not depend on it (default: all %(default)s)",
    )
