"""The folder of an exported model: what lies in it, and whether it is whole.

manifest.json      "format" and "version" of the folder; what else is in it, see `export.folder.manifest_of`
encode.onnx        source tokens -> what the decoder reads of them
step.onnx          tokens and states -> log-probabilities of the next tokens, and states
dict.LANG.txt      the dictionary of fairseq of each language
spm.model          the pieces of the recipe `sentencepiece`; bpe.codes those of `moses-bpe`
"""

import json
from pathlib import Path
from typing import Any, Dict, List

from .. import archives
from ..errors import Problem
from ..files import sha256
from ..text.recipes import RECIPES

FORMAT, VERSION = "fairseq_luna ONNX model", 1
MANIFEST, GRAPHS = "manifest.json", ("encode", "step")


def read(folder: Path) -> Dict[str, Any]:
    """The manifest of a folder, all of whose files are as they were written.

    Raises:
        Problem: if the folder holds no exported model, or one of another version, or files are missing or damaged.
    """
    manifest = read_manifest(folder)
    for name, told in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise Problem(f"{path} is missing: copy the whole folder again")
        size = path.stat().st_size
        if size != told["bytes"]:
            raise Problem(f"{path} has {size:,} bytes in place of {told['bytes']:,}: copy the folder again")
        if sha256(path) != told["sha256"]:
            raise Problem(f"{path} is damaged (another SHA-256): copy the folder again")
    return manifest


def read_manifest(folder: Path) -> Dict[str, Any]:
    """The manifest alone, which makes sense. Raises as `read`."""
    path = folder / MANIFEST
    if not path.is_file():
        raise Problem(f"{folder} holds no exported model ({path} is missing): scripts/export.sh writes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Problem(f"{path} is damaged, or of no exported model: copy the folder again") from None
    if kind != FORMAT:
        raise Problem(f"{folder} holds no exported model, but a {kind!r}: scripts/export.sh writes one")
    if version != VERSION:
        raise Problem(
            f"{folder} is of version {version!r} of the format, but this fairseq_luna reads version {VERSION}: export "
            "the model again, or take the fairseq_luna that it was exported with"
        )
    try:
        known = {"files": members(manifest["settings"]), "graphs": GRAPHS, "limits": ("source", "target")}
        sound = isinstance(manifest["search"], dict) and all(set(manifest[key]) == set(known[key]) for key in known)
        sound = sound and all(archives.sound(each) for each in manifest["files"].values())
        sound = sound and all(limit is None or type(limit) is int for limit in manifest["limits"].values())
        sound = sound and all(map(is_graph, manifest["graphs"].values()))
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise Problem(f"{path} does not describe an exported model: export the model again")
    return manifest


def is_graph(told: Dict[str, Any]) -> bool:
    """Whether all inputs and outputs have a name, a type and sizes."""
    tensors = [*told["inputs"], *told["outputs"]]
    return all(
        isinstance(each["name"], str)
        and each["dtype"] in ("float32", "int64", "bool")
        and all(type(size) in (int, str) for size in each["shape"])
        for each in tensors
    )


def members(settings: Dict[str, str]) -> List[str]:
    """The names of the files beside the manifest."""
    dictionaries = sorted({f"dict.{settings[side]}.txt" for side in ("source", "target")})
    return [*map(file_of, GRAPHS), *dictionaries, RECIPES[settings["recipe"]].model]


def file_of(graph: str) -> str:
    return f"{graph}.onnx"
