"""How many updates the trainings of a study can make in a number of minutes, for compare.sh --minutes.

Each model has a trial: a training of its own settings, beside as many others as the trainings will have, that validates
and saves once. It runs until all models of the trial have been measured, so that none is measured with less company.
Then the model, which has learnt little and so writes as much as it may, translates a part of the first test set."""

import heapq
import math
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, remove
from luna_tools.evaluation.scores import by_length, compare, score
from luna_tools.evaluation.search import LENGTHS, fairseq_command, options_of
from luna_tools.evaluation.texts import lines
from luna_tools.evaluation.translation import PART, number_of_parts
from luna_tools.processes import run
from luna_tools.progress import TrainingLog
from luna_tools.study.definition import folder, words_of
from luna_tools.study.scores import SCORES, Scorer
from luna_tools.study.trainings import Devices, Trainer, reason
from luna_tools.training.average import average_last

TRIAL = ".trial"  # the folder, in that of the study; no model has such a name
WARM = 60  # updates of a trial before it validates and saves; compiling and graphs are behind it then
EVERY = 5  # updates from one record of its log to the next
RECORDS = 4  # at least, that are measured
STRETCH = 20.0, 0.02  # seconds that are measured at most, and of the time that is left
VALIDATIONS = 10  # of a training; it saves as often
AVERAGED = 3  # of what it saved, at most: the last fifth of the training
LEAST = 2 * VALIDATIONS  # updates of a training, however short the time
KEPT_BACK = 0.05  # of the time, for what no trial shows
BATCHES = 4  # of a test set that a trial translates
LINES = 200  # of each test set, that the scores are tried on
NEVER = 1_000_000  # epochs or updates
RECORDED = 100  # updates from one record of a training's log to the next, at most
# what follows from the time, and from nothing else
SET_BY_MINUTES = (
    "optimization.max_update",
    "dataset.validate_interval",
    "dataset.validate_interval_updates",
    "checkpoint.save_interval",
    "checkpoint.save_interval_updates",
)


class Pace(NamedTuple):
    """What a training takes, in seconds.

    Attributes:
        begin: until it is at its pace.
        update: each update.
        pause: each validation, with what is saved then.
        translation: averaging, and translating all test sets.
    """

    begin: float
    update: float
    pause: float
    translation: float


def updates_within(seconds: float, paces: Sequence[Pace], at_once: int) -> int:
    """The most updates of each training with which all end in time, where each takes the place that is free first."""

    def length(updates: int) -> float:
        free = [0.0] * at_once
        for pace in paces:
            alone = pace.begin + updates * pace.update + VALIDATIONS * pace.pause + pace.translation
            heapq.heapreplace(free, free[0] + alone)
        return max(free)

    low, high = 0, 1 + int(max(0.0, seconds) / min(pace.update for pace in paces)) * at_once
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(middle) <= seconds else (low, middle)
    return low


class Planner:
    """Measures the models and chooses the number of updates.

    Args:
        study: what read_study gave.
        trainer: runs train.sh; its arguments are those of compare.sh.
        scorer: knows the test sets and how they are translated.
        begun: when the command began, as time.time() gave it.
    """

    def __init__(self, study: Dict[str, Any], trainer: Trainer, scorer: Scorer, begun: float) -> None:
        self.study, self.trainer, self.scorer, self.begun = study, trainer, scorer, begun
        self.devices: Devices = trainer.devices
        self.args = trainer.args
        self.out = self.args.out / TRIAL

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return 60 * self.args.minutes - (time.time() - self.begun)

    def plan(self, trainings: List[Tuple[dict, int]], say: Callable[[str], None]) -> Dict[str, Any]:
        """What the trainings do, for settings.json: the updates, the overrides of each model, what was measured."""
        for model, _ in trainings:
            for key in SET_BY_MINUTES:
                if key in model.get("overrides", {}):
                    raise Problem(f"{model['name']} has its own {key}: leave it out with --minutes")
        say(f"measuring the pace of the models, {self.devices.at_once} at once")
        paces, composed = self.measure(trainings)
        tests = sum(model["name"] != self.study["baseline"] for model, _ in trainings)
        scores, left, size = self.scores(len(trainings), tests), self.left(), self.devices.at_once
        in_order = [paces[model["name"]] for model, _ in trainings]
        found = updates_within(left - scores - 60 * self.args.minutes * KEPT_BACK, in_order, size)
        updates = max(LEAST, found)
        each = ", ".join(f"{name} {pace.update:.3g}" for name, pace in paces.items())
        told = (
            f"Of {self.args.minutes:g} minutes {max(0.0, left) / 60:.1f} were left after trials with {size} at once. "
            f"Seconds an update: {each}. Translation was estimated at "
            f"{max(pace.translation for pace in in_order):.0f} s a training, by a part of a test set and a model that "
            f"has learnt little, and all scores at {scores:.0f} s, "
            f"by {LINES} lines. So each training makes {updates:,} updates"
        )
        told += "." if updates == found else ", the least there is, and takes longer than that."
        limits = {}
        given = {word.partition("=")[0] for word in self.args.overrides}
        for name in paces:
            follow = limits_of(updates, composed[name], self.scorer.decoding["average"])
            limits[name] = {key: value for key, value in follow.items() if key not in given}
        shortened = [name for name, values in limits.items() if "lr_scheduler.warmup_updates" in values]
        if shortened:
            told += f" The warm-up of {', '.join(shortened)} is a quarter of that, {updates // 4:,}."
        say(told)
        measured = {
            name: {key: round(value, 4) for key, value in pace._asdict().items()} for name, pace in paces.items()
        }
        return {
            "updates": updates,
            "overrides": limits,
            "seconds": {**measured, "scores": round(scores, 1)},
            "told": told,
        }

    # ---- trials

    def measure(self, trainings: List[Tuple[dict, int]]) -> Tuple[Dict[str, Pace], Dict[str, Dict[str, Any]]]:
        """The pace and the composed settings of each model, by its name."""
        paces: Dict[str, Pace] = {}
        composed: Dict[str, Dict[str, Any]] = {}
        size = self.devices.at_once
        for first in range(0, len(trainings), size):
            group = (trainings * 2)[first : first + size]  # a last, smaller one has as much company as the others
            if {model["name"] for model, _ in group} - set(paces):
                remove(self.out)
                paces = {**self.side_by_side(group), **paces}
                for model, seed in group:
                    composed[model["name"]] = read_json(self.place(model, seed) / "settings.json")
        remove(self.out)
        return paces, composed

    def place(self, model: dict, seed: int) -> Path:
        return self.out / f"{folder(model['name'])}-seed{seed}"

    def side_by_side(self, group: List[Tuple[dict, int]]) -> Dict[str, Pace]:
        """The paces of some models that train, and then translate, beside each other."""
        trial = {
            "optimization.max_update": NEVER,
            "common.log_interval": EVERY,
            "dataset.validate_interval": NEVER,
            "dataset.validate_interval_updates": WARM,
            "checkpoint.save_interval": NEVER,
            "checkpoint.save_interval_updates": WARM,
            "checkpoint.keep_interval_updates": self.scorer.decoding["average"],
        }
        begun, processes = time.time(), []
        try:
            for number, (model, seed) in enumerate(group):
                overrides = words_of(
                    self.study, model, seed, {}, [*self.args.overrides, *(f"{k}={v}" for k, v in trial.items())]
                )
                words = self.trainer.words(self.place(model, seed), overrides)
                processes.append(self.trainer.start(words, number, quiet=True))
            logs, began, warm = self.watch(group, processes, begun)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.communicate()
                self.trainer.live.discard(process)
        pool = ThreadPoolExecutor(len(group))  # not by `with`, which would wait for it when we are stopped
        places = [(self.place(model, seed), number) for number, (model, seed) in enumerate(group)]
        translations = list(pool.map(lambda each: self.translation(*each), places))
        pool.shutdown()
        paces = {}
        for number, (model, _) in enumerate(group):
            seconds = logs[number].seconds
            update = statistics.median(value for at, value in seconds.items() if counts(at, warm[number]))
            pause = max(0.0, (seconds.get(WARM + EVERY, update) - update) * EVERY)
            begin = max(0.0, began[number] - pause - (WARM + EVERY) * update)
            paces[model["name"]] = Pace(begin, update, pause, translations[number])
        return paces

    def watch(self, group: list, processes: list, begun: float) -> Tuple[List[TrainingLog], List[float], List[int]]:
        """Wait until all were measured: the logs, the seconds until each was warm, its updates when all were."""
        paths = [self.place(model, seed) / "train.log" for model, seed in group]
        began: Dict[int, float] = {}
        warm: List[int] = []
        until = math.inf
        while True:
            for (model, _), process in zip(group, processes):
                if process.poll() is not None:
                    said = process.communicate()[0]
                    raise Problem(f"the trial of {model['name']} ended before it was measured{reason(said)}")
            logs = [TrainingLog.read(path) for path in paths]
            for number, log in enumerate(logs):
                if log.updates >= WARM + EVERY:
                    began.setdefault(number, time.time() - begun)
            if len(began) == len(group) and not warm:
                warm = [log.updates for log in logs]
                until = time.time() + min(STRETCH[0], STRETCH[1] * max(0.0, self.left()))
            if warm and time.time() > until:
                measured = [sum(counts(at, first) for at in log.seconds) for log, first in zip(logs, warm)]
                if min(measured) >= RECORDS:
                    return logs, [began[number] for number in range(len(group))], warm
            time.sleep(0.2)

    def translation(self, run_folder: Path, place: int) -> float:
        """Seconds that the average and the translations of a training take: those of a part, as much more."""
        scorer, environment = self.scorer, self.devices.environment(place)
        begun = time.time()
        model = average_last(run_folder, scorer.decoding["average"])
        inputs = len(read_json(model.with_suffix(".json"))["inputs"])
        average = (time.time() - begun) * scorer.decoding["average"] / inputs
        options = scorer.options(run_folder)
        search = {"beam": options.beam, "lenpen": scorer.decoding["lenpen"], **LENGTHS}
        words = options_of(options, {**search, "max_tokens": options.max_tokens}) + ["--cpu"] * options.cpu
        split = next(iter(scorer.tests.values()))
        parts = math.ceil(number_of_parts(options, split, lines(scorer.data, split), 1) / BATCHES)
        words += ["--distributed-world-size", str(parts), "--distributed-rank", "0"]
        searching: List[float] = []

        def read(line: str) -> None:
            found = re.search(r"Translated [\d,]+ sentences .* in ([\d.]+)s", line)
            searching.extend([float(found.group(1))] if found else [])

        begun = time.time()
        run(fairseq_command("generate", scorer.data, [model], split, words), run_folder / "log", read, environment)
        around = time.time() - begun - searching[0]
        sizes = [sum(map(len, scorer.pieces(name))) for name in scorer.tests]
        starts = sum(
            number_of_parts(options, split, lines(scorer.data, split), PART) for split in scorer.tests.values()
        )
        return average + around * starts + searching[0] * parts * sum(sizes) / max(1, sizes[0])

    def scores(self, trainings: int, tests: int) -> float:
        """Seconds that the scores of all trainings take, and so many paired tests."""
        scorer, seconds = self.scorer, 0.0
        for name in scorer.tests:
            sources, references = (scorer.text(name, lang) for lang in (scorer.recipe.source, scorer.recipe.target))
            some, others, pieces = references[:LINES], sources[:LINES], scorer.pieces(name)[:LINES]
            more = len(references) / len(some)
            begun = time.time()
            score(others, some, scorer.recipe.target, SCORES)
            by_length(others, others, some, scorer.recipe.target)
            by_length(pieces, others, some, scorer.recipe.target, "pieces")
            scored = time.time()
            compare(others, some, some, scorer.recipe.target, SCORES)
            seconds += more * (trainings * (scored - begun) + tests * (time.time() - scored))
        return seconds


def counts(update: int, warm: int) -> bool:
    """Whether the record at an update is measured: after all are warm, and without a validation in it."""
    return update > warm and (update - EVERY) % WARM != 0


def limits_of(updates: int, composed: Dict[str, Any], average: int) -> Dict[str, Any]:
    """Overrides that make a training of so many updates: what follows from their number.

    Args:
        composed: the settings of a trial, by dotted keys.
        average: checkpoints that are averaged afterwards.
    """
    interval = math.ceil(updates / VALIDATIONS)
    limits = {
        "optimization.max_update": updates,
        "dataset.validate_interval": NEVER,
        "dataset.validate_interval_updates": interval,
        "checkpoint.save_interval": NEVER,
        "checkpoint.save_interval_updates": interval,
        "checkpoint.keep_interval_updates": average,
        "common.log_interval": max(1, min(interval // 2, RECORDED)),
    }
    warm_up = composed.get("lr_scheduler.warmup_updates")
    if isinstance(warm_up, int) and warm_up > updates // 4:
        limits["lr_scheduler.warmup_updates"] = updates // 4
    if isinstance(composed.get("lr_scheduler.total_num_update"), (int, float)):  # else it is tied to max_update
        limits["lr_scheduler.total_num_update"] = updates
    return limits
