"""fairseq's commands as a user's shell runs them."""

import os
import subprocess
import sys
from pathlib import Path

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
