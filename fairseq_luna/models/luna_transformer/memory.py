"""The encoder of a translation model: what it makes of the source, and the decoder's memory of that."""

from typing import Any, List, Optional, Tuple

import torch
import torch.nn as nn
from fairseq.data import Dictionary
from torch import Tensor

from ...modules.layer import at_work
from ...modules.slot_info import SlotInfo
from ...modules.source_layer import SourceView
from ..build import source_memory_layer
from .alignment import Alignment
from .config import decoder_reads_packed
from .encoder import Encoded, LunaEncoder
from .source import EncodedSource, EncoderOut


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
        self.layers = nn.ModuleList(source_memory_layer(cfg, last=i == last) for i in range(cfg.decoder_layers))

    def forward(
        self,
        packed: Tensor,
        encoder_out: Tensor,
        padding: Optional[Tensor],
        slots: SlotInfo,
        drawn: Optional[List[int]] = None,
        aligned: Optional[int] = None,
        in_training: bool = False,
    ) -> Tuple[List[SourceView], List[Tensor]]:
        """Runs all layers, or those at work.

        Args:
            packed: P, (B, l, D).
            encoder_out: (B, m, D).
            padding: (B, m), True where the source is padded.
            slots: what is known of the slots.
            drawn: the decoder's layers at work; None for all.
            aligned: the layer whose pack weights are read; None for all.
            in_training: whether they are read in training, too.

        Returns:
            A view for each layer, and the pack weights (B, H, l, m) of those that are read. There are none
            with a softmax cross attention, nor of a fused kernel where nobody reads them.
        """
        views, packs = [], []
        for i, layer in enumerate(at_work(self.layers, drawn)):
            need_weights = aligned in (None, i) and (in_training or not self.training)
            view, packed, weights = layer(packed, encoder_out, padding, slots, need_weights)
            views.append(view)
            if weights is not None and aligned in (None, i):
                packs.append(weights)
        return views, packs


class LunaTransformerEncoder(LunaEncoder):
    """Encodes the source, and fills the decoder's memory of it.

    Args:
        cfg: a `LunaTransformerConfig`, checked.
        dictionary: of the source.
        embed_tokens: the source embedding.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding):
        super().__init__(cfg, dictionary, embed_tokens, packed_is_read=decoder_reads_packed(cfg))
        self.memory = SourceMemory(cfg) if decoder_reads_packed(cfg) else None
        self.decoder_layers, self.decoder_layerdrop = cfg.decoder_layers, cfg.decoder_layerdrop
        self.alignment = Alignment.of(cfg)
        # any layer's may be asked for, until `LunaTransformerModel.prepare_for_inference_` says that none will be
        self.keeps_all_packs = True
        # whether the loss reads attention, so that fused kernels give way where weights are to be seen
        self.packs_in_training = False

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
            An `EncodedSource` in fairseq's form, see there.

        Raises:
            ValueError: if the source is longer than learned positions or Linformer's sums reach.
        """
        encoded = self.encode(src_tokens)
        source = self.source_of(encoded, src_tokens.eq(self.padding_idx))
        return (source._replace(states=encoded.states) if return_all_hiddens else source).to_fairseq()

    def source_of(self, encoded: Encoded, padding: Tensor) -> EncodedSource:
        """What the decoder knows of an encoded source. padding: (B, n), True where the source is padded."""
        views: List[SourceView] = []
        packs: List[Tensor] = []
        drawn = self.draw(self.decoder_layers, self.decoder_layerdrop)
        if self.memory is not None:
            assert encoded.packed is not None
            kept = None if self.keeps_all_packs else self.alignment.layer
            views, packs = self.memory(
                encoded.packed, encoded.out, encoded.padding, encoded.slots, drawn, kept, self.packs_in_training
            )
        aligned = None
        if packs and not self.keeps_all_packs:
            aligned, packs = self.alignment.mean(packs[0]), []
        return EncodedSource(
            out=encoded.out,
            padding=padding,
            sentence=torch.arange(padding.size(0), device=padding.device),
            packed=encoded.packed,
            slot_padding=encoded.slots.padding,
            layers=drawn,
            views=views,
            packs=packs,
            aligned_pack=aligned,
        )

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Called by fairseq to expand to beams, and when they change places; see `EncodedSource.reordered`."""
        source = EncodedSource.from_fairseq(encoder_out)
        reordered = source.reordered(new_order)
        if source.packs:  # of a model that nobody has prepared
            aligned = self.alignment.mean(reordered.packs[self.alignment.layer])
            reordered = reordered._replace(packs=[], aligned_pack=aligned)
        return encoder_out if reordered is source else reordered.to_fairseq()
