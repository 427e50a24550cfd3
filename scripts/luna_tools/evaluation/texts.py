"""The text of a subset: its lines, its sources with constraints, those of the training set as written out."""

from pathlib import Path
from typing import List, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_lines, remove, sha256, whole, write_json
from fairseq_luna.text import recipes
from luna_tools.evaluation.records import record_of, say
from luna_tools.run_folder import fingerprint, read_record


def lines(data: Path, subset: str) -> int:
    """How many sentences a subset has, the same on both sides."""
    recipe = recipes.load(data)
    folder = data / ("pieces" if subset == "train" else "raw")  # from raw/ to pieces/ training pairs may be dropped
    paths = [folder / f"{subset}.{lang}" for lang in (recipe.source, recipe.target)]
    counts = [number_of_lines(path) for path in paths]
    if counts[0] != counts[1]:
        raise Problem(f"{paths[0]} has {counts[0]:,} lines and {paths[1]} has {counts[1]:,}: prepare the data again")
    return counts[0]


def number_of_lines(path: Path) -> int:
    return sum(1 for _ in read_lines(path))


def constrained(data: Path, subset: str, file: Path) -> Tuple[List[str], int]:
    """The sources in pieces with their constraints after tabs, for fairseq-interactive, and the room these take."""
    recipe = recipes.load(data)
    known = {line.rpartition(" ")[0] for line in read_lines(data / "data-bin" / f"dict.{recipe.target}.txt")}
    sources, constraints = list(read_lines(data / "raw" / f"{subset}.{recipe.source}")), list(read_lines(file))
    if len(constraints) != len(sources):
        raise Problem(
            f"{file} has {len(constraints):,} lines, but {subset} has {len(sources):,} sentences: give a line for "
            "each, an empty one where nothing is asked for"
        )
    found, room = [], 0
    for number, (pieces, line) in enumerate(zip(recipe.encode(sources), constraints), 1):
        texts = [text for text in line.split("\t") if text.strip()]
        if texts and not pieces:
            raise Problem(f"{file}, line {number} has constraints, but its source is empty: leave the line empty too")
        forced = [
            recipes.forced_pieces(recipe, text, known, f"{file}, line {number}: the constraint") for text in texts
        ]
        room = max(room, sum(map(len, forced)))
        found.append("\t".join(" ".join(each) for each in [pieces, *forced]))
    return found, room


def write_sources(data: Path, recipe: recipes.Recipe, path: Path, ours: Path) -> None:
    """Write the lines of raw/train.SOURCE that data-bin/ holds, which is not those of pairs with too many pieces.

    A .json beside tells of which data they are. A file that is not of generate.sh is left alone, outside of `ours`.
    """
    record, made_of = record_of(path), fingerprint(data / "manifest.json")
    known = read_record(record)
    written = path.exists() and known.get("sha256") == fingerprint(path)
    if written and known.get("data") == made_of:
        return
    name = f"train.{recipe.source}"
    raw, pieces, tokens = (data / folder / name for folder in ("raw", "pieces", "tokens"))
    kept = read_lines(pieces)
    wanted = next(kept, None)
    with whole(path) as beside:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            for line, tokenised in zip(read_lines(raw), read_lines(tokens if tokens.exists() else raw)):
                if " ".join(recipe.split([tokenised])[0]) == wanted:
                    file.write(line + "\n")
                    wanted = next(kept, None)
        now = sha256(beside)
        try:
            if wanted is not None:
                raise Problem(f"{pieces} is not of the same text as {raw}: prepare the data again")
            # those of an earlier version, or of a command that was killed here, have no record, but are the same
            same = path.exists() and fingerprint(path) == now
            if path.parent != ours and not written:
                leave_alone(*([] if same else [path]), *([] if "sha256" in known else [record]))
        except Problem:
            remove(beside)
            raise
    write_json(record, {"data": made_of, "sha256": now})
    say(f"wrote {path}: the sources")


def leave_alone(*paths: Path) -> None:
    """Refuse to write over files that are there."""
    for path in paths:
        if path.exists():
            raise Problem(f"{path} is there, and not as generate.sh wrote it: choose another --out, or move it away")
