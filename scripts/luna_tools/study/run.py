"""A study at work, for compare.sh: its settings, its trainings side by side, and the report as they come."""

import argparse
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import Queue
from typing import Any, Dict, List, Optional, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, remove, write_json
from luna_tools.console import teller
from luna_tools.machine import import_plugin
from luna_tools.run_folder import claim, differences, fingerprint
from luna_tools.study.definition import folder
from luna_tools.study.pace import AVERAGED, TRIAL, Planner
from luna_tools.study.report import Report, Results
from luna_tools.study.scores import SETS, Scorer, figures
from luna_tools.study.trainings import Devices, Trainer, has_trained
from luna_tools.training.run import Training
from luna_tools.training.trainings import commands

say = teller("compare")

REFRESH = 5  # seconds between looks at what the trainings log


class Study:
    """All trainings of a study: OUT/MODEL/seedN each, as train.sh writes it, with translations and scores beside."""

    def __init__(self, study: Dict[str, Any], args: argparse.Namespace, begun: float) -> None:
        self.study, self.args, self.out, self.begun = study, args, args.out, begun
        self.seeds = list(dict.fromkeys(args.seeds or study["seeds"]))
        self.baseline = study["baseline"]
        self.models = self.chosen()
        if not (args.data / "manifest.json").exists():
            raise Problem(
                f"{args.data} holds no prepared data: give --data the folder that data-prep/prepare-corpus.sh made, "
                "or run `bash scripts/quickstart.sh` first"
            )
        # seed by seed, so that a study cut short has compared all models
        self.trainings = [(model, seed) for seed in self.seeds for model in self.models]
        self.devices = Devices(args.cpu, args.at_once, len(self.trainings))
        self.trainer = Trainer(study, args, self.devices)
        # what may change while the trainings stay: the report is then of what was translated so
        average = min(study["average"], AVERAGED) if args.minutes else study["average"]
        self.decoding = {"average": average, **study["decoding"]}
        self.scorer = Scorer(self.out, args.data, self.decoding, cpu=not self.devices.gpus)
        self.limits: Dict[str, Dict[str, Any]] = {}  # overrides of each model that --minutes asks for
        self.seen: Dict[Path, int] = {}  # the updates up to which a training that goes on was reported
        self.done = {model["name"]: self.earlier(model) for model in study["models"]}
        made_by = commands(self.out / "report.json", "scripts/compare.sh")
        sentences = {name: len(self.scorer.text(name, self.scorer.recipe.target)) for name in self.scorer.tests}
        self.report = Report(self.out, args.data, study, self.decoding, sentences, made_by)

    def chosen(self) -> List[dict]:
        """The models that are asked for."""
        study, args = self.study, self.args
        unknown = set(args.models or []) - {model["name"] for model in study["models"]}
        if unknown:
            known = ", ".join(model["name"] for model in study["models"])
            raise Problem(f"{', '.join(sorted(unknown))} is none of the models: {known}")
        wanted = [*(args.models or []), self.baseline] if args.models else None
        models = [model for model in study["models"] if not wanted or model["name"] in wanted]
        for word in args.overrides:
            key = word.partition("=")[0]
            own = [model["name"] for model in models if key in ("model", *model.get("overrides", {}))]
            if own:
                raise Problem(f"{word} would make other models of {', '.join(own)}: change the study, with other names")
        return models

    def earlier(self, model: dict) -> List[dict]:
        """What is known of a model from calls before this."""
        place = self.out / folder(model["name"])
        begun = read_json(place / "arm.json", model)
        told = "; ".join(differences(begun, model))
        if told and has_trained(place):
            raise Problem(
                f"{place} was trained as another model: {told}. "
                "Give the changed model another name, or choose another --out"
            )
        found = [read_json(path) for path in place.glob("seed*/scores.json")]
        tests = set(self.scorer.tests)
        alike = [
            result for result in found if result.get("decoding") == self.decoding and set(result.get(SETS, [])) == tests
        ]
        return sorted(alike, key=lambda result: result["seed"])

    def run(self) -> None:
        seeds = ", ".join(map(str, self.seeds))
        self.check_settings()
        for model in self.models:  # here and once: seeds of one model may be trained side by side
            place = self.out / folder(model["name"])
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / "arm.json", model)  # as earlier versions call it
        import_plugin()  # here and once: threads would come upon a half of it
        try:
            self.plan()
            say(f"{len(self.models)} models, seeds {seeds}: {len(self.trainings)} trainings into {self.out}")
            failed = self.make_all()
        except KeyboardInterrupt as stop:
            self.trainer.stop()
            print(f"\ncompare: {stop}", file=sys.stderr, flush=True)
            os._exit(130)  # without waiting for the threads, whose commands end with this process
        if failed:
            rest = "; the report has the rest" if (self.out / "report.md").exists() else ""
            raise Problem(f"{failed} of {len(self.trainings)} failed, for the reasons above{rest}")
        print("\n" + (self.out / "report.md").read_text(encoding="utf-8"))
        say(f"everything is in {self.out}, the figures in report.json")

    def check_settings(self) -> None:
        """Refuse to go on with other settings than those that trainings were begun with."""
        config = Training.find_config(str(self.study["config"]))
        settings = {"config": config.stem, "config sha256": fingerprint(config)}
        settings["overrides"] = self.study.get("overrides", {})
        settings.update({"given": self.args.overrides, "data": fingerprint(self.args.data / "manifest.json")})
        begun = read_json(self.out / "settings.json", {})
        if "minutes" in begun:
            remove(self.out / TRIAL)  # of a command that was killed in it
        if self.args.start:
            before = begun.get("start")  # the same folder may be given by another path
            same = before and Path(before).resolve() == self.args.start.resolve()
            settings["start"] = before if same else str(self.args.start)
        begun.pop("plan", None)  # the number of updates that --minutes led to, which stays
        if self.args.minutes:
            settings["minutes"] = self.args.minutes
        if begun and begun != settings and has_trained(self.out):
            raise Problem(
                f"{self.out} was begun with other settings: {'; '.join(differences(begun, settings))}. "
                "Go on with the same ones, or begin anew with another --out"
            )
        if begun != settings:
            claim(self.out, settings)

    def plan(self) -> None:
        """With --minutes, how long the trainings are; chosen once."""
        if not self.args.minutes:
            return
        settings = read_json(self.out / "settings.json")
        if "plan" not in settings:
            planner = Planner(self.study, self.trainer, self.scorer, self.begun)
            settings["plan"] = planner.plan(self.trainings, say)
            write_json(self.out / "settings.json", settings)
        self.limits = settings["plan"]["overrides"]
        late = [model["name"] for model in self.models if model["name"] not in self.limits]
        if late:
            raise Problem(
                f"{', '.join(late)} was not there when the number of updates was chosen: begin anew with another --out"
            )
        say(f"{settings['plan']['updates']:,} updates of each training")

    def make_all(self) -> int:
        """Make all trainings, and report as they come; how many failed."""
        places: Queue = Queue()
        for place in range(self.devices.at_once):
            places.put(place)
        pool, failed = ThreadPoolExecutor(self.devices.at_once), 0
        running = {pool.submit(self.make, model, seed, places): (model, seed) for model, seed in self.trainings}
        left = set(running)
        while left:
            ended, left = wait(left, timeout=REFRESH, return_when=FIRST_COMPLETED)
            for future in sorted(ended, key=list(running).index):
                failed += not self.add(*running[future], future)
            if self.news() or ended:
                try:
                    self.write_report()
                except Exception as error:  # such as a full disk: the trainings go on, and the last report will tell
                    say(f"no report: {told(error)}")
        self.write_report()
        return failed

    def add(self, model: dict, seed: int, future: Future) -> bool:
        """Take in one result; whether it is one, and no failure."""
        try:
            result = future.result()
        except Exception as error:  # whatever it is, the other trainings go on
            say(f"{model['name']}, seed {seed}: {told(error)}")
            return False
        others = [other for other in self.done[model["name"]] if other["seed"] != seed]
        self.done[model["name"]] = sorted([*others, result], key=lambda each: each["seed"])
        return True

    def make(self, model: dict, seed: int, places: Queue) -> dict:
        """Train, translate and score one model with one seed, on a device of its own."""
        place = places.get()
        try:
            self.train(model, seed, place)
            result = self.scorer.score(self.trainer.run_of(model, seed), seed, self.devices.environment(place))
        finally:
            places.put(place)
        scores = ", ".join(
            f"BLEU {found['scores']['BLEU']['score']:.2f}" + f" on {name}" * (len(self.scorer.tests) > 1)
            for name, found in result[SETS].items()
        )
        say(f"{model['name']}, seed {seed}: nll {result['best valid nll (nats per piece)']:.3f}, {scores}")
        return result

    def train(self, model: dict, seed: int, place: int) -> None:
        say(f"{model['name']}, seed {seed}: training")
        self.trainer.train(model, seed, place, self.limits.get(model["name"], {}))

    # ---- the report

    def under_way(self) -> List[Tuple[dict, dict]]:
        """The trainings without scores, as far as they have come, each with its model."""
        found = []
        for model, seed in self.trainings:
            if all(result["seed"] != seed for result in self.done[model["name"]]):
                known: Optional[dict] = figures(self.out, self.trainer.run_of(model, seed), seed)
                found += [(model, known)] if known else []
        return found

    def news(self) -> bool:
        """Whether some training has validated since this was asked last; where they are many at once, it is told."""
        new = False
        for model, result in self.under_way():
            nll, run = result["valid nll by updates"], Path(result["run"])
            if self.seen.get(run, 0) < len(nll):
                self.seen[run], new = len(nll), True
                updates, last = list(nll.items())[-1]
                if self.devices.at_once > 1:
                    say(f"{model['name']}, seed {result['seed']}: nll {last:.3f} after {int(updates):,} updates")
        return new

    def write_report(self) -> None:
        """Test what can be tested against the baseline, and write all that is known so far."""
        for name, results in self.done.items():
            for result in results:
                baseline = next((each for each in self.done[self.baseline] if each["seed"] == result["seed"]), None)
                if baseline and name != self.baseline:
                    self.scorer.test(result, baseline)
        known: Results = {name: list(results) for name, results in self.done.items()}
        for model, result in self.under_way():
            known[model["name"]] = sorted([*known[model["name"]], result], key=lambda each: each["seed"])
        self.report.write(known)


def told(error: Exception) -> str:
    """An error of a thread in words."""
    return str(error) if isinstance(error, (Problem, OSError)) else repr(error)
