"""Why a training pair is dropped; the first rule that holds counts."""

from collections import Counter

NOT_UTF8, EMPTY, HUGE, LONG, UNEVEN = RULES = (
    "not UTF-8",
    "a side is empty",
    "a side has too many characters",
    "a side has too many pieces",
    "one side has too many times the pieces of the other",
)


def listing(dropped: Counter) -> str:
    return ", ".join(f"{number:,} dropped because {rule}" for rule, number in dropped.items()) or "none was read"
