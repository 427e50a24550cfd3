"""Text to data for fairseq-train: parallel text, text out of Debian's packages, texts with a class."""

import luna_tools  # noqa: F401  which lends light modules of the plugin
