"""The stages of a quick start: data, training, average, translation, score, report."""

import argparse
import math
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, remove, write_json, write_text
from fairseq_luna.versions import versions
from luna_tools.console import in_checkout, quote, teller
from luna_tools.data.embedded import unpack
from luna_tools.evaluation.decoding import flags
from luna_tools.evaluation.scores import score
from luna_tools.evaluation.search import best
from luna_tools.machine import machine
from luna_tools.processes import python, run
from luna_tools.progress import TrainingLog
from luna_tools.quickstart.settings import AVERAGED, CONFIG, DECODING, VOCABULARY, model_of, overrides_of
from luna_tools.run_folder import claim, differences
from luna_tools.training.average import average_last
from luna_tools.training.checkpoints import count_updates, load
from luna_tools.training.run import Training
from luna_tools.training.trainings import training

SOURCE, TARGET = "en", "de"
STAGES = "data", "training", "average", "translation", "score", "report"
TRIAL_UPDATES = 30
say = teller("quickstart")


class Quickstart:
    """The stages of one run. Each leaves its output whole or not at all, and is passed over where that is there."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.data = self.out / "data"
        self.model_name = model_of(args.arch)
        self.by_time = bool(args.minutes and not args.updates)
        self.plan = self.out / "plan.json"
        self.last_checkpoint = self.out / "checkpoints" / "checkpoint_last.pt"
        self.trained = self.out / "training.json"
        self.model = self.out / "model.pt"
        self.hypotheses = self.out / f"test.translated.{TARGET}"
        self.scores = self.out / "scores.json"
        self.report = self.out / "report.json"

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
        settings.update({"overrides": self.args.overrides, "vocabulary": VOCABULARY, "decoding": DECODING})
        begun = read_json(self.out / "quickstart.json")
        if begun == settings:
            return
        if self.last_checkpoint.exists():
            changed = "; ".join(differences(begun, settings)) if begun else "not by this version of quickstart.sh"
            raise Problem(
                f"{self.out} was begun with other settings: {changed}. "
                f"Go on with the same ones, or begin anew with another --out or after removing {self.out}"
            )
        claim(self.out, {})  # what the training is set to, it notes there itself
        write_json(self.out / "quickstart.json", settings)
        for name in "plan.json", "train.log":
            remove(self.out / name)
        if begun and begun["vocabulary"] != VOCABULARY:
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
        options = ["--source", SOURCE, "--target", TARGET, "--vocab-size", str(VOCABULARY), "--out", str(self.data)]
        for split in "train", "valid", "test":
            options += [f"--{split}", str(self.out / "corpus" / split)]
        self.note("data", ["bash", "data-prep/prepare-corpus.sh", *options])

        def show(line: str) -> None:
            if line.startswith("prepare-corpus:"):
                print(f"  {line}", end="")

        run(python("luna_data.parallel.prepare_corpus", *options), self.out / "data.log", show)

    def train(self) -> None:
        if self.by_time and not self.plan.exists():
            # as many updates as fit the time, so that the schedule of the learning rate fits it too
            say("measuring the speed of training")
            trial = self.out / "trial"
            limits: Dict[str, Any] = {"checkpoint.no_save": "true", "dataset.disable_validation": "true"}
            self.training(trial, TRIAL_UPDATES, limits).go_on()
            speed = TrainingLog.read(trial / "train.log").updates_per_second
            write_json(self.plan, {"updates": max(1, int(0.9 * speed * 60 * self.args.minutes))})
            remove(trial)
        updates, minutes = self.planned_updates(), self.args.minutes or math.inf
        done, seconds = self.progress()
        if done < updates and seconds < 60 * minutes:
            limits = {"optimization.stop_time_hours": minutes / 60} if self.args.minutes else {}
            training = self.training(self.out, updates, limits)
            told = [CONFIG, *training.args.overrides, "--data", str(self.data), "--out", str(self.out)]
            self.note("train", ["bash", "scripts/train.sh", *told, "--processes", "1", *["--cpu"] * self.args.cpu])
            training.go_on()
            done, seconds = self.progress()
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

    def progress(self) -> Tuple[int, float]:
        """Updates made and seconds trained."""
        if not self.last_checkpoint.exists():
            return 0, 0.0
        state = load(self.last_checkpoint)
        return count_updates(state) or 0, state["extra_state"]["previous_training_time"]

    def planned_updates(self) -> int:
        if self.by_time:
            return read_json(self.plan)["updates"]
        return self.args.updates or self.config().optimization.max_update

    def training(self, place: Path, updates: int, limits: Dict[str, Any]) -> Training:
        settings = {
            "model": self.model_name,
            "model.share_all_embeddings": "true",
            "common.seed": self.args.seed,
            **overrides_of(updates, self.config()),
            **limits,
            **dict(word.split("=", 1) for word in self.args.overrides),
        }
        return training(CONFIG, place, self.data, settings, self.args.cpu)

    def average(self) -> None:
        self.note("average", ["bash", "scripts/average.sh", str(self.out), "--last", str(AVERAGED)])
        average_last(self.out, AVERAGED)

    def translate(self) -> None:
        def search(command: List[str], on_line: Callable[[str], None]) -> None:
            self.note("translate", ["python", *command[1:]])
            run(command, self.out / "translate.log", on_line)

        options = flags(DECODING) + ([] if self.gpu() else ["--cpu"])
        found = best(self.data, self.model, "test", options, search)
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
            f"best validation {report['best valid nll (nats per piece)']:.3f} nats per token"
        )
        for name in "BLEU", "chrF":
            say(f"{name} {report[name]['score']:.2f} ({report[name]['signature']})")
        minutes = sum(report["seconds"].values()) / 60
        say(f"{minutes:.1f} minutes in all; everything is in {self.out}, the figures in report.json")
        say(f'now try: echo "Click OK to save the file." | bash scripts/translate.sh --model {quote([str(self.out)])}')

    # ---- what they need

    @staticmethod
    def config() -> Any:
        from omegaconf import OmegaConf

        return OmegaConf.load(str(Training.find_config(CONFIG)))

    def gpu(self) -> bool:
        import torch

        return torch.cuda.is_available() and not self.args.cpu

    def test(self, lang: str) -> List[str]:
        return list(read_lines(self.data / "raw" / f"test.{lang}"))
