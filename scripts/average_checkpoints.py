"""Write the mean of some checkpoints' parameters as one checkpoint to decode with (no optimiser state)."""

import argparse
from pathlib import Path
from typing import List

from common import Problem, entry, import_plugin, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    args = parser.parse_args()
    average(args.inputs, args.output)


def load(path: Path) -> dict:
    """A fairseq checkpoint as a dictionary, on the CPU."""
    import torch

    import_plugin()
    try:
        return torch.load(str(path), map_location="cpu")
    except Exception as error:
        raise Problem(f"{path} cannot be loaded: {error}") from None


def average(inputs: List[Path], output: Path) -> None:
    import torch

    state = load(inputs[-1])
    parameters = state["model"]
    sums = {name: value.double() for name, value in parameters.items()}
    for path in inputs[:-1]:
        for name, value in load(path)["model"].items():
            sums[name] += value

    means = {}  # by place in memory, so that what is shared between names is written once
    for name, value in parameters.items():
        mean = sums[name] / len(inputs) if value.is_floating_point() else value
        parameters[name] = means.setdefault((value.data_ptr(), value.shape), mean.to(value.dtype))
    state.pop("last_optimizer_state", None)
    with whole(output) as beside:
        torch.save(state, str(beside))


if __name__ == "__main__":
    entry("average_checkpoints", main)
