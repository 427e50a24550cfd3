"""The folder of prepared data: one run at a time, of one kind, and files that are known again."""

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

from luna_tools.run_folder import alone, claim

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json

SPLITS = "train", "valid", "test"


@contextmanager
def taken(folder: Path, settings: dict) -> Iterator[None]:
    """The folder is ours, and no other run's, meanwhile; what a full disk does is told in a sentence."""
    try:
        with alone(folder):
            if read_json(folder / "settings.json") != settings:
                claim(folder, settings)
            yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Problem(
            f"{folder} cannot take more ({error.strerror}): make room; the same command then goes on from there"
        ) from None


def stamp(path: Path) -> List[int]:
    """Size and time of change, by which a file is known again."""
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]
