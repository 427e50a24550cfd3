"""What is told of prepared data: manifest.json, and a table of the training pairs."""

from typing import Any, Dict

from fairseq_luna.files import sha256, write_json
from luna_data.parallel.corpus import Corpus
from luna_data.parallel.notes import Notes
from luna_data.parallel.rules import RULES
from luna_data.parallel.versions import all_versions


def write_manifest(corpus: Corpus, notes: Notes) -> None:
    text, learnt, pieces, data = (notes.result(name) for name in ("text", "vocabulary", "pieces", "data-bin"))
    symbols = corpus.recipe.symbols()
    lossy = {} if pieces["lossy"] is None else {"lines that do not survive pieces and back": pieces["lossy"]}
    write_json(
        corpus.manifest,
        {
            "settings": corpus.settings,
            **corpus.facts,
            "lines": text["texts"],
            "pairs read": text["read"],
            "training pairs": pairs_table(corpus, notes),
            "blank lines kept": text["blank lines kept"],
            "lines that normalising changed": text["lines that normalising changed"],
            "pieces": pieces["pieces"],
            "pairs over the length, kept": pieces["long"],
            **lossy,
            "vocabulary": len(symbols) + 3 if symbols else data["dictionary"],  # sentencepiece has 3 special ones
            "learnt from": learnt["learnt from"],
            "dictionary of fairseq": data["dictionary"],
            "binarised": data["binarised"],
            f"sha256 of {corpus.recipe.model}": sha256(corpus.out / corpus.recipe.model),
            "versions": all_versions(),
            "workers": corpus.args.workers,
            "steps": notes.figures(),
        },
    )


def pairs_table(corpus: Corpus, notes: Notes) -> Dict[str, Any]:
    """Training pairs read, dropped by each rule, and kept."""
    text, pieces = notes.result("text"), notes.result("pieces")
    read = sum(number for name, number in text["read"].items() if name.startswith("train: "))
    kept = pieces["kept"][f"train.{corpus.args.source}"]
    dropped = {rule: text["dropped"].get(rule, 0) + pieces["dropped"].get(rule, 0) for rule in RULES}
    return {"read": read, "dropped": dropped, "kept": kept}


def show_table(corpus: Corpus, notes: Notes) -> None:
    table = pairs_table(corpus, notes)
    rows = [("training pairs read", table["read"])]
    rows += [(f"dropped: {rule}", number) for rule, number in table["dropped"].items() if number]
    rows += [("training pairs kept", table["kept"])]
    blank = notes.result("text")["blank lines kept"]
    rows += [(f"blank lines in {name}, kept", number) for name, number in blank.items() if number]
    long = notes.result("pieces")["long"]
    what = f"with more than {corpus.args.max_length:,} pieces, kept (the model must take them)"
    rows += [(f"pairs in {split} {what}", number) for split, number in long.items() if number]
    for what, number in rows:
        corpus.say(f"{number:>12,}  {what}")
