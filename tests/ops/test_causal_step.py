"""A step of the causal attention in one kernel is the equation, and a model that decodes with it finds the same."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from tiny import HYBRID, LOCAL, PAD, build, each, sentences, sharpen
from tiny import generation_of_a_command as generation

from fairseq_luna.models.luna_transformer.graphs import Graphs
from fairseq_luna.modules.causal_attention import LunaCausalAttention
from fairseq_luna.ops import dispatch
from fairseq_luna.ops.causal.state import share_of_step
from fairseq_luna.ops.causal.step import CausalState

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")]
SENTENCES, BEAMS, STEPS = 2, 3, 6
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
CASES = {
    "tied": {"tied": True, "decaying": False, "slots": 16},
    "tied, decaying, 5 slots": {"tied": True, "decaying": True, "slots": 5, "hiding": False},
    "untied": {"tied": False, "decaying": False, "slots": 5, "activation": "elu"},
    "untied, decaying, a slot": {"tied": False, "decaying": True, "slots": 1},
}


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def decoded(attn, x, packed, hidden, moves, on_device):
    """Y of every step, and the last state."""
    state, found = None, []
    for t in range(STEPS):
        before = None if state is None else state.reorder(moves[t])
        number = torch.tensor(t + 1, device=DEVICE) if on_device else t + 1
        y, state = attn.step(x[t], packed, before, share_of_step(number, attn.decays(x.device)), hidden)
        found.append(y)
    return torch.stack(found), state


dtypes = pytest.mark.parametrize("dtype", ROUNDING, ids=["fp32", "fp16", "bf16"])
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@dtypes
@cases
def test_kernel(case, dtype):
    """In float32 with the number of the step as Python has it, in the others as a CUDA graph has it."""
    check_kernel(dtype != torch.float32, dtype, 2, 16, **case)


@dtypes
@cases
@pytest.mark.parametrize(
    ("heads", "dim", "slots"), [pytest.param(*sizes, marks=gpu) for sizes in ((8, 64, 16), (8, 64, 32), (4, 128, 32))]
)
def test_kernel_on_a_gpu(heads, dim, slots, case, dtype):
    check_kernel(True, dtype, heads, dim, **{**case, "slots": slots})


@torch.no_grad()
def check_kernel(on_device, dtype, heads, dim, slots, hiding=True, **settings):
    torch.manual_seed(0)
    attn = LunaCausalAttention(heads * dim, heads, **settings).eval().to(DEVICE, dtype)
    hidden = (torch.arange(slots) >= torch.tensor([[slots], [(slots + 1) // 2]])).to(DEVICE) if hiding else None
    x, packed = draw(STEPS, SENTENCES, BEAMS, heads * dim), draw(SENTENCES, heads, slots, dim) / dim**0.5
    if settings["tied"]:  # by slots
        packed = packed.transpose(1, 2).contiguous().transpose(1, 2)
    else:  # the same for all sentences, as a language model has it
        packed = packed[:1].expand(SENTENCES, -1, -1, -1)
    moves = [torch.tensor([0, 0, 2, 5, 3, 4]).roll(3 * t).to(DEVICE) for t in range(STEPS)]
    # the inputs as they are rounded, for both
    x, packed = (u.to(DEVICE, dtype) for u in (x, packed))
    with dispatch.using(fused=True):
        found, state = decoded(attn, x, packed, hidden, moves, on_device)
    assert dispatch.forms()["causal step"].form == "fused"
    with dispatch.using(fused=False):
        want, want_state = decoded(attn.double(), x.double(), packed.double(), hidden, moves, on_device)
    assert dispatch.forms()["causal step"].form == "direct"
    assert found.dtype == dtype and state.keys.dtype == torch.float32 and state.order is None
    for one, other in ((found, want), *zip(state[:2], want_state[:2])):
        if other is not None:
            tolerance = ROUNDING[dtype] * float(other.abs().max())
            torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)


@torch.no_grad()
def test_a_step_leaves_the_state_before_as_it_was():
    """Others may follow it, and a kernel is tried before it is trusted."""
    attn, packed = LunaCausalAttention(32, 2, tied=False).eval().to(DEVICE), torch.randn(1, 2, 4, 16, device=DEVICE)
    state = CausalState(torch.randn(3, 2, 16, 4, device=DEVICE), torch.randn(3, 2, 4, 16, device=DEVICE))
    kept = [state.keys.clone(), state.values.clone()]
    with dispatch.using(fused=True):
        _, after = attn.step(torch.randn(1, 3, 32, device=DEVICE), packed, state, 0.5, in_place=True)
    assert all(map(torch.equal, kept, state[:2])) and not any(map(torch.equal, kept, after[:2]))


@torch.no_grad()
def test_rows_that_leave_and_rows_that_come():
    attn, packed = LunaCausalAttention(32, 2).eval().to(DEVICE), torch.randn(1, 2, 4, 16, device=DEVICE)
    state = CausalState(torch.randn(3, 2, 16, 4, device=DEVICE), None)
    strided = torch.tensor([[2, 9], [0, 9], [1, 9]])[:, 0]
    for order in (torch.tensor([2]), torch.tensor([1, 1, 0, 2, 2]), strided, torch.tensor([1]).expand(3)):
        moved = state.reorder(order.to(DEVICE))
        x = torch.randn(1, len(order), 32, device=DEVICE)
        with dispatch.using(fused=True):
            found, after = attn.step(x, packed, moved, 0.5)
        with dispatch.using(fused=False):
            want, plain = attn.step(x, packed, moved.in_order(), 0.5)
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(after.keys, plain.keys)


def test_what_a_step_kernel_cannot_do_goes_the_plain_way():
    attn = LunaCausalAttention(32, 2, dropout=0.5).to(DEVICE)
    x, packed = draw(1, 2, 32).to(DEVICE, torch.float32), draw(1, 2, 4, 16).to(DEVICE, torch.float32)

    def form():
        attn.step(x, packed, None, 1.0)
        return dispatch.forms()["causal step"]

    with dispatch.using(fused=True):
        assert form() == ("direct", "the kernel has no gradients")
        with torch.no_grad():
            assert form() == ("direct", "the kernel drops nothing")
            attn.eval()
            assert form().form == "fused"


def hypotheses(model, source):
    generator = SequenceGenerator([model], model.decoder.dictionary, beam_size=3, max_len_b=6)
    net_input = {"src_tokens": source, "src_lengths": source.ne(PAD).sum(dim=1)}
    found = generator.generate([model], {"id": torch.arange(len(source)), "net_input": net_input})
    return [[h["tokens"].tolist() for h in beams] for beams in found]


MODELS = {"paper's": {}, "local": {**LOCAL, "projection_length": 6}, "hybrid": HYBRID}


@torch.no_grad()
@pytest.mark.parametrize("static", [True, False], ids=["static", "growing"])
@pytest.mark.parametrize("settings", each(MODELS, ["local"]))
def test_beam_search_finds_the_same(settings, static):
    model = build(**settings, encoder_attention_heads=2, decoder_attention_heads=2, double=False)
    model = sharpen(model.double()).float().to(DEVICE)
    model.prepare_for_inference_(generation())
    model.decoder.uses_graphs = False
    source = sentences([9, 4]).to(DEVICE)
    with dispatch.using(fused=False):
        want = hypotheses(model, source)
    if static:
        model.decoder.uses_graphs = True
        model.decoder.graphs = Graphs(model.decoder, capture=DEVICE == "cuda")
    with dispatch.using(fused=True):
        assert hypotheses(model, source) == want
    assert bool(model.decoder.graphs and model.decoder.graphs.steps) == static
    assert dispatch.forms()["causal step"].form == "fused"
