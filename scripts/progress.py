"""fairseq-train's JSON log, read while it is written (one updating line) and afterwards (the learning curve)."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Dict, Optional

from common import whole

RECORD = re.compile(r'\b(train_inner|valid)\b[^{]*(\{"epoch".*\})\s*$')


class TrainingLog:
    """The figures of a training by number of updates; losses in nats per piece."""

    def __init__(self) -> None:
        self.train: Dict[int, float] = {}
        self.valid: Dict[int, float] = {}
        self.parameters: Optional[int] = None
        self.updates = 0
        self.updates_per_second = self.words_per_second = 0.0

    @classmethod
    def read(cls, path: Path) -> "TrainingLog":
        log = cls()
        if path.exists():
            with open(path, encoding="utf-8") as file:
                for line in file:
                    log.add(line)
        return log

    def add(self, line: str) -> bool:
        """Take in one line of the log; tell whether it held figures."""
        count = re.search(r"num\. shared model params: ([\d,]+)", line)
        if count:
            self.parameters = int(count.group(1).replace(",", ""))
        record = RECORD.search(line)
        if not record:
            return False
        figures = json.loads(record.group(2))
        prefix, losses = ("valid_", self.valid) if record.group(1) == "valid" else ("", self.train)
        self.updates = int(figures[prefix + "num_updates"])
        bits = float(figures.get(prefix + "nll_loss", figures[prefix + "loss"]))  # criteria without smoothing have one
        losses.pop(self.updates, None)  # of a run that was killed: the latest is to stand last
        losses[self.updates] = bits * math.log(2)
        if "ups" in figures:
            self.updates_per_second, self.words_per_second = float(figures["ups"]), float(figures["wps"])
        return True

    def figures(self) -> Dict[str, str]:
        """The latest of each, ready to be shown."""
        shown = {}
        if self.train:
            shown = {"train nll": f"{list(self.train.values())[-1]:.3f}", "words/s": f"{self.words_per_second:.0f}"}
        if self.valid:
            shown["valid nll"] = f"{list(self.valid.values())[-1]:.3f}"
        return shown


def bar(total: Optional[int], unit: str, initial: int = 0):
    """A tqdm line on a terminal; now and then a line in a file."""
    from tqdm import tqdm

    seconds, unit = 0.5 if sys.stderr.isatty() else 60, f" {unit}"
    return tqdm(
        total=total, initial=initial, unit=unit, mininterval=seconds, dynamic_ncols=True, leave=False, smoothing=0.1
    )


def draw(log: TrainingLog, path: Path, title: str) -> None:
    """Draw the learning curve, where there is one and matplotlib is installed."""
    if not log.train and not log.valid:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"matplotlib is not installed: no {path.name}", flush=True)
        return

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, points in ("train", log.train), ("valid", log.valid):
        if points:
            axes.plot(*zip(*sorted(points.items())), label=name, marker="o" if name == "valid" else None, markersize=3)
    axes.set(xlabel="updates", ylabel="negative log-likelihood (nats per piece)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with whole(path) as beside:
        figure.savefig(str(beside), dpi=120, format="png")
