"""Luna, linear unified nested attention (arXiv 2106.01540), for machine translation in fairseq."""

from .versions import __version__, require_fairseq, run_as_command

__all__ = ["__version__"]

if not run_as_command():  # `python -m fairseq_luna` answers where fairseq is missing, too
    require_fairseq()

    from . import compat

    compat.apply()

    from . import model  # noqa: F401  registers the model with fairseq
