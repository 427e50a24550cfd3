"""What is known of a training of a study, for compare.sh: its log, its translations of each test set, their scores."""

import argparse
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, write_json
from fairseq_luna.text import recipes
from luna_tools.data.testsets import test_sets
from luna_tools.evaluation.records import file_name
from luna_tools.evaluation.scores import by_length, compare, has_todays_lengths, score
from luna_tools.evaluation.translation import generate
from luna_tools.progress import TrainingLog
from luna_tools.run_folder import fingerprint
from luna_tools.study.trainings import conditions_of
from luna_tools.training.average import average_last

SCORES = "BLEU", "chrF"
BY_WORDS, BY_PIECES = "BLEU by words of the source", "BLEU by pieces of the source"
UNITS = {BY_WORDS: "words", BY_PIECES: "pieces"}
SETS = "test sets"  # of a result: what is known of each, by its name


def figures(out: Path, run: Path, seed: int) -> Optional[Dict[str, Any]]:
    """What the log of a training says; nothing before its first validation."""
    log = TrainingLog.read(run / "train.log")
    if not log.valid:
        return None
    return {
        "seed": seed,
        "run": str(run.relative_to(out)),
        "parameters": log.parameters,
        "updates": log.updates,
        "conditions": read_json(conditions_of(run), []),
        "words per second": round(log.typical_words_per_second()),
        "peak memory (bytes)": log.peak_memory,
        "valid nll by updates": {str(updates): round(nll, 4) for updates, nll in sorted(log.valid.items())},
        "best valid nll (nats per piece)": round(min(log.valid.values()), 4),
    }


class Scorer:
    """Averages, translates and scores trainings; what is there already is kept.

    Args:
        out: the folder of the study.
        data: what data-prep/ made.
        decoding: checkpoints to average, and the settings of the search.
        cpu: leave GPUs alone.
    """

    def __init__(self, out: Path, data: Path, decoding: Dict[str, Any], cpu: bool) -> None:
        self.out, self.data, self.decoding, self.cpu = out, data, decoding, cpu
        self.recipe, self.tests = recipes.load(data), test_sets(data)

    def options(self, run: Path) -> argparse.Namespace:
        """Those of generate.sh: on a GPU in the precision of the training."""
        trained = read_json(run / "settings.json", {})
        half = {name: not self.cpu and trained.get(f"common.{name}") is True for name in ("fp16", "bf16")}
        search = {name: self.decoding[name] for name in ("beam", "max_tokens")}
        return argparse.Namespace(run=run, data=self.data, cpu=self.cpu, extra=[], **search, **half)

    def score(self, run: Path, seed: int, environment: Dict[str, str]) -> Dict[str, Any]:
        """Translate each test set by the averaged model of a training that is done, and score."""
        average_last(run, self.decoding["average"])
        options, lenpen, files = self.options(run), self.decoding["lenpen"], {}
        for name, split in self.tests.items():
            files[name] = run / file_name(options, name, lenpen)
            generate(options, split, lenpen, files[name], environment)
        found = figures(self.out, run, seed)
        if not found:
            raise Problem(f"{run / 'train.log'} has no validation: a study compares by it, so leave it on")
        found["decoding"] = self.decoding
        found["checkpoints averaged"] = len(read_json(run / "model.json")["inputs"])
        made = {
            name: {"file": file.name, "sha256 of the hypotheses": fingerprint(file)} for name, file in files.items()
        }
        known = read_json(run / "scores.json", {})
        if self.holds(known, found, made):
            return known
        found[SETS] = {name: {**made[name], **self.scores(name, file)} for name, file in files.items()}
        write_json(run / "scores.json", found)
        return found

    def holds(self, known: dict, found: dict, made: Dict[str, dict]) -> bool:
        """Whether known scores are of the same training and translations, and complete."""
        if any(known.get(key) != value for key, value in found.items()) or set(known.get(SETS, {})) != set(made):
            return False
        return all(
            all(known[SETS][name].get(key) == value for key, value in facts.items())
            and all(has_todays_lengths(known[SETS][name].get(key, []), unit) for key, unit in UNITS.items())
            for name, facts in made.items()
        )

    def scores(self, name: str, file: Path) -> Dict[str, Any]:
        hypotheses, target = list(read_lines(file)), self.recipe.target
        sources, references = self.text(name, self.recipe.source), self.text(name, target)
        return {
            "scores": score(hypotheses, references, target, SCORES),
            BY_WORDS: by_length(sources, hypotheses, references, target),
            BY_PIECES: by_length(self.pieces(name), hypotheses, references, target, "pieces"),
        }

    def test(self, result: dict, baseline: dict) -> None:
        """The paired test of each test set against the baseline's training of the same seed, where it is not there."""
        changed = False
        for name, found in result[SETS].items():
            other = baseline[SETS][name]
            against = other["sha256 of the hypotheses"]
            if found.get("sha256 of those of the baseline") != against:
                ours, theirs = (
                    list(read_lines(self.out / each["run"] / each[SETS][name]["file"])) for each in (result, baseline)
                )
                target = self.recipe.target
                found["paired bootstrap"] = compare(ours, theirs, self.text(name, target), target, SCORES)
                found["sha256 of those of the baseline"] = against
                changed = True
        if changed:
            write_json(self.out / result["run"] / "scores.json", result)

    @lru_cache(maxsize=None)  # noqa: B019  there is one of this class
    def text(self, name: str, lang: str) -> List[str]:
        return list(read_lines(self.data / "raw" / f"{self.tests[name]}.{lang}"))

    @lru_cache(maxsize=None)  # noqa: B019
    def pieces(self, name: str) -> List[List[str]]:
        return self.recipe.encode(self.text(name, self.recipe.source))
