"""Parallel text to fairseq data: checks, a joint sentencepiece model, pieces, binarised splits, a manifest."""

import argparse
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Iterator, List

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from common import (
    Problem,
    claim,
    differences,
    entry,
    read_json,
    read_lines,
    remove,
    run,
    sha256,
    versions,
    whole,
    write_json,
)  # noqa: E402

SPLITS = "train", "valid", "test"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare-corpus.sh", description=__doc__)
    for split in SPLITS:
        parser.add_argument(
            f"--{split}", required=True, metavar="PREFIX", help=f"the {split} text is PREFIX.SOURCE and PREFIX.TARGET"
        )
    parser.add_argument("--source", required=True, metavar="LANG")
    parser.add_argument("--target", required=True, metavar="LANG")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path)
    parser.add_argument(
        "--vocab-size", type=int, default=8000, metavar="N", help="joint sentencepiece vocabulary (default %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: all %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.source == args.target:
        raise Problem(f"--source and --target are both {args.source}")
    texts = {
        f"{split}.{lang}": Path(f"{getattr(args, split)}.{lang}")
        for split in SPLITS
        for lang in (args.source, args.target)
    }
    for path in texts.values():
        if not path.is_file():
            raise Problem(f"there is no file {path}")

    manifest_path = args.out / "manifest.json"
    manifest = read_json(manifest_path, {})
    settings = {"source": args.source, "target": args.target, "vocab_size": args.vocab_size}
    settings.update((f"sha256 of {name}", sha256(path)) for name, path in texts.items())
    changed = differences(manifest.get("settings", {}), settings)
    if manifest and not changed:
        say(f"{args.out} holds this already")
        return
    if manifest:
        say("preparing again: " + "; ".join(changed))
    claim(args.out, settings)
    remove(manifest_path)

    lines = check(texts, args)
    model = learn_vocabulary(texts, args, args.out / "spm.model")
    pieces, lossy = encode(texts, args, model)
    binarise(args)
    write_json(
        manifest_path,
        {
            "settings": settings,
            "lines": lines,
            "pieces": pieces,
            "lines that do not survive pieces and back": lossy,
            "vocabulary": model.get_piece_size(),
            "sha256 of spm.model": sha256(args.out / "spm.model"),
            "versions": versions(),
        },
    )


def say(message: str) -> None:
    print(f"prepare-corpus: {message}", flush=True)


def check(texts: dict, args: argparse.Namespace) -> dict:
    """The number of lines of each text, once both sides of each split are found to agree and to be UTF-8."""
    say("checking the text")
    lines = {name: sum(1 for _ in read_lines(path)) for name, path in texts.items()}
    for split in SPLITS:
        source, target = f"{split}.{args.source}", f"{split}.{args.target}"
        if lines[source] != lines[target]:
            raise Problem(
                f"{texts[source]} has {lines[source]:,} lines and {texts[target]} has {lines[target]:,}: "
                "they must be translations of each other, line for line"
            )
        if not lines[source]:
            raise Problem(f"{texts[source]} is empty")
    return lines


def learn_vocabulary(texts: dict, args: argparse.Namespace, path: Path):
    """A joint unigram model that loses nothing: the text as it is, bytes for characters it has not seen."""
    import sentencepiece

    def sentences() -> Iterator[str]:
        for lang in args.source, args.target:
            for line in read_lines(texts[f"train.{lang}"]):
                # fairseq splits lines of pieces at any white space: none may be part of a piece, so they become bytes
                yield " ".join(line.split())

    say(f"learning a joint vocabulary of {args.vocab_size:,} pieces")
    with whole(path) as beside, open(beside, "wb") as file:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences(),
                model_writer=file,
                vocab_size=args.vocab_size,
                hard_vocab_limit=False,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                byte_fallback=True,
                character_coverage=1.0,
                num_threads=4,  # not --workers: the sums, and so the model, depend on it
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2]  # what comes before is a place in its source
            raise Problem(f"sentencepiece makes no vocabulary of {args.vocab_size:,} pieces: {reason}") from None
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def encode(texts: dict, args: argparse.Namespace, model) -> tuple:
    """Write pieces/ and the raw text as used, raw/; count pieces, and lines that decoding does not give back."""
    say(f"encoding with {args.workers} threads")
    pieces, lossy = {}, 0
    with whole(args.out / "raw") as raw, whole(args.out / "pieces") as folder:
        raw.mkdir()
        folder.mkdir()
        for name, path in texts.items():
            pieces[name] = 0
            with open(raw / name, "w", encoding="utf-8", newline="\n") as raw_file, open(
                folder / name, "w", encoding="utf-8", newline="\n"
            ) as file:
                for lines in blocks(read_lines(path), 100_000):
                    encoded = model.encode(lines, out_type=str, num_threads=args.workers)
                    lossy += sum(a != b for a, b in zip(lines, model.decode(encoded, num_threads=args.workers)))
                    pieces[name] += sum(map(len, encoded))
                    raw_file.writelines(line + "\n" for line in lines)
                    file.writelines(" ".join(line) + "\n" for line in encoded)
        with open(folder / "dict.txt", "w", encoding="utf-8", newline="\n") as file:
            for i in range(model.get_piece_size()):
                if not model.is_control(i) and not model.is_unknown(i):
                    file.write(f"{model.id_to_piece(i)} 1\n")
    return pieces, lossy


def blocks(lines: Iterator[str], size: int) -> Iterator[List[str]]:
    """The lines, `size` at a time."""
    block = list(islice(lines, size))
    while block:
        yield block
        block = list(islice(lines, size))


def binarise(args: argparse.Namespace) -> None:
    say("binarising with fairseq-preprocess")
    with whole(args.out / "data-bin") as folder:
        command = [sys.executable, "-m", "fairseq_cli.preprocess", "--joined-dictionary"]
        command += ["--source-lang", args.source, "--target-lang", args.target]
        command += ["--srcdict", str(args.out / "pieces" / "dict.txt")]
        for split in SPLITS:
            command += [f"--{split}pref", str(args.out / "pieces" / split)]
        command += ["--destdir", str(folder), "--workers", str(args.workers)]
        run(command, args.out / "preprocess.log")


if __name__ == "__main__":
    entry("prepare-corpus", main)
