"""Trainings as train.sh makes them, as steps of a larger command that goes on where it was."""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json
from fairseq_luna.versions import versions
from luna_tools.console import quote
from luna_tools.machine import machine
from luna_tools.progress import TrainingLog
from luna_tools.run_folder import claim, differences
from luna_tools.training.run import MEETING, Training


def begin(out: Path, settings: Dict[str, Any]) -> None:
    """Take a folder for trainings with these settings.

    Raises:
        Problem: if it was begun with others.
    """
    begun = read_json(out / "settings.json")
    if begun and begun != settings:
        raise Problem(
            f"{out} was begun with other settings: {'; '.join(differences(begun, settings))}. "
            "Go on with the same ones, or begin anew with another --out"
        )
    claim(out, settings)


def commands(results: Path, script: str) -> List[str]:
    """The commands that made the results in a file, with this one as the last."""
    before = read_json(results, {}).get("commands", [])
    return list(dict.fromkeys([*before, quote(["bash", script, *sys.argv[1:]])]))


def training(config: str, place: Path, data: Path, settings: Dict[str, Any], cpu: bool) -> Training:
    """A training by one process. It goes on from the last checkpoint, and ends at once where all is done.

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
    return Training(argparse.Namespace(config=config, overrides=overrides, **options))


def measured(log: TrainingLog, cpu: bool) -> Dict[str, Any]:
    """What a result says of its training, and of where that was.

    Args:
        log: of the training.
        cpu: whether a GPU was left alone.
    """
    return {
        "parameters": log.parameters,
        "updates": log.updates,
        "tokens a second": round(log.typical_words_per_second()),
        "peak memory (bytes)": log.peak_memory,
        "machine": machine(cpu),
        "versions": versions(),
    }
