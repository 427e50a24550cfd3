"""The corpus that comes with the checkout: sentences of the LibreOffice help, English and German."""

import tarfile
from pathlib import Path

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, sha256, whole
from luna_tools.paths import REPO

CORPUS = REPO / "data-prep" / "libreoffice-help"


def unpack(folder: Path) -> None:
    """Write {train,valid,test}.{en,de} into `folder`, which is there whole or not at all.

    Raises:
        Problem: if a file is not the one that manifest.json tells of.
    """
    archive = CORPUS / "libreoffice-help-en-de.tar.xz"
    with whole(folder) as beside, tarfile.open(str(archive)) as files:
        beside.mkdir()
        for name, facts in read_json(CORPUS / "manifest.json")["files"].items():
            (beside / name).write_bytes(files.extractfile(name).read())  # type: ignore[union-attr]
            if sha256(beside / name) != facts["sha256"]:
                raise Problem(f"{name} in {archive} is not the one of manifest.json: restore both with git")
