"""fairseq's commands as a user's shell runs them."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import torch

import fairseq_luna

USER_DIR = Path(fairseq_luna.__file__).parent
ROOT = USER_DIR.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}


def fairseq(name, *args):
    """The words of a fairseq command with the plugin: fairseq("train", ...)."""
    return [sys.executable, "-m", f"fairseq_cli.{name}", *map(str, args), "--user-dir", str(USER_DIR)]


def run(command, fails=False, **options):
    """Runs a command to its end and returns what it did; `fails` says whether it ought to fail."""
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, **options)
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def in_child(action, *args):
    """The exit code of `action(*args)` in a forked process (a fresh one would spend seconds on imports)."""

    def child():
        torch.set_num_threads(1)  # threads do not survive a fork
        action(*args)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(500)
    return process.exitcode


def cli(module, *args):
    """A fairseq command in this process, by its module: cli(fairseq_cli.train, ...)."""
    sys.argv = [module.__name__, *map(str, args)]
    module.cli_main()


WORDS = "the a red blue old house tree sees finds and under over cat dog we they".split()


def prepared(folder: Path, *options: str) -> Path:
    """Prepared data of 300 pairs of 3 to 11 words, in FOLDER/data."""
    for split, size in ("train", 300), ("valid", 12), ("test", 8):
        for lang, step in ("en", 1), ("de", -1):
            lines = (
                " ".join([WORDS[(i * k * k + k) % len(WORDS)] for k in range(3 + i % 9)][::step]) for i in range(size)
            )
            (folder / f"{split}.{lang}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", str(folder / split))]
    command = [sys.executable, str(ROOT / "data-prep" / "prepare_corpus.py"), *splits, "--source", "en"]
    run([*command, "--target", "de", "--vocab-size", "320", "--workers", "1", "--out", str(folder / "data"), *options])
    return folder / "data"
