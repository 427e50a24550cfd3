"""The pages of the LibreOffice help, as far as the embedded corpus has their sentences."""

import lzma
import tarfile
from typing import Dict, List

from luna_tools.data import embedded

from luna_data.folder import SPLITS

CORPUS = embedded.CORPUS / "libreoffice-help-en-de.tar.xz"
INDEX = embedded.CORPUS / "pages.txt.xz"


def sentences(lang: str = "en") -> List[str]:
    """All of the corpus in English (en) or German (de), in the order of its files. Pairs have the same number."""
    with tarfile.open(str(CORPUS)) as archive:
        texts = [archive.extractfile(f"{split}.{lang}").read().decode() for split in SPLITS]  # type: ignore[union-attr]
    return [sentence for text in texts for sentence in text.split("\n")[:-1]]


def pages() -> Dict[str, List[int]]:
    """By the name of each page, such as swriter/guide/anchor_object.html, the numbers of its sentences in order."""
    found = {}
    for line in lzma.decompress(INDEX.read_bytes()).decode().splitlines():
        name, *numbers = line.split(" ")
        found[name] = [int(number) for number in numbers]
    return found
