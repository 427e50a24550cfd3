"""Luna's attentions as modules: projections around the functions of `functional`.

An attention is built of three parts that stand alone, since they need not live together:

    Pack      Y_P = Attention(P, C)      the context packed into the slots of P
    KeyValue  Y_P -> keys, values        depends on the source alone in a cross attention
    Unpack    Y_X = Attention(X, Y_P)    the sequence reads the slots

The encoder's self-attention holds all three. Of a decoder layer's cross attention the decoder
holds `Unpack` alone; the rest is computed once per source sentence (see `encoder.SourceMemory`).
Tensors are batch first: (B, n, D), and (B, H, n, d) once projected and split into heads.
"""

import functools
import math
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from .dropout import Dropout
from .functional import (
    CAUSAL_ACTIVATIONS,
    HeadWeights,
    accumulation_dtype,
    attention,
    causal_attention,
    causal_attention_step,
    chunk_causal_product,
    logits_unprojected,
    pack_unprojected,
    unpack_unprojected,
    whole_product,
)
from .inference import Linear
from .ops import dispatch, fused

Heads = Tuple[Tensor, Tensor]

# The reference takes the softmax of every unpack in float32, even for a float64 model, as fairseq
# does in all its attentions; that of a pack it takes in full. To agree beyond 1e-7 is to do so too.
UNPACK_DTYPE = torch.float32


def linear(in_dim: int, out_dim: int) -> Linear:
    """A projection as the reference starts it: Xavier, bias zero."""
    layer = Linear(in_dim, out_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, H d) -> (B, H, n, d)."""
    return x.view(x.size(0), x.size(1), heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, n, d) -> (B, n, H d)."""
    return x.transpose(1, 2).flatten(2)


class HeadProjection(Linear):
    """A projection into heads: (B, n, in_dim) -> (B, H, n, out_dim / H), scaled if a query."""

    def __init__(self, in_dim: int, out_dim: int, heads: int, is_query: bool = False):
        super().__init__(in_dim, out_dim)
        self.heads = heads
        self.scale = (out_dim // heads) ** -0.5 if is_query else 1.0
        nn.init.xavier_uniform_(self.weight, gain=1 / math.sqrt(2))
        nn.init.zeros_(self.bias)

    def parameters_as_used(self) -> Tuple[Tensor, Tensor]:
        """Weight and bias, scaled if a query's: there are fewer of them than of what they make."""
        weight, bias = self.weight_as_used(), self.bias
        return (weight, bias) if self.scale == 1.0 else (weight * self.scale, bias * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return split_heads(super().forward(x), self.heads)

    def joined(self, x: Tensor) -> Tensor:
        """As `forward`, with the heads side by side: (B, n, out_dim)."""
        return super().forward(x)

    def by_head(self) -> HeadWeights:
        """Weight (H, out_dim / H, in_dim) and bias (H, out_dim / H), scaled if a query's."""
        weight, bias = self.parameters_as_used()
        return weight.unflatten(0, (self.heads, -1)), bias.unflatten(0, (self.heads, -1))


class KeyValue(nn.Module):
    """Keys and values of a context: one projection when tied (they are then one tensor)."""

    def __init__(self, in_dim: int, out_dim: int, heads: int, tied: bool):
        super().__init__()
        self.tied = tied
        if tied:
            self.both = HeadProjection(in_dim, out_dim, heads)
        else:
            self.key = HeadProjection(in_dim, out_dim, heads)
            self.value = HeadProjection(in_dim, out_dim, heads)

    def forward(self, context: Tensor) -> Heads:
        """(B, m, in_dim) -> keys and values, (B, H, m, d) each."""
        if self.tied:
            both = self.both(context)
            return both, both
        return self.key(context), self.value(context)

    def joined(self, context: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        """As `forward`, with the heads side by side, (B, m, out_dim) each; values are None when tied."""
        return (
            (self.both.joined(context), None) if self.tied else (self.key.joined(context), self.value.joined(context))
        )

    def by_head(self) -> Tuple[HeadWeights, HeadWeights]:
        """Weight and bias of keys and of values, see `HeadProjection.by_head`."""
        if self.tied:
            both = self.both.by_head()
            return both, both
        return self.key.by_head(), self.value.by_head()


class KeyPlainValue(nn.Module):
    """Keys of a context, and the context itself for values: what a pack averages is then not projected."""

    tied = False

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.key = HeadProjection(dim, dim, heads)

    def forward(self, context: Tensor) -> Heads:
        """(B, m, D) -> keys and values, (B, H, m, d) each."""
        return self.key(context), split_heads(context, self.key.heads)

    def joined(self, context: Tensor) -> Tuple[Tensor, Tensor]:
        """As `forward`, with the heads side by side, (B, m, D) each."""
        return self.key.joined(context), context

    def by_head(self) -> Tuple[HeadWeights, None]:
        """Weight and bias of keys, see `HeadProjection.by_head`; values have none."""
        return self.key.by_head(), None


def _worth_moving(positions: int, slots: int, dim: int, heads: int, projections: int) -> bool:
    """Whether projections are better moved from the positions to the slots (`*_unprojected`).

    It takes 2 l D^2 + 2 H l n D multiply-adds in place of n D^2 for each projection and 2 l n D,
    in smaller pieces; and the moved slots are of H l x D numbers, which X should not be smaller than.
    """
    moved = 2 * slots * dim**2 + 2 * heads * slots * positions * dim
    direct = projections * positions * dim**2 + 2 * slots * positions * dim
    return positions >= heads * slots and moved < 0.8 * direct


class GaussianBias(nn.Module):
    """-|gamma_h| (x_j - c_i - s_h)^2: each head begins local, and learns how much so, and how far aside it looks.

    A Gaussian bias after Yang et al. 2018 (Modeling Localness for Self-Attention Networks) and Guo et
    al. 2019 (Gaussian Transformer), with the slots spread evenly over the sentence for centres; gamma
    and the shift s, in stretches of a slot, belong to the head.
    """

    def __init__(self, heads: int, sharpness: float):
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((heads,), sharpness))
        self.shift = nn.Parameter(torch.zeros(heads))

    def forward(self, positions: Tensor, slots: int) -> Tensor:
        """x of `functional.slot_positions` (B, m), and l -> (B, H, l, m)."""
        # squares of slots far away are beyond half precision
        wide = accumulation_dtype(self.shift.dtype)
        gamma, shift = (u.to(wide).view(-1, 1, 1) for u in (self.sharpness.abs(), self.shift))
        centres = torch.arange(slots, device=positions.device, dtype=positions.dtype).view(-1, 1) + 0.5
        offsets = positions[:, None, None, :] - (centres + shift)
        # exp(-30) is nothing beside 1, and far less makes denormal numbers, in which a CPU is slow
        return (-gamma * offsets**2).clamp(min=-30).to(self.shift.dtype)


class Pack(nn.Module):
    """Y_P = Attention(P, C): packs a context of any length into l slots (paper, section 3.1).

    With plain values Y_P averages C as it is, to be projected by who reads it alone, as in Linformer
    (Wang et al. 2020): one random matrix upon another is slow to learn.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        tied: bool,
        dropout: float,
        bias: str = "none",
        values: str = "projected",
        sharpness: float = 1.0,
    ):
        super().__init__()
        self.query = HeadProjection(dim, dim, heads, is_query=True)
        plain = values == "plain"
        self.key_value = KeyPlainValue(dim, heads) if plain else KeyValue(dim, dim, heads, tied)
        self.dropout = Dropout(dropout, module_name="LunaPack")
        self.bias = GaussianBias(heads, sharpness) if bias == "gaussian" else None

    def forward(
        self,
        packed: Tensor,
        context: Tensor,
        padding: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
        need_weights: bool = False,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Packs `context` with the queries of `packed`.

        Args:
            packed: P, (B, l, D).
            context: C, (B, m, D).
            padding: (B, m), True where the context is padding.
            positions: of `functional.slot_positions`, (B, m), for a Gaussian bias.
            need_weights: whether somebody reads the weights.

        Returns:
            Y_P (B, l, D) and the pack weights (B, H, l, m), or None where a fused kernel ran, which makes none.
        """
        if not need_weights:
            y_p = self.fused(packed, context, padding, positions)
            if y_p is not None:
                return y_p, None
        bias = None if self.bias is None else self.bias(positions, packed.size(1))
        query = self.query(packed)
        # plain values: one projection and one product can move, half of two and both (the other product stays)
        dim, heads, projections = self.query.in_features, self.query.heads, 1 if self.key_value.tied else 2
        prepared = self.query.is_prepared()  # then direct products are the faster ones, or of another precision
        if not prepared and _worth_moving(context.size(1), packed.size(1), dim, heads, projections):
            of_key, of_value = self.key_value.by_head()
            out, weights = pack_unprojected(query, context, of_key, of_value, padding, self.dropout, bias)
        else:
            key, value = self.key_value(context)
            out, weights = attention(query, key, value, padding, self.dropout, bias=bias)
        return merge_heads(out), weights

    def fused(
        self, packed: Tensor, context: Tensor, padding: Optional[Tensor], positions: Optional[Tensor]
    ) -> Optional[Tensor]:
        """Y_P of a fused kernel, as `forward`; None where the plain form is to run."""
        heads, rate = self.query.heads, self.dropout.rate()
        if not dispatch.fused("pack", context, self.query.out_features // heads, packed.size(1), rate):
            return None
        key, value = self.key_value.joined(context)
        gamma, shift = (None, None) if self.bias is None else (self.bias.sharpness, self.bias.shift)
        return fused.pack(self.query.joined(packed), key, value, heads, padding, positions, gamma, shift, rate)


class Unpack(nn.Module):
    """Y_X = Attention(X, Y_P): every position reads the slots (paper, section 3.1)."""

    def __init__(self, dim: int, heads: int, dropout: float, bias: str = "none"):
        super().__init__()
        self.query = HeadProjection(dim, dim, heads, is_query=True)
        self.out = linear(dim, dim)
        self.dropout = Dropout(dropout, module_name="LunaUnpack")
        self.bias = GaussianBias(heads, sharpness=0.5) if bias == "gaussian" else None

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        hidden_slots: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
        need_weights: bool = False,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Reads the slots, given as keys and values.

        Args:
            x: X, (B, n, D).
            key: of Y_P, (B, H, l, d).
            value: of Y_P, (B, H, l, d); the very same tensor as `key` when they are tied.
            hidden_slots: (B, l), True where a slot is not used.
            positions: of `functional.slot_positions`, (B, n), for a Gaussian bias.
            need_weights: whether somebody reads the weights.

        Returns:
            Y_X (B, n, D) and the unpack weights (B, H, n, l), or None where a fused kernel ran, which makes none.
        """
        if not need_weights:
            y_x = self.fused(x, key, value, hidden_slots, positions)
            if y_x is not None:
                return self.out(y_x), None
        bias = None if self.bias is None else self.bias(positions, key.size(2)).transpose(-1, -2)
        dim, heads = self.query.in_features, self.query.heads
        if not self.query.is_prepared() and _worth_moving(x.size(1), key.size(2), dim, heads, projections=2):
            weight = self.out.weight_as_used().t().unflatten(0, (heads, -1))
            return unpack_unprojected(
                x,
                self.query.by_head(),
                key,
                value,
                (weight, self.out.bias),
                hidden_slots,
                self.dropout,
                UNPACK_DTYPE,
                bias,
            )
        out, weights = attention(self.query(x), key, value, hidden_slots, self.dropout, UNPACK_DTYPE, bias)
        return self.out(merge_heads(out)), weights

    def fused(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        hidden_slots: Optional[Tensor],
        positions: Optional[Tensor],
    ) -> Optional[Tensor]:
        """What `out` projects, (B, n, D), of a fused kernel, as `forward`; None where the plain form is to run."""
        slots, dim = key.shape[2:]
        rate = self.dropout.rate()
        if not dispatch.fused("unpack", x, dim, slots, rate):
            return None
        gamma, shift = (None, None) if self.bias is None else (self.bias.sharpness, self.bias.shift)
        value_or_none = None if value is key else value
        return fused.unpack(self.query.joined(x), key, value_or_none, hidden_slots, positions, gamma, shift, rate)


class LunaAttention(nn.Module):
    """Pack, then unpack: softmax attention of a sequence to itself in linear time."""

    def __init__(
        self,
        dim: int,
        heads: int,
        pack_heads: int,
        tied: bool,
        dropout: float,
        pack_bias: str = "none",
        pack_values: str = "projected",
        unpack_bias: str = "none",
    ):
        super().__init__()
        self.pack = Pack(dim, pack_heads, tied, dropout, pack_bias, pack_values)
        self.key_value = KeyValue(dim, dim, heads, tied)
        self.unpack = Unpack(dim, heads, dropout, unpack_bias)

    def forward(
        self,
        x: Tensor,
        packed: Tensor,
        padding: Optional[Tensor] = None,
        hidden_slots: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
    ) -> Heads:
        """X (B, n, D), P (B, l, D), masks (B, n) and (B, l), positions as in `Pack` -> Y_X (B, n, D), Y_P (B, l, D)."""
        y_p, _ = self.pack(packed, x, padding, positions)
        y_x, _ = self.unpack(x, *self.key_value(y_p), hidden_slots, positions)
        return y_x, y_p


def head_decays(heads: int, device: torch.device) -> Tensor:
    """lambda of each head, (H,): 1/2, 3/4, 7/8 ... so that the head h remembers about 2^h positions."""
    return 1 - torch.pow(0.5, torch.arange(1, heads + 1, dtype=torch.float64, device=device))


@functools.lru_cache(maxsize=None)
def _kept_decays(heads: int, device: torch.device) -> Tensor:
    """`head_decays` in float32, made once."""
    with torch.inference_mode(False):  # or they would be of no use in training
        return head_decays(heads, device).float()


class LunaCausalAttention(nn.Module):
    """Luna's causal self-attention (paper, section 3.3), in parallel or step by step.

    P is read, not updated, and comes as the pack query P W of `encoder.SourceMemory`, since it
    depends on the source alone.
    """

    def __init__(self, dim: int, heads: int, tied: bool, dropout: float, activation: str, mean: str = "flat"):
        super().__init__()
        self.query = HeadProjection(dim, dim, heads, is_query=True)
        self.pack_key = HeadProjection(dim, dim, heads)
        self.key_value = KeyValue(dim, dim, heads, tied)
        self.out = linear(dim, dim)
        self.dropout = Dropout(dropout, module_name="LunaCausalAttention")
        self.activation_name, self.activation = activation, CAUSAL_ACTIVATIONS[activation]
        self.decaying = mean == "decaying"

    def forward(
        self,
        x: Tensor,
        pack_query: Tensor,
        hidden_slots: Optional[Tensor] = None,
        incremental_state: Optional[Dict[Any, Any]] = None,
        whole: Optional[Tensor] = None,
    ) -> Tensor:
        """Attends to the positions up to each one's own.

        Args:
            x: X, (B, n, D); with an incremental state the one new position of every beam,
                (B, beams, D).
            pack_query: projected and scaled P, (B, H, l, d).
            hidden_slots: (B, l), True where a slot is not used.
            incremental_state: fairseq's; holds this module's `CausalState`, under the module.
            whole: (B, n), True where X is padding: attends to all other positions, later ones too.

        Returns:
            As x.
        """
        if incremental_state is None and whole is None:
            y = self.fused(x, pack_query, hidden_slots)
            if y is not None:
                return self.out(y)
        query, (key, value) = self.query(x), self.key_value(x)
        pack = self.dropout(self.activation(self.pack_logits(x, pack_query)))
        decay = head_decays(self.query.heads, x.device) if self.decaying else None
        if incremental_state is None:
            product: Any = chunk_causal_product if whole is None else functools.partial(whole_product, padding=whole)
            out, _ = causal_attention(query, key, value, pack, hidden_slots, self.dropout, UNPACK_DTYPE, decay, product)
        else:
            # (B, H, beams, d) -> (B, beams, H, d): each beam has a past of its own
            query, key, pack = (u.transpose(1, 2) for u in (query, key, pack))
            value = key if self.key_value.tied else value.transpose(1, 2)
            out, _, incremental_state[self] = causal_attention_step(
                query, key, value, pack, incremental_state.get(self), hidden_slots, self.dropout, UNPACK_DTYPE, decay
            )
            out = out.transpose(1, 2)
        return self.out(merge_heads(out))

    def fused(self, x: Tensor, pack_query: Tensor, hidden_slots: Optional[Tensor]) -> Optional[Tensor]:
        """What `out` projects, (B, n, D), of a fused kernel, as `forward`; None where the plain form is to run."""
        heads, slots, dim = pack_query.shape[1:]
        rate = self.dropout.rate()
        if not dispatch.fused("causal attention", x, dim, slots, rate):
            return None
        decay = _kept_decays(heads, x.device) if self.decaying else None
        query, (key, value), pack_key = self.query.joined(x), self.key_value.joined(x), self.pack_key.joined(x)
        return fused.causal_attention(
            query, key, value, pack_key, pack_query, hidden_slots, decay, self.activation_name, rate
        )

    def pack_logits(self, x: Tensor, pack_query: Tensor) -> Tensor:
        """X P^T: (B, n, D), (B, H, l, d) -> (B, H, n, l)."""
        n, dim, (heads, slots) = x.size(1), x.size(2), pack_query.shape[1:3]
        # one projection and one product, so half of both sides
        if not self.query.is_prepared() and _worth_moving(n, slots, dim, heads, projections=2):
            logits = logits_unprojected(x, self.pack_key.by_head(), pack_query)
            return logits.unflatten(2, (heads, slots)).transpose(1, 2)
        return self.pack_key(x) @ pack_query.transpose(-1, -2)

    def reorder_incremental_state(self, incremental_state: Dict[Any, Any], new_order: Tensor) -> None:
        """Called by fairseq when beams change places or sentences end. new_order: (B',)."""
        if self in incremental_state:
            incremental_state[self] = incremental_state[self].reorder(new_order)
