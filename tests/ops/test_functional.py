"""The causal product: three forms of one equation, values, gradients, states, precisions."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fairseq_luna.ops.attention import attention
from fairseq_luna.ops.causal.attention import CAUSAL_ACTIVATIONS, Projections, attend
from fairseq_luna.ops.causal.chunk import chunk_causal_product
from fairseq_luna.ops.causal.naive import naive_causal_product, whole_product
from fairseq_luna.ops.causal.recurrent import recurrent_causal_product
from fairseq_luna.ops.causal.state import RunningMean, empty_mean, share_of_step, take
from fairseq_luna.ops.causal.step import CausalState, attend_step
from fairseq_luna.ops.dropout import NO_DROPOUT
from fairseq_luna.ops.pack import pack_unprojected
from fairseq_luna.ops.projection import Projection, logits_moved
from fairseq_luna.ops.softmax import log_softmax_
from fairseq_luna.ops.unpack import unpack_unprojected

FORMS = {"chunk": chunk_causal_product, "recurrent": recurrent_causal_product}
LENGTHS = [1, 2, 63, 64, 65, 100, 129]


DECAY = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)
decays = pytest.mark.parametrize("decay", [None, DECAY], ids=["flat", "decaying"])


def inputs(n, dtype=torch.float64, batch=2, heads=3, d1=5, d2=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, d1), (n, d1), (n, d2))
    return [torch.randn(batch, heads, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def at(u, t):
    """Position t of (B, H, n, d) as a step takes it, with one beam: (B, 1, H, d)."""
    return u[:, :, t].unsqueeze(1)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.stock
def test_naive_is_the_equation():
    x, y, z = inputs(7)
    out, _ = naive_causal_product(x, y, z)
    for t in range(7):
        total = sum(torch.outer(y[1, 2, j], z[1, 2, j]) for j in range(t + 1))
        close(out[1, 2, t], x[1, 2, t] @ total / (t + 1))


@pytest.mark.stock
def test_a_decay_is_the_equation():
    x, y, z = inputs(7)
    out, state = naive_causal_product(x, y, z, output_state=True, decay=DECAY)
    for head, rate in enumerate(DECAY):
        for t in range(7):
            total = sum(rate ** (t - j) * torch.outer(y[1, head, j], z[1, head, j]) for j in range(t + 1))
            mean = total / sum(rate**i for i in range(t + 1))
            close(out[1, head, t], x[1, head, t] @ mean)
        close(state.mean[1, head], mean)
    flat, _ = naive_causal_product(x, y, z)
    close(out[:, 2], flat[:, 2])


@pytest.mark.stock
@decays
def test_the_whole_product_is_the_equation(decay):
    """The second of two sentences has 4 positions, and nothing of what is behind them counts."""
    x, y, z = inputs(7)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    out, _ = whole_product(x, y, z, padding, decay)
    for row, n in enumerate((7, 4)):
        for head, rate in enumerate([1, 1, 1] if decay is None else decay.tolist()):
            for t in range(n):
                total = sum(rate ** abs(t - j) * torch.outer(y[row, head, j], z[row, head, j]) for j in range(n))
                mean = total / sum(rate ** abs(t - j) for j in range(n))
                close(out[row, head, t], x[row, head, t] @ mean)


def test_the_whole_product_of_much_padding_is_finite():
    """So far from the sentence that 2^-distance is nothing, in values and in gradients."""
    x, y, z = (u.float().requires_grad_() for u in inputs(300, heads=1))
    out, _ = whole_product(x, y, z, (torch.arange(300) > 2).expand(2, -1), torch.tensor([0.5]))
    out[:, :, :3].sum().backward()
    assert out.isfinite().all() and all(u.grad.isfinite().all() for u in (x, y, z))


@pytest.mark.stock
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", LENGTHS)
@decays
def test_forms_agree(form, n, decay):
    def run(product):
        args = [u.requires_grad_() for u in inputs(n)]
        out, state = product(*args, output_state=True, decay=decay)
        weights = torch.linspace(0.5, 2, out.numel(), dtype=out.dtype).view_as(out)
        return out, state, torch.autograd.grad((out * weights).sum(), args)

    (out, state, grads), (want, want_state, want_grads) = run(FORMS[form]), run(naive_causal_product)
    close(out, want)
    close(state.mean, want_state.mean)
    assert state.steps == want_state.steps == n
    for grad, want_grad in zip(grads, want_grads):
        close(grad, want_grad)


@pytest.mark.stock
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 100, 1000])
@decays
def test_every_chunk_size_is_exact(chunk_size, decay):
    x, y, z = inputs(100)
    found, _ = chunk_causal_product(x, y, z, decay=decay, chunk_size=chunk_size)
    close(found, naive_causal_product(x, y, z, decay=decay)[0])


@pytest.mark.parametrize("form", [*FORMS, "naive"])
@pytest.mark.parametrize("other", [*FORMS, "naive"])
@pytest.mark.parametrize("cut", [1, 30, 99])
@decays
def test_goes_on_from_a_state(form, other, cut, decay):
    product, then = (partial({**FORMS, "naive": naive_causal_product}[name], decay=decay) for name in (form, other))
    x, y, z = inputs(100)
    whole, end = product(x, y, z, output_state=True)
    first, state = product(*(u[:, :, :cut] for u in (x, y, z)), output_state=True)
    second, state = then(*(u[:, :, cut:] for u in (x, y, z)), state=state, output_state=True)
    close(torch.cat((first, second), dim=2), whole)
    close(state.mean, end.mean)
    assert state.steps == 100


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 64])
@decays
def test_gradcheck_of_the_product(chunk_size, decay):
    args = [u.requires_grad_() for u in inputs(7, batch=1, d1=3, d2=2)]
    product = partial(chunk_causal_product, decay=decay, chunk_size=chunk_size)
    assert torch.autograd.gradcheck(lambda x, y, z: product(x, y, z)[0], args)


@pytest.mark.parametrize("activation", CAUSAL_ACTIVATIONS)
def test_gradcheck_of_causal_attention(activation):
    x, y, z = (u.requires_grad_() for u in inputs(5, batch=2, heads=1, d1=3, d2=3))
    slots = torch.randn(2, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    hidden = torch.tensor([[False] * 4, [False, False, True, True]])

    def run(x, y, z, slots):
        pack = CAUSAL_ACTIVATIONS[activation](y @ slots.transpose(-1, -2))
        return attend(x, y, z, pack, hidden)

    assert torch.autograd.gradcheck(run, (x, y, z, slots))


def test_gradcheck_of_attention():
    query, key, value = (u.requires_grad_() for u in inputs(4, batch=2, heads=1, d1=3, d2=3))
    hidden = torch.tensor([[False] * 4, [False, True, True, False]])
    assert torch.autograd.gradcheck(lambda *args: attention(*args, hidden), (query, key, value))


@decays
def test_gradcheck_of_the_product_on_a_state(decay):
    """Also of what came before, and through what goes on to the next."""
    x, y, z = (u.requires_grad_() for u in inputs(7, batch=1, d1=3, d2=2))
    mean = torch.randn(1, 3, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(x, y, z, mean):
        out, after = chunk_causal_product(x, y, z, RunningMean(mean, 4), output_state=True, decay=decay, chunk_size=3)
        return out, after.mean

    assert torch.autograd.gradcheck(run, (x, y, z, mean))
    assert torch.autograd.gradcheck(lambda *args: run(*args)[1], (x, y, z, mean))


def test_the_product_keeps_its_inputs_alone_for_the_gradients():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        args = [u.requires_grad_() for u in inputs(1000, torch.float32)]
        chunk_causal_product(*args)
    inside = {u.data_ptr() for u in args}
    assert sum(t.numel() for t in kept if t.data_ptr() not in inside) <= 1000  # 1/t


def moved(n, heads=3, dim=12, slots=5, dtype=torch.float64, seed=0):
    """X, W and b of two projections by head, Q of slots, mask of X."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        u = torch.randn(shape, generator=generator, dtype=torch.float64) / max(1, shape[-1]) ** 0.5
        return u.to(dtype).requires_grad_(dtype == torch.float64)

    d = dim // heads
    projections = [(draw(heads, d, dim), draw(heads, d)) for _ in range(2)]
    hidden = torch.arange(n) >= torch.tensor([[n], [max(1, n - 3)]])
    return draw(2, n, dim), projections, draw(2, heads, slots, d), hidden


def project(x, projection):
    """(B, n, D) -> (B, H, n, d), before anything is moved."""
    weight, bias = projection
    return torch.einsum("bnk,hdk->bhnd", x, weight) + bias.unsqueeze(1)


def agree(found, want, args, tolerance=1e-12):
    """Values, and gradients of both to all of args."""
    weights = [torch.linspace(0.5, 2, u.numel(), dtype=u.dtype).view_as(u) for u in found]
    for a, b in zip(found, want):
        close(a, b, tolerance)
    if args[0].requires_grad:
        grads = [torch.autograd.grad(sum((u * w).sum() for u, w in zip(us, weights)), args) for us in (found, want)]
        for a, b in zip(*grads):
            close(a, b, tolerance)


biases = pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])


class Thinning:
    """A dropout with a fixed mask, the same for weights in any layout of the last dimensions."""

    def __init__(self, transposed=False):
        self.transposed = transposed

    def __call__(self, weights):
        weights = weights.transpose(1, 2) if self.transposed else weights
        mask = torch.arange(weights.numel(), dtype=weights.dtype).reshape(weights.shape) % 3
        return (weights * mask).transpose(1, 2) if self.transposed else weights * mask


@pytest.mark.stock
@pytest.mark.parametrize("n", [1, 2, 63, 100, 1000])
@pytest.mark.parametrize("thin", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize("masked", [False, True], ids=["full", "padded"])
@biases
def test_pack_unprojected_is_attention(n, thin, masked, biased):
    context, (key, value), query, hidden = moved(n)
    bias = torch.linspace(-3, 3, 2 * 3 * 5 * n, dtype=torch.float64).view(2, 3, 5, n) if biased else None
    rest = (hidden if masked else None, Thinning() if thin else NO_DROPOUT)
    found = pack_unprojected(query, context, key, value, *rest, bias=bias)
    want = attention(query, project(context, key), project(context, value), *rest, bias=bias)
    agree(found, want, [context, query, *key, *value])
    # plain values: the context, a share of its channels for each head
    found = pack_unprojected(query, context, key, None, *rest, bias=bias)
    plain = context.unflatten(2, (query.size(1), -1)).transpose(1, 2)
    want = attention(query, project(context, key), plain, *rest, bias=bias)
    agree(found, want, [context, query, *key])


@pytest.mark.stock
@pytest.mark.parametrize("n", [1, 2, 63, 100, 1000])
@pytest.mark.parametrize("thin", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize("masked", [False, True], ids=["full", "padded"])
@biases
def test_unpack_unprojected_is_attention(n, thin, masked, biased):
    x, (query, out), key, _ = moved(n)
    added = torch.linspace(-3, 3, 2 * 3 * n * 5, dtype=torch.float64).view(2, 3, n, 5) if biased else None
    value, bias = moved(n, seed=1)[2], moved(12, seed=2)[0][0, 0]
    hidden = torch.arange(5) >= torch.tensor([[5], [2]]) if masked else None
    found = unpack_unprojected(
        x, query, key, value, (out[0], bias), hidden, Thinning(transposed=True) if thin else NO_DROPOUT, bias=added
    )
    read, weights = attention(project(x, query), key, value, hidden, Thinning() if thin else NO_DROPOUT, bias=added)
    want = torch.einsum("bhnd,hdk->bnk", read, out[0]) + bias, weights
    agree(found, want, [x, key, value, *query, out[0], bias])


@pytest.mark.stock
@pytest.mark.parametrize("n", [1, 65])
def test_moved_logits_are_logits(n):
    x, (projection, _), slots, _ = moved(n)
    found = logits_moved(x, projection, slots)
    want = project(x, projection) @ slots.transpose(-1, -2)
    agree([found], [want.transpose(1, 2).flatten(2)], [x, slots, *projection])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@torch.no_grad()
def test_unprojected_forms_in_half_precision(dtype):
    """No farther from the truth than the forms that project first, but for one rounding."""
    x, (key, value), query, hidden = moved(500, dtype=dtype)
    wide = [u.double() for u in (x, *key, *value, query)]
    want, _ = attention(wide[5], project(wide[0], wide[1:3]), project(wide[0], wide[3:5]), hidden)
    direct, _ = attention(query, project(x, key), project(x, value), hidden)
    found, _ = pack_unprojected(query, x, key, value, hidden)
    assert found.dtype == dtype
    error, bound = (found.double() - want).abs().max(), (direct.double() - want).abs().max()
    assert error <= 2 * bound + torch.finfo(dtype).eps * want.abs().max()


@torch.no_grad()
def test_log_softmax_in_place():
    logits = inputs(7, torch.float32)[0] * 30
    want, memory = logits.log_softmax(-1), logits.data_ptr()
    found = log_softmax_(logits)
    assert torch.equal(found, want) and found.data_ptr() == memory


def test_gradient_of_log_softmax_in_place():
    x = inputs(3)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_softmax_(x * 2), x)
    # a criterion may ask twice, and for a part
    once = log_softmax_(x * 2)
    twice = log_softmax_(once)
    part = log_softmax_(once[:, :, 1:])
    want = F.log_softmax(x * 2, -1)
    close(twice, want)
    (grad,) = torch.autograd.grad((once + twice).square().sum() + part.square().sum(), x)
    (want_grad,) = torch.autograd.grad((2 * want).square().sum() + want[:, :, 1:].square().sum(), x)
    close(grad, want_grad, tolerance=1e-9)


@pytest.mark.stock
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_steps_of_causal_attention_equal_the_whole(tied):
    x, key, _ = inputs(70, d2=5)
    value = None if tied else inputs(70, d2=5, seed=1)[2]
    pack = torch.nn.functional.softplus(inputs(70, seed=2)[2])
    hidden = torch.tensor([[False] * 4, [False, False, True, True]])
    out, unpack = attend(x, key, value, pack, hidden)
    state, steps = None, []
    for t in range(70):
        q, k, v, a = (None if u is None else at(u, t) for u in (x, key, value, pack))
        step = attend_step(q, k, v, a, state, share_of_step(t + 1), hidden)
        steps.append(step[:2])
        state = step[2]
    close(torch.cat([s[0] for s in steps], dim=1).transpose(1, 2), out)
    close(torch.cat([s[1] for s in steps], dim=1).transpose(1, 2), unpack)
    assert (state.values is None) == tied


def test_values_of_a_tied_state_are_the_keys_transposed():
    x, key, _ = inputs(9, d2=5)
    pack = torch.nn.functional.softplus(inputs(9, seed=2)[2])
    tied = untied = None
    for t in range(9):
        q, k, a = (at(u, t) for u in (x, key, pack))
        *_, tied = attend_step(q, k, None, a, tied, share_of_step(t + 1))
        *_, untied = attend_step(q, k, k, a, untied, share_of_step(t + 1))
    close(tied.keys.transpose(-1, -2), untied.values, tolerance=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_stays_exact_over_2000_steps(dtype):
    """The reference keeps counter and sums in the activation's dtype: in bf16 it stops at 256."""
    n = 2000
    half = inputs(n, dtype, batch=1, heads=1)
    half[1], half[2] = half[1].abs(), half[2].abs()  # a mean that does not vanish
    x, y, z = (u.double() for u in half)
    want, want_state = naive_causal_product(x, y, z, output_state=True)

    mean = empty_mean(half[1], half[2])
    for t in range(n):
        mean = take(mean, half[1][:, :, t : t + 1], half[2][:, :, t : t + 1], share_of_step(t + 1), in_place=True)
    assert mean.dtype == torch.float32
    close(mean.double(), want_state.mean, tolerance=1e-5)

    for form in FORMS.values():
        out, _ = form(*half)
        assert out.dtype == dtype
        # one rounding of the result to half precision, no more
        torch.testing.assert_close(out.double(), want, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps * 0.05)


@pytest.mark.parametrize("form", [*FORMS, "naive"])
def test_autocast_does_not_lower_the_sums(form):
    x, y, z = inputs(300, torch.float32)
    want, _ = naive_causal_product(*(u.double() for u in (x, y, z)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = {**FORMS, "naive": naive_causal_product}[form](x, y, z)
    close(out.double(), want, tolerance=1e-5)


@decays
def test_autocast_does_not_lower_steps_and_gradients(decay):
    x, y, z = (u.requires_grad_() for u in inputs(70, torch.float32))
    value = inputs(70, torch.float32, seed=1)[1]

    def run():
        pack = z * z
        whole, _ = attend(x, y, value, pack, decay=decay)
        state, steps = None, []
        for t in range(70):
            out, _, state = attend_step(*(at(u, t) for u in (x, y, value, pack)), state, share_of_step(t + 1, decay))
            steps.append(out)
        return whole, torch.cat(steps, dim=1).transpose(1, 2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
        grads = torch.autograd.grad(found[0].square().sum(), (x, y, z))
    want = run()
    want_grads = torch.autograd.grad(want[0].square().sum(), (x, y, z))
    for a, b in zip((*found, *grads), (*want, *want_grads)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", [*FORMS, "naive"])
def test_a_decay_gets_no_gradient(form):
    decay = DECAY.clone().requires_grad_()
    x, y, z = (u.requires_grad_() for u in inputs(9))
    out, _ = {**FORMS, "naive": naive_causal_product}[form](x, y, z, decay=decay)
    out.sum().backward()
    assert x.grad is not None and decay.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_large_logits_are_not_rounded_before_their_softmax(dtype):
    """In half precision they would lose all digits that tell slots apart, or overflow."""
    x, key, _ = inputs(50, dtype, d1=32, d2=32)
    pack = inputs(50, dtype, d2=4, seed=2)[2].exp()
    query = x * 40
    wide = [u.double() for u in (query, key, key, pack)]
    want, unpack_want = attend(wide[0], wide[1], None, wide[3])
    out, unpack = attend(query, key, None, pack)
    state = None
    for t in range(50):
        q, k, a = (at(u, t) for u in (query, key, pack))
        _, step, state = attend_step(q, k, None, a, state, share_of_step(t + 1))
        close(step[:, 0].double(), unpack_want[:, :, t], tolerance=0.01)
    close(unpack.double(), unpack_want, tolerance=0.01)
    close(out.double(), want, tolerance=0.05)


@pytest.mark.parametrize("n", [8191, 8192])
def test_long_sequences_in_float32(n):
    x, y, z = inputs(n, torch.float32, batch=1, heads=1)
    want, _ = naive_causal_product(*(u.double() for u in (x, y, z)))
    close(chunk_causal_product(x, y, z)[0].double(), want, tolerance=2e-5)


def test_gradients_of_8192_tokens():
    def grads(product):
        args = [u.requires_grad_() for u in inputs(8192, batch=1, heads=1, d1=3, d2=2)]
        return torch.autograd.grad(product(*args)[0].square().sum(), args)

    for found, want in zip(grads(chunk_causal_product), grads(naive_causal_product)):
        close(found, want, tolerance=1e-10)


@pytest.mark.parametrize("product", [*FORMS.values(), naive_causal_product])
def test_the_future_changes_nothing_to_the_bit(product):
    x, y, z = inputs(130, torch.float32)
    before, _ = product(x, y, z)
    for changed in (y, z):
        changed[:, :, 77] += 1
    after, _ = product(x, y, z)
    assert torch.equal(before[:, :, :77], after[:, :, :77])
    assert not torch.equal(before[:, :, 77:], after[:, :, 77:])


@pytest.mark.parametrize("activation", CAUSAL_ACTIVATIONS.values(), ids=CAUSAL_ACTIVATIONS)
def test_causal_activations_are_positive_and_one_at_zero(activation):
    x = torch.linspace(-10, 10, 101, dtype=torch.float64)
    assert (activation(x) > 0).all()
    close(activation(torch.zeros(1, dtype=torch.float64)), torch.ones(1, dtype=torch.float64))


def test_reorder_of_a_state():
    _, y, z = inputs(3, batch=3)
    _, state = recurrent_causal_product(y, y, z, output_state=True)
    moved = CausalState(state.mean, None).reorder(torch.tensor([2, 0, 0, 1])).in_order()
    assert moved.values is None and moved.order is None
    close(moved.keys, state.mean[[2, 0, 0, 1]], tolerance=0)
    again = CausalState(state.mean, state.mean.mT).reorder(torch.tensor([2, 0, 0])).reorder(torch.tensor([1, 0]))
    assert again.order.tolist() == [0, 2]
    close(again.in_order().values, state.mean.mT[[0, 2]], tolerance=0)


def test_projections_together_are_those_apart():
    torch.manual_seed(0)
    x, weights = torch.randn(2, 3, 4), torch.randn(4, 6, 4)
    query, key, value, pack_key = (Projection(weight, torch.randn(6)) for weight in weights)
    for given in ([query, key, value, pack_key], [query, key, None, pack_key]):
        projections = Projections(query._replace(scale=0.5), *given[1:])
        apart = [projection(x) for projection in given if projection is not None]
        close(projections.together(x), torch.cat(apart, dim=-1), tolerance=1e-6)


def test_chunk_size_below_one_is_refused():
    with pytest.raises(ValueError, match="`chunk_size` must be >= 1, but is 0 instead."):
        chunk_causal_product(*inputs(3), chunk_size=0)
