"""Luna as pure tensor functions: attention, and the causal product in three forms.

Letters are the paper's (arXiv 2106.01540): X (B, n, D) the sequence, P (B, l, D) the packed
sequence, C (B, m, D) the context. After projection the heads stand apart: B batch, H heads,
n positions, l slots, d channels of a head. Every sum over positions is taken in float32 at
least, whatever dtype comes in; results come back in the dtype of the first argument.

The causal product is the paper's helper f (section 3.3),

    f_t(X, Y, Z) = 1/t x_t sum_{j <= t} y_j^T z_j        X, Y: n x d1,  Z: n x d2,

or, with a decay lambda of each head, the mean in which what is i positions back counts lambda^i,

    f_t(X, Y, Z) = 1/w_t x_t sum_{j <= t} lambda^{t - j} y_j^T z_j,        w_t = sum_{i < t} lambda^i

(the decay of retention, Sun et al. 2023, and of MEGA's moving average, Ma et al. 2022). It stands here
three times under one interface, `product(x, y, z, state, output_state, decay)`:

    naive_causal_product        the equation, for tests and readers      O(n d1 d2) memory
    chunk_causal_product        exact and parallel, for training         O(n (c + d1 d2 / c))
    recurrent_causal_product    step by step on a state, for decoding    O(d1 d2)
"""

import functools
import math
from typing import Any, Callable, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_SIZE = 64


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast would take the sums back to half precision."""

    @functools.wraps(function)
    def wrapped(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return function(x, *args, **kwargs)

    return wrapped


class RunningMean(NamedTuple):
    """What the causal product remembers of the past, constant in size.

    Attributes:
        mean: (B, H, d1, d2), `1/w_t sum_{j <= t} lambda^{t - j} y_j^T z_j`, in float32 at least. A mean
            and not a sum, so that its error stays flat however long the sequence grows.
        steps: t, the number of positions seen.
    """

    mean: Tensor
    steps: int

    def update(self, y: Tensor, z: Tensor, decay: Optional[Tensor] = None) -> "RunningMean":
        """Takes in one position. y: (B, H, 1, d1), z: (B, H, 1, d2), decay: (H,)."""
        return RunningMean(self.mean.clone(), self.steps).update_(y, z, decay)

    def update_(self, y: Tensor, z: Tensor, decay: Optional[Tensor] = None) -> "RunningMean":
        """As `update`, in the memory of this mean: (1 - 1/w_t) mean + 1/w_t y^T z, with w_t = t in one pass."""
        steps, (d1, d2) = self.steps + 1, self.mean.shape[-2:]
        y, z = (u.to(self.mean.dtype) for u in (y, z))
        past, now = self.steps / steps, 1 / steps
        if decay is not None:
            share = 1 / total_weight(decay, torch.full_like(decay, steps)).view(-1, 1, 1).to(y.dtype)
            self.mean.mul_(1 - share)
            y, past, now = y * share, 1.0, 1.0
        self.mean.view(-1, d1, d2).baddbmm_(y.reshape(-1, d1, 1), z.reshape(-1, 1, d2), beta=past, alpha=now)
        return RunningMean(self.mean, steps)

    def reorder(self, new_order: Tensor) -> "RunningMean":
        """Follows the beams: row i becomes what row `new_order[i]` was. new_order: (B',)."""
        return RunningMean(self.mean.index_select(0, new_order), self.steps)


Dropout = Callable[[Tensor], Tensor]
HeadWeights = Tuple[Tensor, Tensor]
ProductResult = Tuple[Tensor, Optional[RunningMean]]


def empty_state(y: Tensor, z: Tensor) -> RunningMean:
    """The state before the first position. y: (B, H, n, d1), z: (B, H, n, d2)."""
    shape = (*y.shape[:-2], y.size(-1), z.size(-1))
    return RunningMean(y.new_zeros(shape, dtype=accumulation_dtype(y.dtype)), 0)


def total_weight(decay: Tensor, t: Tensor) -> Tensor:
    """w_t = sum_{i < t} lambda^i = (1 - lambda^t) / (1 - lambda), for every lambda in (0, 1]."""
    flat = decay == 1
    rest = (1 - decay).masked_fill(flat, 1)
    # 1 - lambda^t without the rounding of lambda^t near 1
    return torch.where(flat, t, -torch.expm1(t * decay.log()) / rest)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


@_without_autocast
def naive_causal_product(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    state: Optional[RunningMean] = None,
    output_state: bool = False,
    decay: Optional[Tensor] = None,
) -> ProductResult:
    """f as the equation has it: every outer product, their cumulative mean, then x.

    Costs O(n d1 d2) in time and in memory, of which gradients keep several copies; with a decay
    O(n^2 d1 d2) in time.

    Args:
        x: (B, H, n, d1).
        y: (B, H, n, d1).
        z: (B, H, n, d2).
        state: the state to go on from (default: nothing seen yet).
        output_state: whether to return the state after the last position.
        decay: lambda of each head, (H,), in (0, 1]; no gradients go there (default: 1, a flat mean).

    Returns:
        (B, H, n, d2) and the state, or None.
    """
    dtype = accumulation_dtype(x.dtype)
    state = state or empty_state(y, z)
    outer = y.to(dtype).unsqueeze(-1) * z.to(dtype).unsqueeze(-2)
    t = torch.arange(1, x.size(2) + 1, device=x.device)
    if decay is None:
        sums = outer.cumsum(dim=2) + state.steps * state.mean.unsqueeze(2)
        means = sums / (t + state.steps).view(-1, 1, 1)
    else:
        by_head = decay.detach().to(dtype).view(-1, 1)
        sums = torch.einsum("htj,bhjde->bhtde", _powers(by_head, len(t)), outer)
        if state.steps:
            seen = total_weight(by_head, torch.full_like(by_head, state.steps)) * by_head**t
            sums = sums + seen.unsqueeze(-1).unsqueeze(-1) * state.mean.unsqueeze(2)
        means = sums / total_weight(by_head, (t + state.steps).to(dtype)).unsqueeze(-1).unsqueeze(-1)
    out = (x.to(dtype).unsqueeze(-2) @ means).squeeze(-2)
    final = RunningMean(means[:, :, -1].contiguous(), state.steps + x.size(2)) if output_state else None
    return out.to(x.dtype), final


def _powers(decay: Tensor, n: int) -> Tensor:
    """lambda^(t - j) for j <= t, else 0: (H, n, n)."""
    t = torch.arange(n, device=decay.device)
    return (decay.view(-1, 1, 1) ** (t.view(-1, 1) - t).clamp(min=0)).tril()


@_without_autocast
def chunk_causal_product(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    state: Optional[RunningMean] = None,
    output_state: bool = False,
    decay: Optional[Tensor] = None,
    chunk_size: int = CHUNK_SIZE,
) -> ProductResult:
    """f by chunks of c positions: inside a chunk tril(X Y^T) Z, between chunks the running sum.

    Exact for every n, with time linear in n: O(n c (d1 + d2)) inside, O(n d1 d2) between, and memory
    O(n (c + d1 d2 / c)). For the gradients x, y and z are kept in the dtype of the sums, and nothing
    else: the rest is computed again.
    Arguments, shapes and results as in `naive_causal_product`; for a state with a decay 1/lambda^c must
    be a number in the dtype of the sums (lambda >= 0.3 will do for c = 64).

    Raises:
        ValueError: if chunk_size < 1.
    """
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be >= 1, but is {chunk_size} instead.")
    n, dtype, out_dtype = x.size(2), accumulation_dtype(x.dtype), x.dtype
    seen = state.steps if state is not None else 0
    # chunks of even size waste the least on padding: 65 positions are 33 + 32, not 64 + 1
    chunks = max(1, math.ceil(n / chunk_size))
    weight = torch.arange(1 + seen, 1 + seen + n, device=x.device, dtype=dtype).unsqueeze(-1)
    total: Any = seen + n
    known: Any = seen
    if decay is not None:
        decay = decay.detach().to(dtype).view(-1, 1, 1)
        weight = total_weight(decay, weight)
        total, known = (total_weight(decay, torch.full_like(decay, t)) for t in (seen + n, seen))
    before = known * state.mean if state is not None else None
    x, y, z = (u.to(dtype) for u in (x, y, z))
    out, after = _ChunkCausalSums.apply(x, y, z, before, decay, chunks, output_state)
    final = RunningMean(after / total, seen + n) if output_state else None
    return (out / weight).to(out_dtype), final


class _Decay(NamedTuple):
    """Powers of lambda inside a chunk of c positions.

    Attributes:
        inside: lambda^(t - j), from position j to t, (H, 1, c, c), 0 above the diagonal.
        enter: lambda^(t + 1), from the end of the chunk before to position t, (H, 1, c, 1).
        leave: lambda^(c - 1 - j), from position j to the end of the chunk, (H, 1, c, 1).
        across: lambda^c, (H, 1, 1).
    """

    inside: Tensor
    enter: Tensor
    leave: Tensor
    across: Tensor

    @staticmethod
    def of(decay: Tensor, size: int) -> "_Decay":
        """decay: (H, 1, 1)."""
        inside = _powers(decay, size).unsqueeze(1)
        enter = decay.unsqueeze(1) * inside[..., :1]
        return _Decay(inside, enter, inside[..., -1:, :].transpose(-1, -2), enter[:, :, -1])


class _ChunkCausalSums(torch.autograd.Function):
    """o_t = x_t (lambda^t S_0 + sum_{j <= t} lambda^(t - j) y_j^T z_j), and the sum after the last position.

    With A = tril(X Y^T) inside a chunk and S the sum of y_j^T z_j over the chunks before it,

        O = A Z + X S
        dX = tril(dO Z^T) Y + dO S^T,    dY = tril(dO Z^T)^T X + Z R^T,    dZ = A^T dO + Y R,

    where R is the sum of x_t^T do_t over the chunks behind it. A decay goes along with every step:
    into tril, and into X on its way to S, into Y on its way out of the chunk.
    """

    @staticmethod
    def forward(ctx, x, y, z, before, decay, chunks, output_state):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, z, before, decay)
        ctx.chunks = chunks
        n = x.size(2)
        x, y, z = (_split(u, chunks) for u in (x, y, z))
        powers = None if decay is None else _Decay.of(decay, x.size(3))
        out = _tril_(x @ y.transpose(-1, -2), powers) @ z
        after = None
        if chunks > 1 or before is not None or output_state:
            sums = _sums(_leave(y, powers), z, before, powers)
            out += _enter(x, powers) @ sums[:, :, :-1]
            if output_state:
                # the zeros at the end have let it decay further
                extra = chunks * x.size(3) - n
                after = sums[:, :, -1] if decay is None else sums[:, :, -1] / decay**extra
        return _join(out, n), after

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_after):
        x, y, z, before, decay = ctx.saved_tensors
        if d_out is None:
            d_out = torch.zeros_like(x[..., :1]).expand(*x.shape[:3], z.size(-1))
        return (*_chunk_gradients(x, y, z, before, decay, d_out, d_after, ctx.chunks), None, None, None)


@_without_autocast
def _chunk_gradients(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    before: Optional[Tensor],
    decay: Optional[Tensor],
    d_out: Tensor,
    d_after: Optional[Tensor],
    chunks: int,
) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor]]:
    n = x.size(2)
    x, y, z, d_out = (_split(u, chunks) for u in (x, y, z, d_out))
    powers = None if decay is None else _Decay.of(decay, x.size(3))
    a = _tril_(x @ y.transpose(-1, -2), powers)
    d_a = _tril_(d_out @ z.transpose(-1, -2), powers)
    d_x, d_y, d_z = d_a @ y, d_a.transpose(-1, -2) @ x, a.transpose(-1, -2) @ d_out
    d_before = None
    if chunks > 1 or before is not None or d_after is not None:
        if decay is not None and d_after is not None:
            d_after = d_after / decay ** (chunks * x.size(3) - n)
        left = _leave(y, powers)
        sums = _sums(left, z, before, powers)
        later = _sums(_enter(x, powers), d_out, d_after, powers, from_the_end=True)
        d_x += _enter(d_out @ sums[:, :, :-1].transpose(-1, -2), powers)
        d_y += _leave(z @ later[:, :, 1:].transpose(-1, -2), powers)
        d_z += left @ later[:, :, 1:]
        d_before = None if before is None else later[:, :, 0]
    return _join(d_x, n), _join(d_y, n), _join(d_z, n), d_before


def _tril_(a: Tensor, powers: Optional[_Decay]) -> Tensor:
    # tril first: what is not a number in y must not reach what comes before it
    return a.tril_() if powers is None else a.tril_().mul_(powers.inside)


def _enter(x: Tensor, powers: Optional[_Decay]) -> Tensor:
    return x if powers is None else x * powers.enter


def _leave(y: Tensor, powers: Optional[_Decay]) -> Tensor:
    return y if powers is None else y * powers.leave


def _split(u: Tensor, chunks: int) -> Tensor:
    """(B, H, n, d) -> (B, H, chunks, c, d), the end filled with zeros, which add nothing."""
    size = math.ceil(u.size(2) / chunks)
    missing = chunks * size - u.size(2)
    if missing:
        u = F.pad(u, (0, 0, 0, missing))
    return u.reshape(*u.shape[:2], chunks, size, u.size(-1))


def _join(u: Tensor, n: int) -> Tensor:
    """(B, H, chunks, c, d) -> (B, H, n, d)."""
    return u.flatten(2, 3)[:, :, :n]


def _sums(
    y: Tensor, z: Tensor, start: Optional[Tensor], powers: Optional[_Decay], from_the_end: bool = False
) -> Tensor:
    """The sum of y_j^T z_j before each chunk and after all, (B, H, chunks + 1, d1, d2), added to start (default 0)."""
    added = y.transpose(-1, -2) @ z
    first = torch.zeros_like(added[:, :, :1]) if start is None else start.unsqueeze(2)
    if powers is None:
        if from_the_end:
            return torch.cat((added, first), dim=2).flip(2).cumsum(dim=2).flip(2)
        return torch.cat((first, added), dim=2).cumsum(dim=2)
    sums = [first[:, :, 0]]
    for new in added.flip(2).unbind(2) if from_the_end else added.unbind(2):
        sums.append(powers.across * sums[-1] + new)
    return torch.stack(sums[::-1] if from_the_end else sums, dim=2)


@_without_autocast
def recurrent_causal_product(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    state: Optional[RunningMean] = None,
    output_state: bool = False,
    decay: Optional[Tensor] = None,
) -> ProductResult:
    """f one position after the other: S <- (1 - 1/w_t) S + 1/w_t y_t^T z_t, then x_t S.

    A step costs O(d1 d2) in time and in memory, whatever its position.
    Arguments, shapes and results as in `naive_causal_product`.
    """
    state = state or empty_state(y, z)
    decay = None if decay is None else decay.detach()
    steps = []
    for t in range(x.size(2)):
        now = slice(t, t + 1)
        state = state.update(y[:, :, now], z[:, :, now], decay)
        steps.append(x[:, :, now].to(state.mean.dtype) @ state.mean)
    return torch.cat(steps, dim=2).to(x.dtype), state if output_state else None


@_without_autocast
def whole_product(
    x: Tensor, y: Tensor, z: Tensor, padding: Tensor, decay: Optional[Tensor] = None
) -> Tuple[Tensor, None]:
    """f without an order of time: the mean of all positions, in which what is i away counts lambda^i.

        f_t(X, Y, Z) = 1/w_t x_t sum_j lambda^|t - j| y_j^T z_j,        w_t = sum_j lambda^|t - j|

    Costs O(n^2 (d1 + d2)) in time and O(n^2) in memory.

    Args:
        x: (B, H, n, d1).
        y: (B, H, n, d1).
        z: (B, H, n, d2).
        padding: (B, n), True where a position is padding, which no sum has in it.
        decay: as in `naive_causal_product`.

    Returns:
        (B, H, n, d2), and None: there is no state to go on from.
    """
    dtype, t = accumulation_dtype(x.dtype), torch.arange(x.size(2), device=x.device)
    apart = (t.view(-1, 1) - t).abs()
    share = torch.ones_like(apart).unsqueeze(0) if decay is None else decay.detach().view(-1, 1, 1) ** apart
    share = share.to(dtype) * ~padding[:, None, None, :]
    # what is padding may be so far from everything else that no share of it is left
    share = share / share.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
    out = (x.to(dtype) @ y.to(dtype).transpose(-1, -2) * share) @ z.to(dtype)
    return out.to(x.dtype), None


def softmax(logits: Tensor, hidden: Optional[Tensor] = None, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Softmax over the last dimension.

    Args:
        logits: (B, H, n, m).
        hidden: (B, m), True where a column is not to be seen.
        dtype: to compute in (default: float32, or float64 for float64).
    """
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None, None, :], float("-inf"))
    dtype = dtype or accumulation_dtype(logits.dtype)
    return F.softmax(logits, dim=-1, dtype=dtype).to(logits.dtype)


def log_softmax_(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension, in place: a vocabulary wide, it is the largest tensor there is.

    Log-probabilities are their own log-softmax: what was made here comes back as it is, so that a
    criterion may ask twice. A part of a larger tensor is left alone, and gets a result of its own.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return torch.log_softmax(logits, dim=-1, out=logits)
    if logits.grad_fn is not None and logits.grad_fn.name() == "_LogSoftmaxBackward":
        return logits
    if logits.is_leaf or logits._base is not None:
        return F.log_softmax(logits, dim=-1)
    return _LogSoftmax.apply(logits)


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.mark_dirty(logits)
        torch.log_softmax(logits, dim=-1, out=logits)
        ctx.save_for_backward(logits)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (log_probs,) = ctx.saved_tensors
        return torch._log_softmax_backward_data(grad, log_probs, -1, log_probs.dtype)


def slot_positions(padding: Tensor, used: Tensor) -> Tensor:
    """Where each position lies, were the slots spread evenly over the sentence.

        (j + 1/2) / w,   w = n / l'

    for the j-th of the n tokens of a sentence that uses l' slots: the unit is the stretch w of a slot, and slot i has
    its centre at i + 1/2.

    Args:
        padding: (B, m), True where the source is padded, wherever it is.
        used: l' of each sentence, (B, 1).

    Returns:
        (B, m), in float32.
    """
    tokens = (~padding).float()
    # at least 1, for a row of nothing but padding
    stretch = tokens.sum(dim=1, keepdim=True).clamp(min=1) / used.clamp(min=1)
    return (tokens.cumsum(dim=1) - 0.5) / stretch


def identity(weights: Tensor) -> Tensor:
    """The dropout of a model at rest."""
    return weights


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden: Optional[Tensor] = None,
    dropout: Dropout = identity,
    softmax_dtype: Optional[torch.dtype] = None,
    bias: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """Attention(X, C) = softmax(Q K^T) V, the query scaled already (paper, section 2).

    Pack is `attention(P, C)`, unpack is `attention(X, Y_P)`: linear in the length of the sequence
    since the other side has l rows.

    Args:
        query: (B, H, n, d).
        key: (B, H, m, d).
        value: (B, H, m, d).
        hidden: (B, m), True where a row of the context is padding.
        dropout: applied to the weights.
        softmax_dtype: as in `softmax`.
        bias: added to the logits, (B, H, n, m).

    Returns:
        (B, H, n, d) and the weights (B, H, n, m) before dropout.
    """
    query, key, value = _ordered(query, key, value)
    logits = query @ key.transpose(-1, -2)
    weights = softmax(logits if bias is None else logits + bias, hidden, softmax_dtype)
    return dropout(weights) @ value, weights


def _ordered(query: Tensor, key: Tensor, value: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Each in one block of memory, copied once: products of batches would copy it every time, and keep the copies."""
    ordered = key.contiguous()
    return query.contiguous(), ordered, ordered if value is key else value.contiguous()


def pack_unprojected(
    query: Tensor,
    context: Tensor,
    key: HeadWeights,
    value: Optional[HeadWeights],
    hidden: Optional[Tensor] = None,
    dropout: Dropout = identity,
    bias: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """`attention(P, C)` with the products in another order: the context is never projected.

        softmax(Q (C W_K)^T) C W_V = softmax((Q W_K^T) C^T) (C) W_V

    Costs O(l D^2) a sentence and 2 H l D a position, in place of D^2 and more: for long contexts
    and few slots. b_K is added, though it is the same for all of a row and its softmax does not see
    it: so every parameter has a gradient.

    Args:
        query: P W_Q, scaled, (B, H, l, d).
        context: C, (B, m, D).
        key: W_K (H, d, D) and b_K (H, d).
        value: W_V (H, d, D) and b_V (H, d); None where values are the context itself, D / H channels a head.
        hidden: (B, m), True where a row of the context is padding.
        dropout: applied to the weights.
        bias: added to the logits, (B, H, l, m).

    Returns:
        (B, H, l, d) and the weights (B, H, l, m) before dropout.
    """
    heads, slots = query.shape[1:3]
    logits = torch.baddbmm(*_moved(query, key), context.transpose(1, 2)).unflatten(1, (heads, slots))
    weights = softmax(logits if bias is None else logits + bias, hidden)
    dropped = dropout(weights)
    if value is None:
        return dropped @ context.unflatten(2, (heads, -1)).transpose(1, 2), weights
    mixed = (dropped.flatten(1, 2) @ context).unflatten(1, (heads, slots))
    value_weight, value_bias = value
    out = torch.einsum("bhlk,hdk->bhld", mixed, value_weight)
    # rows of weights add up to 1, after a dropout to what it left
    rest = 1 if dropped is weights else dropped.sum(dim=-1, keepdim=True)
    return out + rest * value_bias.unsqueeze(1), weights


def unpack_unprojected(
    x: Tensor,
    query: HeadWeights,
    key: Tensor,
    value: Tensor,
    out: HeadWeights,
    hidden: Optional[Tensor] = None,
    dropout: Dropout = identity,
    softmax_dtype: Optional[torch.dtype] = None,
    bias: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """Unpack with both its projections moved to the slots, of which there are fewer than positions.

        softmax(X W_Q K^T) V W_O = softmax(X (W_Q K^T)) (V W_O)

    Costs O(l D^2) a sentence and 2 H l D a position, in place of 2 D^2 and more.

    Args:
        x: X, (B, n, D).
        query: W_Q (H, d, D) and b_Q (H, d), scaled.
        key: of Y_P, (B, H, l, d).
        value: of Y_P, (B, H, l, d).
        out: W_O (H, d, D'), and the bias (D') of the result.
        hidden: (B, l), True where a slot is not used.
        dropout: applied to the weights.
        softmax_dtype: as in `softmax`.
        bias: added to the logits, (B, H, n, l).

    Returns:
        Y_X (B, n, D') and the weights (B, H, n, l) before dropout.
    """
    heads, slots = key.shape[1:3]
    logits = logits_unprojected(x, query, key)
    # (B, n, H, l): a softmax over the slots of each head
    logits = logits.unflatten(2, (heads, slots))
    weights = softmax(logits if bias is None else logits + bias.transpose(1, 2), hidden, softmax_dtype)
    out_weight, out_bias = out
    read = torch.einsum("bhld,hdk->bhlk", value, out_weight).flatten(1, 2)
    y = torch.baddbmm(out_bias, dropout(weights).flatten(2, 3), read)
    return y, weights.transpose(1, 2)


def logits_unprojected(x: Tensor, projection: HeadWeights, slots: Tensor) -> Tensor:
    """(X W + b) S^T for the slots S of each head as X (W S^T) + b S^T.

    Args:
        x: X, (B, n, D).
        projection: W (H, d, D) and b (H, d).
        slots: S, (B, H, l, d).

    Returns:
        (B, n, H l).
    """
    bias, moved = _moved(slots, projection)
    return torch.baddbmm(bias.transpose(1, 2), x, moved.transpose(1, 2))


def _moved(slots: Tensor, projection: HeadWeights) -> Tuple[Tensor, Tensor]:
    """b S^T (B, H l, 1) and S W^T (B, H l, D)."""
    weight, bias = projection
    moved = torch.einsum("bhld,hdk->bhlk", slots, weight).flatten(1, 2)
    return torch.einsum("bhld,hd->bhl", slots, bias).flatten(1, 2).unsqueeze(-1), moved


# w of the causal pack, element-wise and positive with w(0) = 1: a softmax would see the future.
CAUSAL_ACTIVATIONS = {
    "softplus": lambda logits: F.softplus(logits, beta=math.log(2)),
    "elu": lambda logits: F.elu(logits) + 1,
}


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: Tensor,
    hidden: Optional[Tensor] = None,
    dropout: Dropout = identity,
    softmax_dtype: Optional[torch.dtype] = None,
    decay: Optional[Tensor] = None,
    product: Callable[..., Tuple[Tensor, Any]] = chunk_causal_product,
) -> Tuple[Tensor, Tensor]:
    """Luna's causal attention over whole sequences (paper, section 3.3).

        A_unpack = softmax_l(f(X, X, A_pack^T)),   Y = f(A_unpack, A_pack^T, X)

    Args:
        query: (B, H, n, d), scaled.
        key: (B, H, n, d).
        value: (B, H, n, d).
        pack: A_pack^T = w(X P^T), (B, H, n, l).
        hidden: (B, l), True where a slot is not used.
        dropout: applied to A_unpack.
        softmax_dtype: as in `softmax`.
        decay: as in `naive_causal_product`.
        product: f; with `whole_product` the attention sees the future too.

    Returns:
        Y (B, H, n, d) and A_unpack (B, H, n, l).
    """
    dtype, wide, tied = query.dtype, accumulation_dtype(query.dtype), value is key
    # to full precision here and once, for both products
    query, key, pack = (u.to(wide) for u in (query, key, pack))
    query, key, value = _ordered(query, key, key if tied else value.to(wide))
    pack = pack.contiguous()
    logits, _ = product(query, key, pack, decay=decay)
    unpack = softmax(logits, hidden, softmax_dtype)
    out, _ = product(dropout(unpack), pack, value, decay=decay)
    return out.to(dtype), unpack.to(dtype)


class CausalState(NamedTuple):
    """What a causal attention keeps of one hypothesis: d x l numbers a head, twice that untied.

    Attributes:
        keys: running mean of k_j^T a_j, (B, H, d, l).
        values: running mean of a_j^T v_j, (B, H, l, d); None when keys are values (tied), for it
            is then the transpose of `keys`.
    """

    keys: RunningMean
    values: Optional[RunningMean]

    def reorder(self, new_order: Tensor) -> "CausalState":
        """Follows the beams. new_order: (B',)."""
        return CausalState(self.keys.reorder(new_order), self.values and self.values.reorder(new_order))


@_without_autocast
def causal_attention_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pack: Tensor,
    state: Optional[CausalState],
    hidden: Optional[Tensor] = None,
    dropout: Dropout = identity,
    softmax_dtype: Optional[torch.dtype] = None,
    decay: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor, CausalState]:
    """One step of `causal_attention` on its state; cost and memory free of the position.

    Args:
        query: (B, beams, H, d), scaled: one position of each beam.
        key: (B, beams, H, d).
        value: (B, beams, H, d); the very same tensor as `key` when they are tied.
        pack: (B, beams, H, l).
        state: the state of all B * beams rows after the last step, None before the first.
        hidden: (B, l), True where a slot is not used.
        dropout: applied to A_unpack.
        softmax_dtype: as in `softmax`.
        decay: as in `naive_causal_product`.

    Returns:
        Y (B, beams, H, d), A_unpack (B, beams, H, l) and the new state, without gradients in the
        memory of the old one.
    """
    dtype, tied = query.dtype, value is key
    # (B, beams, H, d) -> (B * beams, H, 1, d)
    query, key, value, rows = (u.flatten(0, 1).unsqueeze(2) for u in (query, key, value, pack))
    before = state or CausalState(empty_state(key, rows), None if tied else empty_state(rows, value))
    # autograd would need the old values
    take = RunningMean.update if torch.is_grad_enabled() else RunningMean.update_
    keys = take(before.keys, key, rows, decay)
    unpack = softmax((query.to(keys.mean.dtype) @ keys.mean).view(pack.shape), hidden, softmax_dtype)
    values, mean = None, keys.mean.transpose(-1, -2)
    if before.values is not None:
        values = take(before.values, rows, value, decay)
        mean = values.mean
    out = dropout(unpack).flatten(0, 1).unsqueeze(2) @ mean
    return out.view(*pack.shape[:3], -1).to(dtype), unpack.to(dtype), CausalState(keys, values)
