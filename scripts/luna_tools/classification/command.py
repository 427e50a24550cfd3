"""Train classifiers of long texts, several models in the same way, and compare them; or classify texts with --model.

DATASET is help (pages of the embedded corpus), listops, listops-short, imdb (a download of 84 MB), or a folder that one
of data-prep/'s scripts made. OUT/report.md holds the table, results.json every figure. They are written anew after each
training, and the same command goes on where it was; more --models, --length or --seeds add to what is there.

    bash scripts/classify.sh help --out runs/classify
    echo "Insert a chart into the sheet." | bash scripts/classify.sh --model runs/classify/1000/luna-16/seed1"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, write_json
from luna_tools.classification.report import GUESS, report
from luna_tools.console import Former, count, entry, go_on_later, teller
from luna_tools.machine import import_plugin
from luna_tools.processes import python, run
from luna_tools.progress import TrainingLog
from luna_tools.run_folder import alone
from luna_tools.training.trainings import begin, commands, measured, training

say = teller("classify")

MODELS: Dict[str, Dict[str, Any]] = {
    "transformer": {"model.encoder_self_attention": "softmax"},
    "linformer": {"model.encoder_self_attention": "linformer"},
    "luna-16": {"model.projection_length": 16},
    "luna-128": {"model.projection_length": 128},
    "luna-256": {"model.projection_length": 256},
}
# the module that prepares each data set, its arguments, and whether it takes --length
DATASETS = {
    "help": ("prepare_help_pages", [], True),
    "listops": ("prepare_listops", [], False),
    "listops-short": ("prepare_listops", ["--short"], False),
    "imdb": ("prepare_imdb", [], True),
}
USUAL: Dict[str, Any] = {"models": list(MODELS), "length": [1000], "updates": 600, "size": "tiny"}
QUICK = {"models": ["transformer", "luna-16"], "length": [1000], "updates": 10, "size": "tiny"}
SIZES = {"tiny": "luna_classifier_tiny", "text": "luna_classifier_text", "listops": "luna_classifier_listops"}
VALIDATIONS = 6
# what a result tells of its data, of their manifest
OF_DATA = "name", "settings", "token", "longest text, in tokens", "texts", "classes", GUESS


def main() -> None:
    args = parse_args()
    if args.model:
        classify(args.model)
        return
    go_on_later()
    with alone(args.out):
        Classifiers(args).run()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="classify.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help=f"{', '.join(DATASETS)}, or a folder")
    models = parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        metavar="NAME",
        help="which to train: transformer (softmax attention), linformer, or Luna with so many slots: luna-16, "
        "luna-128, luna-256 (default all)",
    )
    parser.add_argument("--arms", action=Former, now=models)
    parser.add_argument(
        "--length", nargs="+", type=count, metavar="N", help="bytes of a text of help and imdb (default 1000)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="default 1")
    parser.add_argument("--updates", type=count, metavar="N", help=f"of each training (default {USUAL['updates']})")
    parser.add_argument(
        "--size",
        choices=SIZES,
        help="of the models: tiny is for a CPU, text and listops are the long-range arena's (default tiny)",
    )
    parser.add_argument("--quick", action="store_true", help="two models and few updates: a trial")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/classify-DATASET")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="RUN",
        help="train nothing: classify each line of standard input with a trained classifier, and print its class and "
        "probability; RUN is OUT/LENGTH/NAME/seedN",
    )
    args = parser.parse_args()
    if not args.model and not args.dataset:
        parser.error("name a DATASET to train on, or a --model to classify with")
    if args.length and not args.model and not DATASETS.get(args.dataset, ("", [], False))[2]:
        parser.error(f"--length is for {', '.join(name for name, (*_, cut) in DATASETS.items() if cut)}")
    for name, value in (QUICK if args.quick else USUAL).items():
        setattr(args, name, getattr(args, name) or value)
    if not args.model and args.dataset not in DATASETS and not (Path(args.dataset) / "manifest.json").is_file():
        parser.error(f"{args.dataset} is none of {', '.join(DATASETS)}, nor a folder that data-prep/ made")
    if not args.model and not DATASETS.get(args.dataset, ("", [], False))[2]:
        args.length = [0]  # as the data set has it
    args.out = args.out or Path("runs") / f"classify-{Path(args.dataset or '').name}"
    return args


class Classifiers:
    """All trainings: OUT/LENGTH/MODEL/seedN each, as train.sh writes it, with result.json beside its log."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out

    def run(self) -> None:
        args = self.args
        settings = {"dataset": args.dataset, "--updates": args.updates, "--size": args.size}
        begin(self.out, settings)
        import_plugin()
        # seed by seed, so that what is cut short has compared all models
        places = [(length, name, seed) for seed in args.seeds for length in args.length for name in args.models]
        for number, (length, name, seed) in enumerate(places, 1):
            data = self.prepared(length)
            longest = read_json(data / "manifest.json")["longest text, in tokens"]
            place = self.out / str(longest) / name / f"seed{seed}"
            say(f"[{number}/{len(places)}] {name}, {longest:,} tokens, seed {seed}")
            if not (place / "result.json").exists():
                self.train(place, data, longest, name, seed)
                write_json(place / "result.json", self.measure(place, data, longest, name, seed))
            self.write_report()
        print("\n" + (self.out / "report.md").read_text(encoding="utf-8"))
        say(f"everything is in {self.out}, the figures in results.json")

    def prepared(self, length: int) -> Path:
        """The folder of the data, made now if it is not there."""
        if self.args.dataset not in DATASETS:
            return Path(self.args.dataset)
        script, words, _ = DATASETS[self.args.dataset]
        data = self.out / f"data-{length}" if length else self.out / "data"
        if not (data / "manifest.json").exists():
            words = [*words, *(["--length", str(length)] if length else [])]
            say(f"preparing {self.args.dataset}")
            run(python(f"luna_data.classification.{script}", *words, "--out", data), self.out / "prepare.log")
        return data

    def train(self, place: Path, data: Path, longest: int, name: str, seed: int) -> None:
        updates = self.args.updates
        interval = max(-(-updates // VALIDATIONS), min(updates, 50))
        settings = {
            "model": SIZES[self.args.size],
            **MODELS[name],
            "common.seed": seed,
            "common.log_interval": min(10, interval),
            "task.max_source_positions": longest,
            "optimization.max_update": updates,
            "lr_scheduler.warmup_updates": min(100, updates // 4),
            "dataset.validate_interval_updates": interval,
            "checkpoint.save_interval_updates": interval,
        }
        training("classifier", place, data, settings, self.args.cpu).run()

    def measure(self, place: Path, data: Path, longest: int, name: str, seed: int) -> Dict[str, Any]:
        """The figures of a training, and the accuracy of its best model on the test set."""
        log = TrainingLog.read(place / "train.log")
        right, texts = tested(place, data, self.args.cpu)
        say(f"{name}, {longest:,} tokens, seed {seed}: {100 * right / texts:.2f} % of {texts:,} right")
        return {
            "arm": name,  # as earlier versions call it
            "length": longest,
            "seed": seed,
            "overrides": MODELS[name],
            "accuracy": right / texts,
            "texts": texts,
            "data": {key: value for key, value in read_json(data / "manifest.json").items() if key in OF_DATA},
            **measured(log, self.args.cpu),
        }

    def write_report(self) -> None:
        found = [read_json(path) for path in self.out.glob("*/*/seed*/result.json")]
        found.sort(key=lambda result: (result["length"], list(MODELS).index(result["arm"]), result["seed"]))
        settings = read_json(self.out / "settings.json")
        report(
            self.out,
            {
                "runs": found,
                "settings": settings,
                "commands": commands(self.out / "results.json", "scripts/classify.sh"),
            },
        )


def load(place: Path, data: Path) -> Any:
    """The best model of a run, and its task."""
    from fairseq import checkpoint_utils

    path = place / "checkpoints" / "checkpoint_best.pt"
    if not path.is_file():
        raise Problem(
            f"there is no {path}: give --model the folder of a training, OUT/LENGTH/MODEL/seedN; "
            "--models chooses what is trained"
        )
    overrides = {"data": str((data / "data-bin").resolve())}
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], arg_overrides=overrides)
    return model.eval(), task


def tested(place: Path, data: Path, cpu: bool) -> tuple:
    """How many texts of the test set are classified rightly, and how many there are."""
    import torch
    from fairseq import utils

    model, task = load(place, data)
    gpu = torch.cuda.is_available() and not cpu
    model = model.cuda() if gpu else model
    task.load_dataset("test")
    batches = task.get_batch_iterator(task.dataset("test"), max_sentences=32).next_epoch_itr(shuffle=False)
    right = texts = 0
    with torch.no_grad():
        for batch in batches:
            batch = utils.move_to_cuda(batch) if gpu else batch
            scores, _ = model(**batch["net_input"])
            right += int((scores.argmax(dim=1) == batch["target"].view(-1)).sum())
            texts += len(scores)
    return right, texts


def classify(place: Path) -> None:
    """Each line of standard input: its class, and the probability of that."""
    import_plugin()
    model, _ = load(place, place / "data")
    for number, line in enumerate(sys.stdin.buffer, 1):
        tokens, longest = model.tokens_of(line.rstrip(b"\r\n")), model.max_positions()
        if not len(tokens):
            print("-\t0")
            continue
        if len(tokens) > longest:
            told = f"classify: line {number} has {len(tokens):,} tokens: its first {longest:,} are read"
            print(told, file=sys.stderr)
        found: Dict[str, float] = model.class_of(tokens[:longest])
        name, probability = next(iter(found.items()))
        print(f"{name}\t{probability:.4f}", flush=True)


if __name__ == "__main__":
    entry("classify", main)
