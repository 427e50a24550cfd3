"""What test files share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_process_group(tmp_path_factory):
    """torch's distributed communication, of this process with itself."""
    store = tmp_path_factory.mktemp("store") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
