"""The graphs of an exported model, at work in onnxruntime."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from ..errors import Problem
from .manifest import GRAPHS, file_of

Arrays = Dict[str, np.ndarray]


class Model:
    """The two graphs.

    Args:
        folder: of the model.
        manifest: of it.
        threads: that compute; None for one on each core.

    Raises:
        Problem: if onnxruntime takes no such graph.
        ImportError: if it is not installed.
    """

    def __init__(self, folder: Path, manifest: Dict[str, Any], threads: Optional[int] = None) -> None:
        self.encoder, self.decoder = (session(folder / file_of(graph), threads) for graph in GRAPHS)
        encode, step = (manifest["graphs"][graph] for graph in GRAPHS)
        self.memory = [each["name"] for each in encode["outputs"]]
        self.outputs = [each["name"] for each in step["outputs"]]
        kept = {name[len("next.") :] for name in self.outputs[1:]}
        self.states = [each for each in step["inputs"] if each["name"] in kept]

    def encode(self, tokens: np.ndarray) -> Arrays:
        """Source tokens (B, m), padded -> what the decoder reads of them, B rows each."""
        return dict(zip(self.memory, self.encoder.run(self.memory, {"tokens": tokens})))

    def begin(self, memory: Arrays) -> Arrays:
        """States before the first step: one row, which all beams take."""
        slots = memory[self.memory[0]].shape[2]
        sizes = {self.states[0]["shape"][0]: 1, "slots": slots}
        return {
            each["name"]: np.zeros([sizes.get(size, size) for size in each["shape"]], each["dtype"])
            for each in self.states
        }

    def step(self, tokens: np.ndarray, order: np.ndarray, t: int, memory: Arrays, states: Arrays) -> List[Any]:
        """A step.

        Args:
            tokens: the last token of each beam, (B, beams).
            order: of which row of the states each beam takes its own, (B, beams).
            t: number of the step, from 1.
            memory: what `encode` made, of B sentences.
            states: what the step before returned, or `begin`.

        Returns:
            Log-probabilities of the next tokens, (B, beams, V), and the states.
        """
        given = {"tokens": tokens, "order": order, "t": np.array(t), **memory, **states}
        log_probs, *found = self.decoder.run(self.outputs, given)
        return [log_probs, dict(zip((each["name"] for each in self.states), found))]


def session(path: Path, threads: Optional[int]) -> Any:
    """A graph, ready to run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each code of its own
        reason = " ".join(str(error).split())
        raise Problem(
            f"{path} cannot be loaded by onnxruntime {onnxruntime.__version__} ({reason}): export the model again, or "
            "install the onnxruntime that its manifest.json names"
        ) from error
