"""Average the last checkpoints of a run: the mean of their parameters, to decode with (no optimiser state).

Those saved by updates (checkpoint_E_U.pt) are taken, or else those of the epochs (checkpointN.pt); checkpoint_last.pt
counts where it is newer than all of them. The model may be any of fairseq's. Checkpoints under other names are given
one by one. Does nothing where the result is there and the checkpoints are the same. No file but an earlier average is
written over."""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from fairseq_luna.errors import Problem
from fairseq_luna.files import whole, write_json
from luna_tools.console import count, entry, teller
from luna_tools.progress import bar
from luna_tools.run_folder import read_record
from luna_tools.training.checkpoints import REMOVE, count_updates, load, saved, updates

say = teller("average")

LAST = 10


def main() -> None:
    args = parse_args()
    first, *others = args.checkpoints
    if first.is_dir() and not others:
        average_last(first, args.last or LAST, args.out)
    else:
        average_files(args.checkpoints, args.out)


def parse_args() -> argparse.Namespace:
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
    files = len(args.checkpoints) > 1 or args.checkpoints[0].is_file()
    if files and (args.last or not args.out):
        parser.error("--last is for a folder: of files all count" if args.last else "files need an --out FILE")
    return args


def average_last(run: Path, last: Optional[int] = None, output: Optional[Path] = None) -> Path:
    """Make or keep the average of the last checkpoints of a run; without a number as many as before, or else 10."""
    output = output or run / "model.pt"
    before = earlier(output)
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
    if newest in found and not (others and (updates(newest) or 0) <= (updates(others[0]) or 0)):
        inputs = [newest, *others][:last]
    fewer = f", all there are of the {last} asked for" if len(inputs) < last else ""
    say(f"{len(inputs)} checkpoint(s){fewer}: " + ", ".join(path.name for path in inputs))
    write_average(inputs[::-1], output, {"inputs": [path.name for path in inputs[::-1]], "last": last}, files)
    say(f"wrote {output}")
    return output


def average_files(paths: Sequence[Path], output: Path) -> None:
    """Make or keep the average of these files."""
    for path in paths:
        if not path.is_file():
            raise Problem(f"there is no file {path}: give one folder, or files")
        if output.exists() and path.samefile(output):
            raise Problem(f"--out {output} is one of the files to average: choose another")
    before, files = earlier(output), {str(path): stamp(path) for path in paths}
    if before.get("files") == files:
        say(f"{output} holds this already")
        return
    if len(files) < len(paths):
        raise Problem("a checkpoint is given twice: it would count twice")
    advice = "leave it out, or give another in its place"
    write_average(paths, output, {"inputs": [str(path) for path in paths]}, files, advice)
    say(f"wrote {output}, of {len(paths)} checkpoint(s)")


def record_of(model: Path) -> Path:
    """Where is told what went into an average."""
    return model.with_suffix(".json")


def earlier(output: Path) -> dict:
    """The record of the average that is to be replaced, or none; a Problem where a file there is of somebody else."""
    record = record_of(output)
    if record == output:
        raise Problem(f"--out {output} must not end in .json: what goes into the average is told there. Say .pt")
    known = read_record(record)
    ours = {"inputs", "updates"} <= set(known) and known.get("output", output.name) == output.name
    for path in output, record:
        if path.exists() and not ours:
            raise Problem(
                f"{path} is there, and {record} does not tell that {output} is an average: choose another --out, or "
                "move it away"
            )
    return known if output.exists() else {}


def write_average(paths: Sequence[Path], output: Path, made_of: dict, files: dict, advice: str = REMOVE) -> None:
    """The average and its record; `files` is what tells whether it is to be made again."""
    import torch

    state = average(paths, advice)
    record = {**made_of, "output": output.name, "updates": count_updates(state)}
    with whole(output) as beside:
        torch.save(state, str(beside))
        # at first without `files`: killed before the other has its place, the same command makes it again
        write_json(record_of(output), record)
    write_json(record_of(output), {**record, "files": files})


def stamp(path: Path) -> List[int]:
    """Size and time of change."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def average(inputs: Sequence[Path], advice: str) -> dict:
    """The mean of checkpoints, all else as in the last of them; `advice` is about one that was cut short."""
    import torch

    state = load(inputs[-1], advice)
    parameters = state["model"]
    shapes = {name: value.shape for name, value in parameters.items()}
    sums = {name: value.double() for name, value in parameters.items()}
    with bar(len(inputs), "checkpoint", initial=1) as line:
        for path in inputs[:-1]:
            other = load(path, advice)["model"]
            if {name: value.shape for name, value in other.items()} != shapes:
                raise Problem(f"{path} is of another model than {inputs[-1]}: only those of one kind can be averaged")
            for name, value in other.items():
                sums[name] += value
            line.update()

    means: Dict[Any, Any] = {}  # by place in memory, so that what is shared between names is written once
    for name, value in parameters.items():
        mean = sums[name] / len(inputs) if value.is_floating_point() else value
        # half precision would round away what averaging brings
        precision = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
        parameters[name] = means.setdefault((value.data_ptr(), value.shape), mean.to(precision))
    state.pop("last_optimizer_state", None)
    return state


if __name__ == "__main__":
    entry("average", main)
