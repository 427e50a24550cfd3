"""Train by a YAML of configs/: one process per GPU, a bar, tensorboard, and on from the last checkpoint.

CONFIG is the name of a file in configs/, or the path of one of your own, with the folders that it takes from (model/,
layout/ and so on) beside it. KEY=VALUE overrides any key of it, or sets any other that fairseq has for the task, the
model, the criterion and so on, such as task.eval_bleu=true.

On several machines give the same command on each, with torchrun's options for meeting (--nnodes and either --node-rank,
--master-addr, --master-port or --rdzv-backend, --rdzv-endpoint, --rdzv-id), and a folder --out that all of them see."""

import argparse
import difflib
import math
import os
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, sha256
from luna_tools.console import entry, go_on_later, quote
from luna_tools.machine import import_plugin
from luna_tools.paths import REPO, USER_DIR
from luna_tools.plots import draw
from luna_tools.processes import python, run
from luna_tools.progress import TrainingLog, bar
from luna_tools.run_folder import alone, claim, differences
from luna_tools.training.average import count_updates, load, saved

PROCESS = "luna_tools.training.process"
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
        several = self.nodes > 1  # machines, which share the folder and come one after the other at first
        with alone(self.out, wait=several):
            goes_on = self.check_settings(self.compose())
            if goes_on and not several:
                self.train(self.process())
        if goes_on and several:
            self.train(self.process())

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
            # of several machines one alone has seen the figures, and all draw into the same file
            with alone(self.out, wait=True) if self.nodes > 1 else nullcontext():
                log = TrainingLog.read(log_path)
                draw(log, self.out / "learning-curve.png", f"{self.out.name} ({self.config.stem})")
        figures = ", ".join(f"{key} {value}" for key, value in log.figures().items())
        say(f"{log.updates:,} updates done: {figures}")
        if self.languages():
            say(f"now: {quote(['bash', 'scripts/evaluate.sh', str(self.args.out or self.out)])}")

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
                f"there is no {path} for {total} process(es): of those there ({known}) choose by layout=NAME, and say "
                "by optimization.update_freq=[N] how many batches each process takes for an update"
            )
        meant = OmegaConf.load(str(path)).distributed_training.distributed_world_size
        if meant != total and "optimization.update_freq" not in self.given:
            raise Problem(
                f"layout={asked} is for {meant} process(es), but this training has {total}: choose another, or say by "
                "optimization.update_freq=[N] how many batches each process takes for an update"
            )
        return {"layout": asked}


# what makes it another experiment, of all that may change when a training goes on: not how much memory the gradients
# take, how a trained model is used, and what is looked at meanwhile
NEITHER = (
    r"model\.(checkpoint_activations|offload_activations|min_params_to_wrap|export|inference_precision) |task\.eval_"
)
EXPERIMENT = re.compile(
    rf"(?!{NEITHER})"
    r"(data: |(model|task|criterion|optimizer|lr_scheduler)\.|optimization\.(lr|clip_norm|sentence_avg) |common\.seed )"
)
PLACES = "common.user_dir", "common.tensorboard_logdir", "task.data", "checkpoint.save_dir", "checkpoint.restore_file"
ONCE = "checkpoint.reset_dataloader", "checkpoint.finetune_from_model"  # what a training taken up has otherwise


def compose(process: List[str]) -> Dict[str, Any]:
    """The configuration that hydra makes of all, by dotted keys."""
    from omegaconf import OmegaConf

    done = subprocess.run(python(PROCESS, "--cfg", "job", *process), capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Problem(f"hydra cannot compose the configuration:\n\n{done.stderr.strip()}")

    def flat(values: dict, prefix: str = "") -> Iterator[Tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(flat(OmegaConf.to_container(OmegaConf.create(done.stdout))))  # type: ignore[arg-type]


def known_keys(composed: Dict[str, Any]) -> Iterator[str]:
    """The dotted keys that fairseq has for the task, model, optimizer and so on that are chosen by their `_name`."""
    import_plugin()
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    kinds = {kind: (known["registry"], known["dataclass_registry"]) for kind, known in REGISTRIES.items()}
    kinds.update(task=(TASK_REGISTRY, TASK_DATACLASS_REGISTRY), model=(MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY))
    for kind, (classes, dataclasses) in kinds.items():
        yield kind
        name = composed.get(f"{kind}._name")
        name = ARCH_MODEL_NAME_REGISTRY.get(name, name)
        if name in dataclasses:
            yield from (f"{kind}.{key}" for key in dataclasses[name].__dataclass_fields__)
        elif name in classes:
            parser = argparse.ArgumentParser(add_help=False)
            classes[name].add_args(parser)
            yield from (f"{kind}.{action.dest}" for action in parser._actions)


def luna_settings(state: dict) -> Dict[str, Any]:
    """The settings of the model of a checkpoint, by dotted keys, where that is a Luna."""
    model = state["cfg"]["model"]
    luna = isinstance(model, dict) and "projection_length" in model
    return {f"model.{key}": value for key, value in model.items()} if luna else {}


def complete(settings: Dict[str, Any]) -> Dict[str, Any]:
    """Settings with all of a Luna model's: the name of an architecture stands for those that are not listed."""
    from omegaconf import OmegaConf

    path = REPO / "configs" / "model" / f"{settings.get('model._name', settings.get('model'))}.yaml"
    if not (path.stem.startswith("luna_transformer") and path.exists()):
        return settings
    model = OmegaConf.to_container(OmegaConf.load(str(path)))
    named = {f"model.{key}": value for key, value in model.items()}  # type: ignore[union-attr]
    others = {key: value for key, value in settings.items() if not key.startswith("model.") and key != "model"}
    # what the file does not list every Luna refuses: it is off
    listed = {key: settings.get(key, value) for key, value in named.items() if key != "model.arch"}
    return {**others, **listed, "model._name": "luna_transformer"}


def text(path: Path) -> str:
    """A path as a string of hydra's, whatever signs it holds."""
    return "'" + str(path).replace("'", r"\'") + "'"


if __name__ == "__main__":
    entry("train", main)
