"""x + dropout(y): the kernel is the equation with the mask that its seed says, forward and backward."""

import ops_reference as reference
import pytest
import torch
from tiny import build, sentences, targets

from fairseq_luna.modules.dropout import Dropout
from fairseq_luna.ops import dispatch
from fairseq_luna.ops.residual import residual

pytest.importorskip("triton")
from fairseq_luna.ops.triton import residual as module  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")]
SEED, P = 2**31 - 1, 0.3
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}  # the interpreter cuts to bfloat16
dtypes = pytest.mark.parametrize("dtype", ROUNDING, ids=["fp32", "fp16", "bf16"])


def mask(shape, seed, p=P):
    """True where an element is kept."""
    size = shape.numel()
    draws = torch.arange(-(-size // (4 * module.BLOCK)) * module.BLOCK)
    zero = torch.zeros_like(draws)
    numbers = torch.stack(reference.philox(seed, draws, zero, zero, zero)) >> 8
    kept = numbers.view(4, -1, module.BLOCK).transpose(0, 1).flatten()[:size] >= int(p * 2**24)
    return kept.view(shape).to(DEVICE)


def numbers(shape, dtype):
    return torch.randn(shape).to(DEVICE, dtype).requires_grad_()


SHAPES = [(1,), (3, 7, 5), (2, 40, 128), (1, 4096), pytest.param((273, 30, 512), marks=gpu)]


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel(shape, dtype):
    torch.manual_seed(0)
    x, y = numbers(shape, dtype), numbers(shape, dtype)
    out = module.residual(x, y, P, SEED)
    grad = torch.randn_like(out)
    dx, dy = torch.autograd.grad(out, [x, y], grad)
    kept = mask(out.shape, SEED) / (1 - P)
    rounding = {"rtol": ROUNDING[dtype], "atol": ROUNDING[dtype]}
    torch.testing.assert_close(out.double(), x.double() + y.double() * kept, **rounding)
    torch.testing.assert_close(dy.double(), grad.double() * kept, **rounding)
    assert torch.equal(dx, grad)
    assert out.dtype == dy.dtype == dtype


def test_dropouts_drop_as_much_as_they_say():
    zeros = torch.zeros(200, 500, device=DEVICE)
    assert abs((module.residual(zeros, zeros + 1, 0.1, seed=1) > 0).double().mean() - 0.9) < 0.005


def test_a_wide_stream_and_a_narrow_block():
    """As autocast has them."""
    x, y = numbers((2, 30, 16), torch.float32), numbers((2, 30, 16), torch.float16)
    out = module.residual(x, y, P, 1)
    dx, dy = torch.autograd.grad(out.sum(), [x, y])
    kept = mask(out.shape, 1) / (1 - P)
    assert out.dtype == dx.dtype == torch.float32 and dy.dtype == torch.float16
    torch.testing.assert_close(out, x + y.float() * kept)
    torch.testing.assert_close(dy.float(), kept.float(), rtol=1e-3, atol=0)


def test_memory_in_another_order():
    x, y = numbers((7, 3, 8), torch.float32).transpose(0, 1), numbers((3, 8, 7), torch.float32).transpose(1, 2)
    grad = torch.randn(7, 8, 3, device=DEVICE).permute(2, 0, 1)
    out = module.residual(x, y, P, 1)
    torch.testing.assert_close(out, x + y * mask(out.shape, 1) / (1 - P))
    (dy,) = torch.autograd.grad(out, [y], grad)
    torch.testing.assert_close(dy, grad * mask(out.shape, 1) / (1 - P))


@pytest.mark.parametrize("fused", [False, True])
def test_forms_and_seeds(fused):
    torch.manual_seed(0)
    x, y = numbers((2, 30, 16), torch.float32), numbers((2, 30, 16), torch.float32)

    def run(seed, turn=0):
        torch.manual_seed(seed)
        with dispatch.using(fused=fused), dispatch.turning(torch.tensor([turn], dtype=torch.int32, device=DEVICE)):
            return residual(x, y, Dropout(P).train())

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert dispatch.forms()["residual"].form == ("fused" if fused else "direct")
    assert torch.equal(run(1), run(1, turn=5)) == (not fused)
    added = run(1) - x
    torch.testing.assert_close(added, torch.where(added.abs() < 1e-6, 0.0, y / (1 - P)), rtol=1e-3, atol=1e-5)


def test_layers_use_it():
    model = build(double=False, dropout=0.1, encoder_layers=1, decoder_layers=1).to(DEVICE).train()
    dispatch.forget_forms()
    with dispatch.using(fused=True):
        model(sentences([5]).to(DEVICE), None, targets([4]).to(DEVICE))
    assert dispatch.forms()["residual"].form == "fused"


def test_without_dropout_it_is_a_sum():
    x, y = numbers((2, 3, 4), torch.float32), numbers((2, 3, 4), torch.float32)
    dispatch.forget_forms()
    assert torch.equal(residual(x, y, Dropout(P).eval()), x + y) and "residual" not in dispatch.forms()


def test_no_mask_is_kept():
    x, y = numbers((2, 64, 64), torch.float32), numbers((2, 64, 64), torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda u: kept.append(u.numel()) or u, lambda u: u):
        with dispatch.using(fused=True):
            residual(x, y, Dropout(P).train())
    assert sum(kept) == 0
