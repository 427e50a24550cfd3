"""Attentions and layers alone, made of plain arguments and without a model."""

import math
from functools import partial

import pytest
import torch

from fairseq_luna.modules.causal_attention import LunaCausalAttention
from fairseq_luna.modules.encoder_layer import LunaEncoderLayer
from fairseq_luna.modules.feed_forward import FeedForward
from fairseq_luna.modules.head_projection import HeadProjection
from fairseq_luna.modules.linear import prepare_products
from fairseq_luna.modules.local_attention import DecayingSelfAttention, LocalSelfAttention
from fairseq_luna.modules.luna_attention import LunaAttention
from fairseq_luna.modules.residual import Residual
from fairseq_luna.modules.slot_info import SlotInfo
from fairseq_luna.modules.softmax_attention import CausalSelfAttention, SelfAttention
from fairseq_luna.modules.step import Step
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


def softmax_attention(attn, x, weigh):
    """The equation, a position at a time: exp(q k) weigh(h, i, j), in shares of their sum."""
    query, key, value = (project(x) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
    dim, rows = DIM // HEADS, []
    for i in range(x.size(1)):
        heads = []
        for h in range(HEADS):
            q, k, v = (u[..., h * dim : (h + 1) * dim] for u in (query, key, value))
            weight = [(q[:, i] * k[:, j]).sum(-1).div(dim**0.5).exp() * weigh(h, i, j) for j in range(x.size(1))]
            heads.append(sum(w[:, None] * v[:, j] for j, w in enumerate(weight)) / sum(weight)[:, None])
        rows.append(torch.cat(heads, dim=-1))
    return attn.out_proj(torch.stack(rows, dim=1))


@torch.no_grad()
def test_a_decaying_softmax_attention_is_the_equation():
    torch.manual_seed(0)
    attn, plain = (made(DIM, HEADS, 0.0).double() for made in (DecayingSelfAttention, CausalSelfAttention))
    # of the same parameters: the rates are no part of a checkpoint
    assert plain.load_state_dict(attn.state_dict(), strict=False) == ([], ["decaying"])
    x = 3 * draw(2, 7, DIM)
    rates = [1 / 2, 3 / 4, 7 / 8, 15 / 16]
    want = softmax_attention(attn, x, lambda h, t, j: rates[h] ** (t - j) if j <= t else 0.0)
    torch.testing.assert_close(attn(x), want)
    assert not torch.allclose(plain(x), want)
    whole = softmax_attention(attn, x[:, :5], lambda h, t, j: rates[h] ** abs(t - j))
    padding = (torch.arange(7) >= 5).expand(2, -1)
    torch.testing.assert_close(attn(x, padding)[:, :5], whole)
    state = {}
    for t in range(7):  # two beams of a sentence, which change places on the way
        found = attn.step(x[None, :, t], Step(state, 1.0))
        torch.testing.assert_close(found[0], want[:, t])
        x, want = x.flip(0), want.flip(0)
        attn.reorder_incremental_state(state, torch.tensor([1, 0]))


@torch.no_grad()
def test_a_local_softmax_attention_is_the_equation():
    """Wherever the sentence begins."""
    torch.manual_seed(0)
    attn = LocalSelfAttention(DIM, HEADS, 0.0, sharpness=0.5).double()
    assert attn.bias.sharpness.tolist() == [0.5] * HEADS and not attn.bias.shift.any()
    gamma, shift = [0.5, -1.0, 0.0, 2.0], [0.0, 1.5, 1.0, -0.5]
    attn.bias.sharpness.copy_(torch.tensor(gamma))
    attn.bias.shift.copy_(torch.tensor(shift))
    x = 3 * draw(2, 6, DIM)

    def weigh(h, i, j):
        return math.exp(max(-30, -abs(gamma[h]) * (j - i - shift[h]) ** 2))

    want = softmax_attention(attn, x, weigh)
    torch.testing.assert_close(attn(x), want)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[:, :2] = padding[:, 8:] = True
    wide = torch.cat((draw(2, 2, DIM), x, draw(2, 1, DIM)), dim=1)
    torch.testing.assert_close(attn(wide, padding)[:, 2:8], want)
    # without a bias it is the ordinary one
    attn.bias.sharpness.zero_()
    plain = SelfAttention(DIM, HEADS, 0.0).double()
    plain.load_state_dict(attn.state_dict(), strict=False)
    torch.testing.assert_close(attn(x), plain(x))


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
