"""Pictures of trainings and scores, where matplotlib is installed."""

import statistics
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from fairseq_luna.files import whole
from luna_tools.progress import TrainingLog


def figure_for(path: Path, width: float) -> Tuple[Any, Any]:
    """A matplotlib figure and its axes, or None twice where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"matplotlib is not installed: no {path.name}", flush=True)
        return None, None
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    return figure, figure.add_subplot()


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG that is there whole or not at all."""
    with whole(path) as beside:
        figure.savefig(str(beside), dpi=120, format="png")


def draw(log: TrainingLog, path: Path, title: str) -> None:
    """Draw the learning curve, where there is one and matplotlib is installed."""
    if not (log.train or log.valid):
        return
    figure, axes = figure_for(path, 7)
    if not figure:
        return
    curves, label = {"train": log.train, "valid": log.valid}, "negative log-likelihood (nats per token)"
    if log.accuracies["valid"]:
        curves, label = log.accuracies, "accuracy (%)"
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*sorted(points.items())), label=name, marker="o" if name == "valid" else None, markersize=3)
    axes.set(xlabel="updates", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


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
    axes.set(xlabel="updates", ylabel="validation nll (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def draw_by_tokens(
    runs: List[Dict[str, Any]], key: str, value: Callable[[Dict[str, Any]], float], path: Path, across: str, up: str
) -> None:
    """Draw a figure of trainings by a number of tokens: a line for each model, the mean of its seeds.

    Args:
        runs: what is known of each training, its model among that.
        key: the entry with the number of tokens.
        value: the figure of a training.
        path: of the picture.
        across: what the numbers are.
        up: what the figure is.
    """
    figure, axes = figure_for(path, 7)
    if not figure:
        return
    for model in dict.fromkeys(run["arm"] for run in runs):
        points: Dict[int, List[float]] = {}
        for run in runs:
            if run["arm"] == model:
                points.setdefault(run[key], []).append(value(run))
        axes.plot(list(points), [statistics.mean(found) for found in points.values()], marker="o", label=model)
    numbers = sorted({run[key] for run in runs})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.minorticks_off()
    axes.set(xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


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
    save(figure, path)
