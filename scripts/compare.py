"""Train several models on the same data with the same updates, batches and seeds, translate, score, and report.

STUDY is a YAML of configs/compare/, or the path of one of your own: the arms by name, what they share and the seeds.
OUT/report.md holds the table (parameters, speed, memory, loss, scores with their signatures, paired test against the
baseline), learning-curves.png and bleu-by-length.png the pictures, report.json every figure. It is written anew after
each training, and the same command goes on where it was."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any, Dict, List, Optional, Set

from average_checkpoints import average_last, count
from common import (
    REPO,
    Problem,
    alone,
    claim,
    differences,
    entry,
    go_on_later,
    import_plugin,
    machine,
    quote,
    read_json,
    read_lines,
    start,
    versions,
    write_json,
    write_text,
)
from generate import file_name, fingerprint, generate
from progress import TrainingLog, draw_by_length, draw_curves
from scores import RESAMPLES, by_length, compare, has_todays_lengths, score
from train import Training
from train import text as hydra_text

from fairseq_luna.text import recipes

STUDIES = REPO / "configs" / "compare"
SCORES = "BLEU", "chrF"
BY_LENGTH = "BLEU by words of the source"
DECODING = {"beam": 5, "lenpen": 1.0, "max_tokens": 4096}
KINDS = {list: "list of numbers, such as [1, 2, 3]", dict: "table, such as {key: value}"}
KEYS = {"config", "overrides", "average", "decoding", "seeds", "baseline", "arms"}


def main() -> None:
    args = parse_args()
    go_on_later()
    study = Study(read_study(args.study), args)
    with alone(args.out):
        study.run()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", metavar="STUDY", help="such as quickstart")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="for all arms, right after STUDY: optimization.max_update=1000",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("runs/quickstart/data"),
        metavar="DIR",
        help="what data-prep/ or quickstart.sh made (default %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/compare-STUDY")
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="the --out of another study, with whose models of the same arms and seeds the trainings begin",
    )
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="these alone, and the baseline")
    parser.add_argument("--seeds", nargs="+", type=seed, metavar="N", help="default: those of the study")
    parser.add_argument(
        "--at-once", type=count, metavar="N", help="trainings side by side (default: one per GPU, in turn on a CPU)"
    )
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    args = parser.parse_intermixed_args()
    for word in args.overrides:
        if "=" not in word:
            parser.error(f"{word} is no KEY=VALUE")
    args.out = args.out or Path("runs") / f"compare-{Path(args.study).stem}"
    return args


def seed(word: str) -> int:
    if "=" in word:
        raise argparse.ArgumentTypeError(f"{word} is no seed: each KEY=VALUE stands right after STUDY")
    return int(word)


def say(message: str) -> None:
    print(f"compare: {message}", flush=True)


def read_study(name: str) -> Dict[str, Any]:
    """A study out of its YAML, complete and sound."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    paths = Path(name), STUDIES / f"{name}.yaml"
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.yaml")))
        raise Problem(f"there is no study {name}: give the path of a YAML, or one of {known}")
    try:
        study: Any = OmegaConf.to_container(OmegaConf.load(str(path)))
    except (YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"{path} is no YAML: {error}") from None
    if not isinstance(study, dict) or not study.get("arms") or not isinstance(study["arms"], list):
        raise Problem(f"{path} has no list of arms: see {STUDIES / 'quickstart.yaml'} for the form")
    unknown = sorted(set(study) - KEYS)
    if unknown:
        raise Problem(f"{path} has {', '.join(unknown)}, which no study has; possible are {', '.join(sorted(KEYS))}")
    for arm in study["arms"]:
        wrong = not isinstance(arm, dict) or not {"name", "arch"} <= set(arm) <= {"name", "arch", "overrides"}
        if wrong:
            raise Problem(f"{path}: an arm has a name, an arch and perhaps overrides, but here is {arm}")
        if not isinstance(arm["name"], str) or not re.search(r"\w", arm["name"]):
            raise Problem(f"{path}: the name of an arm must be text with a letter or a digit, but is {arm['name']!r}")
        if not (REPO / "configs" / "model" / f"{arm['arch']}.yaml").exists():
            known = ", ".join(sorted(path.stem for path in (REPO / "configs" / "model").glob("*.yaml")))
            raise Problem(f"{path}: arch {arm['arch']} of {arm['name']} is not in configs/model/; possible are {known}")
    names = [arm["name"] for arm in study["arms"]]
    if len({folder(name) for name in names}) < len(names):
        raise Problem(f"{path}: two arms share a name: {', '.join(names)}")
    study.setdefault("config", "quickstart")
    Training.find_config(str(study["config"]))
    study.setdefault("baseline", names[0])
    study.setdefault("seeds", [1])
    study.setdefault("average", 3)
    kinds = ("seeds", list, int), ("overrides", dict, object), ("decoding", dict, object)
    for owner in [study, *study["arms"]]:
        for key, kind, inner in kinds:
            value = owner.get(key, kind())
            if not isinstance(value, kind) or not all(isinstance(each, inner) for each in value):
                raise Problem(f"{path}: {key} must be a {KINDS[kind]}, but is {value}")
        for key, value in owner.get("overrides", {}).items():
            if key == "model" or isinstance(value, dict):
                raise Problem(
                    f"{path}: {key}: {value} is no override: write each as model.dropout: 0.1, an arm's model as arch"
                )
    wrong = set(study.get("decoding", {})) - set(DECODING)
    if wrong:
        raise Problem(f"{path}: decoding has {', '.join(sorted(wrong))}; possible are {', '.join(sorted(DECODING))}")
    study["decoding"] = {**DECODING, **study.get("decoding", {})}
    for key, value in {"average": study["average"], **study["decoding"]}.items():
        kind: Any = (int, float) if key == "lenpen" else int
        if isinstance(value, bool) or not isinstance(value, kind) or (key != "lenpen" and value < 1):
            needed = "a number" if key == "lenpen" else "a whole number above 0"
            raise Problem(f"{path}: {key} must be {needed}, but is {value!r}")
    if not study["seeds"]:
        raise Problem(f"{path}: there must be a seed")
    if study["baseline"] not in names:
        raise Problem(f"{path}: the baseline {study['baseline']} is none of the arms: {', '.join(names)}")
    return study


def folder(name: str) -> str:
    """The name of an arm as that of a folder."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.")


def hydra_value(value: Any) -> str:
    """A value of a study as hydra reads it back."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, str):
        return value if value.startswith("${") else hydra_text(value)
    return json.dumps(value)


class Study:
    """All trainings of a study: OUT/ARM/seedN each, as train.sh writes it, with translations and scores beside."""

    def __init__(self, study: Dict[str, Any], args: argparse.Namespace) -> None:
        self.study, self.args, self.out = study, args, args.out
        self.seeds = list(dict.fromkeys(args.seeds or study["seeds"]))
        self.baseline = study["baseline"]
        unknown = set(args.arms or []) - {arm["name"] for arm in study["arms"]}
        if unknown:
            known = ", ".join(arm["name"] for arm in study["arms"])
            raise Problem(f"{', '.join(sorted(unknown))} is none of the arms: {known}")
        wanted = [*(args.arms or []), self.baseline] if args.arms else None
        self.arms = [arm for arm in study["arms"] if not wanted or arm["name"] in wanted]
        for word in args.overrides:
            own = [arm["name"] for arm in self.arms if word.partition("=")[0] in ("model", *arm.get("overrides", {}))]
            if own:
                raise Problem(f"{word} would make other models of {', '.join(own)}: change the study, with other names")
        if not (args.data / "manifest.json").exists():
            raise Problem(
                f"{args.data} holds no prepared data: give --data the folder that data-prep/prepare-corpus.sh made, "
                "or run `bash scripts/quickstart.sh` first"
            )
        self.recipe = recipes.load(args.data)
        # what may change while the trainings stay: the report is then of what was translated so
        self.decoding = {"average": study["average"], **study["decoding"]}
        self.gpus = self.find_gpus()
        self.at_once = args.at_once or max(1, len(self.gpus))
        self.live: Set[subprocess.Popen] = set()
        self.done = {arm["name"]: self.earlier(arm) for arm in study["arms"]}
        command = quote(["bash", "scripts/compare.sh", *sys.argv[1:]])
        self.commands = list(dict.fromkeys([*read_json(self.out / "report.json", {}).get("commands", []), command]))

    def find_gpus(self) -> List[str]:
        """The names of the GPUs that we may use."""
        import torch

        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        count = 0 if self.args.cpu else torch.cuda.device_count()
        return given.split(",")[:count] if given else [str(number) for number in range(count)]

    def earlier(self, arm: dict) -> List[dict]:
        """What is known of an arm from calls before this."""
        place = self.out / folder(arm["name"])
        begun = read_json(place / "arm.json", arm)
        if begun != arm and has_trained(place):
            raise Problem(
                f"{place} was trained as another arm: {'; '.join(differences(begun, arm))}. "
                "Give the changed arm another name, or choose another --out"
            )
        found = [read_json(path) for path in place.glob("seed*/scores.json")]
        alike = [result for result in found if result.get("decoding") == self.decoding]
        return sorted(alike, key=lambda result: result["seed"])

    def run(self) -> None:
        config = Training.find_config(str(self.study["config"]))
        settings = {"config": config.stem, "config sha256": fingerprint(config)}
        settings["overrides"] = self.study.get("overrides", {})
        settings.update({"given": self.args.overrides, "data": fingerprint(self.args.data / "manifest.json")})
        begun = read_json(self.out / "settings.json", {})
        if self.args.start:
            before = begun.get("start")  # the same folder may be given by another path
            same = before and Path(before).resolve() == self.args.start.resolve()
            settings["start"] = before if same else str(self.args.start)
        if begun and begun != settings and has_trained(self.out):
            raise Problem(
                f"{self.out} was begun with other settings: {'; '.join(differences(begun, settings))}. "
                "Go on with the same ones, or begin anew with another --out"
            )
        if begun != settings:
            claim(self.out, settings)

        for arm in self.arms:  # here and once: seeds of one arm may be trained side by side
            place = self.out / folder(arm["name"])
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / "arm.json", arm)
        # seed by seed, so that a study cut short has compared all arms
        trainings = [(arm, seed) for seed in self.seeds for arm in self.arms]
        seeds = ", ".join(map(str, self.seeds))
        say(f"{len(self.arms)} arms, seeds {seeds}: {len(trainings)} trainings into {self.out}")
        places: Queue = Queue()
        for place in range(self.at_once):
            places.put(place)
        import_plugin()  # here and once: threads would come upon a half of it
        failed = 0
        pool = ThreadPoolExecutor(self.at_once)
        try:
            running = [pool.submit(self.make, arm, seed, places) for arm, seed in trainings]
            for (arm, seed), future in zip(trainings, running):
                try:
                    self.add(arm, future.result())
                except Exception as error:  # whatever it is, the other trainings go on
                    failed += 1
                    reason = str(error) if isinstance(error, (Problem, OSError)) else repr(error)
                    say(f"{arm['name']}, seed {seed}: {reason}")
        except KeyboardInterrupt as stop:
            for process in list(self.live):
                process.terminate()
            print(f"\ncompare: {stop}", file=sys.stderr, flush=True)
            os._exit(130)  # without waiting for the threads, whose commands end with this process
        if failed:
            rest = "; the report has the rest" if (self.out / "report.md").exists() else ""
            raise Problem(f"{failed} of {len(trainings)} failed, for the reasons above{rest}")
        print("\n" + (self.out / "report.md").read_text(encoding="utf-8"))
        say(f"everything is in {self.out}, the figures in report.json")

    def place(self, arm: dict, seed: int) -> Path:
        return self.out / folder(arm["name"]) / f"seed{seed}"

    def make(self, arm: dict, seed: int, places: Queue) -> dict:
        """Train, translate and score one arm with one seed, on a device of its own."""
        place = places.get()
        try:
            self.train(arm, seed, place)
            return self.score(arm, seed, place)
        finally:
            places.put(place)

    def environment(self, place: int) -> Dict[str, str]:
        """That of the commands on a device."""
        if self.gpus:
            return {**os.environ, "CUDA_VISIBLE_DEVICES": self.gpus[place % len(self.gpus)]}
        threads = max(1, (os.cpu_count() or 1) // self.at_once)
        return {"OMP_NUM_THREADS": str(threads), **os.environ}

    def train(self, arm: dict, seed: int, place: int) -> None:
        """Run train.sh."""
        run = self.place(arm, seed)
        shared, own = self.study.get("overrides", {}), arm.get("overrides", {})
        overrides = {**shared, "model": arm["arch"], **own}
        words = [f"{key}={hydra_value(value)}" for key, value in overrides.items()]
        words += [*self.args.overrides, f"common.seed={seed}"]
        now = {"at once": self.at_once, "machine": machine(self.args.cpu), "versions": versions()}
        if self.args.start:
            begin = self.beginning(arm, seed)
            words.append(f"checkpoint.finetune_from_model={hydra_text(begin)}")
            now["begun with (sha256)"] = fingerprint(begin)
        command = [sys.executable, str(REPO / "scripts" / "train.py"), str(self.study["config"]), *words]
        command += ["--data", str(self.args.data), "--out", str(run), "--processes", "1"]
        command += [] if self.gpus else ["--cpu"]
        path = conditions_of(run)
        conditions = read_json(path, [])
        if not self.gpus:
            # of the levels of nested threads that OpenMP takes, the outermost
            now["machine"]["torch threads"] = int(self.environment(place)["OMP_NUM_THREADS"].split(",")[0])
        if now not in conditions and not (run / "model.json").exists():  # else it is trained
            write_json(path, [*conditions, now])
        say(f"{arm['name']}, seed {seed}: training")
        quiet = subprocess.PIPE if self.at_once > 1 else None  # bars side by side are a tangle
        process = start(
            command,
            stdin=subprocess.DEVNULL,
            stdout=quiet,
            stderr=subprocess.STDOUT if quiet else None,
            env=self.environment(place),
            encoding="utf-8",
        )
        self.live.add(process)
        shown, _ = process.communicate()
        self.live.discard(process)
        if process.returncode:
            if not has_trained(run.parent, run.name):
                write_json(path, conditions)
            reason = f":\n\n{shown.strip()}" if shown else ", for the reason above"
            raise Problem(f"the training failed{reason}\n\nThe command was:\n\n  {quote(command)}")

    def beginning(self, arm: dict, seed: int) -> Path:
        """The model of another study to begin with; it must be of the same arm and have the same dictionaries."""
        there = self.args.start.resolve() / folder(arm["name"])
        model = there / f"seed{seed}" / "model.pt"
        if not model.exists():
            raise Problem(f"there is no {model} to begin with: train this arm and seed there, or leave out --start")
        other = read_json(there / "arm.json", arm)
        if other != arm:
            raise Problem(f"{there} is of another arm: {'; '.join(differences(other, arm))}. Nothing can begin with it")
        known = read_json(model.with_name("settings.json"), {})
        for path in sorted((self.args.data / "data-bin").glob("dict.*.txt")):
            if known.get(f"data: {path.name}") != fingerprint(path):
                raise Problem(
                    f"{model} has another {path.name} than {self.args.data}: prepare the data with --vocabulary-of and "
                    "the folder of its data"
                )
        return model

    def score(self, arm: dict, seed: int, place: int) -> dict:
        """Average, translate and score; what is there already is kept."""
        run, decoding = self.place(arm, seed), self.decoding
        average_last(run, decoding["average"])
        options = argparse.Namespace(
            run=run,
            data=self.args.data,
            beam=decoding["beam"],
            max_tokens=decoding["max_tokens"],
            fp16=False,
            cpu=not self.gpus,
            extra=[],
        )
        file = run / file_name(options, "test", decoding["lenpen"])
        generate(options, "test", decoding["lenpen"], file, self.environment(place))
        hypotheses = list(read_lines(file))
        log = TrainingLog.read(run / "train.log")
        if not log.valid:
            raise Problem(f"{run / 'train.log'} has no validation: a study compares by it, so leave it on")
        result = {
            "seed": seed,
            "run": str(run.relative_to(self.out)),
            "file": file.name,
            "sha256 of the hypotheses": fingerprint(file),
            "decoding": self.decoding,
            "checkpoints averaged": len(read_json(run / "model.json")["inputs"]),
            "parameters": log.parameters,
            "updates": log.updates,
            "conditions": read_json(conditions_of(run), []),
            "words per second": round(log.typical_words_per_second()),
            "peak memory (bytes)": log.peak_memory,
            "valid nll by updates": {str(updates): round(nll, 4) for updates, nll in sorted(log.valid.items())},
            "best valid nll (nats per piece)": round(min(log.valid.values()), 4),
        }
        known = read_json(run / "scores.json", {})
        there = has_todays_lengths(known.get(BY_LENGTH, []))
        if there and all(known.get(key) == value for key, value in result.items()):
            return known
        sources, references = (self.text(lang) for lang in (self.recipe.source, self.recipe.target))
        result["scores"] = score(hypotheses, references, self.recipe.target, SCORES)
        result[BY_LENGTH] = by_length(sources, hypotheses, references, self.recipe.target)
        write_json(run / "scores.json", result)
        bleu = result["scores"]["BLEU"]["score"]
        say(f"{arm['name']}, seed {seed}: nll {result['best valid nll (nats per piece)']:.3f}, BLEU {bleu:.2f}")
        return result

    def add(self, arm: dict, result: dict) -> None:
        """Take in one result, test what can be tested against the baseline, and report."""
        others = [other for other in self.done[arm["name"]] if other["seed"] != result["seed"]]
        self.done[arm["name"]] = sorted([*others, result], key=lambda each: each["seed"])
        for name, results in self.done.items():
            for each in results:
                baseline = self.of_seed(self.baseline, each["seed"])
                if baseline and name != self.baseline:
                    self.test(each, baseline)
        self.report()

    def test(self, result: dict, baseline: dict) -> None:
        """The paired test against the baseline's training of the same seed."""
        against = baseline["sha256 of the hypotheses"]
        if result.get("sha256 of those of the baseline") != against:
            ours, theirs = (list(read_lines(self.out / each["run"] / each["file"])) for each in (result, baseline))
            target = self.recipe.target
            result["paired bootstrap"] = compare(ours, theirs, self.text(target), target, SCORES)
            result["sha256 of those of the baseline"] = against
            write_json(self.out / result["run"] / "scores.json", result)

    def of_seed(self, name: str, seed: int) -> Optional[dict]:
        return next((result for result in self.done[name] if result["seed"] == seed), None)

    def text(self, lang: str) -> List[str]:
        return list(read_lines(self.args.data / "raw" / f"test.{lang}"))

    def report(self) -> None:
        """Write all that is known so far."""
        arms = [arm for arm in self.study["arms"] if self.done[arm["name"]]]
        draw_curves(
            {arm["name"]: [result["valid nll by updates"] for result in self.done[arm["name"]]] for arm in arms},
            self.out / "learning-curves.png",
        )
        draw_by_length(
            [(arm["name"], mean_by_length(self.done[arm["name"]])) for arm in arms], self.out / "bleu-by-length.png"
        )
        write_text(self.out / "report.md", self.table(arms))
        manifest = read_json(self.args.data / "manifest.json")
        write_json(
            self.out / "report.json",
            {
                "arms": [{**arm, "trainings": self.done[arm["name"]]} for arm in arms],
                "baseline": self.baseline,
                "settings": read_json(self.out / "settings.json"),
                "data": {key: manifest.get(key) for key in ("corpus", "settings", "lines", "vocabulary")},
                "commands": self.commands,
            },
        )

    def difference(self, name: str, result: dict, metric: str) -> str:
        """The paired test against the baseline, where there is one, as the table has it."""
        baseline = self.of_seed(self.baseline, result["seed"])
        if name == self.baseline or not baseline:
            return ""
        test = result["paired bootstrap"][metric]
        return f"{result['seed']}: {test['this'] - test['other']:+.2f} ({test['p-value']:.3g})"

    def table(self, arms: List[dict]) -> str:
        heads = "arm", "parameters", "updates", "words/s", "peak memory", "best valid nll", *SCORES, "BLEU of seeds"
        lines = [[*heads, *(f"{name} against {self.baseline} (p)" for name in SCORES)]]
        signatures: Dict[str, str] = {}
        tests: Dict[str, str] = {}
        for arm in arms:
            results = self.done[arm["name"]]
            for name in SCORES:
                signatures[name] = results[0]["scores"][name]["signature"]
                for result in results:
                    if "paired bootstrap" in result:
                        tests[name] = result["paired bootstrap"][name]["signature"]
            memory = max(result["peak memory (bytes)"] or 0 for result in results)
            lines.append(
                [
                    arm["name"],
                    f"{results[0]['parameters'] / 1e6:.2f}M",
                    f"{results[0]['updates']:,}",
                    f"{statistics.median(result['words per second'] for result in results):,.0f}",
                    f"{memory / 2**20:,.0f} MB" if memory else "",
                    spread([result["best valid nll (nats per piece)"] for result in results], 3),
                    *(spread([result["scores"][name]["score"] for result in results], 2) for name in SCORES),
                    ", ".join(f"{result['seed']}: {result['scores']['BLEU']['score']:.2f}" for result in results),
                    *(
                        ", ".join(filter(None, (self.difference(arm["name"], result, name) for result in results)))
                        for name in SCORES
                    ),
                ]
            )
        averaged = sorted({result["checkpoints averaged"] for arm in arms for result in self.done[arm["name"]]})
        known = [
            condition for arm in arms for result in self.done[arm["name"]] for condition in result.get("conditions", [])
        ]
        together = sorted({condition["at once"] for condition in known})
        machines = sorted({condition["machine"]["gpu"] or condition["machine"]["cpu"] for condition in known})
        notes = [
            "Where there are several seeds, the mean ± the standard deviation. "
            f"{' or '.join(map(str, averaged))} checkpoint(s) averaged, beam {self.decoding['beam']}, length penalty "
            f"{self.decoding['lenpen']:g}; {len(self.text(self.recipe.target)):,} test sentences. nll in nats per "
            "piece. Paired bootstrap test, seed by seed: the difference, and how likely one as large is by the choice "
            f"of sentences alone; the least p that {RESAMPLES:,} resamples can tell is {1 / (RESAMPLES + 1):.3f}. "
            f"Speed and memory of training with {' or '.join(map(str, together))} at once on "
            f"{' or '.join(machines)}; memory of sessions that were not killed.",
            *(f"{name}: `{signature}`" for name, signature in signatures.items()),
            *(f"Test of {name}: `{signature}`" for name, signature in tests.items()),
            *(f"`{command}`" for command in self.commands),
            "BLEU by words of the source:",
            table_of(lengths(arms, self.done)),
            "![Validation loss by updates](learning-curves.png)",
            "![BLEU by words of the source](bleu-by-length.png)",
        ]
        return "\n\n".join([table_of(lines), *notes]) + "\n"


def has_trained(folder: Path, run: str = "**") -> bool:
    """Whether a training under a folder has come as far as a checkpoint."""
    return any(folder.glob(f"{run}/checkpoints/*.pt"))


def conditions_of(run: Path) -> Path:
    """Where is told under what conditions a run was trained."""
    return run.with_name(f"{run.name}.conditions.json")


def spread(values: List[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table_of(rows: List[List[str]]) -> str:
    """Rows of cells in Markdown, the first of them the heads."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def lengths(arms: List[dict], done: Dict[str, List[dict]]) -> List[List[str]]:
    """BLEU of each arm by the length of the source, as rows of cells."""
    means = {arm["name"]: mean_by_length(done[arm["name"]]) for arm in arms}
    first = next(iter(means.values()))
    there = [bucket["words"] for bucket in first if bucket["sentences"]]
    rows = [["arm", *(f"{bucket['words']} ({bucket['sentences']:,})" for bucket in first if bucket["sentences"])]]
    for name, buckets in means.items():
        values = [bucket["BLEU"] for bucket in buckets if bucket["words"] in there]
        rows.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
    return rows


def mean_by_length(results: List[dict]) -> List[dict]:
    """BLEU by length, the mean of the seeds that have such a length."""
    buckets = []
    for first in results[-1][BY_LENGTH]:
        same = [bucket for result in results for bucket in result[BY_LENGTH] if bucket["words"] == first["words"]]
        values = [bucket["BLEU"] for bucket in same if bucket["BLEU"] is not None]
        buckets.append({**first, "BLEU": statistics.mean(values) if values else None})
    return buckets


if __name__ == "__main__":
    entry("compare", main)
