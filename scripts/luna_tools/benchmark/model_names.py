"""What the names of models of scripts/benchmark.py stand for."""

import argparse
from typing import Any, Dict, List

from fairseq_luna.errors import Problem
from luna_tools.console import tell_name

# words behind luna-L, and the options that they stand for
VARIANTS = {
    "untied": ["--untie-luna-kv"],
    "gaussian": ["--pack-bias", "gaussian"],
    "gaussianunpack": ["--encoder-unpack-bias", "gaussian"],
    "unprojected": ["--pack-values", "unprojected"],
    "decaying": ["--causal-mean", "decaying"],
    "softmaxcross": ["--cross-attention", "softmax"],
    "softmaxencoder": ["--encoder-self-attention", "softmax"],
    "softmaxdecoder": ["--decoder-self-attention", "softmax"],
}
FORMER = {"plain": "unprojected", "fullcross": "softmaxcross"}  # of these words
LINFORMER = ["--encoder-self-attention", "linformer", "--projection-length", "16"]
PRECISIONS = {word: ["--inference-precision", word] for word in ("bf16", "int8")}
OF_OPERATORS = ("untied", "decaying", "unfused")
MODELS = (
    f"luna-L, with any of -{', -'.join(VARIANTS)} behind, linformer-K (in the encoder, Luna-16 else), transformer, "
    "arch:ARCH (with its own feed-forward)"
)
KNOWN = {
    "train": MODELS,
    "decode": f"{MODELS}, any luna also with -bf16 or -int8, ctranslate2-float32, ctranslate2-int8",
    "length": f"{MODELS}, softmax (with the n x n matrix), fused (torch's fused attention)",
    "operator": (
        "naive, chunk, recurrent: the product f, each also with -decaying; the causal attention as a whole: luna-L, "
        f"with any of -{', -'.join(OF_OPERATORS)} behind, sdpa (softmax attention, torch's fused kernels), fla-gsa, "
        "fla-simple-gla (flash-linear-attention's, of --slots)"
    ),
}


def spec_of(name: str, args: argparse.Namespace) -> Dict[str, Any]:
    """What the process of a model needs to know."""
    found = of_operator(name) if args.command == "operator" else of_model(name, args)
    if not found:
        raise Problem(f"there is no model {name} here: {KNOWN[args.command]}")
    return {"name": name, **found}


def of_operator(name: str) -> Dict[str, Any]:
    kind, _, rest = name.partition("-")
    if kind in ("naive", "chunk", "recurrent") and rest in ("", "decaying"):
        return {"kind": "product", "form": kind, "decaying": bool(rest)}
    if name in ("sdpa", "fla-gsa", "fla-simple-gla"):
        return {"kind": name}
    slots, *words = rest.split("-")
    if kind == "luna" and slots.isdigit() and int(slots) and set(OF_OPERATORS).issuperset(words):
        return {"kind": "luna", "slots": int(slots), **{word: word in words for word in OF_OPERATORS}}
    return {}


def of_model(name: str, args: argparse.Namespace) -> Dict[str, Any]:
    kind, _, rest = name.partition("-")
    if args.command == "decode" and kind == "ctranslate2" and rest in ("float32", "int8"):
        in_fp32(name, args)
        return {"arch": "ctranslate2", "quantization": rest, "options": []}
    if name == "transformer" or (args.command == "length" and name in ("softmax", "fused")):
        return {"arch": "transformer", "fused": name != "softmax", "options": []}
    prefix, _, arch = name.partition(":")
    if arch and prefix in ("arch", "mine"):
        if prefix == "mine":
            tell_name(name, f"arch:{arch}")
        if not args.user_dir:
            raise Problem(f"{name} needs --user-dir, the folder of the plugin")
        return {"arch": arch, "user_dir": args.user_dir, "options": []}
    if kind == "linformer" and rest.isdigit() and int(rest):
        return {"arch": "luna_transformer", "options": [*LINFORMER, "--linformer-length", rest]}
    slots, *words = rest.split("-")
    for word in set(words) & set(FORMER):
        tell_name(f"-{word} of {name}", f"-{FORMER[word]}")
    words = [FORMER.get(word, word) for word in words]
    known = {**VARIANTS, **(PRECISIONS if args.command == "decode" else {})}
    if kind != "luna" or not slots.isdigit() or not set(known).issuperset(words):
        return {}
    if set(words) & set(PRECISIONS):
        in_fp32(name, args)
    options: List[str] = [option for word in words for option in known[word]]
    return {"arch": "luna_transformer", "options": ["--projection-length", slots, *options]}


def in_fp32(name: str, args: argparse.Namespace) -> None:
    if args.precision != "fp32":
        raise Problem(
            f"{name} says its precision itself, so --precision {args.precision} cannot: leave one of the two out"
        )
