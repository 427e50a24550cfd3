"""Train language models on one side of the embedded corpus, measure their perplexity, and let them write.

Every model gets the same text, updates and batches. OUT/report.md holds the table, results.json every figure,
continuations.txt what the models wrote. They are written anew after each training, and the same command goes on where
it was; more --models, --context or --seeds add to what is there."""

import argparse
import math
from pathlib import Path
from typing import Any, Dict, List

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, sha256, whole, write_json, write_text
from fairseq_luna.text.recipes import SentencePiece
from luna_tools.console import Former, count, entry, go_on_later, tell_name, teller
from luna_tools.language_model.report import report
from luna_tools.language_model.use import continuations, perplexity, window_of
from luna_tools.machine import import_plugin
from luna_tools.paths import USER_DIR
from luna_tools.processes import python, run
from luna_tools.progress import TrainingLog
from luna_tools.run_folder import alone
from luna_tools.training.trainings import begin, commands, measured, training

say = teller("language-model")

MODELS = {
    "luna-decaying": {"model": "luna_lm_tiny"},
    "luna-uniform": {"model": "luna_lm_tiny", "model.causal_mean": "uniform"},
    "transformer": {"model": "transformer_lm_tiny"},
}
FORMER = {"luna-flat": "luna-uniform"}  # what an earlier version called them
SPLITS = "train", "valid", "test"
CONFIG = "language_model"
TOKENS = 2048  # of a batch, as configs/language_model.yaml says
VOCABULARY = 4000  # pieces
WARMUP = 200  # updates; at most a quarter of the training
VALIDATIONS, LEAST_INTERVAL = 10, 20  # of a training; updates from one to the next
CONTINUATIONS = 10
USUAL: Dict[str, Any] = {"models": ["luna-decaying"], "context": [512], "updates": 1500}
QUICK = {"models": ["luna-decaying", "transformer"], "context": [64], "updates": 20}


def main() -> None:
    args = parse_args()
    go_on_later()
    with alone(args.out):
        LanguageModels(args).run()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="language-model.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        type=model_name,
        metavar="NAME",
        help="which to train: luna-decaying (luna_lm_tiny), luna-uniform (the same with the paper's uniform mean), "
        f"transformer (fairseq's transformer_lm of that size) (default {' '.join(USUAL['models'])})",
    )
    parser.add_argument("--arms", action=Former, now=models)
    parser.add_argument(
        "--context",
        nargs="+",
        type=context,
        metavar="N",
        help=f"tokens of each text of a batch, such as 64 512 2048 (default {USUAL['context'][0]})",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="default 1")
    parser.add_argument("--updates", type=count, metavar="N", help=f"of each training (default {USUAL['updates']:,})")
    parser.add_argument("--lang", default="en", help="en or de, or that of --text (default %(default)s)")
    parser.add_argument(
        "--text",
        type=Path,
        metavar="DIR",
        help="train.LANG, valid.LANG and test.LANG of your own (default: pages of the embedded LibreOffice help)",
    )
    parser.add_argument(
        "--beginnings",
        type=Path,
        metavar="FILE",
        help="lines to be continued (default: the first three words of ten lines of the test set)",
    )
    parser.add_argument("--quick", action="store_true", help="two models, one short context and few updates: a trial")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default runs/language-model, or runs/language-model-quick with --quick"
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    args = parser.parse_args()
    args.out = args.out or Path("runs") / f"language-model{'-quick' * args.quick}"
    for name, value in (QUICK if args.quick else USUAL).items():
        setattr(args, name, getattr(args, name) or value)
    if not args.text and args.lang not in ("en", "de"):
        parser.error(f"--lang {args.lang}: the embedded corpus has en and de; give other text by --text")
    return args


def model_name(word: str) -> str:
    if word in FORMER:
        tell_name(word, FORMER[word])
    return FORMER.get(word, word)


def context(word: str) -> int:
    tokens = int(word)
    if not 32 <= tokens <= TOKENS:
        raise argparse.ArgumentTypeError(f"must be 32 to {TOKENS} tokens, as many as a batch has, but is {word}")
    return tokens


class LanguageModels:
    """All trainings: OUT/MODEL/contextN-seedM each, as train.sh writes it, with result.json beside its log."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out, self.data = args, args.out, args.out / "data"
        self.texts = args.text or self.out / "corpus"

    def run(self) -> None:
        if self.args.text:
            self.find_texts()
        self.check_settings()
        if not self.data.exists():
            say(f"preparing the text, a vocabulary of {VOCABULARY:,} tokens")
            self.prepare()
        self.check_beginnings()
        import_plugin()
        # seed by seed, so that what is cut short has compared all models
        args = self.args
        places = [(name, tokens, seed) for seed in args.seeds for tokens in args.context for name in args.models]
        for number, (name, tokens, seed) in enumerate(places, 1):
            say(f"[{number}/{len(places)}] {name}, context {tokens:,}, seed {seed}")
            place = self.out / name / f"context{tokens}-seed{seed}"
            if not (place / "result.json").exists():
                self.train(place, name, tokens, seed)
                found = self.measure(place, name, tokens, seed)
                write_json(place / "result.json", found)
            self.write_report()
        print("\n" + (self.out / "report.md").read_text(encoding="utf-8"))
        say(f"everything is in {self.out}, the figures in results.json, what was written in continuations.txt")

    def find_texts(self) -> None:
        for split in SPLITS:
            if not (self.texts / f"{split}.{self.args.lang}").is_file():
                raise Problem(
                    f"there is no {self.texts / split}.{self.args.lang}: give --text a folder with "
                    f"{', '.join(f'{split}.{self.args.lang}' for split in SPLITS)}, or another --lang"
                )

    def check_settings(self) -> None:
        """Refuse to go on with another text or another length of training."""
        args = self.args
        settings: Dict[str, Any] = {"--lang": args.lang, "--updates": args.updates, "vocabulary": VOCABULARY}
        if not args.text:
            settings["text"] = "pages of the help"
        settings["--text"] = args.text and [sha256(self.texts / f"{split}.{args.lang}") for split in SPLITS]
        settings["--beginnings"] = args.beginnings and list(read_lines(args.beginnings))
        begin(self.out, settings)

    # ---- the stages

    def prepare(self) -> None:
        """Cut the text into pieces of a vocabulary of its own, line after line as it stands, and binarise it."""
        if not self.args.text:
            run(python("luna_data.help.text", "--lang", self.args.lang, "--out", self.texts), self.out / "prepare.log")
        texts = {split: list(read_lines(self.texts / f"{split}.{self.args.lang}")) for split in SPLITS}
        with whole(self.data) as folder:
            folder.mkdir()
            recipe = SentencePiece(folder, self.args.lang, self.args.lang)
            SentencePiece.learn(texts["train"], recipe.path, VOCABULARY)
            write_text(folder / "dict.txt", "".join(f"{symbol} 1\n" for symbol in recipe.symbols()))
            command = python("luna_data.parallel.preprocess", "--only-source")
            command += ["--user-dir", str(USER_DIR), "--srcdict", str(folder / "dict.txt")]
            pieces = {}
            for split, lines in texts.items():
                cut = recipe.encode(lines)
                pieces[split] = sum(map(len, cut))
                write_text(folder / split, "".join(" ".join(line) + "\n" for line in cut))
                command += [f"--{split}pref", str(folder / split)]
            run([*command, "--destdir", str(folder / "data-bin")], self.out / "preprocess.log")
            corpus = str(self.args.text) if self.args.text else "pages of the LibreOffice help"
            facts = {"corpus": corpus, "settings": {"lang": self.args.lang, "recipe": recipe.name}, "pieces": pieces}
            facts["lines"] = {split: len(lines) for split, lines in texts.items()}
            write_json(folder / "manifest.json", facts)

    def train(self, place: Path, name: str, tokens: int, seed: int) -> None:
        """What `train.sh language_model` does: it goes on from the last checkpoint, and ends where all is done."""
        updates = self.args.updates
        interval = max(LEAST_INTERVAL, math.ceil(updates / VALIDATIONS))
        settings = {
            **MODELS[name],
            "common.seed": seed,
            "common.log_interval": max(1, min(10, updates // 4)),
            "task.tokens_per_sample": tokens,
            "optimization.max_update": updates,
            "lr_scheduler.warmup_updates": min(WARMUP, updates // 4),
            "dataset.validate_interval_updates": interval,
            "checkpoint.save_interval_updates": interval,
        }
        training(CONFIG, place, self.data, settings, self.args.cpu).run()

    def measure(self, place: Path, name: str, tokens: int, seed: int) -> Dict[str, Any]:
        """The figures of a training, its perplexity on the test set, and what its model writes."""
        begun, recipe, lines = place / "beginnings", self.recipe(), self.beginnings()
        write_text(begun, "".join(" ".join(line) + "\n" for line in recipe.encode(lines)))
        trained = self.data / "data-bin", place / "checkpoints" / "checkpoint_best.pt", tokens, self.args.cpu
        say(f"measuring perplexity, each token after at least {window_of(tokens):,} others of the test set")
        found, measuring = perplexity(*trained)
        written, sampling = continuations(*trained, begun)
        log = TrainingLog.read(place / "train.log")
        say(f"{name}, context {tokens:,}, seed {seed}: perplexity {found:.2f}, {log.parameters:,} parameters")
        return {
            "arm": name,  # as earlier versions call it
            "context": tokens,
            "seed": seed,
            "overrides": MODELS[name],
            "perplexity": found,
            "context window": window_of(tokens),
            "best valid nll (nats per piece)": round(min(log.valid.values()), 4),
            "continuations": [list(pair) for pair in zip(lines, recipe.decode(written))],
            "commands": [measuring, sampling],
            **measured(log, self.args.cpu),
        }

    def recipe(self) -> SentencePiece:
        return SentencePiece(self.data, self.args.lang, self.args.lang)

    def beginnings(self) -> List[str]:
        if self.args.beginnings:
            return [line.strip() for line in read_lines(self.args.beginnings) if line.strip()]
        lines = [line for line in read_lines(self.texts / f"test.{self.args.lang}") if len(line.split()) > 3]
        return [" ".join(line.split()[:3]) for line in lines[:: max(1, len(lines) // CONTINUATIONS)][:CONTINUATIONS]]

    def check_beginnings(self) -> None:
        """Before a training: there are some, and they leave room in the shortest context."""
        lines, least = self.beginnings(), min(self.args.context)
        if not lines:
            place = self.args.beginnings or "the test set, with more than three words,"
            raise Problem(f"{place} has no line to be continued: give some by --beginnings")
        for line, pieces in zip(lines, self.recipe().encode(lines)):
            if len(pieces) > least // 2:
                raise Problem(
                    f"this beginning has {len(pieces)} tokens, but of a context of {least} it may take "
                    f"{least // 2}: {line}. Shorten it, or give others by --beginnings"
                )

    def write_report(self) -> None:
        found = [read_json(path) for path in self.out.glob("*/context*-seed*/result.json")]
        found = [{**result, "arm": FORMER.get(result["arm"], result["arm"])} for result in found]
        found.sort(key=lambda result: (result["context"], list(MODELS).index(result["arm"]), result["seed"]))
        settings = read_json(self.out / "settings.json")
        data = read_json(self.data / "manifest.json")
        report(
            self.out,
            {
                "runs": found,
                "settings": settings,
                "data": data,
                "commands": commands(self.out / "results.json", "scripts/language-model.sh"),
            },
        )


if __name__ == "__main__":
    entry("language-model", main)
