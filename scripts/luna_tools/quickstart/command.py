"""Train a model on the embedded English-German corpus, then translate and score its test set.

Interrupted, the same command goes on where it was. Options after `--` are handed to fairseq-train."""

import argparse
import difflib
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Callable, List

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, remove, write_json, write_text
from fairseq_luna.generation.options import MAX_TOKENS, Search
from fairseq_luna.versions import versions
from luna_tools.console import entry, go_on_later, in_checkout, quote
from luna_tools.data.embedded import unpack
from luna_tools.data.preparation import preparation
from luna_tools.evaluation.generate import best
from luna_tools.evaluation.scores import score
from luna_tools.machine import import_plugin, machine
from luna_tools.paths import USER_DIR
from luna_tools.plots import draw
from luna_tools.processes import python, run
from luna_tools.progress import TrainingLog, bar
from luna_tools.run_folder import alone, claim, differences
from luna_tools.training.average import load

# ---- everything to tune ----------------------------------------------------------------------------------------------

# The same for every architecture (but for the feed-forward of the plugin's own ones of this size, chosen for as many
# parameters): `--arch transformer` is the baseline of equal size.
DIMENSIONS = {
    "--encoder-embed-dim": 128,
    "--encoder-ffn-embed-dim": 512,
    "--encoder-layers": 3,
    "--encoder-attention-heads": 4,
    "--decoder-embed-dim": 128,
    "--decoder-ffn-embed-dim": 512,
    "--decoder-layers": 3,
    "--decoder-attention-heads": 4,
    "--encoder-normalize-before": None,
    "--decoder-normalize-before": None,
    "--share-all-embeddings": None,
    "--dropout": 0.05,
}

TRAINING = {
    "--task": "translation",
    "--criterion": "label_smoothed_cross_entropy",
    "--label-smoothing": 0.1,
    "--optimizer": "adam",
    "--adam-betas": "(0.9, 0.98)",
    "--clip-norm": 1.0,
    "--lr": 0.004,
    "--lr-scheduler": "polynomial_decay",  # linear, from the end of the warm-up to zero at the last update
    "--max-tokens": 1024,  # for as many tokens, small batches learnt more than large ones
    "--max-tokens-valid": 4096,
}

RUN = {
    "vocabulary": 4000,
    "warmup": 600,  # updates; at most a quarter of the run, and then to a learning rate as much lower
    "updates": 5600,
    "validations": 20,
    "averaged checkpoints": 3,
}

DECODING = {
    "--beam": Search.beam,
    "--lenpen": Search.lenpen,
    "--max-len-a": Search.max_len_a,
    "--max-len-b": Search.max_len_b,
    "--max-tokens": MAX_TOKENS,
}

# ----------------------------------------------------------------------------------------------------------------------

SOURCE, TARGET = "en", "de"
STAGES = "data", "training", "average", "translation", "score", "report"
TRIAL_UPDATES = 30


def main() -> None:
    args = parse_args()
    go_on_later()
    with alone(args.out):
        Quickstart(args).run()


def parse_args() -> argparse.Namespace:
    own, extra = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, extra = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(
        prog="quickstart.sh", usage="%(prog)s [options] [-- fairseq-train options]", description=__doc__
    )
    parser.add_argument(
        "--arch",
        default="luna_transformer_tiny_plain_packs",
        help="any fairseq architecture, at the dimensions of the quick start: luna_transformer_tiny is the paper's, "
        "transformer fairseq's Transformer (default %(default)s)",
    )
    parser.add_argument("--updates", type=int, metavar="N", help=f"length of training (default {RUN['updates']})")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="time for training: sets the updates, or limits those of --updates"
    )
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    args = parser.parse_args(own)
    for flag in "updates", "minutes":
        value = getattr(args, flag)
        if value is not None and value <= 0:
            parser.error(f"--{flag} must be above 0, but is {value}")
    args.extra = extra
    return args


def say(message: str) -> None:
    print(f"quickstart: {message}", flush=True)


def words(options: dict) -> List[str]:
    """A table of options as words of a command line; None stands for a flag without a value."""
    return [str(word) for flag, value in options.items() for word in ((flag,) if value is None else (flag, value))]


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
            "model": self.dimensions(),
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

    def command(self, name: str, command: List[str], on_line: Callable[[str], None] = lambda line: None) -> None:
        """Run a command with its log in OUT/NAME.log, and note it for the report."""
        commands = read_json(self.out / "commands.json", {})
        write_json(self.out / "commands.json", {**commands, name: in_checkout(["python", *command[1:]])})
        run(command, self.out / f"{name}.log", on_line)

    # ---- the stages

    def prepare(self) -> None:
        unpack(self.out / "corpus")
        options = {f"--{split}": self.out / "corpus" / split for split in ("train", "valid", "test")}
        options.update({"--source": SOURCE, "--target": TARGET, "--vocab-size": RUN["vocabulary"], "--out": self.data})
        command = preparation("prepare_corpus", *words(options))
        self.command("data", command, lambda line: line.startswith("prepare-corpus:") and print(f"  {line}", end=""))

    def train(self) -> None:
        if self.by_time and not self.plan.exists():
            # as many updates as fit the time, so that the schedule of the learning rate fits it too
            say("measuring the speed of training")
            limits = {"--max-update": TRIAL_UPDATES, "--no-save": None, "--disable-validation": None}
            speed = self.fairseq_train("trial", TRIAL_UPDATES, limits).updates_per_second
            write_json(self.plan, {"updates": max(1, int(0.9 * speed * 60 * self.args.minutes))})
        updates, minutes = self.planned_updates(), self.args.minutes or math.inf

        def progress() -> tuple:
            """Updates made and seconds trained."""
            if not self.last_checkpoint.exists():
                return 0, 0.0
            state = load(self.last_checkpoint)
            return state["optimizer_history"][-1]["num_updates"], state["extra_state"]["previous_training_time"]

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
            **self.dimensions(),
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
        log = TrainingLog.read(self.out / f"{name}.log")
        with bar(updates, "update", initial=log.updates) as line:

            def show(text: str) -> None:
                if log.add(text):
                    line.set_postfix(log.figures(), refresh=False)
                    line.update(log.updates - line.n)

            self.command(name, command, show)
        return log

    def average(self) -> None:
        last = RUN["averaged checkpoints"]
        self.command("average", python("luna_tools.training.average", self.out, "--last", last))

    def translate(self) -> None:
        options = words({**DECODING, **self.device})
        found = best(self.data, self.model, "test", options, partial(self.command, "translate"))
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

    def model_class(self):
        """The class behind --arch."""
        import_plugin()
        from fairseq.models import ARCH_MODEL_REGISTRY

        arch = self.args.arch
        if arch not in ARCH_MODEL_REGISTRY:
            near = difflib.get_close_matches(arch, ARCH_MODEL_REGISTRY, 3) or ["luna_transformer_tiny", "transformer"]
            raise Problem(f"--arch {arch} is not an architecture that fairseq knows; did you mean {' or '.join(near)}?")
        return ARCH_MODEL_REGISTRY[arch]

    def dimensions(self) -> dict:
        """The dimensions that this architecture has options for, and does not know better."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        self.model_class().add_args(parser)
        left_out = parser.parse_known_args(words(DIMENSIONS))[1]
        from fairseq_luna.models.luna_transformer.architectures import ARCHITECTURES

        if ARCHITECTURES.get(self.args.arch, {}).get("encoder_embed_dim") == DIMENSIONS["--encoder-embed-dim"]:
            left_out += ["--encoder-ffn-embed-dim", "--decoder-ffn-embed-dim"]
        return {flag: value for flag, value in DIMENSIONS.items() if flag not in left_out}


if __name__ == "__main__":
    entry("quickstart", main)
