"""Parallel text that is to be prepared: where it is, how it is asked for, and where it goes."""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from luna_tools.console import teller

from fairseq_luna.text.recipes import RECIPES
from luna_data.parallel.options import settings_of
from luna_data.parallel.text import Text


class Corpus:
    """What the steps know of the text: its parts, the options, the recipe and the folder."""

    def __init__(
        self,
        name: str,
        args: argparse.Namespace,
        texts: Dict[str, List[Tuple[Text, Text]]],
        sums: Dict[str, str],
        limit: Optional[int] = None,
        facts: Optional[dict] = None,
    ) -> None:
        """
        Args:
            name: of the command, for what it says.
            texts: for each split, the parts it is made of, source and target: train, valid, test and, where there
                are more test sets, test1 and so on.
            sums: the SHA-256 of all they are read from, each under its name.
            limit: take no more than the first so many pairs of each part of the training text.
            facts: more for the manifest.
        """
        self.args, self.texts, self.limit, self.facts = args, texts, limit, facts or {}
        self.say = teller(name)
        self.held_out = [split for split in texts if split != "train"]
        self.out: Path = args.out
        self.languages: Tuple[str, str] = (args.source, args.target)
        self.settings: Dict[str, Any] = {**settings_of(args), "limit": limit}
        self.settings.update((f"sha256 of {name}", value) for name, value in sums.items())
        self.recipe = RECIPES[args.recipe](self.out, args.source, args.target)
        self.tokenised = self.out / ("tokens" if args.recipe == "moses-bpe" else "raw")
        self.manifest = self.out / "manifest.json"

    def pick(self, *names: str) -> Dict[str, Any]:
        return {name: self.settings[name] for name in names}

    def sides(self) -> List[Tuple[str, str]]:
        return [(split, lang) for split in self.texts for lang in self.languages]

    def files(self) -> List[str]:
        return [f"{split}.{lang}" for split, lang in self.sides()]

    def both(self, folder: Path, split: str) -> List[Path]:
        """The files of a split, of the source and of the target language."""
        return [folder / f"{split}.{lang}" for lang in self.languages]
