"""The dropout by 16 random bits an element."""

import pytest
import torch

from fairseq_luna.modules.dropout import Dropout
from fairseq_luna.ops import dropout
from fairseq_luna.ops.dropout import STEPS


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """Also where torch's own is used otherwise."""
    monkeypatch.setattr(dropout, "TORCH_IS_FASTER", False)


@pytest.mark.stock
@pytest.mark.parametrize("p", [0.0005, 0.1, 0.5, 0.9])
def test_rate_and_expectation(p):
    torch.manual_seed(1)
    x = torch.ones(1000, 1001, dtype=torch.float64)
    y = Dropout(p)(x)
    kept = (y != 0).double().mean().item()
    sigma = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(kept - (1 - p)) < 5 * sigma + 1 / STEPS
    # what is kept is scaled by exactly the inverse of the chance to be kept
    assert y.max().item() == pytest.approx(STEPS / (STEPS - round(p * STEPS)), rel=1e-12)
    assert abs(y.mean().item() - 1) < 5 * sigma / (1 - p)
    # elements that share 64 random bits are as independent as others
    first, second = (y != 0).double().flatten()[::2], (y != 0).double().flatten()[1::2][:500500]
    assert abs(((first - kept) * (second - kept)).mean().item()) < 5 * p * (1 - p) / len(first) ** 0.5


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_goes_where_the_value_went(shape, dtype):
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    y = Dropout(0.5)(x)
    assert y.dtype == dtype and y.shape == x.shape
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_seed_decides_and_calls_differ():
    module, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first, second = module(x), module(x)
    torch.manual_seed(3)
    assert torch.equal(first, module(x)) and not torch.equal(first, second)


def test_extremes_and_rest():
    x = torch.randn(10)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(10))
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    kept = Dropout(0.5, module_name="LunaPack").eval()
    kept.make_generation_fast_("pack", retain_dropout=True)
    assert not torch.equal(kept(torch.ones(100)), torch.ones(100))
    assert Dropout(0.5)(torch.empty(0, 3)).shape == (0, 3)
