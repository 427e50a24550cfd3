"""Luna, linear unified nested attention (arXiv 2106.01540), for machine translation in fairseq."""

from .versions import require_fairseq

require_fairseq()

from . import model  # noqa: E402, F401  registers the model with fairseq
