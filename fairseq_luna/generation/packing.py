"""A model to hand on: all that translating needs, in one file.

It is a gzipped tar archive. Its members are plain files without folders, manifest.json the first of them:

    manifest.json      "format" and "version" of the file; "settings": recipe, source and target language; "files":
                       SHA-256 and bytes of all others; "architecture", "updates" and "versions", for people
    model.pt           a checkpoint of fairseq, without the state of the optimiser and without paths of the training
    dict.LANG.txt      the dictionary of fairseq of each language
    spm.model          the pieces of the recipe `sentencepiece`; bpe.codes those of `moses-bpe`

Unpacked by `tar`, it is a folder that `Translator.from_run` and fairseq's own commands take.
"""

import gzip
import hashlib
import json
import pickle
import re
import shutil
import tarfile
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List

from ..errors import Problem
from ..files import remove, sha256, whole, write_json
from ..text.recipes import RECIPES
from ..versions import __version__, versions
from .places import Place, find

FORMAT, VERSION = "fairseq_luna translation model", 1
MANIFEST, MODEL = "manifest.json", "model.pt"
BLOCK = 1 << 20  # bytes that are read at once, and at most of a manifest
DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError)


def pack(run: Path, out: Path) -> Dict[str, Any]:
    """Write the model of a run and all that translating needs to a file.

    Args:
        run: see `find`.
        out: the file. An earlier one of this kind is replaced, any other is left alone.

    Returns:
        The manifest.

    Raises:
        Problem: if there is no model, or another file is in the way.
    """
    place = find(run)
    if out.is_dir():
        raise Problem(f"{out} is a folder: choose a file for --out, such as {out / 'model.tar.gz'}")
    if out.exists():
        try:
            with reading(out) as archive:
                read_manifest(archive, out)
        except Problem:
            raise Problem(f"{out} is there, and is no packed model: choose another --out, or move it away") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe, folder = place.recipe, Path(tempfile.mkdtemp(prefix=out.name + ".", dir=str(out.parent)))
    try:
        about = write_model(place, folder / MODEL)
        shutil.copyfile(str(recipe.path), str(folder / recipe.model))
        for lang in recipe.source, recipe.target:
            shutil.copyfile(str(place.dictionaries / f"dict.{lang}.txt"), str(folder / f"dict.{lang}.txt"))
        settings = {"source": recipe.source, "target": recipe.target, "recipe": recipe.name}
        names = members(settings)
        manifest = {
            **{"format": FORMAT, "version": VERSION, "settings": settings, **about},
            "files": {name: {"sha256": sha256(folder / name), "bytes": size(folder / name)} for name in names},
            "versions": {"fairseq_luna": __version__, **versions()},
        }
        write_json(folder / MANIFEST, manifest)
        with whole(out) as beside, open(beside, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped:
            with tarfile.open(fileobj=zipped, mode="w") as archive:
                for name in (MANIFEST, *names):
                    member = tarfile.TarInfo(name)  # without owner and time: the same model makes the same file
                    member.size = size(folder / name)
                    with open(folder / name, "rb") as content:
                        archive.addfile(member, content)
    finally:
        remove(folder)
    return manifest


def write_model(place: Place, path: Path) -> Dict[str, Any]:
    """Write a checkpoint with the parameters and what builds the model; what the manifest tells of it."""
    import torch
    from fairseq import checkpoint_utils
    from fairseq.dataclass.configs import FairseqConfig
    from omegaconf import OmegaConf

    from ..compat.loading import check_checkpoint
    from .trusted import check_settings, portable

    settings: Any = OmegaConf.to_container(OmegaConf.structured(FairseqConfig), enum_to_str=True)
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(place.checkpoint))
        trained: Any = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
        settings.update(portable(trained["model"], trained["task"]))
        last = state["optimizer_history"][-1]
    except Exception as error:  # a damaged file may fail anyhow
        raise Problem(f"{place.checkpoint} cannot be handed on: {error or type(error).__name__}") from error
    settings["task"].update(source_lang=place.recipe.source, target_lang=place.recipe.target)
    keys = "criterion_name", "optimizer_name", "num_updates"
    packed = {
        "args": None,
        "cfg": settings,
        "model": dict(state["model"]),
        "optimizer_history": [{"lr_scheduler_state": {}, **{key: last[key] for key in keys if key in last}}],
        "extra_state": {},
        "task_state": {},
    }
    torch.save(packed, str(path))
    try:
        check_settings(check_checkpoint(path))
    except pickle.UnpicklingError as error:
        raise Problem(f"{place.checkpoint} cannot be handed on: {error}") from None
    model = settings["model"]
    arch = (model if isinstance(model, dict) else vars(model)).get("_name") or getattr(model, "arch", None)
    return {"architecture": arch, "updates": last.get("num_updates")}


# ---- reading


class Sober(gzip.GzipFile):
    """Does not read without measure: a few bytes of an archive may claim to be a header of many gigabytes."""

    def read(self, size: Any = -1) -> bytes:
        if size is None or not 0 <= size <= 2 * BLOCK:
            raise tarfile.ReadError(f"it asks for {size:,} bytes at once")
        return super().read(size)


@contextmanager
def opened(path: Path) -> Iterator[Place]:
    """The files of a model: those of a folder, or of a packed model, which are there only meanwhile.

    Raises:
        Problem: if there is no model, or the file is damaged, or not what it should be.
    """
    if not path.is_file():
        yield find(path)
        return
    from ..compat.loading import check_checkpoint
    from .trusted import check_settings

    with tempfile.TemporaryDirectory(prefix="fairseq_luna-") as temporary:
        folder = Path(temporary)
        try:
            with reading(path) as archive:
                unpack(archive, path, folder)
            check_settings(check_checkpoint(folder / MODEL))
            yield find(folder)._replace(name=str(path))
        except pickle.UnpicklingError as error:
            raise Problem(f"{path} was not loaded: of its {MODEL}, {error}") from None
        except Problem as error:
            raise Problem(str(error).replace(str(folder), str(path))) from error


@contextmanager
def reading(path: Path) -> Iterator[tarfile.TarFile]:
    """A packed model to read from, member by member."""
    try:
        with Sober(str(path), "rb") as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as archive:
            yield archive
    except DAMAGED as error:
        raise Problem(
            f"{path} is no whole packed model ({error or type(error).__name__}): it was cut short on its way, or is "
            "something else. Get it anew, or make it by scripts/pack.sh"
        ) from None


def read_manifest(archive: tarfile.TarFile, path: Path) -> Dict[str, Any]:
    """The manifest, which is the first member; a Problem where it makes no sense."""
    first = archive.next()
    if first is None or first.name != MANIFEST or not plain(first) or first.size > BLOCK:
        raise Problem(f"{path} is no packed model: it does not begin with {MANIFEST}. scripts/pack.sh makes one")
    try:
        manifest = json.loads(content(archive, first).read().decode("utf-8"))
        kind, version, settings, files = (manifest[key] for key in ("format", "version", "settings", "files"))
        sums = all(
            isinstance(each["sha256"], str) and isinstance(each["bytes"], int) and each["bytes"] >= 0
            for each in files.values()
        )
        languages = [settings["source"], settings["target"]]
        named = settings["recipe"] in RECIPES and all(re.fullmatch(r"[\w-]+", lang) for lang in languages)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(f"{path} is no packed model: its {MANIFEST} lacks something ({error})") from None
    if kind != FORMAT:
        raise Problem(f"{path} is no packed model: its format is {kind!r}")
    if version != VERSION:
        raise Problem(f"{path} is of version {version!r} of the format, but this is for {VERSION}: update fairseq_luna")
    if not (sums and named and set(files) == set(members(settings))):
        raise Problem(f"{path} is no packed model: its {MANIFEST} names other files than those of a model")
    return manifest


def unpack(archive: tarfile.TarFile, path: Path, folder: Path) -> None:
    """Write the members of a packed model to a folder, each checked against the manifest before it is made.

    Raises:
        Problem: if a member is missing, there twice, not in the manifest, no plain file, or not what the manifest says.
    """
    manifest = read_manifest(archive, path)
    left = dict(manifest["files"])
    free, needed = shutil.disk_usage(str(folder)).free, sum(each["bytes"] for each in left.values())
    if needed > free:
        raise Problem(f"{path} takes {needed:,} bytes unpacked, but {folder.parent} has only {free:,}: make room there")
    write_json(folder / MANIFEST, manifest)
    for member in iter(archive.next, None):
        told = left.pop(member.name, None)
        if told is None or not plain(member) or member.size != told["bytes"]:
            raise Problem(f"{path} was not loaded: its member {member.name!r} is not the one of its {MANIFEST}")
        digest = hashlib.sha256()
        with open(folder / member.name, "wb") as file:
            source = content(archive, member)
            for block in iter(lambda: source.read(BLOCK), b""):  # noqa: B023  it is read at once
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != told["sha256"]:
            raise Problem(f"{path} was not loaded: its {member.name} is damaged (another SHA-256). Get the file anew")
    if left:
        raise Problem(f"{path} was not loaded: it lacks {', '.join(left)}")


def members(settings: Dict[str, str]) -> List[str]:
    """The names of the members beside the manifest."""
    return [MODEL, *sorted({f"dict.{settings[side]}.txt" for side in ("source", "target")}), pieces_of(settings)]


def pieces_of(settings: Dict[str, str]) -> str:
    return RECIPES[settings["recipe"]].model


def plain(member: tarfile.TarInfo) -> bool:
    """Whether it is an ordinary file: no folder, link or device, and not sparse."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    assert file is not None
    return file


def size(path: Path) -> int:
    return path.stat().st_size
