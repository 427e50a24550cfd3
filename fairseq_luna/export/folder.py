"""Writing a trained model as a folder that `fairseq_luna.onnx` translates with."""

import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Dict

import torch

from ..errors import Problem
from ..files import sha256, whole, write_json
from ..generation.loading import load
from ..generation.options import Search
from ..generation.packing import opened
from ..generation.places import Place
from ..onnx.manifest import FORMAT, GRAPHS, MANIFEST, VERSION, file_of, members, read_manifest
from ..onnx.translator import OPTIONS
from ..onnx.vocabulary import SPECIAL
from ..versions import __version__, versions
from .precision import PRECISIONS, save
from .tracing import Graph, check, check_torch, graphs_of, prepare, quiet

SIZES = (
    "encoder_layers decoder_layers encoder_embed_dim decoder_embed_dim encoder_attention_heads decoder_attention_heads "
    "projection_length tokens_per_slot"
).split()


def export(run: Path, out: Path, precision: str = "fp32") -> Dict[str, Any]:
    """Write the model of a run, and all that translating needs, as a folder.

    Args:
        run: a folder as `generation.places.find` takes it, or a file that pack.sh wrote.
        out: the folder. An earlier one of this kind is replaced, any other is left alone.
        precision: a name of `PRECISIONS`.

    Returns:
        The manifest.

    Raises:
        Problem: if there is no model, it or torch cannot be exported, or something else is in the way.
    """
    if precision not in PRECISIONS:
        raise Problem(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    check_torch()
    for name in "onnx", "onnxscript", "onnxruntime":
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise Problem(f"{name} is not installed: pip install onnx onnxruntime onnxscript") from None
    if out.exists():
        try:
            read_manifest(out)
        except Problem:
            raise Problem(f"{out} is there, and is no exported model: choose another --out, or move it away") from None
    with opened(run) as place:
        (model,) = load([place], torch.device("cpu"), "fp32").models
        check(model, place.name)
        prepare(model)
        graphs = graphs_of(model)
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as beside:
            beside.mkdir()
            with quiet():
                for name, graph in graphs.items():
                    save(graph.model, beside / file_of(name), precision)
            recipe = place.recipe
            shutil.copyfile(str(recipe.path), str(beside / recipe.model))
            for lang in {recipe.source, recipe.target}:
                shutil.copyfile(str(place.dictionaries / f"dict.{lang}.txt"), str(beside / f"dict.{lang}.txt"))
            manifest = manifest_of(model, place, graphs, precision)
            names = members(manifest["settings"])
            manifest["files"] = {
                name: {"sha256": sha256(beside / name), "bytes": (beside / name).stat().st_size} for name in names
            }
            write_json(beside / MANIFEST, manifest)
    return manifest


def manifest_of(model: Any, place: Place, graphs: Dict[str, Graph], precision: str) -> Dict[str, Any]:
    """What the folder tells of itself, but for its files."""
    recipe, words = place.recipe, {"source": model.encoder.dictionary, "target": model.decoder.dictionary}
    # one position of the decoder is that of the token which decoding starts with
    limits = {"source": model.max_positions()[0], "target": model.max_decoder_positions()}
    return {
        **{"format": FORMAT, "version": VERSION, "architecture": model.cfg.arch, "precision": precision},
        "settings": {"source": recipe.source, "target": recipe.target, "recipe": recipe.name},
        "sizes": {name: getattr(model.cfg, name) for name in SIZES},
        "cross_attention": "packed" if model.decoder.layers[0].packed else "softmax",
        "vocabulary": {side: len(dictionary) for side, dictionary in words.items()},
        "special": {piece: number for number, piece in enumerate(SPECIAL)},
        "limits": {side: None if limit == sys.maxsize else limit for side, limit in limits.items()},
        "graphs": {name: graphs[name].about() for name in GRAPHS},
        "search": {name: getattr(Search, name) for name in OPTIONS},
        "versions": {
            "fairseq_luna": __version__,
            **versions(),
            **{name: metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime")},
        },
    }
