"""fairseq-train's JSON log, read while it is written (one updating line) and afterwards (the learning curve)."""

import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

RECORD = re.compile(r'\b(train_inner|valid)\b[^{]*(\{"epoch".*\})\s*$')


class TrainingLog:
    """The figures of a training by number of updates: losses in nats per token, or per text of a classifier."""

    def __init__(self) -> None:
        self.train: Dict[int, float] = {}
        self.valid: Dict[int, float] = {}
        self.accuracies: Dict[str, Dict[int, float]] = {"train": {}, "valid": {}}  # of a classifier, in percent
        self.parameters: Optional[int] = None
        self.updates = 0
        self.updates_per_second = self.words_per_second = 0.0
        self.speeds: List[float] = []  # words per second of each record
        self.seconds: Dict[int, float] = {}  # per update, of each record
        self.peak_memory: Optional[int] = None  # bytes, of sessions that were not killed

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
        memory = re.search(r"peak memory of this process: (\d+) bytes", line)
        if memory:
            self.peak_memory = max(int(memory.group(1)), self.peak_memory or 0)
        record = RECORD.search(line)
        if not record:
            return False
        figures = json.loads(record.group(2))
        name, prefix = ("valid", "valid_") if record.group(1) == "valid" else ("train", "")
        losses, accuracies = getattr(self, name), self.accuracies[name]
        self.updates = int(figures[prefix + "num_updates"])
        for found in losses, accuracies:
            found.pop(self.updates, None)  # of a run that was killed: the latest is to stand last
        bits = figures.get(prefix + "nll_loss", figures[prefix + "loss"])  # criteria without smoothing have one loss
        if prefix + "accuracy" in figures:
            accuracies[self.updates] = float(figures[prefix + "accuracy"])
            bits = figures[prefix + "loss"]  # the other one is divided by the tokens
        losses[self.updates] = float(bits) * math.log(2)
        if "ups" in figures:
            self.updates_per_second, self.words_per_second = float(figures["ups"]), float(figures["wps"])
            self.speeds.append(self.words_per_second)
            if self.words_per_second:  # more exact than updates per second, which are rounded to hundredths
                self.seconds[self.updates] = float(figures["wpb"]) / self.words_per_second
        return True

    def typical_words_per_second(self) -> float:
        """The median of all records: validation and saving fall into few of them."""
        return statistics.median(self.speeds) if self.speeds else 0.0

    def figures(self) -> Dict[str, str]:
        """The latest of each, ready to be shown."""
        shown = {}
        if self.train:
            shown = {"train nll": f"{latest(self.train):.3f}", "tokens/s": f"{self.words_per_second:.0f}"}
        if self.valid:
            shown["valid nll"] = f"{latest(self.valid):.3f}"
        if self.accuracies["valid"]:
            shown["valid accuracy"] = f"{latest(self.accuracies['valid']):.1f} %"
        return shown


def latest(figures: Dict[int, float]) -> float:
    return list(figures.values())[-1]


def bar(total: Optional[int], unit: str, initial: int = 0) -> Any:
    """A tqdm line on a terminal; now and then a line in a file."""
    from tqdm import tqdm

    seconds, unit = 0.5 if sys.stderr.isatty() else 60, f" {unit}"
    return tqdm(
        total=total, initial=initial, unit=unit, mininterval=seconds, dynamic_ncols=True, leave=False, smoothing=0.1
    )
