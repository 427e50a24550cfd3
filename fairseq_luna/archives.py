"""Files in one archive, each checked as it is unpacked, whoever made the archive.

The first member lists the others: SHA-256 and bytes of each by its name. Nothing is unpacked that the list does not
tell of, no other than plain files are made, and a few bytes that claim to be gigabytes are not believed.
"""

import gzip
import hashlib
import lzma
import shutil
import tarfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterable, Iterator, NamedTuple

from .errors import Problem
from .files import sha256

BLOCK = 1 << 20  # bytes that are read at once, and at most of the list
DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError, RecursionError)

Sums = Dict[str, Dict[str, Any]]  # "sha256" and "bytes" of each member by its name


class Sober:
    """Does not read without measure: a few bytes of an archive may claim to be a header of many gigabytes."""

    def read(self, size: Any = -1) -> bytes:
        if size is None or not 0 <= size <= 2 * BLOCK:
            raise tarfile.ReadError(f"it asks for {size:,} bytes at once")
        return super().read(size)  # type: ignore[misc]


class SoberGzip(Sober, gzip.GzipFile):
    pass


class SoberXz(Sober, lzma.LZMAFile):
    pass


class Kind(NamedTuple):
    """A kind of archive, and what is said of one that is not as it should be: of {file}, a {name} in it, an {error}."""

    first: str  # the name of the member that lists the others
    unzipped: Callable[[str], Any]  # opens a file by its path: SoberGzip or SoberXz
    damaged: str
    foreign: str  # it does not begin with the list
    strange: str  # a member that is not listed, there twice, not as long as listed, or no plain file
    altered: str  # another SHA-256
    lacking: str  # {name}: of all members that are missing


# ---- writing


def sums_of(folder: Path, names: Iterable[str]) -> Sums:
    """What the list tells of files of a folder."""
    return {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names}


def add(archive: tarfile.TarFile, name: str, size: int, file: Any) -> None:
    """Add what can be read from a file, without owner and time: the same files make the same archive."""
    member = tarfile.TarInfo(name)
    member.size = size
    archive.addfile(member, file)


# ---- reading


@contextmanager
def reading(file: Path, kind: Kind) -> Iterator[tarfile.TarFile]:
    """An archive to read from, member by member.

    Raises:
        Problem: if it is found to be damaged meanwhile.
    """
    try:
        with kind.unzipped(str(file)) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as archive:
            yield archive
    except DAMAGED as error:
        raise Problem(kind.damaged.format(file=file, error=error or type(error).__name__)) from None


def listing(archive: tarfile.TarFile, file: Path, kind: Kind) -> bytes:
    """The text of the first member, which lists the others.

    Raises:
        Problem: if the first member is another, or longer than BLOCK.
    """
    first = archive.next()
    if first is None or first.name != kind.first or not plain(first) or first.size > BLOCK:
        raise Problem(kind.foreign.format(file=file))
    return content(archive, first).read()


def sound(told: Any) -> bool:
    """Whether this may be what a list tells of a member."""
    return (
        isinstance(told, dict)
        and isinstance(told.get("sha256"), str)
        and isinstance(told.get("bytes"), int)
        and told["bytes"] >= 0
    )


def unpack(archive: tarfile.TarFile, told: Sums, folder: Path, file: Path, kind: Kind) -> None:
    """Write the members after the first to a folder.

    Args:
        archive: of which the list has been read.
        told: the list, each entry `sound`, and each name one that may be a path in the folder.
        file: where the archive is, for what is said of it.

    Raises:
        Problem: if the disk has not enough room, or a member is missing or not as it is told.
    """
    left = dict(told)
    free, needed = shutil.disk_usage(str(folder)).free, sum(each["bytes"] for each in left.values())
    if needed > free:
        raise Problem(f"{file} takes {needed:,} bytes unpacked, but {folder.parent} has only {free:,}: make room there")
    for member in iter(archive.next, None):
        known = left.pop(member.name, None)
        if known is None or not plain(member) or member.size != known["bytes"]:
            raise Problem(kind.strange.format(file=file, name=member.name))
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if copy(content(archive, member), path) != known["sha256"]:
            raise Problem(kind.altered.format(file=file, name=member.name))
    if left:
        raise Problem(kind.lacking.format(file=file, name=", ".join(sorted(left))))


def plain(member: tarfile.TarInfo) -> bool:
    """Whether it is an ordinary file: no folder, link or device, and not sparse."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    assert file is not None
    return file


def copy(source: IO[bytes], path: Path) -> str:
    """Write what is read to a file; its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for block in iter(lambda: source.read(BLOCK), b""):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
