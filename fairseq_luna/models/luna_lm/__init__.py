"""The Luna language model: the decoder alone, with a learned P (arXiv 2106.01540, section 3.3)."""

from .model import LunaLanguageModel

__all__ = ["LunaLanguageModel"]
