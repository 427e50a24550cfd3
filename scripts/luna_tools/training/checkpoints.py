"""fairseq's checkpoints, as files and as dictionaries."""

from pathlib import Path
from typing import List, Optional

from fairseq_luna.errors import Problem
from luna_tools.machine import import_plugin

REMOVE = "remove it: the newest other is then taken"
NAMES = r"checkpoint_\d+_(\d+)\.pt", r"checkpoint(\d+)\.pt"


def saved(folder: Path) -> List[Path]:
    """The checkpoints of a folder that were saved by updates, or else by epochs, newest first."""
    if not folder.is_dir():
        return []
    import_plugin()  # first, as importing fairseq alone has every library log its debug messages
    from fairseq.checkpoint_utils import checkpoint_paths

    kinds = ([Path(path) for path in checkpoint_paths(str(folder), pattern)] for pattern in NAMES)
    return next(filter(None, kinds), [])


def load(path: Path, advice: str = REMOVE) -> dict:
    """A fairseq checkpoint as a dictionary, on the CPU; `advice` is what to do about one that was cut short."""
    import torch

    import_plugin()
    try:
        state = torch.load(str(path), map_location="cpu")
    except Exception as error:
        raise Problem(f"{path} cannot be loaded: {error}. Where it was cut short, {advice}") from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise Problem(f"{path} is no checkpoint of fairseq: it holds no model")
    return state


def updates(path: Path) -> Optional[int]:
    return count_updates(load(path))


def count_updates(state: dict) -> Optional[int]:
    """The updates that a checkpoint has had, where it tells; one made for use alone may not."""
    history = state.get("optimizer_history")
    return history[-1].get("num_updates") if history else None
