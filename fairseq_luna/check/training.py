"""Ten sentences and a small model to train on them, by fairseq-train's own code."""

import json
import logging
from pathlib import Path
from typing import List

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import train

from ..generation.places import manifest_for
from ..text.recipes import SentencePiece

USER_DIR = Path(__file__).resolve().parent.parent
PAIRS = [
    ("The house is small.", "Das Haus ist klein."),
    ("The garden is big.", "Der Garten ist groß."),
    ("The dog sleeps in the garden.", "Der Hund schläft im Garten."),
    ("The cat sleeps in the house.", "Die Katze schläft im Haus."),
    ("I see the dog.", "Ich sehe den Hund."),
    ("I see the cat.", "Ich sehe die Katze."),
    ("The dog sees the small cat.", "Der Hund sieht die kleine Katze."),
    ("The cat sees the big dog.", "Die Katze sieht den großen Hund."),
    ("We have a small house.", "Wir haben ein kleines Haus."),
    ("We have a big garden.", "Wir haben einen großen Garten."),
]
SOURCES = [source for source, _ in PAIRS]
PIECES = 320  # 256 of them bytes


def prepare(folder: Path) -> None:
    """Write the sentences as pieces, the dictionaries and the sentencepiece model to a folder."""
    recipe = SentencePiece(folder, "en", "de")
    recipe.learn((line for pair in PAIRS for line in pair), recipe.path, PIECES)
    (folder / "manifest.json").write_text(manifest_for("en", "de"))
    for lang, lines in zip(("en", "de"), zip(*PAIRS)):
        pieces = "".join(" ".join(line) + "\n" for line in recipe.encode(list(lines)))
        (folder / f"train.en-de.{lang}").write_text(pieces, encoding="utf-8")
        symbols = "".join(f"{piece} 1\n" for piece in recipe.symbols())
        (folder / f"dict.{lang}.txt").write_text(symbols, encoding="utf-8")


def losses(folder: Path, checkpoints: str, updates: int, *more: str) -> List[float]:
    """Train up to an update, on from the checkpoint that is there.

    Args:
        folder: as `prepare` has left it.
        checkpoints: the folder in it for the checkpoint.
        updates: the number of the last one.
        more: options of fairseq-train.

    Returns:
        The loss of each update, in bits a piece.
    """
    words = [str(folder), "--user-dir", str(USER_DIR), "--arch", "luna_transformer_tiny_local"]
    words += "--task translation --dataset-impl raw -s en -t de --share-all-embeddings".split()
    words += "--optimizer adam --lr 0.002 --clip-norm 1 --criterion chunked_cross_entropy".split()
    words += "--batch-size 10 --required-batch-size-multiple 1".split()
    words += "--log-format json --log-interval 1 --num-workers 0 --distributed-world-size 1".split()
    words += "--valid-subset train --disable-validation --save-interval 1000000 --no-epoch-checkpoints".split()
    words += ["--save-dir", str(folder / checkpoints), "--max-update", str(updates), *more]
    words += [] if torch.cuda.is_available() else ["--cpu"]
    found: List[float] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "train_inner":
                found.append(float(json.loads(record.getMessage())["loss"]))

    log, listener = logging.getLogger("fairseq.logging.progress_bar"), Listener()
    log.addHandler(listener)
    try:
        train.main(convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words)))
    finally:
        log.removeHandler(listener)
    return found
