"""The Luna decoder: causal Luna layers over the target, on the encoder's memory of the source."""

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn as nn
from fairseq.data import Dictionary
from torch import Tensor

from ...modules.layer import at_work
from ...modules.step import Step
from ...ops.precision import accumulation_dtype
from ..build import decoder_layer
from ..token_decoder import TokenDecoder
from .alignment import Alignment, even_attention
from .graphs import Graphs
from .source import EncodedSource, EncoderOut


class LunaDecoder(TokenDecoder):
    """Predicts the target, all at once or token by token with a state of constant size.

    Args:
        cfg: a `LunaTransformerConfig`, checked.
        dictionary: of the target.
        embed_tokens: the target embedding.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding):
        layers = (decoder_layer(cfg) for _ in range(cfg.decoder_layers))
        super().__init__(cfg, dictionary, embed_tokens, layers)
        self.alignment = Alignment.of(cfg)
        # whether steps may run as graphs, which `LunaTransformerModel.prepare_for_inference_` allows, and those
        self.uses_graphs = False
        self.graphs: Optional[Graphs] = None
        # whether attention is read; until `LunaTransformerModel` tells, at single steps alone
        self.need_attn: Optional[bool] = None

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut,
        incremental_state: Optional[Dict[Any, Any]] = None,
        features_only: bool = False,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
        src_lengths: Optional[Tensor] = None,
        return_all_hiddens: bool = False,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Predicts every next token, or the next one alone on an incremental state.

        Args:
            prev_output_tokens: (B, n), padded on the right; with an incremental state all tokens
                so far, of which the last is new.
            encoder_out: of `LunaEncoder`.
            incremental_state: fairseq's dictionary, empty at the first step.
            features_only: return the features in place of logits, as always with an adaptive softmax.
            full_context_alignment: return attention; every position reads the whole target, later
                positions too, for alignments alone: a word to be predicted is there to be seen.
            alignment_layer: return attention, of this layer, 0 the lowest (default: the setting's).
            alignment_heads: return attention, of the first so many heads (default: the setting's).
            src_lengths: not read.
            return_all_hiddens: not read: hidden states always come along.

        Returns:
            Logits (B, n, V), or features (B, n, D), and a dictionary with `inner_states`, X
            before the first and after each layer at work, (n, B, D) each, and `attn`: [(B, n, m)], how
            much each target position reads of each source position, unpack @ pack, or the weights
            where the cross attention is full; [None] where nobody has asked for it, which would
            cost n m: by these arguments, or by `need_attn`, in training with --load-alignments and
            in generation with --print-alignment or --replace-unk.

        Raises:
            ValueError: if there is no such layer, or not so many heads, or if attention of another
                layer is asked for in generation than the model is prepared for.
        """
        asked = features_only or full_context_alignment or (alignment_layer, alignment_heads) != (None, None)
        if incremental_state is not None:
            logits = self.replay(prev_output_tokens, encoder_out, incremental_state, asked)
            if logits is not None:
                return logits, {"attn": [None], "inner_states": []}
        x, extra = self.extract_features(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut,
        incremental_state: Optional[Dict[Any, Any]] = None,
        full_context_alignment: bool = False,
        alignment_layer: Optional[int] = None,
        alignment_heads: Optional[int] = None,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """As `forward`, with features (B, n, D) in place of logits."""
        x = self.embed(prev_output_tokens, incremental_state)
        rows, n, dim = x.shape
        source, step = EncodedSource.from_fairseq(encoder_out), None
        if incremental_state is None:
            source = source.one_per_row()
        else:
            # the beams of a sentence read it as the positions of one sequence would: (B, beams, D)
            sentences = len(source.padding)
            x = x.view(sentences, rows // max(1, sentences), dim)
            step = self.step_of(prev_output_tokens.size(1), incremental_state)
        need_attn = incremental_state is not None if self.need_attn is None else self.need_attn
        asked = full_context_alignment or (alignment_layer, alignment_heads) != (None, None)
        if asked and not source.made_packs():
            raise ValueError(
                "Attention was asked for in training, but a fused kernel made no pack weights: set "
                "model.encoder.packs_in_training = True before, or FAIRSEQ_LUNA_FUSED=0."
            )
        need_attn = need_attn and source.made_packs() or asked
        alignment = self.alignment.instead(alignment_layer, alignment_heads)
        whole = prev_output_tokens.eq(self.padding_idx) if full_context_alignment else None
        aligned, attn = alignment.place(source.layers), None
        x, states, weights = self.carry(x, source, step, aligned if need_attn else None, whole)
        if weights is not None:
            attn = self.read_alignment(weights, source, aligned, alignment).view(rows, n, -1)
        elif need_attn:  # LayerDrop has left out all layers
            attn = even_attention(source.padding, n, accumulation_dtype(x.dtype))
        inner_states = [s.view(rows, n, dim).transpose(0, 1) for s in states]
        return x.view(rows, n, dim), {"attn": [attn], "inner_states": inner_states}

    def carry(
        self,
        x: Tensor,
        source: EncodedSource,
        step: Optional[Step] = None,
        aligned: Optional[int] = None,
        whole: Optional[Tensor] = None,
    ) -> Tuple[Tensor, List[Tensor], Optional[Tensor]]:
        """Through all layers, or those at work.

        Args:
            x: of the first layer, (B, n, D), or at a step (B, beams, D).
            source: what is known of it.
            step: of decoding; None for whole sequences.
            aligned: of the layers at work the one whose weights are read.
            whole: as in `LunaDecoderLayer`.

        Returns:
            Features, X before the first and after each layer, and the weights of the aligned layer's cross attention.
        """
        seen, states, read = source.for_all_layers(), [x], None
        for i, layer in enumerate(at_work(self.layers, source.layers)):
            x, weights = layer(x, seen, source.view(i), step, i == aligned, whole)
            states.append(x)
            read = weights if i == aligned else read
        return (x if self.layer_norm is None else self.layer_norm(x)), states, read

    def replay(
        self, tokens: Tensor, encoder_out: EncoderOut, incremental_state: Dict[Any, Any], asked: bool
    ) -> Optional[Tensor]:
        """Logits (B, 1, V) of a step by a graph; None where there is none, or more than logits is asked for."""
        rows, t = tokens.shape
        decoding, (padding,) = incremental_state.get(self), encoder_out["encoder_padding_mask"]
        asked = asked or bool(self.need_attn) or torch.is_grad_enabled() or torch.is_autocast_enabled()
        suits = self.uses_graphs and not (asked or self.training)
        if suits and t == 1 and not incremental_state:
            if self.graphs is not None and self.graphs.is_stale():
                self.graphs = None
            if self.graphs is None and Graphs.suit(self):
                self.graphs = Graphs(self)
            if self.graphs is not None:
                decoding = self.graphs.begin(EncodedSource.from_fairseq(encoder_out), rows)
            if decoding is not None:
                incremental_state[self] = decoding
        elif decoding is not None and not (suits and decoding.goes_on(t, rows, padding)):
            decoding.leave(incremental_state, rows)
            del incremental_state[self]
            decoding = None
        return None if decoding is None else decoding.advance(tokens[:, -1], t, padding).unsqueeze(1)

    def reorder_incremental_state(self, incremental_state: Dict[Any, Any], new_order: Tensor) -> None:
        """Called by fairseq when beams change places or sentences end. new_order: (B',)."""
        if self in incremental_state:
            incremental_state[self].reorder(new_order)

    def _apply(self, *args: Any, **kwargs: Any) -> "LunaDecoder":
        self.graphs = None  # they read weights where these were
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.graphs = None
        super()._load_from_state_dict(*args, **kwargs)

    def read_alignment(self, weights: Tensor, source: EncodedSource, aligned: int, alignment: Alignment) -> Tensor:
        """What of a cross attention aligns: its weights (B, H, n, l or m), and the pack of the same layer, the
        `aligned` one at work -> (B, n, m)."""
        read = alignment.mean(weights)
        if source.packs:
            return read @ alignment.mean(source.packs[aligned])
        if source.aligned_pack is None:  # a softmax cross attention
            return read
        if alignment != self.alignment:
            raise ValueError(
                f"alignment_layer {alignment.layer} with alignment_heads {alignment.heads} was asked for, but in "
                f"generation a model keeps the attention of alignment_layer {self.alignment.layer} with "
                f"alignment_heads {self.alignment.heads} only. Set --alignment-layer and --alignment-heads by "
                "--model-overrides."
            )
        return read @ source.aligned_pack
