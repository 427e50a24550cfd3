"""What commands print: warnings, and the log."""

import logging
import os
import warnings


def silence_deprecations() -> None:
    """fairseq main uses what hydra 1.3 and torch 2 have deprecated, and each command prints a page about it.

    And it asks every data loader to pin memory, of which torch 2 warns on a machine without a GPU. Silenced are these
    messages alone: they speak to fairseq's developers and ask nothing of its users. Where they do not come the filters
    do nothing. fairseq-hydra-train prints its share before it imports any plugin.
    """
    for category, start in (
        (UserWarning, r"hydra\.experimental\.\w+\(\) is no longer experimental"),
        (UserWarning, r"\s*The version_base parameter is not specified"),
        (UserWarning, r"In '.*': Usage of deprecated keyword in package header"),
        (UserWarning, r"\s*'.*' is validated against ConfigStore schema with the same name"),
        (UserWarning, r"\s*The strict flag in the compose API is deprecated"),
        (UserWarning, r"Future Hydra versions will no longer change working directory"),
        (FutureWarning, r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated"),
        (UserWarning, r"Support for mismatched key_padding_mask and attn_mask is deprecated"),
        (UserWarning, r"'pin_memory' argument is set as true but no accelerator is found"),
    ):
        warnings.filterwarnings("ignore", start, category)


def restore_logging() -> None:
    """fairseq main (models/wav2vec/wav2vec2_classification.py) calls `logging.basicConfig(level=DEBUG)` on import.

    All commands but fairseq-train configure logging after that, to no effect: they log in Python's default format, and
    every library's debug messages too. Known by a root logger in that very state. The format and the level that fairseq
    asks for are put in; the stream stays stderr, which fairseq 0.12.2 uses there.
    """
    import fairseq  # noqa: F401

    root = logging.getLogger()
    for handler in root.handlers:
        default = getattr(handler.formatter, "_fmt", None) == logging.BASIC_FORMAT
        if default and type(handler) is logging.StreamHandler and root.level == logging.DEBUG:
            meant = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
            handler.setFormatter(logging.Formatter(meant, "%Y-%m-%d %H:%M:%S"))
            root.setLevel(os.environ.get("LOGLEVEL", "INFO").upper())
