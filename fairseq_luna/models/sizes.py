"""Sizes that what is captured in graphs is made for: few, for it should serve many batches."""


def some(n: int) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ...: at most a quarter more."""
    return upwards(n, 1 << max(0, (n - 1).bit_length() - 3))


def upwards(n: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-n // step) * step
