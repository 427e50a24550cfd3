"""Where the checkout, the plugin in it and the packages of its scripts are."""

from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
USER_DIR = REPO / "fairseq_luna"
PACKAGES = {"luna_tools": REPO / "scripts", "luna_data": REPO / "data-prep"}  # each by the folder that it is in
