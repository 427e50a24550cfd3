"""What is done with a trained language model: fairseq-eval-lm and fairseq-interactive, within this process.

A process of its own for each would spend more time on imports than on the work."""

import argparse
import contextlib
import io
import re
from pathlib import Path
from typing import Any, List, Tuple

from luna_tools.console import in_checkout
from luna_tools.paths import USER_DIR

SAMPLING = ["--sampling", "--sampling-topk", "10", "--beam", "1", "--max-len-b", "60", "--seed", "1"]


def window_of(tokens: int) -> int:
    """Tokens that come at least before each that is measured: three quarters of what the model has learnt to read."""
    return 3 * tokens // 4


def perplexity(data: Path, model: Path, tokens: int, cpu: bool) -> Tuple[float, str]:
    """Perplexity per token of the test set, and the command that measures it.

    Args:
        data: what fairseq-preprocess made.
        model: a checkpoint.
        tokens: of the context that it was trained with.
        cpu: leave a GPU alone.
    """
    import fairseq_cli.eval_lm as eval_lm
    from fairseq import options

    words = [*shared(data, model, tokens, cpu), "--gen-subset", "test", "--sample-break-mode", "none"]
    words += ["--context-window", str(window_of(tokens)), "--max-tokens", str(max(tokens, 8192))]
    found, _ = called(eval_lm, options.get_eval_lm_parser(), [*words, "--log-format", "none"])
    return float(found["perplexity"]), in_checkout(["fairseq-eval-lm", *words])


def continuations(data: Path, model: Path, tokens: int, cpu: bool, begun: Path) -> Tuple[List[List[str]], str]:
    """The pieces of each line of `begun`, itself in pieces, with how the model goes on, and the command for it."""
    import fairseq_cli.interactive as interactive
    from fairseq import options

    words = [*shared(data, model, tokens, cpu), "--task", "language_modeling", *SAMPLING]
    words += ["--input", str(begun), "--buffer-size", "100", "--batch-size", "100"]
    _, printed = called(interactive, options.get_interactive_generation_parser(), words)
    lines = re.findall(r"^H-\d+\t\S+\t(.*)$", printed, re.M)
    return [line.split() for line in lines], in_checkout(["fairseq-interactive", *words])


def shared(data: Path, model: Path, tokens: int, cpu: bool) -> List[str]:
    words = [str(data), "--path", str(model), "--user-dir", str(USER_DIR), "--tokens-per-sample", str(tokens)]
    return [*words, *(["--cpu"] if cpu else [])]


def called(command: Any, parser: argparse.ArgumentParser, words: List[str]) -> Tuple[Any, str]:
    """Run one of fairseq's commands; what it returns, and what it prints."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, words))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        returned = command.main(cfg)
    return returned, printed.getvalue()
