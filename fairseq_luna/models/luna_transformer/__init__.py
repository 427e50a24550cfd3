"""The Luna Transformer: sequence to sequence, for translation (arXiv 2106.01540)."""

from .model import LunaTransformerModel

__all__ = ["LunaTransformerModel"]
