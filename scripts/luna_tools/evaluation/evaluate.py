"""Average the last checkpoints of a run, translate its test set by beam search, and score, into RUN_DIR/evaluation/.

report.json holds every figure with its signature and settings, table.md the row to put beside the paper's, and
bleu-by-length.png BLEU by the length of the source. What is there already under the same settings is not done again.
Options after `--` are handed to fairseq-generate."""

import argparse
import sys
from pathlib import Path
from typing import Any, List, Optional

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, write_json, write_text
from fairseq_luna.renamed import current
from fairseq_luna.text import recipes
from fairseq_luna.versions import versions
from luna_tools.console import count, entry, quote, teller
from luna_tools.data.testsets import name_of, split_of
from luna_tools.evaluation.options import add_options, parse
from luna_tools.evaluation.records import file_name
from luna_tools.evaluation.scores import RESAMPLES, by_length, compare, compound_split_bleu, has_todays_lengths, score
from luna_tools.evaluation.table import COMPOUND, table
from luna_tools.evaluation.translation import generate
from luna_tools.machine import import_plugin, machine
from luna_tools.plots import draw_by_length
from luna_tools.run_folder import alone, fingerprint, read_record
from luna_tools.training.average import average_last, record_of
from luna_tools.training.checkpoints import count_updates

say = teller("evaluate")

LENPEN, LENPENS = 0.6, [0.2, 0.4, 0.6, 0.8, 1.0, 1.2]


# what a Luna model may have other than the paper's
CHOICES = {
    "encoder_self_attention": "luna",
    "decoder_self_attention": "luna",
    "cross_attention": "packed",
    "causal_mean": "uniform",
    "pack_bias": "none",
    "pack_values": "projected",
    "encoder_unpack_bias": "none",
}


def main() -> None:
    args = parse_args()
    out = args.run / place_of(args)
    with alone(out):
        Evaluation(args, out).run()
    print("\n" + (out / "table.md").read_text(encoding="utf-8"))
    say(f"everything is in {out}, the figures in report.json")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.sh",
        usage="%(prog)s [options] RUN_DIR [-- fairseq-generate options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--last",
        type=count,
        metavar="K",
        help="checkpoints to average (default: as many as RUN_DIR/model.pt is the average of, or else 10)",
    )
    parser.add_argument("--lenpen", type=float, metavar="X", help=f"length penalty (default {LENPEN})")
    parser.add_argument("--sweep", action="store_true", help="choose it by BLEU on the validation set, and only there")
    parser.add_argument(
        "--lenpens", type=float, nargs="+", metavar="X", help=f"those that --sweep tries (default {LENPENS})"
    )
    parser.add_argument("--against", type=Path, metavar="RUN_DIR2", help="an evaluated run to test the difference to")
    parser.add_argument(
        "--subset",
        default="test",
        metavar="NAME",
        help="another test set of the data, by its name: into RUN_DIR/evaluation-NAME (default: the first)",
    )
    args = parse(parser)
    if args.sweep and args.lenpen is not None:
        parser.error("--lenpen sets what --sweep would choose: give one of them")
    if args.lenpens and not args.sweep:
        parser.error("--lenpens are for --sweep: give that too, or one --lenpen")
    args.split = split_of(args.data, args.subset)
    if not args.split.startswith("test"):
        parser.error(f"--subset {args.subset} is no test set")
    return args


def place_of(args: argparse.Namespace) -> str:
    """The folder of an evaluation, in that of its run; one for each test set."""
    return "evaluation" if args.split == "test" else f"evaluation-{args.subset}"


class Evaluation:
    """What is known of one run, step by step."""

    def __init__(self, args: argparse.Namespace, out: Path) -> None:
        self.args, self.out, self.model = args, out, args.run / "model.pt"
        self.manifest = read_json(args.data / "manifest.json")
        self.recipe = recipes.load(args.data)
        self.source, self.target = self.recipe.source, self.recipe.target
        self.report = out / "report.json"
        texts = (args.data / "raw" / f"{args.split}.{lang}" for lang in (self.source, self.target))
        self.test_set = {path.name: fingerprint(path) for path in texts}
        self.other = self.other_report()

    def other_report(self) -> Optional[dict]:
        """The report of the run of --against."""
        against = self.args.against
        if not against:
            return None
        report = read_json(against / place_of(self.args) / "report.json")
        if not report:
            command = quote(["bash", "scripts/evaluate.sh", str(against), *self.subset()])
            raise Problem(f"{against} was not evaluated: run `{command}` first")
        if report["settings"]["sha256 of the test set"] != self.test_set:
            raise Problem(f"{against} was scored on another test set than {self.args.data}/raw/: no test is possible")
        return report

    def subset(self) -> List[str]:
        """The option that chooses this test set."""
        return [] if self.args.split == "test" else ["--subset", self.args.subset]

    def run(self) -> None:
        self.average()
        sweep = self.sweep()
        lenpen = LENPEN if self.args.lenpen is None else self.args.lenpen
        if sweep:  # of equals, the first
            lenpen = max(sweep, key=lambda row: row["BLEU on valid"])["lenpen"]
            say(f"chosen: length penalty {lenpen:g}")
        file = self.out / file_name(self.args, self.args.subset, lenpen)
        generate(self.args, self.args.split, lenpen, file)
        hypotheses = list(read_lines(file))
        generation = read_json(file.with_name(file.name + ".json"))
        settings = {
            "generation": generation["settings"],
            "sha256 of the test set": self.test_set,
            "sha256 of the hypotheses": fingerprint(file),
            "sha256 of those of --against": self.other and self.other["settings"]["sha256 of the hypotheses"],
        }
        before = read_json(self.report, {})
        there = all((self.out / name).exists() for name in ("table.md", "bleu-by-length.png"))
        there = there and has_todays_lengths(before.get("BLEU by words of the source", []))
        if there and before.get("settings") == settings and before["decoding"]["sweep"] == sweep:
            say(f"{self.report} holds the scores already")
            return

        decoding = {"file": file.name, "beam": self.args.beam, "lenpen": lenpen, "sweep": sweep, **generation}
        self.score(hypotheses, decoding, settings)

    def average(self) -> None:
        if self.model.exists() and not list((self.args.run / "checkpoints").glob("*.pt")):
            say(f"no checkpoints are left: taking {self.model} as it is")
            return
        average_last(self.args.run, self.args.last)

    def sweep(self) -> List[dict]:
        """BLEU on the validation set for each length penalty."""
        rows = []
        for lenpen in (self.args.lenpens or LENPENS) if self.args.sweep else []:
            file = self.out / file_name(self.args, "valid", lenpen)
            generate(self.args, "valid", lenpen, file)
            bleu = score(list(read_lines(file)), self.text("valid", self.target), self.target, ["BLEU"])["BLEU"]
            say(f"length penalty {lenpen:g}: BLEU {bleu['score']:.2f} on the validation set")
            rows.append({"lenpen": lenpen, "BLEU on valid": bleu["score"], "signature": bleu["signature"]})
        return rows

    def score(self, hypotheses: List[str], decoding: dict, settings: dict) -> None:
        say(f"scoring, with {RESAMPLES:,} resamples for the intervals")
        sources, references = (self.text(self.args.split, lang) for lang in (self.source, self.target))
        scores = score(hypotheses, references, self.target, resamples=RESAMPLES)
        if self.target == "de":
            scores[COMPOUND] = compound_split_bleu(hypotheses, references, RESAMPLES)
        else:
            scores[COMPOUND] = {"score": None, "how": f"not made: it is for German, and this is {self.target}"}
        buckets = by_length(sources, hypotheses, references, self.target)
        against = None
        if self.other:
            folder = self.args.against / place_of(self.args)
            others = list(read_lines(folder / self.other["decoding"]["file"]))
            against = {
                "name": self.other["name"],
                "decoding": self.other["decoding"],
                "paired bootstrap": compare(hypotheses, others, references, self.target),
            }
        report = {
            "name": self.args.run.resolve().name,
            "model": self.describe(),
            "decoding": decoding,
            "scores": scores,
            "BLEU by words of the source": buckets,
            "against": against,
            "data": self.data(),
            "settings": settings,
            "machine": machine(self.args.cpu),
            "versions": versions(),
            "command": quote(["bash", "scripts/evaluate.sh", *sys.argv[1:]]),
        }
        both = [report, self.other] if self.other else [report]
        lengths = [(each["name"], each["BLEU by words of the source"]) for each in both]
        draw_by_length(lengths, self.out / "bleu-by-length.png")
        write_text(self.out / "table.md", table(report, self.other))
        write_json(self.report, report)

    def describe(self) -> dict:
        """What the model is and what it was made of."""
        import_plugin()
        from fairseq.checkpoint_utils import load_checkpoint_to_cpu, load_model_ensemble_and_task

        overrides = {"data": str(self.args.data / "data-bin")}
        state = load_checkpoint_to_cpu(str(self.model), overrides)
        models, cfg, _ = load_model_ensemble_and_task([str(self.model)], overrides, state=state)
        made = read_record(record_of(self.model))
        facts = {
            "arch": architecture(cfg.model),
            "parameters": sum(parameter.numel() for parameter in models[0].parameters()),
            "updates": count_updates(state),
            "average of": made.get("inputs", "unknown"),
        }
        if hasattr(cfg.model, "projection_length"):
            facts["projection length"] = cfg.model.projection_length
            facts["tied"] = not cfg.model.untie_luna_kv
            facts["causal activation"] = str(cfg.model.causal_activation)
            facts["choices"] = {
                name: value
                for name, usual in CHOICES.items()
                if (value := current(name, str(getattr(cfg.model, name, usual)))) != usual
            }
        return facts

    def data(self) -> dict:
        """What the manifest says of the text."""
        test = self.manifest.get("held out", {}).get("test", {})
        return {
            "corpus": self.manifest.get("corpus", "unknown"),
            "recipe": self.recipe.name,
            "vocabulary": self.manifest.get("vocabulary"),
            "lines": self.manifest.get("lines"),
            "test set": name_of(self.args.data, self.args.split),
            "official test set": test.get("official", "unknown") if self.args.split == "test" else "unknown",
        }

    def text(self, subset: str, lang: str) -> List[str]:
        return list(read_lines(self.args.data / "raw" / f"{subset}.{lang}"))


def architecture(model: Any) -> str:
    """The named architecture whose settings a model has, and where no other has them the one that it was built by.

    Names alone do not tell: earlier versions called all models of a YAML in configs/model/ luna_transformer, and named
    a model of the base size as a YAML of the user's own did.
    """
    from fairseq_luna.models.luna_transformer.architectures import with_settings_of

    built_by = getattr(model, "arch", None) or model._name
    return with_settings_of(model) or built_by if hasattr(model, "projection_length") else built_by


if __name__ == "__main__":
    entry("evaluate", main)
