"""What test files share."""

import os
from pathlib import Path

import pytest
import torch

# where commands that tests run find the packages of the scripts, as scripts/env.sh has it; pyproject.toml for tests
PACKAGES = [str(Path(__file__).resolve().parent.parent / folder) for folder in ("scripts", "data-prep")]
os.environ["PYTHONPATH"] = os.pathsep.join([*PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])])

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels then run on the CPU, where asked for


@pytest.fixture(scope="module")
def one_process_group(tmp_path_factory):
    """torch's distributed communication, of this process with itself."""
    store = tmp_path_factory.mktemp("store") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# Those that take longest, first: the workers of scripts/test.sh then end at about the same time.
LONGEST = (
    "compare train quickstart commands replicate benchmark onnx data alignment compat translate generation roads "
    "quant_noise graphs ops check evaluate gpu_check optim install".split()
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist 3.8 would begin with the files of most tests


def pytest_runtest_logreport(report):
    """What fails is told in a file at once, where one is named: beside xdist, pytest tells at its end alone."""
    path = os.environ.get("FAILURES_GO_TO")
    if path and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"\n{report.nodeid}\n{report.longreprtext}\n")


def pytest_collection_modifyitems(items):
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
