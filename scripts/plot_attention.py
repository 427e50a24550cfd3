"""What a trained model attends to in a sentence, drawn. `--help` lists the options."""

from luna_tools.console import entry
from luna_tools.inspection.plot_attention import main

if __name__ == "__main__":
    entry("plot-attention", main)
