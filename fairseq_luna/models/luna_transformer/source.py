"""What the decoder knows of the source, and how fairseq carries it."""

from typing import Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from ...modules.beams import by_sentence
from ...modules.decoder_layer import Source
from ...modules.source_layer import SourceView

EncoderOut = Dict[str, List[Tensor]]


class EncodedSource(NamedTuple):
    """A batch of sources, encoded, once per sentence whatever the number of beams.

    Attributes:
        out: the encoder's output, (B, m, D).
        padding: (B, m), True where the source is padded.
        sentence: which sentence each row of the decoder translates, (rows,); see `reordered`.
        states: X before the first and after each layer, (B, m, D) each; empty where nobody has asked for them.
        packed: the last P, (B, l', D); None where no attention packs.
        slot_padding: (B, l'), True where a sentence has no such slot; None where all have all.
        layers: the numbers of the decoder's layers at work in this update; None for all.
        views: what each decoder layer at work sees; empty where none reads P.
        packs: pack weights (B, H, l', m) of each decoder layer at work; empty with a softmax cross attention, where
            fused kernels made none, and where `aligned_pack` is all that is read.
        aligned_pack: the pack weights that align, a mean of heads, (B, l', m).
    """

    out: Tensor
    padding: Tensor
    sentence: Tensor
    states: List[Tensor] = []
    packed: Optional[Tensor] = None
    slot_padding: Optional[Tensor] = None
    layers: Optional[List[int]] = None
    views: List[SourceView] = []
    packs: List[Tensor] = []
    aligned_pack: Optional[Tensor] = None

    def for_all_layers(self) -> Source:
        """What all decoder layers see."""
        return Source(self.out, self.padding, self.slot_padding)

    def view(self, i: int) -> SourceView:
        """What the i-th decoder layer at work sees."""
        return self.views[i] if self.views else SourceView()

    def made_packs(self) -> bool:
        """Whether the pack weights are here that an alignment needs: a softmax cross attention needs none."""
        return bool(self.packs) or self.aligned_pack is not None or self.view(0).cross_key is None

    def select(self, chosen: Tensor) -> "EncodedSource":
        """The chosen sentences, (B',), one row each."""

        def of(tensors: List[Tensor]) -> List[Tensor]:
            return [tensor.index_select(0, chosen) for tensor in tensors]

        def of_one(tensor: Optional[Tensor]) -> Optional[Tensor]:
            return None if tensor is None else tensor.index_select(0, chosen)

        return self._replace(
            out=self.out.index_select(0, chosen),
            padding=self.padding.index_select(0, chosen),
            sentence=torch.arange(len(chosen), device=chosen.device),
            states=of(self.states),
            packed=of_one(self.packed),
            slot_padding=of_one(self.slot_padding),
            views=[SourceView(*map(of_one, view)) for view in self.views],
            packs=of(self.packs),
            aligned_pack=of_one(self.aligned_pack),
        )

    def one_per_row(self) -> "EncodedSource":
        """With a copy for every row of the decoder, where beams share it."""
        return self if len(self.sentence) == len(self.padding) else self.select(self.sentence)

    def reordered(self, new_order: Tensor) -> "EncodedSource":
        """Expanded to beams, or behind them. new_order: (rows',), indices into the rows of before.

        The beams of a sentence share all that is here, so it stays one per sentence, and `sentence`
        tells the decoder which one a row belongs to. The beams of one sentence stand together, as
        many for each; in any other order there is a copy for every row.
        """
        before = self.sentence
        sentence = before.index_select(0, new_order)
        if torch.equal(sentence, before):
            return self
        kept, beams = by_sentence(sentence)
        rows = torch.arange(len(kept), device=kept.device).repeat_interleave(beams)
        source = self if torch.equal(kept, before.unique_consecutive()) else self.select(kept)
        return source._replace(sentence=rows)

    def to_fairseq(self) -> EncoderOut:
        """As a dictionary of lists, as fairseq wants it.

        - encoder_out: [(m, B, D)]
        - encoder_padding_mask: [(B, m)]
        - encoder_states: (m, B, D) each
        - packed_out: [(l', B, D)], or empty
        - packed_padding_mask: [(B, l')], or empty
        - decoder_layers: [(layers,)], or empty
        - causal_query, cross_key, cross_value: one (B, H, l', d) per decoder layer at work; empty where
          its attention is an ordinary one, cross_value also when keys are values
        - cross_pack: `packs`
        - aligned_pack: [(B, l', m)], or empty
        - sentence: [(rows,)]
        """
        queries, keys, values = ([u for u in field if u is not None] for field in zip(*self.views or [SourceView()]))
        return {
            "encoder_out": [self.out.transpose(0, 1)],
            "encoder_padding_mask": [self.padding],
            "encoder_states": [state.transpose(0, 1) for state in self.states],
            "packed_out": [] if self.packed is None else [self.packed.transpose(0, 1)],
            "packed_padding_mask": [] if self.slot_padding is None else [self.slot_padding],
            "decoder_layers": [] if self.layers is None else [torch.tensor(self.layers)],
            "causal_query": queries,
            "cross_key": keys,
            "cross_value": values,
            "cross_pack": self.packs,
            "aligned_pack": [] if self.aligned_pack is None else [self.aligned_pack],
            "sentence": [self.sentence],
        }

    @staticmethod
    def from_fairseq(encoder_out: EncoderOut) -> "EncodedSource":
        """Of what `to_fairseq` has made."""

        def only(name: str) -> Optional[Tensor]:
            return next(iter(encoder_out[name]), None)

        packed, layers = only("packed_out"), only("decoder_layers")
        queries, keys, values = (encoder_out[name] for name in ("causal_query", "cross_key", "cross_value"))
        nothing: List[Optional[Tensor]] = [None] * max(len(queries), len(keys))
        views = zip(queries or nothing, keys or nothing, values or nothing)
        return EncodedSource(
            out=encoder_out["encoder_out"][0].transpose(0, 1),
            padding=encoder_out["encoder_padding_mask"][0],
            sentence=encoder_out["sentence"][0],
            states=[state.transpose(0, 1) for state in encoder_out["encoder_states"]],
            packed=None if packed is None else packed.transpose(0, 1),
            slot_padding=only("packed_padding_mask"),
            layers=None if layers is None else layers.tolist(),
            views=[SourceView(*view) for view in views],
            packs=encoder_out["cross_pack"],
            aligned_pack=only("aligned_pack"),
        )
