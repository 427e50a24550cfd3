"""`python -m fairseq_luna`: the folder to give to fairseq's --user-dir, what works here, and what there is to set."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from .check import check
from .versions import __version__, require_fairseq, verdict, versions


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_luna",
        description='Print the folder to give to fairseq: fairseq-train --user-dir "$(python -m fairseq_luna)" ...',
    )
    parser.add_argument(
        "--versions", action="store_true", help="print the versions found and whether they were tested together"
    )
    parser.add_argument(
        "--check", action="store_true", help="train and translate with a very small model, and tell what works here"
    )
    parser.add_argument(
        "--settings",
        nargs="?",
        const="luna_transformer",
        metavar="ARCH",
        help="print all settings of an architecture (default: %(const)s), their defaults and what they mean",
    )
    args = parser.parse_args()
    if args.versions:
        return report()
    if args.check:
        return check()
    if args.settings:
        return list_settings(args.settings)
    print(Path(__file__).resolve().parent)
    return 0


def report() -> int:
    """Print the versions found; 1 where fairseq cannot be used."""
    for name, version in {"fairseq_luna": __version__, **versions()}.items():
        print(f"{name:<14} {version}")
    print(verdict())
    try:
        require_fairseq()
    except ImportError as error:
        print(error)
        return 1
    return 0


def list_settings(arch: str) -> int:
    """Print the settings of an architecture; 1 where there is none of that name, or fairseq cannot be used."""
    from .compat import silence_deprecations

    silence_deprecations()
    try:
        require_fairseq()
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    from .renamed import current
    from .settings import ARCHITECTURES, text

    arch = current("arch", arch)
    if arch not in ARCHITECTURES:
        print(f"--settings {arch} is no architecture; choose from {', '.join(ARCHITECTURES)}.", file=sys.stderr)
        return 1
    try:
        print(text(arch, shutil.get_terminal_size((100, 24)).columns), flush=True)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
