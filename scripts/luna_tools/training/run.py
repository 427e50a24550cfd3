"""A training at work: its run folder, the words of its processes, and going on from the last checkpoint."""

import argparse
import difflib
import math
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, sha256
from luna_tools.console import quote, teller
from luna_tools.paths import REPO, USER_DIR
from luna_tools.plots import draw
from luna_tools.processes import python
from luna_tools.progress import TrainingLog
from luna_tools.run_folder import alone, claim, differences
from luna_tools.training.checkpoints import count_updates, load, saved
from luna_tools.training.settings import (
    EXPERIMENT,
    ONCE,
    PLACES,
    PROCESS,
    complete,
    compose,
    known_keys,
    luna_settings,
    text,
)
from luna_tools.training.watch import watch

MEETING = "nnodes", "node-rank", "master-addr", "master-port", "rdzv-backend", "rdzv-endpoint", "rdzv-id"
say = teller("train")


class Training:
    """A run folder: data (a link), checkpoints/, config/ (as composed), train.log, tensorboard/, learning-curve.png."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        self.args = args
        self.config = self.find_config(args.config)
        self.given = dict(word.split("=", 1) for word in args.overrides)
        self.added: Set[str] = set()  # of these: what the configuration does not list
        self.data = self.find_data(args.data)
        self.out = (args.out or Path("runs") / self.config.stem).absolute()
        self.checkpoint = self.newest_checkpoint()
        self.updates = self.begun_by = 0  # of that: updates, and processes it was made by
        self.trained: Dict[str, Any] = {}  # and the settings of its model
        if self.checkpoint:
            state = load(self.checkpoint)
            updates = count_updates(state)
            if updates is None:
                raise Problem(f"{self.checkpoint} is no checkpoint to train on from: it has no state of an optimiser")
            self.updates, self.trained = updates, luna_settings(state)
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
            if list((path / "data-bin").rglob("dict*.txt")):
                return path.absolute()
        raise Problem(
            f"{folder} holds no data-bin/ with dictionaries: give --data the folder that data-prep/prepare-corpus.sh "
            "or data-prep/prepare-wmt14-en-de.sh made, and let that finish first"
        )

    def newest_checkpoint(self) -> Optional[Path]:
        """checkpoint_last.pt, or where that was removed the newest other, which fairseq itself would write over."""
        last = self.out / "checkpoints" / "checkpoint_last.pt"
        found = [last] if last.exists() else saved(last.parent)
        return found[0] if found else None

    def count_nodes(self) -> int:
        if self.meeting and "--nnodes" not in self.meeting:
            raise Problem(f"{', '.join(self.meeting)} are for several machines: give --nnodes too")
        asked = self.meeting.get("--nnodes", "1")
        if not asked.isdigit() or int(asked) < 1:
            raise Problem(f"--nnodes must be a number of machines, but is {asked}: fairseq cannot change it on the way")
        return int(asked)

    def run(self) -> None:
        if self.nodes == 1:
            with alone(self.out):
                trained = self.go_on()
        else:
            with alone(self.out, wait=True):  # they share the folder, and come one after the other at first
                trained = self.check_settings(self.compose())
            if trained:
                self.train(self.process())
        if trained and self.languages():
            say(f"now: {quote(['bash', 'scripts/evaluate.sh', str(self.args.out or self.out)])}")

    def go_on(self) -> bool:
        """Train to the end on this machine, in a folder that is locked; whether there was more to train."""
        goes_on = self.check_settings(self.compose())
        if goes_on:
            self.train(self.process())
        return goes_on

    def compose(self) -> Dict[str, Any]:
        """The configuration, without the places of this machine; keys that it does not list are added to it."""
        try:
            composed = compose(self.process())
        except Problem:
            self.added = self.unlisted()
            if not self.added:
                raise
            composed = compose(self.process())
        return {key: value for key, value in composed.items() if key not in (*PLACES, *ONCE)}

    def unlisted(self) -> Set[str]:
        """The keys given that the configuration does not list; a Problem where fairseq does not know one either."""
        here = {key for key in self.given if (self.config.parent / key).is_dir() or not re.match(r"\w+(\.\w+)*$", key)}
        composed = compose(self.process(only=here))
        names = [*composed, *(key.rpartition(".")[0] for key in composed)]
        missing = {key for key in self.given if key not in here and not key.startswith("hydra.") and key not in names}
        names += known_keys({**composed, **self.given})
        for key in sorted(missing.difference(names)):
            group, _, last = key.rpartition(".")
            near = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in names}, 1)
            alike = sorted(
                (name for name in names if name.rpartition(".")[2] in near), key=lambda name: group not in name
            )
            hint = f"; did you mean {alike[0]}?" if alike else ""
            raise Problem(f"there is no setting {key} in {self.config.name}, nor in what it chooses of fairseq{hint}")
        return missing

    def train(self, process: List[str]) -> None:
        log_path = self.out / "train.log"
        where = "the CPU" if self.cpu else "GPUs"
        title = " by ".join(dict.fromkeys((self.out.name, self.config.stem)))
        say(f"{self.config.stem} with {self.processes} process(es) on {where}, into {self.out}")
        try:
            watch(self.command(process), log_path)
        finally:
            # of several machines one alone has seen the figures, and all draw into the same file
            with alone(self.out, wait=True) if self.nodes > 1 else nullcontext():
                log = TrainingLog.read(log_path)
                draw(log, self.out / "learning-curve.png", title)
        figures = ", ".join(f"{key} {value}" for key, value in log.figures().items())
        say(f"{log.updates:,} updates done: {figures}")

    def check_settings(self, composed: Dict[str, Any]) -> bool:
        """Whether there is more to train; refuses to go on as another experiment, and says what else has changed."""
        folder = self.data / "data-bin"
        dictionaries = sorted(folder.rglob("dict*.txt"))
        settings = {**composed, **{f"data: {path.relative_to(folder)}": sha256(path) for path in dictionaries}}
        known = read_json(self.out / "settings.json")
        if self.checkpoint and known:
            # what the checkpoint says of its model is complete, and is what was trained
            trained = {key: value for key, value in self.trained.items() if "${" not in str(known.get(key))}
            changed = differences(complete({**known, **trained}), complete(settings))
            fixed = [phrase for phrase in changed if EXPERIMENT.match(phrase)]
            if fixed:
                raise Problem(
                    f"{self.out} was begun with other settings: {'; '.join(fixed)}. "
                    "Go on with the same ones, or begin anew with another --out"
                )
            if changed:
                say("going on with other settings: " + "; ".join(changed))
        done = self.updates and self.updates >= (composed.get("optimization.max_update") or math.inf)
        if not done and known != settings:
            claim(self.out, settings)
        link = self.out / "data"
        if link.is_symlink() and not (link.exists() and link.samefile(self.data)):
            link.unlink()
        if not link.exists():
            link.symlink_to(os.path.relpath(str(self.data), str(self.out)), target_is_directory=True)
        if done:
            say(f"{self.out} has done all of its {self.updates:,} updates")
        elif self.begun_by not in (0, self.processes * self.nodes):
            say(f"the checkpoint is of {self.begun_by} process(es): the order of the data begins anew")
        return not done

    def process(self, only: Optional[Set[str]] = None) -> List[str]:
        """The words of one process of the training, with all keys that were given or some alone."""
        given = {key: value for key, value in self.given.items() if only is None or key in only}
        words = {**self.defaults(), **given}
        if self.checkpoint:  # which fairseq would refuse to go on from, or leave alone, beside a model to begin with
            words["checkpoint.finetune_from_model"] = "null"
        overrides = [f"{'+' * (key in self.added)}{key}={value}" for key, value in words.items()]
        return ["--config-dir", str(self.config.parent), "--config-name", self.config.stem, *overrides]

    def command(self, process: List[str]) -> List[str]:
        if self.processes * self.nodes == 1:
            return python(PROCESS, *process)
        # without options for meeting, torchrun finds a free port by itself
        several = [f"{flag}={value}" for flag, value in self.meeting.items()]
        meeting = several if self.nodes > 1 else ["--standalone"]
        number = f"--nproc_per_node={self.processes}"
        return python("torch.distributed.run", *meeting, number, "-m", PROCESS, *process)

    def defaults(self) -> Dict[str, str]:
        """The overrides that make the run folder, this machine and the data known to fairseq."""
        values = {
            "common.user_dir": text(USER_DIR),
            "common.tensorboard_logdir": text(self.out / "tensorboard"),
            "common.log_format": "json",
            "common.reset_logging": "true",  # else hydra's format, in which no figures are found
            "task.data": text(self.out / "data" / "data-bin"),
            "checkpoint.save_dir": text(self.out / "checkpoints"),
            "distributed_training.distributed_world_size": str(self.processes * self.nodes),
            "hydra.run.dir": text(self.out),
            "hydra/job_logging": "stdout",
        }
        values.update((f"task.{side}_lang", lang) for side, lang in self.languages().items())
        if self.cpu:
            values.update({"common.cpu": "true", "common.fp16": "false", "common.bf16": "false"})
            values.update(
                {"distributed_training.distributed_backend": "gloo", "distributed_training.ddp_backend": "legacy_ddp"}
            )
        if self.begun_by not in (0, self.processes * self.nodes):
            # fairseq notes its place in an epoch by the batches of one process
            values["checkpoint.reset_dataloader"] = "true"
        if self.checkpoint and self.checkpoint.name != "checkpoint_last.pt":
            values["checkpoint.restore_file"] = text(self.checkpoint)
        return {**values, **self.layout()}

    def languages(self) -> Dict[str, str]:
        """The languages of the data by side; none of data for a language model."""
        settings = read_json(self.data / "manifest.json", {}).get("settings", {})
        return {side: settings[side] for side in ("source", "target") if settings.get(side)}

    def layout(self) -> Dict[str, str]:
        """The layout for as many processes as there are, where the configuration has layouts."""
        from omegaconf import OmegaConf

        config: Any = OmegaConf.load(str(self.config))
        groups = config.get("defaults") or []
        if not any("layout" in group for group in groups if group != "_self_"):
            return {}
        total = self.processes * self.nodes
        folder = self.config.parent / "layout"
        asked = self.given.get("layout", f"{total}gpu")
        path = folder / f"{asked}.yaml"
        if not path.exists():
            known = ", ".join(sorted(layout.stem for layout in folder.glob("*.yaml")))
            raise Problem(
                f"there is no {path} for {total} process(es): of those there ({known}) choose by layout=NAME, and say "
                "by 'optimization.update_freq=[N]' how many batches each process takes for an update"
            )
        meant = OmegaConf.load(str(path)).distributed_training.distributed_world_size
        if meant != total and "optimization.update_freq" not in self.given:
            raise Problem(
                f"layout={asked} is for {meant} process(es), but this training has {total}: choose another, or say by "
                "'optimization.update_freq=[N]' how many batches each process takes for an update"
            )
        return {"layout": asked}
