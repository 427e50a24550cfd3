"""Translating with a model that scripts/export.sh wrote, by onnxruntime: without torch and without fairseq.

    python -m fairseq_luna.onnx DIR < text

Here are no more imports than onnxruntime, numpy and what cuts text into pieces (sentencepiece; or sacremoses, regex and
subword-nmt). In Python, `from fairseq_luna.onnx import Translator` is the same; that imports the whole plugin first.
"""

from typing import Any

__all__ = ["Translator"]


def __getattr__(name: str) -> Any:
    """What needs numpy, whose lack the command can tell in a sentence."""
    if name == "Translator":
        from .translator import Translator

        return Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
