"""Debian's packages: downloaded, unpacked, and searched for a file."""

import shutil
import subprocess
from pathlib import Path
from typing import List

from fairseq_luna.errors import Problem


def download(names: List[str], folder: Path) -> List[Path]:
    try:
        done = subprocess.run(["apt-get", "download", *names], cwd=str(folder), capture_output=True, encoding="utf-8")
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        raise Problem(
            f"apt-get cannot download {' and '.join(names)}: {problem}\n"
            "Where there is no Debian, get the packages elsewhere and give them by --debs"
        )
    return sorted(folder.glob("*.deb"))


def unpacked(deb: Path, folder: Path) -> Path:
    root = folder / deb.stem
    if not shutil.which("dpkg-deb"):
        raise Problem("there is no dpkg-deb to unpack the packages with: install it (most systems have a package dpkg)")
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Problem(f"{deb} is no package that dpkg-deb can unpack: {done.stderr.strip()}")
    return root


def find(roots: List[Path], end: str) -> Path:
    for root in roots:
        for path in sorted(root.rglob(Path(end).name)):
            if path.as_posix().endswith(end):
                return path
    raise Problem(f"no package holds .../{end}: are these the packages that --help names?")
