"""Where the files of a trained model lie."""

import json
import logging
from pathlib import Path
from typing import NamedTuple, Sequence

from ..errors import Problem
from ..files import sha256
from ..text import recipes
from ..text.recipes import Recipe

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """The files that translating needs.

    Attributes:
        checkpoint: of fairseq.
        recipe: the way from text to pieces and back.
        name: what to call the model in messages.
    """

    checkpoint: Path
    recipe: Recipe
    name: str

    @property
    def dictionaries(self) -> Path:
        """The folder that they lie in."""
        return dictionaries_of(self.recipe.folder)


def dictionaries_of(data: Path) -> Path:
    """data-bin/ of prepared data; where there is none, as in a packed model, the folder itself."""
    return data / "data-bin" if (data / "data-bin").is_dir() else data


def find(folder: Path) -> Place:
    """The files of a run of quickstart.sh or train.sh.

    Or those of any folder that holds model.pt, the dictionaries, what the recipe has learnt (spm.model or bpe.codes)
    and a manifest.json with the settings that `manifest_for` shows.

    Raises:
        Problem: if there is no model.
    """
    data = folder / "data"
    if not data.exists() and any(folder.glob("dict.*.txt")):
        data = folder
    checkpoint, last = folder / "model.pt", folder / "checkpoints" / "checkpoint_last.pt"
    if not checkpoint.exists() and last.exists():
        logger.warning("%s is not finished: using its last checkpoint", folder)
        checkpoint = last
    for path in checkpoint, data if data == folder else data / "data-bin":
        if not path.exists():
            raise Problem(
                f"{folder} holds no model ({path} is missing): "
                "the model is the folder of a finished run of scripts/quickstart.sh or scripts/train.sh, or a file of "
                "scripts/pack.sh (--model, in Python from_run or from_file)"
            )
    if data == folder and not (folder / "manifest.json").exists():
        raise Problem(
            f"{folder} does not tell its languages: write {folder / 'manifest.json'}, "
            f"such as {manifest_for('en', 'de')}"
        )
    return Place(checkpoint, recipes.load(data), str(folder))


def manifest_for(source: str, target: str, recipe: str = recipes.SentencePiece.name) -> str:
    """The text of a manifest.json with what translating needs of it."""
    return json.dumps({"settings": {"source": source, "target": target, "recipe": recipe}})


def agree(used: Sequence[Recipe]) -> None:
    """Refuse recipes whose models cannot translate together, since their pieces or dictionaries differ."""
    first = used[0]
    languages = first.source, first.target
    for other in used[1:]:
        if (other.source, other.target) != languages:
            raise Problem(
                f"{other.folder} is of {other.source}-{other.target}, but {first.folder} of {'-'.join(languages)}: the "
                "models of an ensemble must translate the same pair of languages"
            )
        for mine, theirs in zip(vocabulary_of(other), vocabulary_of(first)):
            if not mine.exists() or sha256(mine) != sha256(theirs):
                raise Problem(
                    f"{other.folder} has not the {mine.relative_to(other.folder)} of {first.folder}, but the models of "
                    "an ensemble must have the same vocabulary: train them on the same data, or on data prepared with "
                    "--vocabulary-of"
                )


def vocabulary_of(recipe: Recipe) -> Sequence[Path]:
    """The files that decide which piece has which number."""
    folder = dictionaries_of(recipe.folder)
    return [recipe.path, *(folder / f"dict.{lang}.txt" for lang in (recipe.source, recipe.target))]
