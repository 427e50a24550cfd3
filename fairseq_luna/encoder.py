"""The Luna encoder, and the memory of the source that it prepares for the decoder."""

import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder
from fairseq.modules import (
    LayerNorm,
    PositionalEmbedding,
    SinusoidalPositionalEmbedding,
)
from torch import Tensor

from .alignment import Alignment
from .config import decoder_reads_packed, has_packed
from .dropout import Dropout
from .functional import slot_positions
from .layerdrop import at_work, draw_layers
from .layers import LunaEncoderLayer, Slots, SourceMemoryLayer, SourceView, sharded
from .ordinary import by_sentence

EncoderOut = Dict[str, List[Tensor]]


class Encoded(NamedTuple):
    """What the encoder's layers make of a batch.

    Attributes:
        out: the last X, (B, n, D), normed in a pre-norm encoder.
        states: X before the first and after each layer, (B, n, D) each.
        packed: the last P, (B, l', D); without slots where no attention packs.
        padding: (B, n), True where the source is padded; None where nothing is.
        slots: what is known of the slots.
    """

    out: Tensor
    states: List[Tensor]
    packed: Tensor
    padding: Optional[Tensor]
    slots: Slots


class SourceMemory(nn.Module):
    """All that the decoder reads of the source, computed once per sentence.

    The decoder's packed sequences P_i depend on the source alone: each layer packs the encoder's
    output with P_i and hands P_{i+1} to the next. So do the queries of its causal packs and the
    keys and values of its cross attentions. They live here, in the encoder, and run before
    fairseq expands the beams; no step of the decoder reads the source again.
    """

    def __init__(self, cfg: Any):
        super().__init__()
        last = cfg.decoder_layers - 1
        layers = (SourceMemoryLayer(cfg, last=i == last) for i in range(cfg.decoder_layers))
        self.layers = nn.ModuleList(sharded(layer, cfg) for layer in layers)

    def forward(
        self,
        packed: Tensor,
        encoder_out: Tensor,
        padding: Optional[Tensor],
        slots: Slots,
        drawn: Optional[List[int]] = None,
        aligned: Optional[int] = None,
        in_training: bool = False,
    ) -> Tuple[List[SourceView], List[Tensor]]:
        """P (B, l, D), encoder output (B, m, D), its mask (B, m), what is known of the slots, the decoder's
        layers at work (None for all) -> a view for each of them, and the pack weights (B, H, l, m) of each,
        or of the layer `aligned` only; none where the cross attention is full, nor in training by a fused kernel
        unless `in_training`."""
        views, packs = [], []
        for i, layer in enumerate(at_work(self.layers, drawn)):
            need_weights = aligned in (None, i) and (in_training or not self.training)
            view, packed, weights = layer(packed, encoder_out, padding, slots, need_weights)
            views.append(view)
            if weights is not None and aligned in (None, i):
                packs.append(weights)
        return views, packs


class LunaEncoder(FairseqEncoder):
    """Embeds the source, carries X and P through the layers, and fills the source memory.

    Args:
        cfg: a `LunaTransformerConfig`, checked.
        dictionary: of the source.
        embed_tokens: the source embedding.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding):
        super().__init__(dictionary)
        dim = cfg.encoder_embed_dim
        self.padding_idx = dictionary.pad()
        self.max_source_positions = cfg.max_source_positions
        self.learned_pos = cfg.encoder_learned_pos
        self.fix_projection_length = cfg.fix_projection_length

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
        layers = (LunaEncoderLayer(cfg, last=i == last) for i in range(cfg.encoder_layers))
        self.layers = nn.ModuleList(sharded(layer, cfg) for layer in layers)
        self.layer_norm = self.packed_layer_norm = self.memory = None
        if cfg.encoder_normalize_before:
            self.layer_norm = LayerNorm(dim, export=cfg.export)
            if decoder_reads_packed(cfg):
                self.packed_layer_norm = LayerNorm(dim, export=cfg.export)
        if decoder_reads_packed(cfg):
            self.memory = SourceMemory(cfg)
        self.layerdrop, self.decoder_layerdrop = cfg.encoder_layerdrop, cfg.decoder_layerdrop
        self.decoder_layers = cfg.decoder_layers
        self.alignment = Alignment.of(cfg)
        # any layer's may be asked for, until `LunaTransformerModel.prepare_for_inference_` says that none will be
        self.keeps_all_packs = True
        # whether the loss reads attention, so that fused kernels give way where weights are to be seen
        self.packs_in_training = False

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
            ValueError: if the source is longer than learned positions reach.
        """
        is_padding = src_tokens.eq(self.padding_idx)
        if self.learned_pos:
            longest = int((~is_padding).sum(dim=1).max())
            if longest > self.max_source_positions:
                raise ValueError(
                    f"--max-source-positions is {self.max_source_positions}, but a source of {longest} tokens came "
                    "in: learned positions end there. Split the source, or train with more positions or without "
                    "--encoder-learned-pos."
                )
        padding = is_padding if is_padding.any() else None
        count, slots = self.slots(is_padding)

        x = self.embed(src_tokens)
        packed = x[:, :0] if self.packed_embedding is None else self.embed_packed(len(src_tokens), count)
        states = [x]
        for layer in at_work(self.layers, self.draw(len(self.layers), self.layerdrop)):
            x, packed = layer(x, packed, padding, slots)
            states.append(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if self.packed_layer_norm is not None:
            packed = self.packed_layer_norm(packed)
        return Encoded(x, states, packed, padding, slots)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        return_all_hiddens: bool = False,
    ) -> EncoderOut:
        """Encodes the source and prepares the decoder's memory of it.

        Args:
            src_tokens: (B, n), padded on either side.
            src_lengths: not read: the lengths are counted in `src_tokens`.
            return_all_hiddens: also return X after every layer.

        Returns:
            A dictionary of lists, as fairseq wants it:

            - encoder_out: [(n, B, D)]
            - encoder_padding_mask: [(B, n)], True where padded
            - encoder_states: X before the first and after each layer at work, (n, B, D) each, if asked for
            - packed_out: [(l', B, D)], the last P; empty where no attention packs
            - packed_padding_mask: [(B, l')], True where a sentence has no such slot; empty where
              every sentence has them all
            - decoder_layers: [(layers,)], the numbers of the decoder's layers at work in this update; empty where
              all are
            - causal_query, cross_key, cross_value: one (B, H, l', d) per decoder layer at work; empty where
              its attention is an ordinary one, cross_value also when keys are values
            - cross_pack: pack weights (B, H, l', n), one per decoder layer at work; in generation those of the
              layer that aligns, a mean over heads (B, 1, l', n); empty with a full cross attention,
              and in training by a fused kernel, unless `packs_in_training`
            - sentence: [(rows,)], which sentence each row of the decoder translates; see
              `reorder_encoder_out`

        Raises:
            ValueError: if the source is longer than learned positions reach.
        """
        x, states, packed, padding, slots = self.encode(src_tokens)
        views: List[SourceView] = []
        packs: List[Tensor] = []
        drawn = self.draw(self.decoder_layers, self.decoder_layerdrop)
        if self.memory is not None:
            kept = None if self.keeps_all_packs else self.alignment.layer
            views, packs = self.memory(packed, x, padding, slots, drawn, kept, self.packs_in_training)
        packs = packs if self.keeps_all_packs else self.aligned(packs)
        untied = [view.cross_value for view in views if view.cross_value is not view.cross_key]
        return {
            "encoder_out": [x.transpose(0, 1)],
            "encoder_padding_mask": [src_tokens.eq(self.padding_idx)],
            "encoder_states": [s.transpose(0, 1) for s in states] if return_all_hiddens else [],
            "packed_out": [packed.transpose(0, 1)] if packed.size(1) else [],
            "packed_padding_mask": [] if slots.hidden is None else [slots.hidden],
            "decoder_layers": [] if drawn is None else [torch.tensor(drawn)],
            "causal_query": [view.causal_query for view in views if view.causal_query is not None],
            "cross_key": [view.cross_key for view in views if view.cross_key is not None],
            "cross_value": [value for value in untied if value is not None],
            "cross_pack": packs,
            "sentence": [torch.arange(len(src_tokens), device=src_tokens.device)],
        }

    def draw(self, layers: int, p: float) -> Optional[List[int]]:
        """Of so many layers those at work in this update, with LayerDrop in training; None for all."""
        return draw_layers(layers, p) if p > 0 and self.training else None

    def slots(self, padding: Tensor) -> Tuple[int, Slots]:
        """How many slots the batch needs, and which of them each sentence uses, for what stretch.

        A sentence has no more slots than tokens, so that its translation does not depend on the
        batch it is in; --fix-projection-length gives every sentence all l.

        Args:
            padding: (B, n), True where the source is padded.

        Returns:
            l' and what is known of the slots.
        """
        if self.packed_embedding is None:
            return 0, Slots(None, None)
        slots, hidden, positions = self.packed_embedding.size(0), None, None
        lengths = (~padding).sum(dim=1, keepdim=True)
        used = torch.full_like(lengths, slots)
        if not self.fix_projection_length:
            slots = min(slots, padding.size(1))
            used = lengths.clamp(max=slots)
            hidden = torch.arange(slots, device=padding.device) >= lengths
        if self.gaussian:
            positions = slot_positions(padding, used)
        return slots, Slots(hidden if hidden is not None and hidden.any() else None, positions)

    def aligned(self, packs: List[Tensor]) -> List[Tensor]:
        """What aligns, of every layer's pack weights, or of its own: (B, H, l, n) -> (B, 1, l, n)."""
        kept = [packs[self.alignment.layer]] if len(packs) > 1 else packs
        return [self.alignment.mean(pack).unsqueeze(1) for pack in kept]

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Expands to beams, and follows them. new_order: (rows',), indices into the rows of before.

        The beams of a sentence share all that is here, so it stays one per sentence, and `sentence`
        tells the decoder which one a row belongs to. The beams of one sentence stand together, as
        many for each; in any other order there is a copy for every row.
        """
        if len(encoder_out["cross_pack"]) > 1:  # of a model that nobody has prepared
            encoder_out = {**encoder_out, "cross_pack": self.aligned(encoder_out["cross_pack"])}
        (before,) = encoder_out["sentence"]
        sentence = before.index_select(0, new_order)
        if torch.equal(sentence, before):
            return encoder_out
        kept, beams = by_sentence(sentence)
        rows = torch.arange(len(kept), device=kept.device).repeat_interleave(beams)
        if torch.equal(kept, before.unique_consecutive()):
            return {**encoder_out, "sentence": [rows]}
        return {**select_sentences(encoder_out, kept), "sentence": [rows]}

    def max_positions(self) -> int:
        """The longest source that fairseq lets in."""
        return self.max_source_positions


def select_sentences(encoder_out: EncoderOut, chosen: Tensor) -> EncoderOut:
    """What of the encoder's output is of the chosen sentences, (B',), one row each."""
    time_first = ("encoder_out", "encoder_states", "packed_out")
    selected = {
        name: [t.index_select(int(name in time_first), chosen) for t in tensors]
        for name, tensors in encoder_out.items()
        if name not in ("sentence", "decoder_layers")
    }
    return {**encoder_out, **selected, "sentence": [torch.arange(len(chosen), device=chosen.device)]}
