"""Put all that translating with a trained model needs into one file, to hand on.

That is the model without the state of its training, the dictionaries and the pieces, with their checksums. What takes
it: `bash scripts/translate.sh --model FILE`, Translator.from_file(FILE) in Python, and, unpacked by tar, fairseq's own
commands. An earlier FILE of this kind is replaced, any other is left alone."""

import argparse
from pathlib import Path

from fairseq_luna.generation.packing import pack
from luna_tools.console import entry
from luna_tools.machine import import_plugin


def main() -> None:
    args = parse_args()
    out = args.out or args.run / "model.tar.gz"
    import_plugin()
    manifest = pack(args.run, out)
    languages = f"{manifest['settings']['source']}-{manifest['settings']['target']}"
    size = out.stat().st_size / 1e6
    print(f"pack: wrote {out}: {manifest['architecture']}, {languages}, {size:,.1f} MB", flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pack.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder that quickstart.sh or train.sh wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default RUN/model.tar.gz")
    return parser.parse_args()


if __name__ == "__main__":
    entry("pack", main)
