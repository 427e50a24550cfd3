"""The step of moses-bpe between raw/ and its pieces: tokens/."""

from functools import partial
from typing import Dict, List

from luna_tools.progress import bar

from fairseq_luna.files import read_lines, whole
from luna_data.parallel.corpus import Corpus
from luna_data.parallel.text import create
from luna_data.workers import blocks, here, spread


def tokenise(corpus: Corpus, texts: Dict[str, int]) -> dict:
    """Write tokens/: raw/ as the recipe tokenises it.

    Args:
        texts: the lines of each file of raw/.
    """
    corpus.say("tokenising")
    with whole(corpus.out / "tokens") as folder, bar(sum(texts.values()), "line") as shown:
        folder.mkdir()
        for split, lang in corpus.sides():
            name = f"{split}.{lang}"
            work, lines = partial(tokenise_block, lang), read_lines(corpus.out / "raw" / name)
            with create(folder / name) as file:
                for block in spread(work, blocks(lines), corpus.args.workers, corpus.recipe):
                    file.write("".join(text + "\n" for text in block))
                    shown.update(len(block))
    return {"lines": sum(texts.values())}


def tokenise_block(lang: str, block: List[str]) -> List[str]:
    return here["recipe"].tokenise(block, lang)
