"""The classifier of long texts: the translation's encoder, and classes on top of it."""

from .model import LunaClassifierModel

__all__ = ["LunaClassifierModel"]
