"""fairseq-train's JSON log, read while it is written (one updating line) and afterwards (the learning curve)."""

import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from common import whole

RECORD = re.compile(r'\b(train_inner|valid)\b[^{]*(\{"epoch".*\})\s*$')


class TrainingLog:
    """The figures of a training by number of updates: losses in nats per piece, or per text of a classifier."""

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
            shown = {"train nll": f"{latest(self.train):.3f}", "words/s": f"{self.words_per_second:.0f}"}
        if self.valid:
            shown["valid nll"] = f"{latest(self.valid):.3f}"
        if self.accuracies["valid"]:
            shown["valid accuracy"] = f"{latest(self.accuracies['valid']):.1f} %"
        return shown


def latest(figures: Dict[int, float]) -> float:
    return list(figures.values())[-1]


def bar(total: Optional[int], unit: str, initial: int = 0):
    """A tqdm line on a terminal; now and then a line in a file."""
    from tqdm import tqdm

    seconds, unit = 0.5 if sys.stderr.isatty() else 60, f" {unit}"
    return tqdm(
        total=total, initial=initial, unit=unit, mininterval=seconds, dynamic_ncols=True, leave=False, smoothing=0.1
    )


def figure_for(path: Path, width: float):
    """A matplotlib figure and its axes, or None twice where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"matplotlib is not installed: no {path.name}", flush=True)
        return None, None
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    return figure, figure.add_subplot()


def draw(log: TrainingLog, path: Path, title: str) -> None:
    """Draw the learning curve, where there is one and matplotlib is installed."""
    figure, axes = figure_for(path, 7) if log.train or log.valid else (None, None)
    if not figure:
        return
    curves, label = {"train": log.train, "valid": log.valid}, "negative log-likelihood (nats per piece)"
    if log.accuracies["valid"]:
        curves, label = log.accuracies, "accuracy (%)"
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*sorted(points.items())), label=name, marker="o" if name == "valid" else None, markersize=3)
    axes.set(xlabel="updates", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with whole(path) as beside:
        figure.savefig(str(beside), dpi=120, format="png")


def draw_curves(curves: Dict[str, List[Dict[str, float]]], path: Path) -> None:
    """Draw the validation loss by updates of several models: the mean of their trainings, and the span of these."""
    figure, axes = figure_for(path, 8)
    if not figure:
        return
    for name, trainings in curves.items():
        common = sorted(set.intersection(*(set(training) for training in trainings)), key=int)
        rows = [[training[updates] for training in trainings] for updates in common]
        updates = [int(text) for text in common]
        (line,) = axes.plot(updates, [statistics.mean(row) for row in rows], marker="o", markersize=3, label=name)
        if len(trainings) > 1:
            lowest, highest = [min(row) for row in rows], [max(row) for row in rows]
            axes.fill_between(updates, lowest, highest, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="updates", ylabel="validation nll (nats per piece)")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole(path) as beside:
        figure.savefig(str(beside), dpi=120, format="png")


def draw_by_length(models: List[Tuple[str, List[dict]]], path: Path) -> None:
    """Draw BLEU by length, as `scores.by_length` has it, of several models over the same test set."""
    figure, axes = figure_for(path, 8)
    if not figure:
        return
    there = [bucket["words"] for bucket in models[0][1] if bucket["sentences"]]
    models = [(name, [bucket for bucket in buckets if bucket["words"] in there]) for name, buckets in models]
    width = 0.8 / len(models)
    for number, (name, buckets) in enumerate(models):
        aside = (number - (len(models) - 1) / 2) * width
        places = [there.index(bucket["words"]) + aside for bucket in buckets]
        bars = axes.bar(places, [bucket["BLEU"] or 0 for bucket in buckets], 0.92 * width, label=name)
        if len(models) < 3:  # of more, figures would run into each other
            texts = ["" if bucket["BLEU"] is None else f"{bucket['BLEU']:.1f}" for bucket in buckets]
            axes.bar_label(bars, texts, fontsize=8, padding=2)
    labels = [f"{bucket['words']}\n{bucket['sentences']:,}" for bucket in models[0][1]]
    axes.set_xticks(range(len(there)), labels)
    axes.set(xlabel="words of the source, and how many sentences have so many", ylabel="BLEU (sacreBLEU)")
    axes.margins(y=0.12)
    axes.set_ylim(0, max(1, axes.get_ylim()[1]))
    axes.set_title("BLEU by length" + (f": {' and '.join(name for name, _ in models)}" if len(models) < 3 else ""))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(models) > 1:
        figure.legend(loc="outside lower center", ncols=2)
    with whole(path) as beside:
        figure.savefig(str(beside), dpi=120, format="png")
