"""Draw what a trained model attends to in one sentence: pack, unpack and their product.

They are drawn for each layer of Luna's encoder attention and of the cross attention (a softmax one is drawn in the last
layer alone). The translation is the model's own. With several lines of input the first is drawn, and the figures that
are printed and written to FILE.json are means over all:

  reads      how many source positions a slot reads, exp(entropy of its pack weights); 1 is a slot for a word
  overlap    how much two slots of a sentence read the same, 1 - total variation distance; 1 is all the same
  survives   the best share that any slot gives a source word, max over slots of its pack weight: what is left of a word
             that the target asks for
  peak       the largest weight of a target (or source) position on a source position after packing and unpacking

Each map is as dark as its largest weight, which its title names."""

import argparse
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import whole, write_json
from fairseq_luna.generation.inputs import lines_of
from luna_tools.machine import import_plugin


def main() -> None:
    args = parse_args()
    for file in args.files:
        if file != "-" and not Path(file).is_file():
            raise Problem(f"there is no file {file}")
    lines = [line for line in lines_of(args.files) if line.text.strip()]
    if not lines:
        raise Problem("there is no sentence to look at: give a file, or text on standard input")
    import_plugin()
    from fairseq_luna import Translator

    translator = Translator([args.model], device="cpu")
    model = translator.models[0]
    if not hasattr(model, "inference_precision"):
        raise Problem(f"{args.model} is no Luna model: there are no packs to draw")
    sums: Dict[str, List[Dict[str, float]]] = {}
    for number, line in enumerate(lines):
        maps = look(translator, line.text)
        for part in maps:
            sums.setdefault(part.name, []).append(figures(part))
        if number == 0:
            draw(maps, args.out, line.text)
    means = {name: mean(rows) for name, rows in sums.items()}
    write_json(args.out.with_name(f"{args.out.name}.json"), {"sentences": len(lines), "means": means})
    for name, row in means.items():
        print(f"{name:28s}" + "  ".join(f"{key} {value:.2f}" for key, value in row.items()))
    print(f"plot-attention: {args.out}, and the figures of {len(lines):,} sentence(s) in {args.out}.json", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="plot_attention.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", default=["-"], metavar="FILE", help="sentences (default: standard input)")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="what quickstart.sh or train.sh wrote")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("attention.png"),
        metavar="FILE",
        help=".png, .svg or .pdf (default %(default)s)",
    )
    args = parser.parse_args()
    if args.out.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out must end in .png, .svg or .pdf, but is {args.out}")
    return args


class Maps(NamedTuple):
    """The attention of one place in the model, the mean of its heads.

    Attributes:
        name: such as "encoder 1" or "cross 1".
        pack: (l, m), or None with ordinary attention.
        unpack: (n, l), or None.
        product: (n, m).
        per_head: of the pack, (H, l, m), or None.
        words: (rows, columns), what the positions are called.
    """

    name: str
    pack: Any
    unpack: Any
    product: Any
    per_head: Any
    words: tuple


def look(translator: Any, text: str) -> List[Maps]:
    """What the model attends to in a sentence and its own translation of it."""
    import torch

    model, task = translator.models[0], translator.task
    (translation,) = translator.translate([text], details=True)
    source, best = (
        dictionary.encode_line(" ".join(pieces), add_if_not_exist=False).long()
        for dictionary, pieces in (
            (task.source_dictionary, translation.source_pieces),
            (task.target_dictionary, translation.pieces),
        )
    )
    target = torch.cat((best[-1:], best[:-1])).unsqueeze(0)  # what the decoder reads: eos first

    seen: Dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, outputs: seen.update({name: outputs[1]})

    hooks = []
    for i, layer in enumerate(model.encoder.layers, 1):
        if layer.luna:
            hooks.append(layer.self_attn.pack.register_forward_hook(keep(f"encoder {i} pack")))
            hooks.append(layer.self_attn.unpack.register_forward_hook(keep(f"encoder {i} unpack")))
    for i, layer in enumerate(model.decoder.layers, 1):
        hooks.append(layer.cross_attn.register_forward_hook(keep(f"cross {i} unpack")))
        if layer.packed:
            hooks.append(model.encoder.memory.layers[i - 1].pack.register_forward_hook(keep(f"cross {i} pack")))
    asked = model.decoder.need_attn
    try:
        model.decoder.need_attn = True
        with torch.no_grad():
            model.decoder(target, model.encoder(source.unsqueeze(0)))
    finally:
        model.decoder.need_attn = asked
        for hook in hooks:
            hook.remove()

    read_words = [task.source_dictionary[token] for token in source.tolist()]
    written = [task.target_dictionary[token] for token in best.tolist()]
    found = []
    places = dict.fromkeys(key.rpartition(" ")[0] for key in seen)
    for name in sorted(places, key=lambda name: (name.startswith("cross"), int(name.rpartition(" ")[2]))):
        rows = read_words if name.startswith("encoder") else written
        weights = seen[f"{name} unpack"]
        if weights is None:  # an ordinary attention hands out its weights in the layer that aligns alone
            continue
        unpack = weights[0].mean(dim=0)
        if f"{name} pack" not in seen:
            found.append(Maps(name, None, None, unpack, None, (rows, read_words)))
            continue
        heads = seen[f"{name} pack"][0]
        pack = heads.mean(dim=0)
        found.append(Maps(name, pack, unpack, unpack @ pack, heads, (rows, read_words)))
    return found


def figures(maps: Maps) -> Dict[str, float]:
    """What is said of one attention in numbers; see the top of this file."""
    found = {}
    if maps.per_head is not None:
        heads = maps.per_head.double()
        entropy = -(heads * heads.clamp(min=1e-12).log()).sum(dim=-1)
        found["reads"] = float(entropy.exp().mean())
        slots = heads.size(1)
        if slots > 1:
            distance = (heads.unsqueeze(1) - heads.unsqueeze(2)).abs().sum(dim=-1) / 2
            found["overlap"] = float(1 - distance.sum() / (len(heads) * slots * (slots - 1)))
        found["survives"] = float(heads.amax(dim=1).mean())
    found["peak"] = float(maps.product.amax(dim=-1).mean())
    return found


def mean(rows: List[Dict[str, float]]) -> Dict[str, float]:
    keys = [key for key in rows[0] if all(key in row for row in rows)]
    return {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in keys}


def draw(maps: List[Maps], path: Path, text: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Problem("matplotlib is not installed: pip install matplotlib") from None
    columns = "pack, slots x source", "unpack, positions x slots", "both, positions x source"
    longest = max(len(words) for part in maps for words in part.words)
    side = min(9.0, max(3.0, 0.22 * longest))
    figure = Figure(figsize=(3 * side + 1, len(maps) * side + 1), layout="constrained")
    figure.suptitle(plain(text if len(text) < 100 else text[:97] + "..."))
    grid = figure.subplots(len(maps), 3, squeeze=False)
    small = max(4, min(8, 260 // longest))
    for axes_row, part in zip(grid, maps):
        rows, source = part.words
        slots = [] if part.pack is None else [str(i) for i in range(1, len(part.pack) + 1)]
        for axes, title, values, down, across in zip(
            axes_row, columns, (part.pack, part.unpack, part.product), (slots, rows, rows), (source, slots, source)
        ):
            if values is None:
                axes.axis("off")
                continue
            axes.imshow(values.double().numpy(), cmap="Blues", vmin=0, aspect="auto")
            axes.set_xticks(range(len(across)), map(plain, across), rotation=90, fontsize=small)
            axes.set_yticks(range(len(down)), map(plain, down), fontsize=small)
            axes.set_title(f"{part.name}: {title}\nup to {float(values.max()):.2f}", fontsize=8)
    with whole(path) as beside:
        figure.savefig(str(beside), dpi=100, format=path.suffix[1:])


def plain(text: str) -> str:
    """Text for matplotlib, which takes what stands between dollars for mathematics."""
    return text.replace("$", r"\$")
