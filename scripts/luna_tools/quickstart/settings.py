"""What the quick start settles beside configs/quickstart.yaml: the model, and what follows from the length."""

import difflib
import math
from typing import Any, Dict

from fairseq_luna.errors import Problem
from fairseq_luna.generation.options import MAX_TOKENS, Search
from fairseq_luna.renamed import current
from luna_tools.console import tell_name
from luna_tools.paths import REPO

CONFIG = "quickstart"
VOCABULARY = 4000  # pieces, of both languages together
VALIDATIONS = 20  # of a training; it saves as often
AVERAGED = 3  # checkpoints, as many as it keeps
NEVER = 1_000_000  # epochs
DECODING = {
    "beam": Search.beam,
    "lenpen": Search.lenpen,
    "max_len_a": Search.max_len_a,
    "max_len_b": Search.max_len_b,
    "max_tokens": MAX_TOKENS,
}


def model_of(arch: str) -> str:
    """The file of configs/model/ by the name of an architecture; fairseq's own have one of the size of the quick start.

    Raises:
        Problem: if there is none.
    """
    now = current("arch", arch)
    if now != arch:
        tell_name(f"--arch {arch}", now)
        arch = now
    known = {path.stem for path in (REPO / "configs" / "model").glob("*.yaml")}
    for name in f"{arch}_{CONFIG}", arch:
        if name in known:
            return name
    near = difflib.get_close_matches(arch, [*known, "transformer"], 3) or ["luna_transformer_tiny", "transformer"]
    raise Problem(f"--arch {arch} is not in configs/model/; did you mean {' or '.join(near)}?")


def overrides_of(updates: int, config: Any) -> Dict[str, Any]:
    """What follows from the length of a training, for train.sh.

    Args:
        updates: of the training.
        config: configs/quickstart.yaml.
    """
    # a warm-up is at most a quarter of the training, and a shorter one climbs no faster
    usual, interval = config.lr_scheduler.warmup_updates, max(5, math.ceil(updates / VALIDATIONS))
    warmup = max(1, min(usual, updates // 4))
    return {
        "optimization.max_update": updates,
        "optimization.lr": f"[{config.optimization.lr[0] * warmup / usual}]",
        "lr_scheduler.warmup_updates": warmup,
        # at these updates alone, not at the ends of epochs
        "dataset.validate_interval_updates": interval,
        "checkpoint.save_interval_updates": interval,
        "dataset.validate_interval": NEVER,
        "checkpoint.save_interval": NEVER,
        "common.log_interval": 10,
    }
