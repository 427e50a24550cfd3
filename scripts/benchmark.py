"""Time and memory of Luna beside fairseq's Transformer. `--help` lists the options."""

from luna_tools.benchmark.command import main
from luna_tools.console import entry

if __name__ == "__main__":
    entry("benchmark", main)
