"""Prepared data as one file, for a machine without network: a tar.xz with a checksum of each file in it.

The binarised text goes in as it is. Each piece is a number of two bytes there, which xz brings to about 7 bits: less
than the text itself takes, and nothing need be binarised again."""

import json
import lzma
import re
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, List

from fairseq_luna.archives import Kind, SoberXz, Sums, add, listing, reading, sound, sums_of, unpack
from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, sha256, whole, write_json
from fairseq_luna.text.recipes import load
from luna_tools.data.testsets import test_sets
from luna_tools.progress import bar
from luna_tools.run_folder import claim

SUMS = "sums.json"  # the first file of all
# manifest.json, the model of the pieces, data-bin/ and the raw text of the held-out sets
NAME = re.compile(r"manifest\.json|spm\.model|bpe\.codes|(data-bin|raw)/\w[\w.+-]*")
# bytes at even places differ from those at odd ones (lp, pb)
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]
KIND = Kind(
    first=SUMS,
    unzipped=SoberXz,
    damaged="{file} is cut short, or is no file of --pack-data ({error}): copy it again",
    foreign=f"{{file}} is no file of --pack-data: it does not begin with {SUMS}",
    strange="{file} holds {name!r}, which --pack-data does not write: take none of it",
    altered="{name} in {file} is not as it was packed: copy the file again",
    lacking="{file} lacks {name}: copy it again, or pack the data again",
)


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
    sums = sums_of(data, names)
    size = sum(each["bytes"] for each in sums.values())
    with whole(file) as beside, lzma.open(str(beside), "wb", filters=XZ) as packed:
        with tarfile.open(fileobj=packed, mode="w|") as archive, bar(size, "byte") as shown:
            text = json.dumps(sums, indent=2).encode()
            add(archive, SUMS, len(text), BytesIO(text))
            for name in names:
                with open(data / name, "rb") as source:
                    add(archive, name, sums[name]["bytes"], Watched(source, shown))


class Watched:
    """A file whose bytes a bar counts as they are read."""

    def __init__(self, file: BinaryIO, shown: Any) -> None:
        self.file, self.shown = file, shown

    def read(self, size: int = -1) -> bytes:
        block = self.file.read(size)
        self.shown.update(len(block))
        return block


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
        with reading(file, KIND) as archive:
            unpack(archive, read_sums(archive, file), beside, file, KIND)
        load(beside), test_sets(beside)  # which refuse names that lead elsewhere
        write_json(beside / note.name, made_of)
    return folder


def read_sums(archive: tarfile.TarFile, file: Path) -> Sums:
    """What the file tells of each of its members, whose names lead out of no folder."""
    try:
        found = json.loads(listing(archive, file, KIND))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Problem(KIND.foreign.format(file=file))
    for name, told in found.items():
        if not NAME.fullmatch(name) or not sound(told):
            raise Problem(KIND.strange.format(file=file, name=name))
    return found
