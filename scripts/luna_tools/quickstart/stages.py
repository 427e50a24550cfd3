"""The stages of a quick start: data, training, average, translation, score, report."""

import argparse
import math
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, remove, write_json, write_text
from fairseq_luna.versions import versions
from luna_tools.console import in_checkout, quote, teller
from luna_tools.data.embedded import unpack
from luna_tools.data.preparation import preparation
from luna_tools.evaluation.scores import score
from luna_tools.evaluation.search import best
from luna_tools.machine import machine
from luna_tools.paths import USER_DIR
from luna_tools.plots import draw
from luna_tools.processes import python, run
from luna_tools.progress import TrainingLog
from luna_tools.quickstart.settings import DECODING, RUN, TRAINING, dimensions, words
from luna_tools.run_folder import claim, differences
from luna_tools.training.average import average_last
from luna_tools.training.checkpoints import count_updates, load
from luna_tools.training.watch import watch

SOURCE, TARGET = "en", "de"
STAGES = "data", "training", "average", "translation", "score", "report"
TRIAL_UPDATES = 30
say = teller("quickstart")


class Quickstart:
    """The stages of one run. Each leaves its output whole or not at all, and is passed over where that is there."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.data = self.out / "data"
        self.by_time = bool(args.minutes and not args.updates)
        self.plan = self.out / "plan.json"
        self.checkpoints = self.out / "checkpoints"
        self.last_checkpoint = self.checkpoints / "checkpoint_last.pt"
        self.trained = self.out / "training.json"
        self.model = self.out / "model.pt"
        self.hypotheses = self.out / f"test.translated.{TARGET}"
        self.scores = self.out / "scores.json"
        self.report = self.out / "report.json"
        self.device = {} if self.gpu() else {"--cpu": None}

    def run(self) -> None:
        self.check_settings()
        length = f"{self.args.minutes:g} minutes" if self.by_time else f"{self.planned_updates():,} updates"
        self.stage("data", "preparing the corpus", self.data / "manifest.json", self.prepare)
        self.stage("training", f"training {self.args.arch}, {length}", self.trained, self.train)
        self.stage("average", "averaging the last checkpoints", self.model, self.average)
        self.stage("translation", "translating the test set", self.hypotheses, self.translate)
        self.stage("score", "scoring", self.scores, self.score)
        self.stage("report", "writing the report", self.report, self.write_report)
        self.summary()

    def check_settings(self) -> None:
        """Refuse to go on with other settings than those the training was begun with."""
        settings = {f"--{key}": getattr(self.args, key) for key in ("arch", "updates", "minutes", "seed", "cpu")}
        settings["options after --"] = quote(self.args.extra)
        tables = {
            "model": dimensions(self.args.arch),
            "training": TRAINING,
            "run": RUN,
            "decoding": DECODING,
        }
        settings.update((f"{name}: {key}", value) for name, table in tables.items() for key, value in table.items())
        begun = read_json(self.out / "settings.json")
        if begun == settings:
            return
        if self.last_checkpoint.exists():
            raise Problem(
                f"{self.out} was begun with other settings: {'; '.join(differences(begun, settings))}. "
                f"Go on with the same ones, or begin anew with another --out or after removing {self.out}"
            )
        claim(self.out, settings)
        for name in "plan.json", "train.log", "trial.log":
            remove(self.out / name)
        if begun and begun["run: vocabulary"] != RUN["vocabulary"]:
            remove(self.data / "manifest.json")

    def stage(self, name: str, what: str, output: Path, work: Callable[[], None]) -> None:
        label = f"[{STAGES.index(name) + 1}/{len(STAGES)}]"
        if output.exists():
            say(f"{label} {name}: done before")
            return
        say(f"{label} {what}")
        start = time.time()
        work()
        seconds = read_json(self.out / "seconds.json", {})
        write_json(self.out / "seconds.json", {**seconds, name: round(time.time() - start, 1)})

    def note(self, name: str, command: List[str]) -> None:
        """Note a command for the report, as one would type it."""
        commands = read_json(self.out / "commands.json", {})
        write_json(self.out / "commands.json", {**commands, name: in_checkout(command)})

    # ---- the stages

    def prepare(self) -> None:
        unpack(self.out / "corpus")
        options = {f"--{split}": self.out / "corpus" / split for split in ("train", "valid", "test")}
        options.update({"--source": SOURCE, "--target": TARGET, "--vocab-size": RUN["vocabulary"], "--out": self.data})
        self.note("data", ["bash", "data-prep/prepare-corpus.sh", *words(options)])

        def show(line: str) -> None:
            if line.startswith("prepare-corpus:"):
                print(f"  {line}", end="")

        run(preparation("prepare_corpus", *words(options)), self.out / "data.log", show)

    def train(self) -> None:
        if self.by_time and not self.plan.exists():
            # as many updates as fit the time, so that the schedule of the learning rate fits it too
            say("measuring the speed of training")
            limits: Dict[str, Any] = {"--max-update": TRIAL_UPDATES, "--no-save": None, "--disable-validation": None}
            speed = self.fairseq_train("trial", TRIAL_UPDATES, limits).updates_per_second
            write_json(self.plan, {"updates": max(1, int(0.9 * speed * 60 * self.args.minutes))})
        updates, minutes = self.planned_updates(), self.args.minutes or math.inf

        def progress() -> tuple:
            """Updates made and seconds trained."""
            if not self.last_checkpoint.exists():
                return 0, 0.0
            state = load(self.last_checkpoint)
            return count_updates(state), state["extra_state"]["previous_training_time"]

        done, seconds = progress()
        if done < updates and seconds < 60 * minutes:
            limits = {"--max-update": updates, "--save-dir": self.checkpoints}
            if self.args.minutes:
                limits["--stop-time-hours"] = minutes / 60
            self.fairseq_train("train", updates, limits)
            done, seconds = progress()
        log = TrainingLog.read(self.out / "train.log")
        write_json(
            self.trained,
            {
                "parameters": log.parameters,
                "updates": done,
                "seconds": round(seconds, 1),
                "best valid nll (nats per piece)": round(min(log.valid.values(), default=math.nan), 4),
                "last valid nll (nats per piece)": round(log.valid.get(max(log.valid, default=0), math.nan), 4),
            },
        )

    def planned_updates(self) -> int:
        return read_json(self.plan)["updates"] if self.by_time else self.args.updates or RUN["updates"]

    def fairseq_train(self, name: str, updates: int, limits: dict) -> TrainingLog:
        interval = max(5, math.ceil(updates / RUN["validations"]))
        warmup = max(1, min(RUN["warmup"], updates // 4))
        options = {
            "--user-dir": USER_DIR,
            "--arch": self.args.arch,
            **dimensions(self.args.arch),
            **TRAINING,
            "--warmup-updates": warmup,
            "--total-num-update": updates,
            "--lr": TRAINING["--lr"] * warmup / RUN["warmup"],  # a shorter warm-up climbs no faster
            "--seed": self.args.seed,
            # validate and save at these updates alone, not at the ends of epochs
            "--validate-interval-updates": interval,
            "--save-interval-updates": interval,
            "--validate-interval": 1000000,
            "--save-interval": 1000000,
            "--keep-interval-updates": RUN["averaged checkpoints"],
            "--log-format": "json",
            "--log-interval": 10,
            "--num-workers": 0,
            "--distributed-world-size": 1,
            **self.device,
            **limits,
        }
        command = python("fairseq_cli.train", self.data / "data-bin", *words(options), *self.args.extra)
        self.note(name, ["python", *command[1:]])
        return watch(command, self.out / f"{name}.log")

    def average(self) -> None:
        last = RUN["averaged checkpoints"]
        self.note("average", ["bash", "scripts/average.sh", str(self.out), "--last", str(last)])
        average_last(self.out, last)

    def translate(self) -> None:
        def search(command: List[str], on_line: Callable[[str], None]) -> None:
            self.note("translate", ["python", *command[1:]])
            run(command, self.out / "translate.log", on_line)

        found = best(self.data, self.model, "test", words({**DECODING, **self.device}), search)
        write_text(self.hypotheses, "".join(line + "\n" for line in found))

    def score(self) -> None:
        write_json(self.scores, score(list(read_lines(self.hypotheses)), self.test(TARGET), TARGET, ("BLEU", "chrF")))

    def write_report(self) -> None:
        lines = [self.test(SOURCE), list(read_lines(self.hypotheses)), self.test(TARGET)]
        chosen = range(0, len(lines[0]), max(1, len(lines[0]) // 10))[:10]
        names = "English", "translation", "reference"
        examples = "\n\n".join(
            "  \n".join(f"{name}: {column[i]}" for name, column in zip(names, lines)) for i in chosen
        )
        write_text(self.out / "examples.md", f"# Ten sentences of the test set\n\n{examples}\n")
        draw(TrainingLog.read(self.out / "train.log"), self.out / "learning-curve.png", self.args.arch)

        data, training = read_json(self.data / "manifest.json"), read_json(self.trained)
        seconds = read_json(self.out / "seconds.json")
        seconds["training"] = max(seconds["training"], training["seconds"])  # of all sessions, when there were several
        write_json(
            self.report,
            {
                "arch": self.args.arch,
                **training,
                **read_json(self.scores),
                "seconds": seconds,
                "settings": read_json(self.out / "settings.json"),
                "data": data,
                "machine": machine(self.args.cpu),
                "versions": versions(),
                "commands": read_json(self.out / "commands.json"),
            },
        )

    def summary(self) -> None:
        report = read_json(self.report)
        print("\n" + (self.out / "examples.md").read_text(encoding="utf-8"))
        say(
            f"{report['arch']}, {report['parameters']:,} parameters, {report['updates']:,} updates, "
            f"best validation {report['best valid nll (nats per piece)']:.3f} nats per piece"
        )
        for name in "BLEU", "chrF":
            say(f"{name} {report[name]['score']:.2f} ({report[name]['signature']})")
        minutes = sum(report["seconds"].values()) / 60
        say(f"{minutes:.1f} minutes in all; everything is in {self.out}, the figures in report.json")
        say(f'now try: echo "Click OK to save the file." | bash scripts/translate.sh --model {quote([str(self.out)])}')

    # ---- what they need

    def gpu(self) -> bool:
        import torch

        return torch.cuda.is_available() and not self.args.cpu

    def test(self, lang: str) -> List[str]:
        return list(read_lines(self.data / "raw" / f"test.{lang}"))
