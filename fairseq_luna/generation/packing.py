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
import json
import pickle
import re
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

from ..archives import Kind, SoberGzip, add, listing, reading, sound, sums_of, unpack
from ..errors import Problem
from ..files import remove, whole, write_json
from ..text.recipes import RECIPES
from ..versions import __version__, versions
from .places import Place, find

FORMAT, VERSION = "fairseq_luna translation model", 1
MANIFEST, MODEL = "manifest.json", "model.pt"
KIND = Kind(
    first=MANIFEST,
    unzipped=SoberGzip,
    damaged="{file} is no whole packed model ({error}): it was cut short on its way, or is something else. "
    "Get it anew, or make it by scripts/pack.sh",
    foreign=f"{{file}} is no packed model: it does not begin with {MANIFEST}. scripts/pack.sh makes one",
    strange=f"{{file}} was not loaded: its member {{name!r}} is not the one of its {MANIFEST}",
    altered="{file} was not loaded: its {name} is damaged (another SHA-256). Get the file anew",
    lacking="{file} was not loaded: it lacks {name}",
)


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
            with reading(out, KIND) as archive:
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
            "files": sums_of(folder, names),
            "versions": {"fairseq_luna": __version__, **versions()},
        }
        write_json(folder / MANIFEST, manifest)
        with whole(out) as beside, open(beside, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped:
            with tarfile.open(fileobj=zipped, mode="w") as archive:
                for name in (MANIFEST, *names):
                    with open(folder / name, "rb") as content:
                        add(archive, name, (folder / name).stat().st_size, content)
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
            with reading(path, KIND) as archive:
                manifest = read_manifest(archive, path)
                unpack(archive, manifest["files"], folder, path, KIND)
            write_json(folder / MANIFEST, manifest)
            check_settings(check_checkpoint(folder / MODEL))
            yield find(folder)._replace(name=str(path))
        except pickle.UnpicklingError as error:
            raise Problem(f"{path} was not loaded: of its {MODEL}, {error}") from None
        except Problem as error:
            raise Problem(str(error).replace(str(folder), str(path))) from error


def read_manifest(archive: tarfile.TarFile, path: Path) -> Dict[str, Any]:
    """The manifest, which is the first member; a Problem where it makes no sense."""
    text = listing(archive, path, KIND)
    try:
        manifest = json.loads(text.decode("utf-8"))
        kind, version, settings, files = (manifest[key] for key in ("format", "version", "settings", "files"))
        told = all(sound(each) for each in files.values())
        languages = [settings["source"], settings["target"]]
        named = settings["recipe"] in RECIPES and all(re.fullmatch(r"[\w-]+", lang) for lang in languages)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(f"{path} is no packed model: its {MANIFEST} lacks something ({error})") from None
    if kind != FORMAT:
        raise Problem(f"{path} is no packed model: its format is {kind!r}")
    if version != VERSION:
        raise Problem(f"{path} is of version {version!r} of the format, but this is for {VERSION}: update fairseq_luna")
    if not (told and named and set(files) == set(members(settings))):
        raise Problem(f"{path} is no packed model: its {MANIFEST} names other files than those of a model")
    return manifest


def members(settings: Dict[str, str]) -> List[str]:
    """The names of the members beside the manifest."""
    return [MODEL, *sorted({f"dict.{settings[side]}.txt" for side in ("source", "target")}), pieces_of(settings)]


def pieces_of(settings: Dict[str, str]) -> str:
    return RECIPES[settings["recipe"]].model
