"""This machine, and fairseq with the plugin on it."""

import logging
import os
import platform
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, Iterable, Optional

from fairseq_luna.files import read_lines
from luna_tools.paths import USER_DIR


def import_plugin(user_dir: Optional[str] = None) -> None:
    """Import fairseq and fairseq_luna, or another plugin in its place.

    Ours registers its models and lets torch load fairseq's checkpoints.
    """
    from fairseq.utils import import_user_module

    import_user_module(Namespace(user_dir=user_dir or str(USER_DIR)))
    logging.getLogger().setLevel(logging.WARNING)


def machine(cpu: bool) -> dict:
    """What a report says of the machine; `cpu` where its GPU was left alone."""
    import torch

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() and not cpu else None,
    }


def names_of(machines: Iterable[Dict[str, Any]]) -> str:
    """Where something was measured, out of what `machine` said of each: the GPU, or else the CPU."""
    return " or ".join(sorted({each["gpu"] or each["cpu"] for each in machines}))


def cpu_name() -> str:
    try:
        lines = read_lines(Path("/proc/cpuinfo"))
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
