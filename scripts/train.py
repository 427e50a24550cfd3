"""Train by a YAML of configs/: one process per GPU, a bar, tensorboard, and on from the last checkpoint.

CONFIG is the name of a file in configs/, or the path of one of your own. KEY=VALUE overrides any key of it. On several
machines give the same command on each, with torchrun's options for meeting (--nnodes and either --node-rank,
--master-addr, --master-port or --rdzv-backend, --rdzv-endpoint, --rdzv-id), and a folder --out that all of them see."""

import argparse
import math
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Dict, List

from average_checkpoints import count_updates, load
from common import REPO, USER_DIR, Problem, alone, claim, differences, entry, go_on_later, quote, read_json, run, sha256
from progress import TrainingLog, bar, draw

MEETING = "nnodes", "node-rank", "master-addr", "master-port", "rdzv-backend", "rdzv-endpoint", "rdzv-id"


def main() -> None:
    args = parse_args()
    go_on_later()
    Training(args).run()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="such as wmt14_paper, wmt14_adam")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as model.projection_length=16")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="what data-prep/ made")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/CONFIG")
    parser.add_argument("--processes", type=int, metavar="N", help="on this machine (default: one per GPU, else 1)")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    several = parser.add_argument_group("several machines, as torchrun has them")
    for name in MEETING:
        several.add_argument(f"--{name}", metavar=name.rpartition("-")[2].upper())
    args = parser.parse_intermixed_args()
    for word in args.overrides:
        if "=" not in word:
            parser.error(f"{word} is no KEY=VALUE")
    if args.processes is not None and args.processes < 1:
        parser.error(f"--processes must be at least 1, but is {args.processes}")
    return args


def say(message: str) -> None:
    print(f"train: {message}", flush=True)


class Training:
    """A run folder: data (a link), checkpoints/, config/ (as composed), train.log, tensorboard/, learning-curve.png."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        self.args = args
        self.config = self.find_config(args.config)
        self.given = dict(word.split("=", 1) for word in args.overrides)
        self.data = self.find_data(args.data)
        self.out = (args.out or Path("runs") / self.config.stem).absolute()
        self.updates = self.begun_by = 0  # of the last checkpoint: updates, and processes it was made by
        last_checkpoint = self.out / "checkpoints" / "checkpoint_last.pt"
        if last_checkpoint.exists():
            state = load(last_checkpoint)
            self.updates = count_updates(state)
            self.begun_by = state["cfg"]["distributed_training"]["distributed_world_size"]
        self.cpu = args.cpu or not torch.cuda.is_available() or self.given.get("layout") == "smoke"
        self.processes = args.processes or (1 if self.cpu else torch.cuda.device_count())
        self.meeting = {f"--{name}": getattr(args, name.replace("-", "_")) for name in MEETING}
        self.meeting = {flag: value for flag, value in self.meeting.items() if value}
        self.nodes = self.count_nodes()

    @staticmethod
    def find_config(name: str) -> Path:
        paths = Path(name), Path(f"{name}.yaml"), REPO / "configs" / f"{name}.yaml"
        for path in paths:
            if path.suffix == ".yaml" and path.is_file():
                return path.resolve()
        known = ", ".join(sorted(path.stem for path in (REPO / "configs").glob("*.yaml")))
        raise Problem(f"there is no configuration {name}: give the path of a YAML, or one of {known}")

    @staticmethod
    def find_data(folder: Path) -> Path:
        for path in folder, folder.absolute().parent:
            if list((path / "data-bin").glob("dict.*.txt")):
                return path.absolute()
        raise Problem(
            f"{folder} holds no data-bin/ with dictionaries: give --data the folder that data-prep/prepare-corpus.sh "
            "or data-prep/prepare-wmt14-en-de.sh made, and let that finish first"
        )

    def count_nodes(self) -> int:
        asked = self.meeting.get("--nnodes", "1")
        if not asked.isdigit() or int(asked) < 1:
            raise Problem(f"--nnodes must be a number of machines, but is {asked}: fairseq cannot change it on the way")
        if int(asked) == 1 and self.meeting:
            raise Problem(f"{', '.join(self.meeting)} are for several machines: give --nnodes too")
        return int(asked)

    def run(self) -> None:
        # the other machines of the same training share the folder
        with alone(self.out) if self.nodes == 1 else nullcontext():
            self.check_settings()
            process = self.process()
            if self.updates and self.updates >= last_update(process):
                say(f"{self.out} has done all of its {self.updates:,} updates")
            else:
                self.train(process)

    def train(self, process: List[str]) -> None:
        name = "train" if self.nodes == 1 or self.args.node_rank == "0" else f"train.{socket.gethostname()}"
        log_path = self.out / f"{name}.log"
        log = TrainingLog.read(log_path)
        where = "the CPU" if self.cpu else "GPUs"
        say(f"{self.config.stem} with {self.processes} process(es) on {where}, into {self.out}")
        errors = []
        try:
            with bar(0, "update", initial=log.updates) as line:

                def show(text: str) -> None:
                    found = re.search(r"'max_update': (\d+)", text)
                    if found:
                        line.total = int(found.group(1))
                    if log.add(text):
                        line.set_postfix(log.figures(), refresh=False)
                        line.update(log.updates - line.n)
                    if re.match(r"[\w.]*Error: ", text):
                        errors.append(text.strip())

                run(self.command(process), log_path, show)
        except Problem as problem:
            # torchrun ends the log by a page of its own
            raise Problem(f"{errors[0]}\n\n{problem}" if errors else str(problem)) from None
        finally:
            draw(log, self.out / "learning-curve.png", f"{self.out.name} ({self.config.stem})")
        figures = ", ".join(f"{key} {value}" for key, value in log.figures().items())
        say(f"{log.updates:,} updates done: {figures}")
        say(f"now: {quote(['bash', 'scripts/evaluate.sh', str(self.args.out or self.out)])}")

    def check_settings(self) -> None:
        """Refuse to go on with another model or other data; say what else has changed."""
        settings = {"config": self.config.stem, "processes": self.processes * self.nodes}
        settings.update((f"data: {path.name}", sha256(path)) for path in (self.data / "data-bin").glob("dict.*.txt"))
        settings.update(self.given)
        begun = read_json(self.out / "settings.json")
        if begun and begun != settings and self.updates:
            changed = differences(begun, settings)
            fixed = [phrase for phrase in changed if re.match(r"(config|data: \S+|model\S*) was ", phrase)]
            if fixed:
                raise Problem(
                    f"{self.out} was begun with other settings: {'; '.join(fixed)}. "
                    f"Go on with the same ones, or begin anew with another --out"
                )
            say("going on with other settings: " + "; ".join(changed))
        claim(self.out, settings)
        link = self.out / "data"
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(self.data, target_is_directory=True)

    def process(self) -> List[str]:
        """The words that make one process of the training."""
        overrides = [f"{key}={value}" for key, value in {**self.defaults(), **self.given}.items()]
        process = [str(REPO / "scripts" / "train_process.py"), "--config-dir", str(self.config.parent)]
        return [*process, "--config-name", self.config.stem, *overrides]

    def command(self, process: List[str]) -> List[str]:
        if self.processes * self.nodes == 1:
            return [sys.executable, *process]
        # without options for meeting, torchrun finds a free port by itself
        meeting = [f"{flag}={value}" for flag, value in self.meeting.items()] or ["--standalone"]
        return [
            *(sys.executable, "-m", "torch.distributed.run", *meeting),
            *(f"--nproc_per_node={self.processes}", *process),
        ]

    def defaults(self) -> Dict[str, str]:
        """The overrides that make the run folder, this machine and the data known to fairseq."""
        values = {
            "common.user_dir": text(USER_DIR),
            "common.tensorboard_logdir": text(self.out / "tensorboard"),
            "common.log_format": "json",
            "task.data": text(self.out / "data" / "data-bin"),
            "checkpoint.save_dir": text(self.out / "checkpoints"),
            "distributed_training.distributed_world_size": str(self.processes * self.nodes),
            "hydra.run.dir": text(self.out),
            "hydra/job_logging": "stdout",
        }
        for side in "source", "target":
            lang = read_json(self.data / "manifest.json", {}).get("settings", {}).get(side)
            if lang:
                values[f"task.{side}_lang"] = lang
        if self.cpu:
            values.update({"common.cpu": "true", "common.fp16": "false", "common.bf16": "false"})
            values.update(
                {"distributed_training.distributed_backend": "gloo", "distributed_training.ddp_backend": "legacy_ddp"}
            )
        if self.begun_by not in (0, self.processes * self.nodes):
            # fairseq notes its place in an epoch by the batches of one process
            say(f"the checkpoint is of {self.begun_by} process(es): the order of the data begins anew")
            values["checkpoint.reset_dataloader"] = "true"
        return {**values, **self.layout()}

    def layout(self) -> Dict[str, str]:
        """The layout for as many processes as there are, where the configuration has layouts."""
        from omegaconf import OmegaConf

        groups = OmegaConf.load(str(self.config)).get("defaults") or []
        if not any("layout" in group for group in groups if group != "_self_"):
            return {}
        total = self.processes * self.nodes
        folder = self.config.parent / "layout"
        asked = self.given.get("layout", f"{total}gpu")
        path = folder / f"{asked}.yaml"
        if not path.exists():
            known = ", ".join(sorted(layout.stem for layout in folder.glob("*.yaml")))
            raise Problem(
                f"there is no layout for {total} processes: of those in {folder} ({known}) choose by layout=NAME, and "
                "say by optimization.update_freq=[N] how many batches each process takes for an update"
            )
        meant = OmegaConf.load(str(path)).distributed_training.distributed_world_size
        if meant != total and "optimization.update_freq" not in self.given:
            raise Problem(
                f"layout={asked} is for {meant} process(es), but this training has {total}: choose another, or say by "
                "optimization.update_freq=[N] how many batches each process takes for an update"
            )
        return {"layout": asked}


def last_update(process: List[str]) -> float:
    """max_update as composed; fairseq, resumed behind it, would make one update more."""
    from omegaconf import OmegaConf

    script, *words = process
    composing = [sys.executable, script, "--cfg", "job", *words]
    composed = subprocess.run(composing, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    if composed.returncode:
        return math.inf  # the training itself then tells what is wrong
    optimization = OmegaConf.create(composed.stdout).get("optimization") or {}
    return optimization.get("max_update") or math.inf


def text(path: Path) -> str:
    """A path as a string of hydra's, whatever signs it holds."""
    return "'" + str(path).replace("'", r"\'") + "'"


if __name__ == "__main__":
    entry("train", main)
