"""Where the gradient of a training arrives. `--help` lists the options."""

from luna_tools.console import entry
from luna_tools.inspection.gradients import main

if __name__ == "__main__":
    entry("gradients", main)
