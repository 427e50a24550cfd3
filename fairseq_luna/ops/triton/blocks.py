"""What the kernels are built of. Letters as in `causal.py`: C positions of a chunk, L slots rounded up, d channels."""

import triton
import triton.language as tl

# They change with the batch, and the turn with a model's graphs: a kernel is not to be compiled again for a number, or
# a place in memory, that 16 divides.
VARYING = ["n", "slots", "seed", "turn", "threshold", "segments", "per_segment", "splits", "per_split", "beams"]

# Philox of seven rounds passes BigCrush, as ten do (Salmon et al. 2011).
ROUNDS = tl.constexpr(7)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, total=None):
    """a b, added to `total`, in float32."""
    if PRECISION == "interpreted":
        # Triton's interpreter takes the bits of a bfloat16 for an integer
        a = a.to(tl.float32)
        b = b.to(tl.float32)
        if total is None:
            return tl.dot(a, b, input_precision="ieee")
        else:
            return tl.dot(a, b, total, input_precision="ieee")
    else:
        if total is None:
            return tl.dot(a, b, input_precision=PRECISION)
        else:
            return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def activation(x, ACTIVATION: tl.constexpr):
    """w of the pack logits: log2(1 + 2^x), or elu(x) + 1."""
    if ACTIVATION == "softplus":
        small = tl.exp2(-tl.abs(x))
        # the logarithm of a number near 1 has lost the small part
        series = small * LOG2E * (1 - small * (0.5 - small * (0.33333333 - small * (0.25 - small * 0.2))))
        return tl.maximum(x, 0.0) + tl.where(small < 0.03125, series, tl.log2(1 + small))
    else:
        return tl.where(x > 0, x + 1, tl.exp(tl.minimum(x, 0.0)))


@triton.jit
def activation_slope(x, ACTIVATION: tl.constexpr):
    """w'."""
    if ACTIVATION == "softplus":
        small = tl.exp2(-tl.abs(x))
        return tl.where(x > 0, 1.0, small) / (1 + small)
    else:
        return tl.where(x > 0, 1.0, tl.exp(tl.minimum(x, 0.0)))


@triton.jit
def decay_rates(decay, head, DECAYING: tl.constexpr):
    """ln lambda and 1 - lambda of a head."""
    if DECAYING:
        factor = tl.load(decay + head).to(tl.float32)
        rest = 1 - factor
        # ln lambda = -2 artanh((1 - lambda) / (1 + lambda)): tl.log near 1 is too rough
        s = rest / (1 + factor)
        r = s * s
        series = 1 + r * (1 / 3 + r * (1 / 5 + r * (1 / 7 + r * (1 / 9 + r * (1 / 11 + r * (1 / 13 + r / 15))))))
        rate = tl.where(factor > 0.5, -2 * s * series, tl.log(factor))
    else:
        rest = 0.0
        rate = 0.0
    return rate, rest


@triton.jit
def power(rate, steps):
    """lambda^steps."""
    return tl.exp2(rate * LOG2E * steps)


@triton.jit
def total_weight(t, rate, rest, DECAYING: tl.constexpr):
    """w_t = (1 - lambda^t) / (1 - lambda), t a float; at least 1, so that it may be divided by."""
    if DECAYING:
        x = -rate * t
        # 1 - e^-x without the rounding of e^-x near 1
        y = 1 - x / 8 * (1 - x / 9)
        y = 1 - x / 6 * (1 - x / 7 * y)
        y = 1 - x / 4 * (1 - x / 5 * y)
        y = 1 - x / 2 * (1 - x / 3 * y)
        lost = tl.where(x < 0.5, x * y, 1 - tl.exp(-x))
        weight = tl.where(rest == 0, t, lost / tl.where(rest == 0, 1.0, rest))
    else:
        weight = t
    return tl.maximum(weight, 1.0)


@triton.jit
def powers_inside(rate, C: tl.constexpr):
    """lambda^(i - C/2) and lambda^(C/2 - i): the product of two is lambda^(t - j), without a power for each pair."""
    place = (tl.arange(0, C) - C // 2).to(tl.float32)
    return power(rate, place), power(rate, -place)


@triton.jit
def causal(scores, steps, rows, columns, DECAYING: tl.constexpr):
    """Scores where steps >= 0, else 0, each times lambda^steps."""
    if DECAYING:
        scores = scores * rows[:, None] * columns[None, :]
    return tl.where(steps >= 0, scores, 0.0)


@triton.jit
def seed_of_turn(seed, turn, DROPOUT: tl.constexpr):
    """The sum, in 64 bits since it may leave 31."""
    if DROPOUT:
        seed = seed.to(tl.int64) + tl.load(turn)
    return seed


@triton.jit
def random_pairs(seed, head, t, L: tl.constexpr):
    """Two random numbers of 24 bits for each position and slot, (C, L): of Philox, the same in every kernel."""
    place = t[:, None] * L + tl.arange(0, L)[None, :]
    zero = place * 0
    pack, unpack, _, _ = tl.philox(seed, place, zero + head, zero, zero, ROUNDS)
    return (pack >> 8).to(tl.int32), (unpack >> 8).to(tl.int32)


@triton.jit
def load_rows(base, t, n, stride, D: tl.constexpr):
    """(C, D), 0 behind the end."""
    offsets = t.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
    return tl.load(base + offsets, mask=(t < n)[:, None], other=0.0)


@triton.jit
def store_rows(base, t, n, stride, rows, D: tl.constexpr):
    offsets = t.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(base + offsets, rows.to(base.dtype.element_ty), mask=(t < n)[:, None])


@triton.jit
def load_slots(base, slots, stride, L: tl.constexpr, D: tl.constexpr):
    """(L, D), 0 behind the last slot."""
    slot = tl.arange(0, L)
    offsets = slot[:, None] * stride + tl.arange(0, D)[None, :]
    return tl.load(base + offsets, mask=(slot < slots)[:, None], other=0.0)


@triton.jit
def visible_slots(hidden, batch, slots, L: tl.constexpr, HIDDEN: tl.constexpr):
    """(L,), False where a slot is hidden or does not exist."""
    slot = tl.arange(0, L)
    visible = slot < slots
    if HIDDEN:
        visible = visible & (tl.load(hidden + batch * slots + slot, mask=visible, other=1) == 0)
    return visible


@triton.jit
def softmax(logits, visible):
    logits = tl.where(visible[None, :], logits, float("-inf"))
    shifted = tl.exp2((logits - tl.max(logits, axis=1)[:, None]) * LOG2E)
    return shifted / tl.sum(shifted, axis=1)[:, None]


@triton.jit
def read_past(x, past, inside, z, enter, share, TURN: tl.constexpr, PRECISION: tl.constexpr):
    """1/w_t (enter_t x_t S + sum_j inside_tj z_j), with S (or, to TURN, S^T) the mean of the chunks before."""
    if TURN:
        past = tl.trans(past)
    before = dot(x, past, PRECISION) * enter[:, None]
    return (before + dot(inside, z, PRECISION)) * share[:, None]


@triton.jit
def sum_others(
    sums, group, segments, first, last, anchor, span, rate,
    M: tl.constexpr, N: tl.constexpr, DECAYING: tl.constexpr,
):  # fmt: skip
    """The sum of the sums of the segments first to last - 1, each decayed by its distance from `anchor`: (M, N)."""
    offsets = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    base = sums + group.to(tl.int64) * segments * (M * N) + offsets
    total = tl.zeros((M, N), tl.float32)
    # four at once: the loads do not wait for one another
    for i in range(0, tl.cdiv(last - first, 4)):
        for j in tl.static_range(4):
            segment = last - 1 - i * 4 - j
            part = tl.load(base + tl.maximum(segment, first) * (M * N))
            if DECAYING:
                part = part * power(rate, tl.abs(anchor - segment) * 1.0 * span)
            total += tl.where(segment >= first, part, 0.0)
    return total


@triton.jit
def store_sum(sums, group, segments, segment, total, M: tl.constexpr, N: tl.constexpr):
    offsets = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(sums + (group.to(tl.int64) * segments + segment) * (M * N) + offsets, total)


@triton.jit
def bias_of_head(sharpness, shifts, head, BIAS: tl.constexpr):
    """|gamma|, its sign, and the shift of a head's Gaussian bias."""
    if BIAS:
        gamma = tl.load(sharpness + head).to(tl.float32)
        shift = tl.load(shifts + head).to(tl.float32)
        sign = tl.where(gamma > 0, 1.0, tl.where(gamma < 0, -1.0, 0.0))
        gamma = tl.abs(gamma)
    else:
        gamma = 0.0
        sign = 0.0
        shift = 0.0
    return gamma, sign, shift


@triton.jit
def load_offsets(positions, t, n, shift, L: tl.constexpr):
    """How far positions t lie behind the shifted centre of each slot, (C, L)."""
    place = tl.load(positions + t, mask=t < n, other=0.0)
    return place[:, None] - (tl.arange(0, L).to(tl.float32) + 0.5)[None, :] - shift


@triton.jit
def store_bias_gradients(d_bias, part, parts, d_gamma, d_shift):
    """Of a part of a sentence and head: into (2, parts)."""
    tl.store(d_bias + part, tl.sum(d_gamma, axis=0))
    tl.store(d_bias + parts + part, tl.sum(d_shift, axis=0))
