"""`python -m fairseq_luna`: the folder to give to fairseq's --user-dir."""

import argparse
import sys
from pathlib import Path

from .versions import __version__, differences, require_fairseq, versions


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_luna",
        description='Print the folder to give to fairseq: fairseq-train --user-dir "$(python -m fairseq_luna)" ...',
    )
    parser.add_argument(
        "--versions", action="store_true", help="print the versions found and whether they were tested together"
    )
    if parser.parse_args().versions:
        return report()
    print(Path(__file__).resolve().parent)
    return 0


def report() -> int:
    """Print the versions found; 1 where fairseq cannot be used."""
    for name, version in {"fairseq_luna": __version__, **versions()}.items():
        print(f"{name:<14} {version}")
    apart = differences()
    if apart:
        listed = ", ".join(f"{name} {version}" for name, version in apart.items())
        print(f"This combination is not tested; the nearest one that is has {listed}.")
    else:
        print("This combination is tested.")
    try:
        require_fairseq()
    except ImportError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
