"""Quantisation noise: blocks of weights at zero in training, whichever way a product is taken."""

import copy

import pytest
import torch
from tiny import build, each, sentences, sharpen, targets, variants

from fairseq_luna.modules.linear import Linear
from fairseq_luna.modules.quant_noise import add_noise, block_noise

NOISE = {"quant_noise_pq": 0.2, "quant_noise_pq_block_size": 4}


def logits(model, source, prev):
    return model(source, None, prev)[0]


@pytest.mark.stock
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=["fp64", "fp16"])
def test_blocks_are_zero_or_scaled(dtype):
    torch.manual_seed(1)
    weight = torch.rand(200, 96).add(0.5).to(dtype).requires_grad_()
    noisy = block_noise(weight, 0.25, 8)
    assert noisy.dtype == dtype
    zero = (noisy == 0).view(200, 12, 8)
    assert torch.equal(zero.all(dim=-1), zero.any(dim=-1))
    assert abs(zero.double().mean().item() - 0.25) < 0.05  # over five standard deviations
    assert torch.equal(noisy[noisy != 0], (weight / 0.75)[noisy != 0])
    # the gradient passes as if all were whole
    ranks = torch.arange(96).to(dtype)
    (noisy * ranks).sum().backward()
    assert torch.equal(weight.grad, ranks.expand(200, 96))


@pytest.mark.stock
@variants
@pytest.mark.parametrize("lengths", each({"short": ((9, 7),), "long": ((60, 50),)}, ["long"]))
def test_the_noise_of_every_projection_counts(settings, lengths):
    """In texts so long that projections move to the slots, and in fairseq's own attention, too."""
    model = sharpen(build(**{**settings, "projection_length": 3})).train()
    source, prev = sentences([lengths[0], 5]), targets([lengths[1], 3])
    want = logits(model, source, prev)
    add_noise(model.encoder, 0.0, 4)  # which makes all go the same way
    add_noise(model.decoder, 0.0, 4)
    torch.testing.assert_close(logits(model, source, prev), want, rtol=0, atol=3e-6)
    want = logits(model, source, prev)
    silent = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "decoder.output_projection":
            assert isinstance(module, Linear), name
            whole, module.noise = module.noise, lambda weight: block_noise(weight, 0.5, 4)
            silent += [name] if torch.equal(logits(model, source, prev), want) else []
            module.noise = whole
    assert silent == []
    assert torch.equal(logits(model, source, prev), want)


@pytest.mark.stock
@variants
def test_noise_is_of_training_alone(settings):
    """It is never written into the parameters, which are those of a model without it."""
    plain, noisy = build(**settings), build(**settings, **NOISE)
    assert list(plain.state_dict()) == list(noisy.state_dict())
    source, prev = sentences([9, 5]), targets([7, 3])
    want = logits(plain, source, prev)
    torch.testing.assert_close(logits(noisy, source, prev), want, rtol=0, atol=3e-6)
    noisy.train()
    first, second = logits(noisy, source, prev), logits(noisy, source, prev)
    assert not torch.equal(first, want) and not torch.equal(first, second)
    first.logsumexp(-1).sum().backward()
    for (name, p), q in zip(plain.named_parameters(), noisy.parameters()):
        assert torch.equal(p, q), name
    without = [n for n, p in noisy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in without if not n.endswith(".key.bias")] == []
    torch.manual_seed(5)
    want = logits(noisy, source, prev)
    torch.manual_seed(5)
    assert torch.equal(logits(copy.deepcopy(noisy), source, prev), want)


def test_embeddings_and_the_output_have_no_noise():
    model = build(**NOISE)
    assert model.decoder.output_projection.noise is None
    assert all(m.noise is not None for m in model.encoder.modules() if isinstance(m, Linear))
