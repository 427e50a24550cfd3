"""Translate text with a trained model, or with several together.

One line comes out for each line that goes in, on stdout; anything else goes to stderr. Blank lines stay blank. With
--nbest each line of the source gives N lines, and a blank one a single line."""

import argparse
import itertools
import math
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import recipes
from average_checkpoints import count
from common import Problem, entry, import_plugin
from decoding import (
    Hypothesis,
    add_search_options,
    agree,
    forced_pieces,
    lift_limits,
    possible,
    rows,
    search_settings,
)
from quickstart import DECODING


def main() -> None:
    args = parse_args()
    for file in args.files:
        if file != "-" and not Path(file).is_file():
            raise Problem(f"there is no file {file}")
    translator = Translator(
        args.models, args.search, args.prefix, args.batch_size, cpu=args.cpu, precision=args.precision
    )
    lines = read(args.files)
    typing = args.files == ["-"] and sys.stdin.isatty()
    if typing:
        warn("type a sentence and press return; Ctrl-D ends")
    size = args.buffer or (1 if typing else 256)
    numbers = itertools.count(1)
    for batch in iter(lambda: list(itertools.islice(lines, size)), []):
        for found, number in zip(translator.translate(batch), numbers):
            shown = rows(number, found) if args.nbest else found[0].text + "\n"
            sys.stdout.buffer.write(shown.encode("utf-8"))
        sys.stdout.buffer.flush()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="translate.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="*", default=["-"], metavar="FILE", help="text to translate (default: standard input)"
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        type=Path,
        dest="models",
        metavar="DIR",
        help="the folder that quickstart.sh or train.sh wrote; given several times, these translate together, an "
        "ensemble: their vocabularies must be the same, their architectures need not",
    )
    parser.add_argument("--beam", type=count, default=DECODING["--beam"], metavar="N", help="default %(default)s")
    parser.add_argument(
        "--lenpen",
        type=float,
        default=DECODING["--lenpen"],
        metavar="X",
        help="above 1 for longer translations (default %(default)s)",
    )
    parser.add_argument("--prefix", metavar="TEXT", help="each translation begins with this text")
    parser.add_argument(
        "--constraints",
        action="store_true",
        help="each line is SOURCE<tab>TEXT<tab>TEXT ..., and its translation holds these texts, in this order",
    )
    parser.add_argument(
        "--batch-size", type=count, default=64, metavar="N", help="sentences at once (default %(default)s)"
    )
    parser.add_argument(
        "--buffer", type=count, metavar="N", help="lines read before any is translated (default 256; 1 on a terminal)"
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        help="of the products with a Luna's weights on a CPU: lower is faster (default: the model's own, fp32)",
    )
    add_search_options(parser)
    args = parser.parse_intermixed_args()
    args.search = {"beam": args.beam, "lenpen": args.lenpen, **search_settings(parser, args)}
    return args


def warn(message: str) -> None:
    # of the script that was started: others load models by this one
    name = Path(sys.argv[0]).stem.replace("_", "-")
    print(f"{name}: {message}", file=sys.stderr, flush=True)


class Line(NamedTuple):
    """A line of input, and what to call it."""

    text: str
    name: str


def read(files: List[str]) -> Iterator[Line]:
    """The lines of the files, without their ends."""
    for file_name in files:
        file = sys.stdin.buffer if file_name == "-" else open(file_name, "rb")
        for number, line in enumerate(file, 1):
            name = f"line {number} of {'the input' if file_name == '-' else file_name}"
            line = line.rstrip(b"\r\n")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                text = line.decode("utf-8", errors="replace")
                warn(f"{name} is not UTF-8: what cannot be read is replaced by \ufffd")
            yield Line(text, name)


class Translator:
    """The models of run folders, which may have been moved since: nothing but what lies in them is used.

    Args:
        folders: of the models; several translate together.
        search: settings of the search by their names in fairseq's GenerationConfig, and `seed` for sampling.
        prefix: what each translation is to begin with.
        batch_size: sentences at once.
        cpu: leave a GPU alone.
        precision: of a Luna's products on a CPU: fp32, bf16 or int8; by default the model's own.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        search: Optional[Dict[str, Any]] = None,
        prefix: Optional[str] = None,
        batch_size: int = 64,
        cpu: bool = False,
        precision: Optional[str] = None,
    ) -> None:
        found = [self.find(folder) for folder in folders]
        agree([data.parent for _, data in found])
        self.recipe = recipes.load(found[0][1].parent)
        self.batch_size = batch_size

        import torch
        from fairseq import checkpoint_utils, utils

        self.gpu = torch.cuda.is_available() and not cpu
        if self.gpu and precision in ("bf16", "int8"):
            raise Problem(f"--precision {precision} is for a CPU: add --cpu, or leave it out")
        import_plugin()
        paths = [str(checkpoint) for checkpoint, _ in found]
        self.models, cfg, self.task = checkpoint_utils.load_model_ensemble_and_task(paths, {"data": str(found[0][1])})
        settings = {"beam": DECODING["--beam"], "lenpen": DECODING["--lenpen"], **(search or {})}
        settings = possible(settings, found[0][1] / f"dict.{self.recipe.target}.txt")
        utils.set_torch_seed(settings.pop("seed", 1))
        cfg.common_eval.path = paths[0]  # as in fairseq's commands: nothing here shows attention
        cfg.generation.max_len_a, cfg.generation.max_len_b = DECODING["--max-len-a"], DECODING["--max-len-b"]
        for name, value in settings.items():
            cfg.generation[name] = value
        self.nbest, self.constrained = cfg.generation.nbest, bool(cfg.generation.constraints)
        for model, path in zip(self.models, paths):
            lift_limits(model)
            if precision:
                if not hasattr(model, "inference_precision"):
                    raise Problem(f"--precision is for Luna models, which that in {path} is not")
                model.inference_precision = precision
            if self.gpu:
                model.cuda()
            model.prepare_for_inference_(cfg)
        self.generator = self.task.build_generator(self.models, cfg.generation)
        self.limit = min(model.max_positions()[0] for model in self.models)
        self.prefix = None
        if prefix:
            self.prefix = self.encode_target(prefix, "--prefix")
            self.check_room(len(self.prefix), "--prefix")

    @staticmethod
    def find(folder: Path) -> tuple:
        """The checkpoint and the folder of dictionaries."""
        checkpoint, last = folder / "model.pt", folder / "checkpoints" / "checkpoint_last.pt"
        if not checkpoint.exists() and last.exists():
            warn(f"{folder} is not finished: using its last checkpoint")
            checkpoint = last
        found = checkpoint, folder / "data" / "data-bin"
        missing = [path for path in found if not path.exists()]
        if missing:
            raise Problem(
                f"{folder} holds no model ({missing[0]} is missing): "
                "give --model the folder of a finished run of scripts/quickstart.sh or scripts/train.sh"
            )
        return found

    def translate(self, lines: List[Line]) -> List[List[Hypothesis]]:
        """The best translations of each line, the best first; a blank line gives an empty one."""
        translations = [[Hypothesis(0.0, "")] for _ in lines]
        numbers, sources, constraints = [], [], []
        for number, line in enumerate(lines):
            source, *fields = line.text.split("\t") if self.constrained else [line.text]
            texts = [text for text in fields if text.strip()]
            if source.strip():
                numbers.append(number)
                sources.append(self.encode(Line(source, line.name)))
                constraints.append([self.encode_target(text, f"{line.name}: the constraint") for text in texts])
                self.check_room(sum(map(len, constraints[-1])), f"{line.name}, constraints")
            elif texts:
                raise Problem(f"{line.name} has constraints but no source: put the source before the first tab")
        for batch in self.batches(sources, constraints if self.constrained else None):
            for number, hypotheses in zip(batch["id"].tolist(), self.search(batch)):
                translations[numbers[number]] = [
                    Hypothesis(float(each["score"]) / math.log(2), self.decode(each["tokens"]))
                    for each in hypotheses[: self.nbest]
                ]
        return translations

    def search(self, batch: dict) -> List[List[dict]]:
        """fairseq's hypotheses for each sentence of a batch, with room for what they must hold."""
        prefix, constraints = None, batch.get("constraints")
        forced = 0 if constraints is None else constraints.size(1)
        if self.prefix is not None:
            forced += len(self.prefix)
            prefix = self.prefix.to(batch["id"].device).expand(len(batch["id"]), -1)
        self.generator.max_len_b = DECODING["--max-len-b"] + forced
        return self.task.inference_step(
            self.generator, self.models, batch, prefix_tokens=prefix, constraints=constraints
        )

    def encode(self, line: Line):
        words = " ".join(self.recipe.encode([line.text])[0])
        tokens = self.task.source_dictionary.encode_line(words, add_if_not_exist=False).long()
        if len(tokens) > self.limit:
            limit = f"{self.limit:,}"
            warn(f"{line.name} has {len(tokens):,} pieces: only the first {limit} are translated, the model's limit")
            tokens = tokens[: self.limit]
            tokens[-1] = self.task.source_dictionary.eos()
        return tokens

    def encode_target(self, text: str, what: str):
        """The pieces of a text that a translation is to hold, without an end of sentence."""
        dictionary = self.task.target_dictionary
        pieces = " ".join(forced_pieces(self.recipe, text, dictionary, what))
        return dictionary.encode_line(pieces, add_if_not_exist=False, append_eos=False).long()

    def check_room(self, pieces: int, what: str) -> None:
        """Refuse to force more pieces than a translation can have, where the model's positions end."""
        room = self.generator.max_len - 1  # one position is that of the token which decoding starts with
        if pieces > room:
            raise Problem(f"{what}: {pieces:,} pieces are more than the {room:,} that the model can write; give fewer")

    def decode(self, tokens) -> str:
        words = self.task.target_dictionary.string(tokens.int().cpu())
        return self.recipe.decode([words.split(" ")])[0]

    def batches(self, sources: list, constraints: Optional[list] = None) -> Iterator[dict]:
        """Batches of like lengths, the numbers of their sources under "id"."""
        from fairseq.token_generation_constraints import pack_constraints

        packed = None if constraints is None else pack_constraints(constraints)
        lengths = [len(tokens) for tokens in sources]
        dataset = self.task.build_dataset_for_inference(sources, lengths, constraints=packed)
        batch: List[int] = []
        for i in sorted(range(len(sources)), key=lambda i: len(sources[i])):
            if len(batch) == self.batch_size or (len(batch) + 1) * len(sources[i]) > DECODING["--max-tokens"]:
                yield self.collate(dataset, batch)
                batch = []
            batch.append(i)
        if batch:
            yield self.collate(dataset, batch)

    def collate(self, dataset, numbers: List[int]) -> dict:
        from fairseq.utils import move_to_cuda

        batch = dataset.collater([dataset[i] for i in numbers])
        return move_to_cuda(batch) if self.gpu else batch


if __name__ == "__main__":
    entry("translate", main)
