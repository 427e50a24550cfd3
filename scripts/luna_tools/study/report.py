"""The report of a study for compare.sh: tables in Markdown, pictures and report.json, of all that is known so far."""

import statistics
from pathlib import Path
from typing import Any, Dict, List, Optional

from fairseq_luna.files import read_json, write_json, write_text
from luna_tools.evaluation.scores import RESAMPLES
from luna_tools.machine import names_of
from luna_tools.plots import draw_by_length, draw_curves
from luna_tools.study.scores import BY_PIECES, BY_WORDS, SCORES, SETS, UNITS
from luna_tools.tables import table_of

Results = Dict[str, List[dict]]  # of each model, by its name: its trainings by their seeds


class Report:
    """OUT/report.md, report.json, learning-curves.png and bleu-by-length.png.

    Args:
        out: the folder of the study.
        data: what data-prep/ made.
        study: the models and the baseline.
        decoding: checkpoints averaged, and the settings of the search.
        sentences: of each test set, by its name.
        commands: that made the study.
    """

    def __init__(
        self, out: Path, data: Path, study: dict, decoding: dict, sentences: Dict[str, int], commands: List[str]
    ) -> None:
        self.out, self.data, self.study, self.decoding = out, data, study, decoding
        self.sentences, self.commands, self.baseline = sentences, commands, study["baseline"]

    def write(self, known: Results) -> None:
        """Write all that is known; trainings that have no translations yet have their losses only."""
        models = [model for model in self.study["models"] if known.get(model["name"])]
        if not models:
            return
        names = [model["name"] for model in models]
        losses = {name: [result["valid nll by updates"] for result in done(known[name])] for name in names}
        draw_curves(losses, self.out / "learning-curves.png")
        scored = scored_of({name: known[name] for name in names})
        if scored:
            for test, path in self.pictures().items():
                buckets = [(name, mean_by_length(sets_of(results, test))) for name, results in scored.items()]
                draw_by_length(buckets, path)
        settings, manifest = read_json(self.out / "settings.json", {}), read_json(self.data / "manifest.json")
        write_text(self.out / "report.md", self.text(models, known, settings))
        write_json(
            self.out / "report.json",
            {
                # as earlier versions call them
                "arms": [{**model, "trainings": known[model["name"]]} for model in models],
                "baseline": self.baseline,
                "settings": settings,
                "data": {key: manifest.get(key) for key in ("corpus", "settings", "lines", "vocabulary")},
                "commands": self.commands,
            },
        )

    def pictures(self) -> Dict[str, Path]:
        """That of BLEU by length of each test set; the first has the short name."""
        names = {test: f"bleu-by-length.{test}.png" for test in self.sentences}
        names[next(iter(names))] = "bleu-by-length.png"
        return {test: self.out / name for test, name in names.items()}

    def text(self, models: List[dict], known: Results, settings: dict) -> str:
        scored, parts = scored_of({model["name"]: known[model["name"]] for model in models}), []
        for number, test in enumerate(self.sentences):
            if len(self.sentences) > 1:
                parts.append(f"## {test}: {self.sentences[test]:,} sentences")
            rows = [[model["name"], *self.scores(model["name"], test, known)] for model in models]
            heads = ["model", *SCORES, "BLEU of seeds", *(f"{name} against {self.baseline} (p)" for name in SCORES)]
            if number == 0:  # with the figures of the training
                heads[1:1] = ["parameters", "updates", "tokens/s", "peak memory", "best valid nll"]
                for row, model in zip(rows, models):
                    row[1:1] = training(known[model["name"]])
            parts.append(table_of([heads, *rows]))
            if number == 0:
                parts += self.notes(models, known, settings)
            if scored:
                for title in BY_WORDS, BY_PIECES:
                    parts += [f"{title}:", table_of(lengths(scored, test, title))]
                parts.append(f"![BLEU by words of the source]({self.pictures()[test].name})")
        return "\n\n".join([*parts, "![Validation loss by updates](learning-curves.png)"]) + "\n"

    def scores(self, name: str, test: str, known: Results) -> List[str]:
        """The cells of a model's scores of a test set; of those not known yet, empty ones."""
        results = [result for result in known[name] if SETS in result]
        if not results:
            return [""] * (2 * len(SCORES) + 1)
        sets = sets_of(results, test)
        return [
            *(spread([found["scores"][metric]["score"] for found in sets], 2) for metric in SCORES),
            ", ".join(f"{each['seed']}: {found['scores']['BLEU']['score']:.2f}" for each, found in zip(results, sets)),
            *(
                ", ".join(filter(None, (self.difference(name, result, test, metric, known) for result in results)))
                for metric in SCORES
            ),
        ]

    def difference(self, name: str, result: dict, test: str, metric: str, known: Results) -> str:
        """The paired test against the baseline, where there is one, as the table has it."""
        baseline = of_seed(known.get(self.baseline, []), result["seed"])
        if name == self.baseline or not baseline:
            return ""
        found = result[SETS][test]["paired bootstrap"][metric]
        return f"{result['seed']}: {found['this'] - found['other']:+.2f} ({found['p-value']:.3g})"

    def notes(self, models: List[dict], known: Results, settings: dict) -> List[str]:
        """How the figures came about."""
        results = [result for model in models for result in known[model["name"]]]
        scored = [result for result in results if SETS in result]
        signatures: Dict[str, str] = {}
        for found in (found for result in scored for found in result[SETS].values()):
            signatures.update((name, found["scores"][name]["signature"]) for name in SCORES)
            for name, test in found.get("paired bootstrap", {}).items():
                signatures[f"Test of {name}"] = test["signature"]
        averaged = sorted({result["checkpoints averaged"] for result in scored}) or [self.decoding["average"]]
        conditions = [condition for result in results for condition in result.get("conditions", [])]
        together = sorted({condition["at once"] for condition in conditions})
        machines = names_of(condition["machine"] for condition in conditions)
        sentences = ", ".join(f"{count:,}" for count in self.sentences.values())
        return [
            "Where there are several seeds, the mean ± the standard deviation. "
            f"{' or '.join(map(str, averaged))} checkpoint(s) averaged, beam {self.decoding['beam']}, length penalty "
            f"{self.decoding['lenpen']:g}; {sentences} test sentences. nll in nats per "
            "token. Paired bootstrap test, seed by seed: the difference, and how likely one as large is by the choice "
            f"of sentences alone; the least p that {RESAMPLES:,} resamples can tell is {1 / (RESAMPLES + 1):.3f}. "
            f"Speed and memory of training with {' or '.join(map(str, together))} at once on "
            f"{machines}; memory of sessions that were not killed.",
            *([settings["plan"]["told"]] if settings.get("plan") else []),
            *(f"{name}: `{signature}`" for name, signature in sorted(signatures.items())),
            *(f"`{command}`" for command in self.commands),
        ]


def scored_of(known: Results) -> Results:
    """The models and trainings that have scores."""
    found = {name: [result for result in results if SETS in result] for name, results in known.items()}
    return {name: results for name, results in found.items() if results}


def sets_of(results: List[dict], test: str) -> List[dict]:
    """What is known of a test set by each of some trainings."""
    return [result[SETS][test] for result in results]


def of_seed(results: List[dict], seed: int) -> Optional[dict]:
    return next((result for result in results if result["seed"] == seed and SETS in result), None)


def done(results: List[dict]) -> List[dict]:
    """The trainings of a model that have scores; as long as none has, those under way."""
    return [result for result in results if SETS in result] or results


def training(results: List[dict]) -> List[str]:
    """The cells of a model's trainings: means of what has come equally far."""
    results = done(results)
    updates = sorted({result["updates"] for result in results})
    memory = max(result["peak memory (bytes)"] or 0 for result in results)
    return [
        f"{results[0]['parameters'] / 1e6:.2f}M",
        " to ".join(f"{number:,}" for number in dict.fromkeys((updates[0], updates[-1]))),
        f"{statistics.median(result['words per second'] for result in results):,.0f}",
        f"{memory / 2**20:,.0f} MB" if memory else "",
        spread([result["best valid nll (nats per piece)"] for result in results], 3),
    ]


def spread(values: List[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def lengths(scored: Results, test: str, title: str) -> List[List[str]]:
    """BLEU of each model by the length of the source, as rows of cells."""
    unit = UNITS[title]
    means = {name: mean_by_length(sets_of(results, test), title) for name, results in scored.items()}
    first = next(iter(means.values()))
    there = [bucket[unit] for bucket in first if bucket["sentences"]]
    rows = [["model", *(f"{bucket[unit]} ({bucket['sentences']:,})" for bucket in first if bucket["sentences"])]]
    for name, buckets in means.items():
        values = [bucket["BLEU"] for bucket in buckets if bucket[unit] in there]
        rows.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
    return rows


def mean_by_length(results: List[Any], title: str = BY_WORDS) -> List[dict]:
    """BLEU by length, the mean of the seeds that have such a length."""
    unit, buckets = UNITS[title], []
    for first in results[-1][title]:
        same = [bucket for result in results for bucket in result[title] if bucket[unit] == first[unit]]
        values = [bucket["BLEU"] for bucket in same if bucket["BLEU"] is not None]
        buckets.append({**first, "BLEU": statistics.mean(values) if values else None})
    return buckets
