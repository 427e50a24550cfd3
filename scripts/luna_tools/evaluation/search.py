"""fairseq's search as a command, for the translations of a subset."""

import argparse
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.generation.options import Search
from fairseq_luna.text import recipes
from luna_tools.evaluation.decoding import Hypothesis, flags
from luna_tools.evaluation.texts import lines
from luna_tools.paths import USER_DIR
from luna_tools.processes import python
from luna_tools.progress import bar

LENGTHS = {"max_len_a": Search.max_len_a, "max_len_b": Search.max_len_b}  # of a hypothesis at most
# beside the model's positions fairseq asks for those of the task, whose default of 1,024 is of no model
NO_LIMITS = ["--max-source-positions", "1000000", "--max-target-positions", "1000000"]


def options_of(args: argparse.Namespace, search: Dict[str, Any]) -> List[str]:
    """The options of fairseq-generate for a search, but for the device."""
    return flags(search) + ["--fp16"] * args.fp16 + ["--bf16"] * args.bf16 + args.extra


def fairseq_command(name: str, data: Path, models: Sequence[Path], subset: str, options: List[str]) -> List[str]:
    """fairseq-generate or fairseq-interactive, by its name, with models that take texts of any length."""
    recipe = recipes.load(data)
    for model in models:
        if os.pathsep in str(model):
            raise Problem(f"fairseq takes {model} for several files, as {os.pathsep} is in it: rename the folder")
    command = python("luna_tools.evaluation.process", name, data / "data-bin", "--user-dir", USER_DIR)
    command += ["--path", os.pathsep.join(map(str, models)), "--gen-subset", subset, "--task", "translation"]
    return command + ["--source-lang", recipe.source, "--target-lang", recipe.target, *NO_LIMITS, *options]


def search_by(command: List[str], data: Path, runner: Callable, shown: Any) -> Dict[int, List[Hypothesis]]:
    """What fairseq finds for each sentence, by its number from 0, the best first.

    Args:
        command: fairseq-generate or fairseq-interactive with its options.
        runner: runs a command and hands on its lines, as `processes.run` does.
        shown: a bar that counts the sentences.
    """
    found: Dict[int, List[Tuple[float, str]]] = {}
    too_long: List[str] = []
    too_many: List[str] = []

    def collect(text: str) -> None:
        if text.startswith("H-"):
            number, score, pieces = text[2:].rstrip("\n").split("\t")
            shown.update(int(int(number) not in found))
            found.setdefault(int(number), []).append((float(score), pieces))
        elif "max_positions=" in text and "invalid" in text:
            too_long.append(text.strip())
        elif "Sentences lengths should not exceed max_tokens" in text:
            too_many.append(text.strip())

    try:
        runner(command, collect)
    except Problem:
        if not too_long and not too_many:
            raise
    if too_many:
        raise Problem(f"a sentence has more tokens than a batch ({too_many[0]}): give a larger --max-tokens")
    if too_long:
        raise Problem(
            f"{shown.n:,} hypotheses came for the {shown.total:,} references: some sentence is longer than the model's "
            f"positions ({too_long[0]}). Learned positions end there: cut the sentence, or leave it out, and prepare "
            "the data again"
        )
    pieces = [text.split(" ") if text else [] for hypotheses in found.values() for _, text in hypotheses]
    texts = iter(recipes.load(data).decode(pieces))
    return {number: [Hypothesis(score, next(texts)) for score, _ in hypotheses] for number, hypotheses in found.items()}


def check_number(found: int, total: int, subset: str) -> None:
    if found != total:
        raise Problem(
            f"{found:,} hypotheses came for the {total:,} references of {subset}: data-bin/ and the text are not the "
            "same: prepare the data again"
        )


def best(data: Path, model: Path, subset: str, options: List[str], runner: Callable) -> List[str]:
    """One detokenised hypothesis for each sentence of a subset, in their order."""
    total = lines(data, subset)
    with bar(total, "sentence") as shown:
        found = search_by(fairseq_command("generate", data, [model], subset, options), data, runner, shown)
    check_number(len(found), total, subset)
    return [found[i][0].text for i in sorted(found)]
