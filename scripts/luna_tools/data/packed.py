"""Prepared data as one file, for a machine without network: a tar.xz with a checksum of each file in it.

The binarised text goes in as it is. Each piece is a number of two bytes there, which xz brings to about 7 bits: less
than the text itself takes, and nothing need be binarised again."""

import hashlib
import json
import lzma
import re
import shutil
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Dict, List

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, sha256, whole, write_json
from fairseq_luna.generation.packing import content, plain
from fairseq_luna.text.recipes import load
from luna_tools.data.testsets import test_sets
from luna_tools.progress import bar
from luna_tools.run_folder import claim

SUMS = "sums.json"  # the first file of all
MOST_SUMS = 1 << 20  # bytes of it
# manifest.json, the model of the pieces, data-bin/ and the raw text of the held-out sets
NAME = re.compile(r"manifest\.json|spm\.model|bpe\.codes|(data-bin|raw)/\w[\w.+-]*")
BLOCK = 1 << 20
# bytes at even places differ from those at odd ones (lp, pb)
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]


def contents(data: Path) -> List[str]:
    """The files of prepared data that trainings, translations and scores need."""
    recipe = load(data)
    names = ["manifest.json", recipe.model]
    names += [f"data-bin/{path.name}" for path in (data / "data-bin").glob("*") if path.suffix != ".log"]
    names += [f"raw/{path.name}" for path in (data / "raw").glob("*") if not path.name.startswith("train.")]
    return sorted(names)


def pack(data: Path, file: Path) -> None:
    """Write prepared data as one file.

    Raises:
        Problem: if the folder holds no prepared data, or a file that the form has no name for.
    """
    names = contents(data)
    for name in names:
        if not NAME.fullmatch(name):
            raise Problem(f"{data / name} is nothing that prepare-corpus.sh makes: move it away")
    sums: Dict[str, Any] = {
        name: {"sha256": sha256(data / name), "bytes": (data / name).stat().st_size} for name in names
    }
    size = sum(each["bytes"] for each in sums.values())
    with whole(file) as beside, lzma.open(str(beside), "wb", filters=XZ) as packed:
        with tarfile.open(fileobj=packed, mode="w|") as archive, bar(size, "byte") as shown:
            text = json.dumps(sums, indent=2).encode()
            archive.addfile(member(SUMS, len(text)), BytesIO(text))
            for name in names:
                with open(data / name, "rb") as source:
                    archive.addfile(member(name, sums[name]["bytes"]), Watched(source, shown))


class Watched:
    """A file whose bytes a bar counts as they are read."""

    def __init__(self, file: BinaryIO, shown: Any) -> None:
        self.file, self.shown = file, shown

    def read(self, size: int = -1) -> bytes:
        block = self.file.read(size)
        self.shown.update(len(block))
        return block


def member(name: str, size: int) -> tarfile.TarInfo:
    facts = tarfile.TarInfo(name)
    facts.size = size
    return facts


def unpacked(file: Path, out: Path) -> Path:
    """The folder OUT/data with what `pack` wrote to a file; unpacked once.

    Raises:
        Problem: if the file is cut short or changed, if it is not of `pack`, or if the folder holds other data.
    """
    folder, note = out / "data", out / "data" / "unpacked.json"
    made_of = {"sha256 of the file": sha256(file)}
    if read_json(note) == made_of:
        return folder
    if folder.exists():
        raise Problem(f"{folder} is there, and was not unpacked from {file}: choose another --out")
    if not (out / "settings.json").exists():
        claim(out, {})
    with whole(folder) as beside:
        beside.mkdir()
        try:
            with Sober(str(file)) as packed, tarfile.open(fileobj=packed, mode="r:") as archive:
                unpack(archive, beside, file)
        except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
            raise Problem(f"{file} is cut short, or is no file of --pack-data ({error}): copy it again") from None
        load(beside), test_sets(beside)  # which refuse names that lead elsewhere
        write_json(beside / note.name, made_of)
    return folder


class Sober(lzma.LZMAFile):
    """Does not read without measure: a few bytes of an archive may claim to be a header of many gigabytes."""

    def read(self, size: Any = -1) -> bytes:
        if size is None or not 0 <= size <= 2 * BLOCK:
            raise tarfile.ReadError(f"it asks for {size:,} bytes at once")
        return super().read(size)


def unpack(archive: tarfile.TarFile, folder: Path, file: Path) -> None:
    """Write the members to a folder, each checked before it is made."""
    left = read_sums(archive, file)
    free, needed = shutil.disk_usage(str(folder)).free, sum(each["bytes"] for each in left.values())
    if needed > free:
        raise Problem(f"{file} takes {needed:,} bytes unpacked, but {folder.parent} has only {free:,}: make room there")
    for facts in iter(archive.next, None):
        told = left.pop(facts.name, None)
        if told is None or not plain(facts) or facts.size != told["bytes"]:
            raise Problem(f"{file} holds {facts.name!r}, which --pack-data does not write: take none of it")
        path = folder / facts.name
        path.parent.mkdir(exist_ok=True)
        if copy(content(archive, facts), path) != told["sha256"]:
            raise Problem(f"{facts.name} in {file} is not as it was packed: copy the file again")
    if left:
        raise Problem(f"{file} lacks {', '.join(sorted(left))}: copy it again, or pack the data again")


def read_sums(archive: tarfile.TarFile, file: Path) -> Dict[str, Dict[str, Any]]:
    """Checksum and size of each file by its name, which leads out of no folder."""
    facts, found = archive.next(), None
    if facts is not None and facts.name == SUMS and plain(facts) and facts.size <= MOST_SUMS:
        try:
            found = json.loads(content(archive, facts).read())
        except (ValueError, RecursionError):
            pass
    if not isinstance(found, dict):
        raise Problem(f"{file} is no file of --pack-data: it does not begin with {SUMS}")
    for name, told in found.items():
        sound = isinstance(told, dict) and isinstance(told.get("bytes"), int) and told["bytes"] >= 0
        if not NAME.fullmatch(name) or not sound or not isinstance(told.get("sha256"), str):
            raise Problem(f"{file} holds {name!r}, which --pack-data does not write: take none of it")
    return found


def copy(source: Any, path: Path) -> str:
    """Write what is read to a file; its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for block in iter(lambda: source.read(BLOCK), b""):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
