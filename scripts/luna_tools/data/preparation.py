"""Data made by a command of data-prep/, as a step of a larger one."""

import sys
from typing import List

from luna_tools.paths import REPO


def preparation(name: str, *words: object) -> List[str]:
    """The command of data-prep/ by the name of its module, such as prepare_corpus."""
    return [sys.executable, str(REPO / "data-prep" / f"{name}.py"), *map(str, words)]
