"""A training that runs as another process: its bar, and what it logged."""

import re
from pathlib import Path
from typing import List

from fairseq_luna.errors import Problem
from luna_tools.processes import run
from luna_tools.progress import TrainingLog, bar


def watch(command: List[str], log_path: Path) -> TrainingLog:
    """Run fairseq-train or a training of train.sh with a bar; what its log says.

    Raises:
        Problem: if it fails, with its own error before the end of the log.
    """
    log, errors = TrainingLog.read(log_path), []
    with bar(0, "update", initial=log.updates) as line:

        def show(text: str) -> None:
            found = re.search(r"'max_update': (\d+)", text)
            if found:
                line.total = int(found.group(1))
            if log.add(text):
                line.set_postfix(log.figures(), refresh=False)
                line.update(log.updates - line.n)
            if re.match(r"[\w.]*Error: ", text):
                errors.append(text.strip())

        try:
            run(command, log_path, show)
        except Problem as problem:
            # torchrun ends the log by a page of its own
            raise Problem(f"{errors[0]}\n\n{problem}" if errors else str(problem)) from None
    return log
