"""Luna, linear unified nested attention (arXiv 2106.01540), for fairseq: translation, language models, long texts."""

from typing import Any

from .versions import __version__, require_fairseq, run_as_command

__all__ = ["Translator", "__version__"]


def __getattr__(name: str) -> Any:
    """What is imported only where it is used: a training has no need of it."""
    if name == "Translator":
        from .generation.translator import Translator

        return Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _refuse_taken(registry: str, name: str) -> None:
    """fairseq holds one class of a name; there are versions of it with these, too."""
    from fairseq.registry import REGISTRIES

    known = REGISTRIES[registry]["registry"].get(name)
    if known is not None and not known.__module__.startswith(f"{__name__}."):
        raise ImportError(
            f"fairseq_luna brings --{registry.replace('_', '-')} {name}, but {known.__module__} has registered "
            "another of that name: use a fairseq without it, or leave the other plugin out."
        )


if not run_as_command():  # `python -m fairseq_luna` and `python -m fairseq_luna.onnx` need no fairseq
    require_fairseq()

    from . import compat

    compat.apply()

    _refuse_taken("optimizer", "apollo")
    _refuse_taken("lr_scheduler", "milestone")
    _refuse_taken("criterion", "chunked_cross_entropy")
    _refuse_taken("criterion", "chunked_label_smoothed_cross_entropy")

    from .criterions import chunked_cross_entropy  # noqa: F401  registers with fairseq, as do those below
    from .models import luna_classifier, luna_lm, luna_transformer  # noqa: F401
    from .optim import apollo  # noqa: F401
    from .optim.lr_scheduler import milestone  # noqa: F401
    from .tasks import text_classification  # noqa: F401
