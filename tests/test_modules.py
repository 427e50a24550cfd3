"""Attentions and layers alone, made of plain arguments and without a model."""

from functools import partial

import pytest
import torch

from fairseq_luna.modules.causal_attention import LunaCausalAttention
from fairseq_luna.modules.encoder_layer import LunaEncoderLayer
from fairseq_luna.modules.feed_forward import FeedForward
from fairseq_luna.modules.head_projection import HeadProjection
from fairseq_luna.modules.linear import prepare_products
from fairseq_luna.modules.luna_attention import LunaAttention
from fairseq_luna.modules.residual import Residual
from fairseq_luna.modules.slot_info import SlotInfo
from fairseq_luna.ops.causal.state import share_of_step
from fairseq_luna.ops.projection import split_heads

pytestmark = pytest.mark.stock
DIM, HEADS, SLOTS = 16, 4, 3


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@torch.no_grad()
def test_a_query_tells_its_scale_apart():
    """With noise on its weights and in other forms, too: what comes out is always the same whole."""
    torch.manual_seed(0)
    layer, x = HeadProjection(DIM, 2 * DIM, HEADS, is_query=True), torch.randn(2, 5, DIM)
    layer.bias.normal_()

    def assert_whole(scale):
        product, found = layer.projection().apart(x)
        assert found == scale
        torch.testing.assert_close(split_heads(product * scale, HEADS), layer(x))
        torch.testing.assert_close(split_heads(layer.projection()(x), HEADS), layer(x))

    assert_whole(8**-0.5)
    weight, bias = layer.projection().by_head(HEADS)
    torch.testing.assert_close(x.unsqueeze(1) @ weight.transpose(1, 2) + bias.unsqueeze(1), layer(x))
    want, layer.noise = layer(x), lambda weight: 2 * weight
    assert_whole(8**-0.5)
    assert not torch.allclose(layer(x), want)
    layer.eval()
    prepare_products(layer, "fp32")
    assert_whole(1.0)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("decaying", [False, True], ids=["flat", "decaying"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_a_causal_attention_steps_as_it_runs(tied, decaying):
    """With a P that is learned, as a language model has it, and two beams of each sentence."""
    torch.manual_seed(0)
    attn = LunaCausalAttention(DIM, HEADS, tied, decaying=decaying).double()
    packed = HeadProjection(DIM, DIM, HEADS, is_query=True).double()(draw(1, SLOTS, DIM)).expand(2, -1, -1, -1)
    x = draw(2, 2, 9, DIM)  # (B, beams, n, D)
    want = torch.stack([attn(x[:, beam], packed) for beam in range(2)], dim=1)
    state, decays = None, attn.decays(x.device)
    for t in range(9):
        found, state = attn.step(x[:, :, t], packed, state, share_of_step(t + 1, decays), in_place=True)
        torch.testing.assert_close(found, want[:, :, t], rtol=1e-6, atol=1e-6)
    # a counter that stays on a device, as a captured graph needs it, counts the same
    shares = [share_of_step(t, decays) for t in (9, torch.tensor(9))]
    torch.testing.assert_close(*(torch.as_tensor(share, dtype=torch.float64) for share in shares))


def test_an_encoder_layer_by_itself():
    torch.manual_seed(0)
    attn = LunaAttention(DIM, HEADS, HEADS, pack_sharpness=1.0)
    layer = LunaEncoderLayer(attn, FeedForward(DIM, 2 * DIM), partial(Residual, DIM)).double()
    x, packed = draw(2, 7, DIM), draw(2, SLOTS, DIM)
    positions = torch.arange(7.0).expand(2, -1)
    x_after, packed_after = layer(x, packed, None, SlotInfo(None, positions))
    assert x_after.shape == x.shape and packed_after.shape == packed.shape
    # post-norm: what comes out is normed
    torch.testing.assert_close(x_after.mean(dim=-1), torch.zeros(2, 7, dtype=torch.float64), rtol=0, atol=1e-9)
    (x_after.sum() + packed_after.square().sum()).backward()
    # a bias on keys shifts all logits of a softmax alike
    without = [name for name, parameter in layer.named_parameters() if parameter.grad is None]
    assert without == []
