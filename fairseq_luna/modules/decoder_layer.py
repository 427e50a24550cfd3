"""A layer of Luna's decoder (section 3.3 of the paper)."""

from functools import partial
from typing import Any, NamedTuple, Optional, Tuple, Union

from torch import Tensor

from .causal_attention import LunaCausalAttention
from .feed_forward import FeedForward
from .layer import Layer
from .recompute import recomputed
from .residual import Residual
from .softmax_attention import CausalSelfAttention, CrossAttention
from .source_layer import SourceView
from .step import Step
from .unpack import Unpack


class Source(NamedTuple):
    """What all decoder layers see of the source.

    Attributes:
        out: the encoder's output, (B, m, D); None without a source.
        padding: (B, m), True where the source is padded.
        slot_padding: (B, l), True where a slot is not used; None where all are.
    """

    out: Optional[Tensor] = None
    padding: Optional[Tensor] = None
    slot_padding: Optional[Tensor] = None


class LunaDecoderLayer(Layer):
    """Causal self-attention, cross attention and feed-forward on the target.

    Args:
        self_attn: Luna's causal attention or an ordinary one.
        cross_attn: of the packed source, or of all its positions; None without a source.
        ffn: the feed-forward.
        residual: makes a way around a block.
        recompute: as in `Layer`.
        offload: as in `Layer`.
    """

    def __init__(
        self,
        self_attn: Union[LunaCausalAttention, CausalSelfAttention],
        cross_attn: Union[Unpack, CrossAttention, None],
        ffn: FeedForward,
        residual: "partial[Residual]",
        recompute: bool = False,
        offload: bool = False,
    ):
        super().__init__(recompute, offload)
        self.luna = isinstance(self_attn, LunaCausalAttention)
        self.packed = isinstance(cross_attn, Unpack)
        self.self_attn, self.cross_attn, self.ffn = self_attn, cross_attn, ffn
        self.self_attn_residual = residual()
        if cross_attn is not None:
            self.cross_attn_residual = residual()
        self.ffn_residual = residual()

    @recomputed
    def forward(
        self,
        x: Tensor,
        source: Source,
        view: SourceView,
        step: Optional[Step] = None,
        need_weights: bool = False,
        whole: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """One pass of the layer.

        Args:
            x: X, (B, n, D); at a step the one new position of every beam, (B, beams, D).
            source: the source.
            view: as this layer sees it.
            step: of decoding; None for whole sequences.
            need_weights: whether somebody reads how much each position reads of the source.
            whole: (B, n), True where X is padding: later positions are seen too.

        Returns:
            As x, and the weights of the cross attention, (B, H, n, l), or (B, H, n, m) where it is full, or None.
        """
        attn, ffn, weights = self.self_attn_residual, self.ffn_residual, None
        x = attn.leave(x, self.attend(attn.enter(x), source, view, step, whole))
        if self.cross_attn is not None:
            cross = self.cross_attn_residual
            y, weights = self.read(cross.enter(x), source, view, step, need_weights)
            x = cross.leave(x, y)
        x = ffn.leave(x, self.ffn(ffn.enter(x)))
        return x, weights if need_weights else None

    def attend(
        self, x: Tensor, source: Source, view: SourceView, step: Optional[Step], whole: Optional[Tensor]
    ) -> Tensor:
        """Self-attention."""
        attn: Any = self.self_attn
        if not self.luna:
            return attn(x, whole) if step is None else attn.step(x, step)
        if step is None:
            return attn(x, view.causal_query, source.slot_padding, whole)
        state = step.incremental_state
        past = state.get(attn)
        y, state[attn] = attn.step(x, view.causal_query, past, step.share, source.slot_padding, step.in_place)
        return y

    def read(
        self, x: Tensor, source: Source, view: SourceView, step: Optional[Step], need_weights: bool
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Cross attention."""
        cross: Any = self.cross_attn
        if self.packed:
            return cross(x, view.cross_key, view.cross_value, source.slot_padding, need_weights=need_weights)
        if step is None:
            return cross(x, source.out, source.padding, need_weights)
        return cross.step(x, source.out, step, source.padding)
