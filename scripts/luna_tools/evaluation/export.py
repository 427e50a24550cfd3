"""Write a trained model as ONNX, to translate without torch and without fairseq.

The folder holds two graphs (the encoder, and a step of the decoder), the dictionaries, the vocabulary (spm.model or
bpe.codes), and a manifest with the names and shapes of all inputs and outputs. Translate with it by
`python -m fairseq_luna.onnx DIR`. This needs only onnxruntime, numpy and sentencepiece (for bpe.codes: subword-nmt,
sacremoses and regex). An earlier DIR of this kind is replaced, any other is left alone."""

import argparse
from pathlib import Path

from luna_tools.console import entry
from luna_tools.machine import import_plugin

PRECISIONS = "fp32", "int8"


def main() -> None:
    args = parse_args()
    import_plugin()
    from fairseq_luna.export.folder import export

    manifest = export(args.model, args.out, args.precision)
    languages = f"{manifest['settings']['source']}-{manifest['settings']['target']}"
    size = sum(each["bytes"] for each in manifest["files"].values()) / 1e6
    print(f"export: wrote {args.out}: {manifest['architecture']}, {languages}, {args.precision}, {size:,.1f} MB")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="export.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        type=Path,
        metavar="MODEL",
        help="the folder that quickstart.sh or train.sh wrote, or the file that pack.sh wrote",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="int8 makes the graphs smaller, and translations may differ (default %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    entry("export", main)
