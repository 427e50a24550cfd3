"""What `python -m fairseq_luna --check` tries, in a process of its own: `python -m fairseq_luna.check.parts FOLDER`.

Writes a line for each part to stdout as it ends: `ROW`, then the fields of a `Row` as JSON. What fairseq and others
print goes to stderr.
"""

import json
import math
import os
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import torch

from ..generation.results import Translation
from ..generation.translator import Translator
from ..models import capture
from ..ops import dispatch
from . import ROW, Row, remedy
from .training import SOURCES, losses, prepare

UPDATES, MORE = 20, 3
STEP = "causal step"
KERNELS = "pack", "unpack", "causal attention", "residual", "cross entropy"
# how far the score of a translation, in nats a piece, may be from that which the search in fp32 gave it
CLOSE = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.05, "int8": 0.05}


class Wrong(Exception):
    """A part that should work does not. With what to do, where that is known."""

    def __init__(self, text: str, todo: str = "") -> None:
        super().__init__(text)
        self.todo = todo


class Parts:
    """The parts, in their order. Each tells the state and the text of its row.

    Args:
        folder: to work in.
        say: is given each row.
    """

    def __init__(self, folder: Path, say: Callable[[Row], None]) -> None:
        self.folder, self.say = folder, say
        self.gpu = torch.cuda.is_available()
        self.unfused: Dict[str, str] = {}  # by operator, why a kernel did not run
        self.found: List[Translation] = []
        self.warned: List[warnings.WarningMessage] = []

    def run(self) -> None:
        """All of them; where training fails there is nothing more to try."""
        with warnings.catch_warnings(record=True) as self.warned:
            warnings.simplefilter("default", UserWarning)  # whatever the environment says
            self.tell("GPU", self.find_gpu)
            if self.tell("training", self.train):
                self.tell("checkpoint", self.resume)
                self.tell("generation", self.translate)
                self.tell("half precision", self.halve)
                self.tell("fused kernels", self.list_forms)
                self.tell("CUDA graphs", self.look_for_graphs)

    def tell(self, part: str, work: Callable[[], Tuple[str, str]]) -> bool:
        """Whether a part succeeds."""
        try:
            row = Row(part, *work())
        except Wrong as wrong:
            row = Row(part, "FAILED", str(wrong), wrong.todo or remedy())
        except Exception as error:  # whatever it is, the table goes on
            traceback.print_exc()
            row = Row(part, "FAILED", told(error), remedy())
        self.say(row)
        return row.state != "FAILED"

    def find_gpu(self) -> Tuple[str, str]:
        if self.gpu:
            return "ok", torch.cuda.get_device_name()
        built = "" if torch.version.cuda or torch.version.hip else " (this torch is built for CPUs)"
        return "-", f"torch finds none{built}; everything runs on the CPU"

    def train(self) -> Tuple[str, str]:
        prepare(self.folder)
        return "ok", f"{UPDATES} updates, loss {self.fall('checkpoints')}"

    def fall(self, checkpoints: str, *options: str) -> str:
        """The first and the last loss of a training."""
        dispatch.forget_forms()
        found = losses(self.folder, checkpoints, UPDATES, *options)
        self.note(*KERNELS)
        text = " -> ".join(f"{loss:.2f}" for loss in (found[0], found[-1]))
        if not all(map(math.isfinite, found)) or found[-1] >= found[0]:
            raise Wrong(f"the loss does not fall: {text}")
        return text

    def note(self, *operators: str) -> None:
        """Which of them ran last without a kernel, and why."""
        forms = dispatch.forms()
        self.unfused.update({name: str(forms[name].unfused) for name in operators if forms[name].unfused})

    def resume(self) -> Tuple[str, str]:
        """The training goes on from its checkpoint."""
        found = losses(self.folder, "checkpoints", UPDATES + MORE)
        if len(found) != MORE:
            raise Wrong(f"a training of {UPDATES} updates went on for {len(found)} and not for {MORE}")
        return "ok", f"saved and loaded, trained on from update {UPDATES}"

    def translate(self) -> Tuple[str, str]:
        """The search, step by step, against a pass over whole translations."""
        os.replace(str(self.folder / "checkpoints" / "checkpoint_last.pt"), str(self.folder / "model.pt"))
        translator = Translator.from_run(self.folder)
        self.found = translator.translate(SOURCES, details=True)
        self.note(STEP)
        apart = self.apart(translator)
        if not apart <= CLOSE["fp32"]:
            raise Wrong(f"the beam search and a whole pass differ by {apart:.3g} nats a piece")
        return "ok", f"{len(self.found)} sentences by beam search; step by step = a whole pass"

    def apart(self, translator: Translator) -> float:
        """How far the scores of the translations are from those that the search gave them, at most."""
        scores = translator.score(SOURCES, self.found)
        return max(abs(score.score - each.score) for score, each in zip(scores, self.found))

    def halve(self) -> Tuple[str, str]:
        """On a GPU training, and everywhere translations, in lower precisions."""
        if self.gpu:
            names = ["fp16"] + ["bf16"] * torch.cuda.is_bf16_supported()
            trained = [f"{name} training, loss {self.fall(name, f'--{name}')}" for name in names]
        else:
            names, trained = ["bf16", "int8"], []
        for name in names if self.found else ():
            apart = self.apart(Translator.from_run(self.folder, precision=name))
            if not apart <= CLOSE[name]:
                raise Wrong(f"translations in {name} and in fp32 differ by {apart:.3g} nats a piece")
        return "ok", "; ".join([*trained, f"translation in {' and '.join(names)}"])

    def list_forms(self) -> Tuple[str, str]:
        """Which operators ran as kernels, and why others did not."""
        if not self.unfused:
            return "ok", ", ".join([*KERNELS, STEP])
        reasons = sorted(set(self.unfused.values()))
        text = "; ".join(
            f"{', '.join(n for n, why in self.unfused.items() if why == reason)}: {reason}" for reason in reasons
        )
        if not self.gpu or os.environ.get(dispatch.SWITCH) == "0" or not find_spec("triton"):
            return "-", text
        raise Wrong(
            text, f"Everything else works without the kernels, more slowly; {dispatch.SWITCH}=0 turns them off."
        )

    def look_for_graphs(self) -> Tuple[str, str]:
        messages = [str(warning.message) for warning in self.warned]
        failed = [message for message in messages if "without CUDA graphs" in message]
        if failed:
            raise Wrong(
                failed[0], f"Everything else works without graphs, more slowly; {capture.SWITCH}=0 turns them off."
            )
        if not self.gpu:
            return "-", "they need a GPU"
        if not capture.can_capture(torch.device("cuda", torch.cuda.current_device())):
            return "-", f"they are turned off by {capture.SWITCH}=0, or this torch is older than 2.1"
        return "ok", "in training and translation"


def told(error: Exception) -> str:
    """An error in a line, and where it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(last.filename).name}, line {last.lineno})"


def main() -> None:
    # of what writes to stdout, also from C, nothing gets between the rows
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(row: Row) -> None:
        channel.write(ROW + json.dumps(row) + "\n")
        channel.flush()

    Parts(Path(sys.argv[1]), say).run()


if __name__ == "__main__":
    main()
