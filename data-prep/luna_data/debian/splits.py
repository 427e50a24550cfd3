"""Which text is trained on, and which is held out."""

import hashlib
from typing import Tuple

Pair = Tuple[str, str]  # English, and the other language
HELD_OUT = 20  # one of so many goes to the test set, another to the validation set


def part(key: str) -> str:
    """Which set a sentence or a page goes to, whatever else there is."""
    number = int(hashlib.sha256(key.encode("utf-8")).hexdigest(), 16) % HELD_OUT
    return {0: "test", 1: "valid"}.get(number, "train")
