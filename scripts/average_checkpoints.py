"""Average the last checkpoints of a run: the mean of their parameters, to decode with (no optimiser state).

Those saved by updates (checkpoint_E_U.pt) are taken, or else those of the epochs (checkpointN.pt); checkpoint_last.pt
counts where it is newer than all of them. The model may be any of fairseq's. Checkpoints under other names are given
one by one. Does nothing where the result is there and the checkpoints are the same."""

import argparse
from pathlib import Path
from typing import List, Optional, Sequence

from common import Problem, entry, import_plugin, read_json, whole, write_json
from progress import bar

LAST = 10
NAMES = r"checkpoint_\d+_(\d+)\.pt", r"checkpoint(\d+)\.pt"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="average.sh",
        usage="%(prog)s [options] FOLDER | FILE FILE ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="what train.sh or quickstart.sh wrote, or any folder of fairseq's checkpoints; or FILES, which all count",
    )
    parser.add_argument("--last", type=count, metavar="K", help=f"of a folder (default {LAST})")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default FOLDER/model.pt; what went into it is told in a .json beside. FILES need it",
    )
    args = parser.parse_args()
    first, *others = args.checkpoints
    if first.is_dir() and not others:
        average_last(first, args.last or LAST, args.out)
        return
    for path in args.checkpoints:
        if not path.is_file():
            raise Problem(f"there is no file {path}: give one folder, or files")
    if not args.out or args.last:
        parser.error("--last is for a folder: of files all count" if args.last else "files need an --out FILE")
    average_files(args.checkpoints, args.out)


def count(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {number}")
    return number


def say(message: str) -> None:
    print(f"average: {message}", flush=True)


def average_last(run: Path, last: Optional[int] = None, output: Optional[Path] = None) -> Path:
    """Make or keep the average of the last checkpoints of a run; without a number as many as before, or else 10."""
    output = output or run / "model.pt"
    record = output.with_suffix(".json")
    before = read_json(record, {}) if output.exists() else {}
    last = last or before.get("last", LAST)
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    newest, others = folder / "checkpoint_last.pt", saved(folder)[:last]
    found = [path for path in (newest, *others) if path.exists()]
    if not found:
        raise Problem(
            f"{folder} holds no checkpoint to average: give a folder that holds checkpoint_E_U.pt or checkpointN.pt, "
            "such as that of a run of train.sh or quickstart.sh, or name the files"
        )
    # telling whether checkpoint_last.pt is one of the others takes reading it, which nothing new spares
    files = {path.name: stamp(path) for path in found}
    if (before.get("last"), before.get("files")) == (last, files):
        say(f"{output} holds this already")
        return output

    inputs = others
    if newest in found and not (others and updates(newest) <= updates(others[0])):
        inputs = [newest, *others][:last]
    fewer = f", all there are of the {last} asked for" if len(inputs) < last else ""
    say(f"{len(inputs)} checkpoint(s){fewer}: " + ", ".join(path.name for path in inputs))
    made = average(inputs[::-1], output)
    write_json(record, {"inputs": [path.name for path in inputs[::-1]], "updates": made, "last": last, "files": files})
    say(f"wrote {output}")
    return output


def average_files(paths: Sequence[Path], output: Path) -> None:
    """Make or keep the average of these files."""
    record, files = output.with_suffix(".json"), {str(path): stamp(path) for path in paths}
    if output.exists() and read_json(record, {}).get("files") == files:
        say(f"{output} holds this already")
        return
    if len(files) < len(paths):
        raise Problem("a checkpoint is given twice: it would count twice")
    made = average(paths, output)
    write_json(record, {"inputs": [str(path) for path in paths], "updates": made, "files": files})
    say(f"wrote {output}, of {len(paths)} checkpoint(s)")


def stamp(path: Path) -> List[int]:
    """Size and time of change."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def saved(folder: Path) -> List[Path]:
    """The checkpoints of a folder that were saved by updates, or else by epochs, newest first."""
    if not folder.is_dir():
        return []
    import_plugin()  # first, as importing fairseq alone has every library log its debug messages
    from fairseq.checkpoint_utils import checkpoint_paths

    kinds = ([Path(path) for path in checkpoint_paths(str(folder), pattern)] for pattern in NAMES)
    return next(filter(None, kinds), [])


def load(path: Path) -> dict:
    """A fairseq checkpoint as a dictionary, on the CPU."""
    import torch

    import_plugin()
    try:
        state = torch.load(str(path), map_location="cpu")
    except Exception as error:
        raise Problem(
            f"{path} cannot be loaded: {error}. Where it was cut short, remove it: the newest other is then taken"
        ) from None
    if not isinstance(state, dict) or not {"model", "optimizer_history"} <= set(state):
        raise Problem(f"{path} is no checkpoint of a fairseq training")
    return state


def updates(path: Path) -> int:
    return count_updates(load(path))


def count_updates(state: dict) -> int:
    return state["optimizer_history"][-1]["num_updates"]


def average(inputs: Sequence[Path], output: Path) -> int:
    """Write the mean of checkpoints, all else as in the last of them; returns the updates of that one."""
    import torch

    state = load(inputs[-1])
    parameters = state["model"]
    shapes = {name: value.shape for name, value in parameters.items()}
    sums = {name: value.double() for name, value in parameters.items()}
    with bar(len(inputs), "checkpoint", initial=1) as line:
        for path in inputs[:-1]:
            other = load(path)["model"]
            if {name: value.shape for name, value in other.items()} != shapes:
                raise Problem(f"{path} is of another model than {inputs[-1]}: only those of one kind can be averaged")
            for name, value in other.items():
                sums[name] += value
            line.update()

    means = {}  # by place in memory, so that what is shared between names is written once
    for name, value in parameters.items():
        mean = sums[name] / len(inputs) if value.is_floating_point() else value
        # half precision would round away what averaging brings
        precision = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
        parameters[name] = means.setdefault((value.data_ptr(), value.shape), mean.to(precision))
    state.pop("last_optimizer_state", None)
    with whole(output) as beside:
        torch.save(state, str(beside))
    return count_updates(state)


if __name__ == "__main__":
    entry("average", main)
