"""Files that are there whole or not at all, and lines of text."""

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from .errors import Problem


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; it takes the place of `path` only once complete.

    What is written beside is removed where an error ends it.
    """
    beside = path.with_name(path.name + ".part")
    remove(beside)
    try:
        yield beside
        if beside.is_dir():
            remove(path)
        os.replace(beside, path)
    except BaseException:
        remove(beside)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def write_text(path: Path, text: str) -> None:
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, split at newlines alone (not, as str.splitlines does, at U+2028 and others)."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.rstrip(b"\r\n").decode("utf-8")
            except UnicodeDecodeError as error:
                raise Problem(
                    f"{path}, line {number} is not UTF-8 ({error.reason} at byte {error.start + 1} of the line): "
                    "convert the file, or remove the line from both sides"
                ) from None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
