"""ListOps: nested operations on lists of digits, whose result, a digit, is the class of the text.

As in the long-range arena (Tay et al. 2021, after Nangia and Bowman 2018): a node is an operator with a chance of a
quarter, else a digit, and always a digit at the lowest level; an operator takes 2 to 10 arguments. Trees whose text is
not within bounds are thrown away.
"""

import hashlib
from functools import partial
from itertools import count
from random import Random
from statistics import median
from typing import Generator, Iterator, List, NamedTuple, Set, Tuple, Union

from fairseq_luna.errors import Problem
from luna_data.workers import spread

OPERATORS = "MAX", "MIN", "MED", "SM"
WORDS = [*(f"[{name}" for name in OPERATORS), "]", *map(str, range(10))]
NUMBERS = {word: number for number, word in enumerate(WORDS)}
BLOCK = 100  # texts of one seed, the unit of work of a process

Tree = Union[int, tuple]  # a digit, or an operator and the list of its arguments


class Shape(NamedTuple):
    """The bounds of trees and their texts."""

    shortest: int  # words of a text, operators and closing brackets included
    longest: int
    levels: int  # of nodes, digits included
    arguments: int = 10  # of an operator at most


FULL = Shape(501, 1999, 10)  # the arena's bounds, 500 and 2,000, are out of bounds themselves
SHORT = Shape(20, 200, 5)


def samples(shape: Shape, seed: int, workers: int) -> Generator[Tuple[bytes, int], None, None]:
    """Texts without end, none twice, as the numbers of their words, and their values.

    They depend on the seed alone, not on the number of processes.
    """
    seen: Set[bytes] = set()
    for block in spread(partial(make_block, shape, seed), count(), workers):
        for text, value in block:
            digest = hashlib.blake2b(text, digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                yield text, value


def make_block(shape: Shape, seed: int, number: int) -> List[Tuple[bytes, int]]:
    """The block of this number, each text's value found in both ways."""
    random = Random(f"{seed} {number}")
    made: List[Tuple[bytes, int]] = []
    while len(made) < BLOCK:
        tree, size = grow(random, shape)
        if shape.shortest <= size <= shape.longest:
            words = list(spell(tree))
            value = evaluate(tree)
            if run(words) != value:
                raise Problem(f"the tree gives {value}, but its text {run(words)}: {' '.join(words)}")
            made.append((bytes(NUMBERS[word] for word in words), value))
    return made


def grow(random: Random, shape: Shape, level: int = 1) -> Tuple[Tree, int]:
    """A random tree, and how many words its text has."""
    if level == shape.levels or random.random() >= 0.25:
        return int(10 * random.random()), 1
    arguments, size = [], 2
    for _ in range(2 + int((shape.arguments - 1) * random.random())):
        tree, words = grow(random, shape, level + 1)
        arguments.append(tree)
        size += words
    return (OPERATORS[int(len(OPERATORS) * random.random())], arguments), size


def spell(tree: Tree) -> Iterator[str]:
    """The words of a tree, such as [MAX 4 [MIN 2 3 ] 0 ]."""
    if isinstance(tree, int):
        yield str(tree)
        return
    name, arguments = tree
    yield f"[{name}"
    for argument in arguments:
        yield from spell(argument)
    yield "]"


def evaluate(tree: Tree) -> int:
    """The value of a tree. The median of an even number is the mean of the two in the middle, rounded down.

    That is int(numpy.median(...)), by which the arena's data were made.
    """
    if isinstance(tree, int):
        return tree
    name, arguments = tree
    values = [evaluate(argument) for argument in arguments]
    if name == "MED":
        return int(median(values))
    if name == "SM":
        return sum(values) % 10
    return max(values) if name == "MAX" else min(values)


def run(words: List[str]) -> int:
    """The value of a text, by a machine with a stack that knows of no trees: another way than `evaluate`'s."""
    stack: list = []
    for word in words:
        if word != "]":
            stack.append(int(word) if word.isdigit() else word)
            continue
        values: List[int] = []
        while not isinstance(stack[-1], str):
            values.append(stack.pop())
        values.sort()
        name, size = stack.pop(), len(values)
        if name == "[MAX":
            stack.append(values[-1])
        elif name == "[MIN":
            stack.append(values[0])
        elif name == "[MED":
            stack.append((values[(size - 1) // 2] + values[size // 2]) // 2)
        else:
            total = 0
            for value in values:
                total = (total + value) % 10
            stack.append(total)
    (value,) = stack
    return value
