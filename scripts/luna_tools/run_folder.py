"""Folders that a command makes: taken by one at a time, with the settings that they were begun with."""

import fcntl
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterator, List

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, sha256, write_json
from fairseq_luna.renamed import current


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """One command at a time in a folder; the lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise Problem(f"another run is at work in {folder}: wait for it, or choose another folder") from None
        yield


def claim(folder: Path, settings: dict) -> None:
    """Make `folder` one of ours by its settings.json, so that nobody else's files are ever overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if not path.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise Problem(f"{folder} holds files that are not of an earlier run: choose another --out")
    write_json(path, settings)


def read_record(path: Path) -> dict:
    """What a script noted there of its output; nothing where no file is, or one that is not of a script."""
    try:
        found = read_json(path, {})
    except (ValueError, IsADirectoryError):  # no JSON, or no text
        return {}
    return found if isinstance(found, dict) else {}


def differences(old: dict, new: dict) -> List[str]:
    """Which entries differ between two dictionaries of settings, each as a phrase. A former name is no difference."""
    return [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted({*old, *new})
        if _current(key, old.get(key)) != _current(key, new.get(key))
    ]


def _current(key: str, value: Any) -> Any:
    """A value by its name of today, inside of a dictionary too."""
    if isinstance(value, dict):
        return {inner: _current(inner, each) for inner, each in value.items()}
    return current(key, value)


def fingerprint(path: Path) -> str:
    """The sha256 of a file, taken once as long as it does not change."""
    facts = path.stat()
    return digest(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=None)
def digest(path: Path, *_: Any) -> str:
    return sha256(path)
