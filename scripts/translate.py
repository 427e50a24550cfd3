"""Translate text with a trained model: one line out for each line in, on stdout; anything else goes to stderr."""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Iterator, List, NamedTuple

import recipes
from common import Problem, entry, import_plugin
from quickstart import DECODING


def main() -> None:
    args = parse_args()
    for file in args.files:
        if file != "-" and not Path(file).is_file():
            raise Problem(f"there is no file {file}")
    translator = Translator(args)
    lines = read(args.files)
    typing = args.files == ["-"] and sys.stdin.isatty()
    if typing:
        warn("type a sentence and press return; Ctrl-D ends")
    size = args.buffer or (1 if typing else 256)
    for batch in iter(lambda: list(islice(lines, size)), []):
        for translation in translator.translate(batch):
            sys.stdout.buffer.write(translation.encode("utf-8") + b"\n")
        sys.stdout.buffer.flush()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="translate.sh", description=__doc__)
    parser.add_argument(
        "files", nargs="*", default=["-"], metavar="FILE", help="text to translate (default: standard input)"
    )
    parser.add_argument(
        "--model", required=True, type=Path, metavar="DIR", help="the folder that quickstart.sh or train.sh wrote"
    )
    parser.add_argument("--beam", type=int, default=DECODING["--beam"], metavar="N", help="default %(default)s")
    parser.add_argument(
        "--lenpen",
        type=float,
        default=DECODING["--lenpen"],
        metavar="X",
        help="above 1 for longer translations (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="sentences at once (default %(default)s)"
    )
    parser.add_argument(
        "--buffer", type=int, metavar="N", help="lines read before any is translated (default 256; 1 on a terminal)"
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        help="of the products with a Luna's weights on a CPU: lower is faster (default: the model's own, fp32)",
    )
    args = parser.parse_args()
    for flag in "beam", "batch_size", "buffer":
        value = getattr(args, flag)
        if value is not None and value < 1:
            parser.error(f"--{flag.replace('_', '-')} must be at least 1, but is {value}")
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
    """The model of a run folder, which may have been moved since: nothing but what lies in it is used."""

    def __init__(self, args: argparse.Namespace) -> None:
        checkpoint, data = self.find(args.model)
        self.recipe = recipes.load(args.model / "data")

        import torch
        from fairseq import checkpoint_utils

        self.gpu = torch.cuda.is_available() and not args.cpu
        if self.gpu and args.precision in ("bf16", "int8"):
            raise Problem(f"--precision {args.precision} is for a CPU: add --cpu, or leave it out")
        import_plugin()
        self.models, cfg, self.task = checkpoint_utils.load_model_ensemble_and_task(
            [str(checkpoint)], {"data": str(data)}
        )
        cfg.common_eval.path = str(checkpoint)  # as in fairseq's commands: nothing here shows attention
        cfg.generation.beam, cfg.generation.lenpen = args.beam, args.lenpen
        cfg.generation.max_len_a, cfg.generation.max_len_b = DECODING["--max-len-a"], DECODING["--max-len-b"]
        for model in self.models:
            if args.precision:
                if not hasattr(model, "inference_precision"):
                    raise Problem(f"--precision is for Luna models, which that in {checkpoint} is not")
                model.inference_precision = args.precision
            if self.gpu:
                model.cuda()
            model.prepare_for_inference_(cfg)
        self.generator = self.task.build_generator(self.models, cfg.generation)
        self.batch_size = args.batch_size
        self.limit = min(model.max_positions()[0] for model in self.models)

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

    def translate(self, lines: List[Line]) -> List[str]:
        """One translation for each line; blank lines give empty ones."""
        translations = [""] * len(lines)
        filled = [i for i, line in enumerate(lines) if line.text.strip()]
        sources = [self.encode(lines[i]) for i in filled]
        for batch in self.batches(sources):
            hypotheses = self.task.inference_step(self.generator, self.models, batch)
            for number, best in zip(batch["id"].tolist(), hypotheses):
                translations[filled[number]] = self.decode(best[0]["tokens"])
        return translations

    def encode(self, line: Line):
        words = " ".join(self.recipe.encode([line.text])[0])
        tokens = self.task.source_dictionary.encode_line(words, add_if_not_exist=False).long()
        if len(tokens) > self.limit:
            limit = f"{self.limit:,}"
            warn(f"{line.name} has {len(tokens):,} pieces: only the first {limit} are translated, the model's limit")
            tokens = tokens[: self.limit]
            tokens[-1] = self.task.source_dictionary.eos()
        return tokens

    def decode(self, tokens) -> str:
        words = self.task.target_dictionary.string(tokens.int().cpu())
        return self.recipe.decode([words.split(" ")])[0]

    def batches(self, sources: list) -> Iterator[dict]:
        """Batches of like lengths, the numbers of their sources under "id"."""
        dataset = self.task.build_dataset_for_inference(sources, [len(tokens) for tokens in sources])
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
