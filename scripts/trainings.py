"""A training as train.sh makes it, as a step of a larger command."""

import argparse
from pathlib import Path
from typing import Any, Dict

from train import MEETING, Training


def train(config: str, place: Path, data: Path, settings: Dict[str, Any], cpu: bool) -> None:
    """Train to the end: it goes on from the last checkpoint, and ends at once where all is done.

    Args:
        config: the name of a file in configs/.
        place: the folder of the training.
        data: what data-prep/ made.
        settings: overrides of the configuration, by key.
        cpu: leave a GPU alone.
    """
    overrides = [f"{key}={value}" for key, value in settings.items()]
    options = {"data": data, "out": place, "processes": 1, "cpu": cpu}
    options.update((name.replace("-", "_"), None) for name in MEETING)
    Training(argparse.Namespace(config=config, overrides=overrides, **options)).run()
