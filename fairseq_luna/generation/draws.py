"""Random numbers for sampling."""

from contextlib import contextmanager
from threading import Lock
from typing import Iterator

import torch

_LOCK = Lock()  # torch has one random state, whoever draws: without it threads would draw from each other's


class Draws:
    """A sequence of random numbers of its own: it is the same whatever else draws some, and leaves that as it was.

    Threads take turns, each for as long as it draws.

    Args:
        seed: another one gives other numbers.
        device: on which they are drawn.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.gpus = [device.index] if device.type == "cuda" else []
        with _LOCK, torch.random.fork_rng(self.gpus):
            torch.default_generator.manual_seed(seed)
            for gpu in self.gpus:
                with torch.cuda.device(gpu):
                    torch.cuda.manual_seed(seed)
            self.keep()

    def keep(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(gpu) for gpu in self.gpus]

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Meanwhile torch draws from this sequence."""
        with _LOCK, torch.random.fork_rng(self.gpus):
            torch.set_rng_state(self.cpu)
            for gpu, state in zip(self.gpus, self.cuda):
                torch.cuda.set_rng_state(state, gpu)
            yield
            self.keep()
