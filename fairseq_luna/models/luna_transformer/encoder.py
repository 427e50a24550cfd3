"""The Luna encoder: X and P through its layers (section 3.2 of the paper)."""

import math
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder
from fairseq.modules import LayerNorm, PositionalEmbedding, SinusoidalPositionalEmbedding
from torch import Tensor

from ...modules.dropout import Dropout
from ...modules.layer import at_work, draw_layers
from ...modules.slot_count import SlotCount
from ...modules.slot_info import SlotInfo
from ...ops.slots import slot_positions
from ..build import encoder_layer
from ..static_pass import Inputs
from ..training_graphs import Stack, TrainingGraphs, allowed, renewed, trains
from .config import has_packed


class Encoded(NamedTuple):
    """What the encoder's layers make of a batch.

    Attributes:
        out: the last X, (B, n, D), normed in a pre-norm encoder.
        states: X before the first and after each layer, (B, n, D) each.
        packed: the last P, (B, l', D); None where no attention packs.
        padding: (B, n), True where the source is padded; None where nothing is.
        slots: what is known of the slots.
    """

    out: Tensor
    states: List[Tensor]
    packed: Optional[Tensor]
    padding: Optional[Tensor]
    slots: SlotInfo


class LunaEncoder(FairseqEncoder):
    """Embeds the source, and carries X and P through the layers.

    Args:
        cfg: a `LunaTransformerConfig`, checked.
        dictionary: of the source.
        embed_tokens: the source embedding.
        packed_is_read: whether somebody reads the last P.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding, packed_is_read: bool):
        super().__init__(dictionary)
        dim = cfg.encoder_embed_dim
        self.padding_idx = dictionary.pad()
        self.max_source_positions = cfg.max_source_positions
        # what reaches no farther than so many positions
        self.ends = "learned positions" if cfg.encoder_learned_pos else ""
        if cfg.encoder_self_attention == "linformer":
            self.ends = "Linformer's sums"
        self.slot_count = SlotCount(
            cfg.projection_length,
            cfg.tokens_per_slot,
            cfg.most_tokens_per_slot,
            cfg.varied_share,
            cfg.fix_projection_length,
        )

        self.embed_tokens = embed_tokens
        self.embed_scale = 1.0 if cfg.no_scale_embedding else math.sqrt(dim)
        self.embed_positions: Optional[nn.Module] = None
        if not cfg.no_token_positional_embeddings:
            self.embed_positions = PositionalEmbedding(
                cfg.max_source_positions, dim, self.padding_idx, learned=cfg.encoder_learned_pos
            )
        self.embed_norm = LayerNorm(dim, export=cfg.export) if cfg.layernorm_embedding else None
        self.word_dropout = nn.Dropout1d(cfg.word_dropout)  # of whole tokens (Sennrich et al. 2016, WMT)

        self.packed_embedding: Any = None  # a parameter, where any attention packs
        self.packed_positions: Optional[Tensor]
        self.register_buffer("packed_positions", None, persistent=False)
        if has_packed(cfg):
            self.packed_embedding = nn.Parameter(torch.empty(cfg.projection_length, dim))
            nn.init.normal_(self.packed_embedding, std=dim**-0.5)
            # learned slots need no learned positions beside them
            if not (cfg.no_token_positional_embeddings or cfg.encoder_learned_pos):
                self.packed_positions = SinusoidalPositionalEmbedding.get_embedding(cfg.projection_length, dim)
        self.packed_norm = None
        if cfg.layernorm_embedding and has_packed(cfg):
            self.packed_norm = LayerNorm(dim, export=cfg.export)
        self.gaussian = "gaussian" in (cfg.pack_bias, cfg.encoder_unpack_bias)
        self.dropout = Dropout(cfg.dropout, module_name="LunaEncoder")

        last = cfg.encoder_layers - 1
        self.layers = nn.ModuleList(
            encoder_layer(cfg, updates_packed=packed_is_read or i < last) for i in range(cfg.encoder_layers)
        )
        self.layer_norm = self.packed_layer_norm = None
        if cfg.encoder_normalize_before:
            self.layer_norm = LayerNorm(dim, export=cfg.export)
            if packed_is_read:
                self.packed_layer_norm = LayerNorm(dim, export=cfg.export)
        self.layerdrop = cfg.encoder_layerdrop
        self.captured = allowed(cfg)
        self.graphs: Optional[TrainingGraphs] = None

    def embed(self, src_tokens: Tensor) -> Tensor:
        """Tokens (B, n) -> X of the first layer, (B, n, D)."""
        x = self.word_dropout(self.embed_scale * self.embed_tokens(src_tokens))
        if self.embed_positions is not None:
            x = x + self.embed_positions(src_tokens)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return self.dropout(x)

    def embed_packed(self, batch_size: int, slots: int) -> Tensor:
        """P of the first layer, (B, slots, D): learned, with fixed positions."""
        packed = self.embed_scale * self.packed_embedding
        if self.packed_positions is not None:
            packed = packed + self.packed_positions
        if self.packed_norm is not None:
            packed = self.packed_norm(packed)
        return self.dropout(packed[:slots].expand(batch_size, -1, -1))

    def encode(self, src_tokens: Tensor) -> Encoded:
        """Tokens (B, n) -> X after every layer, the last P, and what of both is padding.

        Raises:
            ValueError: if the source is longer than learned positions or Linformer's sums reach.
        """
        x, packed, padding, slots = self.enter(src_tokens)
        # attention without a mask is faster
        hidden = slots.padding if slots.padding is not None and slots.padding.any() else None
        return self.carry(x, packed, padding if padding.any() else None, slots._replace(padding=hidden))

    def represent(self, src_tokens: Tensor) -> Tensor:
        """Tokens (B, n) -> the last X alone, (B, n, D); raises as `encode` does."""
        x = None
        if self.captured and trains(self):
            self.graphs = renewed(self.graphs, self.stack())
            x = None if self.graphs is None else self.graphs.features(src_tokens)
        return self.encode(src_tokens).out if x is None else x

    def stack(self) -> Stack:
        """What is captured for `represent`."""

        def enter(src_tokens: Tensor) -> Inputs:
            x, packed, padding, slots = self.enter(src_tokens)
            return [x, packed, padding, *slots]

        def carry(x: Tensor, packed: Optional[Tensor], padding: Tensor, *slots: Optional[Tensor]) -> Tensor:
            return self.carry(x, packed, padding, SlotInfo(*slots)).out

        return Stack(self.parts(), enter, carry, [self.dictionary])

    def parts(self) -> List[nn.Module]:
        """What `carry` runs."""
        return [part for part in (self.layers, self.layer_norm, self.packed_layer_norm) if part is not None]

    def _apply(self, *args: Any, **kwargs: Any) -> "LunaEncoder":
        self.graphs = None
        return super()._apply(*args, **kwargs)

    def enter(self, src_tokens: Tensor) -> Tuple[Tensor, Optional[Tensor], Tensor, SlotInfo]:
        """Tokens (B, n) -> X (B, n, D) and P (B, l', D) of the first layer, the mask (B, n), and what is known of the
        slots. Raises as `encode` does."""
        padding = src_tokens.eq(self.padding_idx)
        if self.ends and src_tokens.size(1) > self.max_source_positions:
            longest = int((~padding).sum(dim=1).max())
            if longest > self.max_source_positions:
                raise ValueError(
                    f"--max-source-positions is {self.max_source_positions}, but a source of {longest} tokens came "
                    f"in: {self.ends} end there. Split the source, or train with more positions."
                )
        count, slots = self.slots(padding)
        x = self.embed(src_tokens)
        packed = None if self.packed_embedding is None else self.embed_packed(src_tokens.size(0), count)
        return x, packed, padding, slots

    def carry(self, x: Tensor, packed: Optional[Tensor], padding: Optional[Tensor], slots: SlotInfo) -> Encoded:
        """Through all layers, or those at work. x (B, n, D), packed (B, l', D), padding (B, n)."""
        states = [x]
        for layer in at_work(self.layers, self.draw(len(self.layers), self.layerdrop)):
            x, packed = layer(x, packed, padding, slots)
            states.append(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if self.packed_layer_norm is not None:
            packed = self.packed_layer_norm(packed)
        return Encoded(x, states, packed, padding, slots)

    def draw(self, layers: int, p: float) -> Optional[List[int]]:
        """Of so many layers those at work in this update, with LayerDrop in training; None for all."""
        return draw_layers(layers, p) if p > 0 and self.training else None

    def slots(self, padding: Tensor) -> Tuple[int, SlotInfo]:
        """How many slots the batch needs, and which of them each sentence uses, for what stretch.

        That depends on the sentence, so that its translation does not depend on the batch it is in;
        --fix-projection-length gives every sentence all l.

        Args:
            padding: (B, n), True where the source is padded.

        Returns:
            l' and what is known of the slots. The mask is None only with --fix-projection-length, or without P.
        """
        if self.packed_embedding is None:
            return 0, SlotInfo(None, None)
        slots, used = self.slot_count((~padding).sum(dim=1, keepdim=True), padding.size(1))
        hidden = positions = None
        if not self.slot_count.fixed:
            hidden = torch.arange(slots, device=padding.device) >= used
        if self.gaussian:
            positions = slot_positions(padding, used)
        return slots, SlotInfo(hidden, positions)

    def max_positions(self) -> int:
        """The longest source that fairseq lets in."""
        return self.max_source_positions
