"""The trainings of a study for compare.sh: on which device each runs, and train.sh for one of them."""

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, write_json
from fairseq_luna.versions import versions
from luna_tools.console import quote
from luna_tools.machine import machine
from luna_tools.processes import python, start
from luna_tools.run_folder import differences, fingerprint
from luna_tools.study.definition import folder, words_of
from luna_tools.training.settings import text as hydra_text


class Devices:
    """The GPUs that we may use, or the CPU, with a number of places for trainings side by side.

    Args:
        cpu: leave GPUs alone.
        each: trainings at once on each GPU, or on the CPU.
        trainings: there are no more places than these.
    """

    def __init__(self, cpu: bool, each: int, trainings: int) -> None:
        import torch

        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        count = 0 if cpu else torch.cuda.device_count()
        self.gpus = given.split(",")[:count] if given else [str(number) for number in range(count)]
        self.at_once = min(each * max(1, len(self.gpus)), trainings)

    def environment(self, place: int) -> Dict[str, str]:
        """That of the commands of a place; each GPU has one training before any has two."""
        threads = max(1, (os.cpu_count() or 1) // self.at_once)
        shared = {"OMP_NUM_THREADS": str(threads), **os.environ}
        return {**shared, "CUDA_VISIBLE_DEVICES": self.gpus[place % len(self.gpus)]} if self.gpus else shared


class Trainer:
    """Runs train.sh for models and seeds, side by side where threads call it."""

    def __init__(self, study: Dict[str, Any], args: argparse.Namespace, devices: Devices) -> None:
        self.study, self.args, self.devices = study, args, devices
        self.live: Set[subprocess.Popen] = set()

    def run_of(self, model: dict, seed: int) -> Path:
        return self.args.out / folder(model["name"]) / f"seed{seed}"

    def words(self, run: Path, overrides: List[str]) -> List[str]:
        """What train.sh is told."""
        words = [str(self.study["config"]), *overrides, "--data", str(self.args.data), "--out", str(run)]
        return [*words, "--processes", "1", *([] if self.devices.gpus else ["--cpu"])]

    def start(self, words: List[str], place: int, quiet: bool) -> subprocess.Popen:
        """Begin train.sh on a device; what it says is kept where it is to be quiet."""
        process = start(
            python("luna_tools.training.command", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            env=self.devices.environment(place),
            encoding="utf-8",
        )
        self.live.add(process)
        return process

    def train(self, model: dict, seed: int, place: int, limits: Dict[str, Any]) -> None:
        """Train to the end, on from the last checkpoint.

        Raises:
            Problem: if the training fails.
        """
        run = self.run_of(model, seed)
        overrides = words_of(self.study, model, seed, limits, self.args.overrides)
        now: Dict[str, Any] = {
            "at once": self.devices.at_once,
            "machine": machine(self.args.cpu),
            "versions": versions(),
        }
        if self.args.start:
            begin = self.beginning(model, seed)
            overrides.append(f"checkpoint.finetune_from_model={hydra_text(begin)}")
            now["begun with (sha256)"] = fingerprint(begin)
        words = self.words(run, overrides)
        path = conditions_of(run)
        conditions = read_json(path, [])
        if not self.devices.gpus:
            # of the levels of nested threads that OpenMP takes, the outermost
            now["machine"]["torch threads"] = int(self.devices.environment(place)["OMP_NUM_THREADS"].split(",")[0])
        if now not in conditions and not (run / "model.json").exists():  # else it is trained
            write_json(path, [*conditions, now])
        # bars side by side are a tangle
        process = self.start(words, place, quiet=self.devices.at_once > 1)
        shown, _ = process.communicate()
        self.live.discard(process)
        if process.returncode:
            if not has_trained(run.parent, run.name):
                write_json(path, conditions)
            command = quote(["bash", "scripts/train.sh", *words])
            raise Problem(f"the training failed{reason(shown)}\n\nThe command was:\n\n  {command}")

    def beginning(self, model: dict, seed: int) -> Path:
        """The file of the same model and seed in another study; its dictionaries must be the same."""
        there = self.args.start.resolve() / folder(model["name"])
        trained = there / f"seed{seed}" / "model.pt"
        if not trained.exists():
            raise Problem(f"there is no {trained} to begin with: train this model and seed there, or leave out --start")
        told = "; ".join(differences(read_json(there / "arm.json", model), model))
        if told:
            raise Problem(f"{there} is of another model: {told}. Nothing can begin with it")
        known = read_json(trained.with_name("settings.json"), {})
        for path in sorted((self.args.data / "data-bin").glob("dict.*.txt")):
            if known.get(f"data: {path.name}") != fingerprint(path):
                raise Problem(
                    f"{trained} has another {path.name} than {self.args.data}: prepare the data with --vocabulary-of "
                    "and the folder of its data"
                )
        return trained

    def stop(self) -> None:
        for process in list(self.live):
            process.terminate()


def reason(shown: Optional[str]) -> str:
    """Why a command failed, by what it said where that was kept."""
    return f":\n\n{shown.strip()}" if shown else ", for the reason above"


def has_trained(folder: Path, run: str = "**") -> bool:
    """Whether a training under a folder has come as far as a checkpoint."""
    return any(folder.glob(f"{run}/checkpoints/*.pt"))


def conditions_of(run: Path) -> Path:
    """Where is told under what conditions a run was trained."""
    return run.with_name(f"{run.name}.conditions.json")
