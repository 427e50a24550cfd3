"""Texts as bytes, one token each, as the long-range arena reads them (Tay et al. 2021)."""

import torch
from fairseq.data import Dictionary
from torch import Tensor


def byte_dictionary() -> Dictionary:
    """The 256 bytes, behind fairseq's special symbols; a byte is called by its number."""
    dictionary = Dictionary()
    for number in range(256):
        dictionary.add_symbol(str(number))
    return dictionary


def encode_bytes(text: bytes, dictionary: Dictionary) -> Tensor:
    """The token of each byte, (n,), without an end of sentence. A text of any bytes will do, UTF-8 or not."""
    first = dictionary.index("0")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long() + first if text else torch.empty(0).long()


def is_byte_dictionary(dictionary: Dictionary) -> bool:
    """Whether it is one of bytes."""
    return dictionary.symbols[dictionary.nspecial :][:256] == [str(number) for number in range(256)]
