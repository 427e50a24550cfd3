"""What all decoders have around their layers: embeddings below, probabilities of words above."""

import math
from typing import Any, Dict, Iterable, Optional, Tuple

import torch
import torch.nn as nn
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from fairseq.modules import AdaptiveSoftmax, LayerNorm, PositionalEmbedding
from torch import Tensor

from ..modules.causal_attention import LunaCausalAttention
from ..modules.dropout import Dropout
from ..modules.linear import Linear
from ..modules.step import Step
from ..ops.causal.state import share_of_step
from ..ops.softmax import log_softmax_


class TokenDecoder(FairseqIncrementalDecoder):
    """A decoder without its forward pass.

    Args:
        cfg: checked settings, `decoder_*` and what belongs to words.
        dictionary: of the words that it predicts.
        embed_tokens: of the words that it reads.
        layers: of the decoder, made one after the other when it is their turn to draw their first weights.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding, layers: Iterable[nn.Module]):
        super().__init__(dictionary)
        dim = cfg.decoder_embed_dim
        self.padding_idx = dictionary.pad()
        self.max_target_positions = cfg.max_target_positions

        self.embed_tokens = embed_tokens
        self.embed_scale = 1.0 if cfg.no_scale_embedding else math.sqrt(dim)
        self.embed_positions: Optional[nn.Module] = None
        if not cfg.no_token_positional_embeddings:
            self.embed_positions = PositionalEmbedding(
                cfg.max_target_positions, dim, self.padding_idx, learned=cfg.decoder_learned_pos
            )
        self.embed_norm = LayerNorm(dim, export=cfg.export) if cfg.layernorm_embedding else None
        self.word_dropout = nn.Dropout1d(cfg.word_dropout)  # of whole tokens (Sennrich et al. 2016, WMT)
        self.dropout = Dropout(cfg.dropout, module_name="LunaDecoder")
        self.layers = nn.ModuleList(layers)
        self.layer_norm = None
        if cfg.decoder_normalize_before and not cfg.no_decoder_final_norm:
            self.layer_norm = LayerNorm(dim, export=cfg.export)

        self.output_projection: Optional[Linear] = None
        if cfg.adaptive_softmax_cutoff is not None:
            # fairseq's criterions and search look for one under this name
            self.adaptive_softmax = AdaptiveSoftmax(
                len(dictionary),
                dim,
                cfg.adaptive_softmax_cutoff,
                cfg.adaptive_softmax_dropout,
                cfg.adaptive_softmax_factor,
            )
        else:
            self.output_projection = Linear(dim, len(dictionary), bias=False)
            if cfg.share_decoder_input_output_embed:
                self.output_projection.weight = embed_tokens.weight
            else:
                nn.init.normal_(self.output_projection.weight, std=dim**-0.5)

    def embed(self, prev_output_tokens: Tensor, incremental_state: Optional[Dict[Any, Any]]) -> Tensor:
        """Tokens (B, n) -> X of the first layer, (B, n, D), or (B, 1, D) of the last token."""
        positions = None
        if self.embed_positions is not None:
            positions = self.embed_positions(prev_output_tokens, incremental_state=incremental_state)
        if incremental_state is not None:
            prev_output_tokens = prev_output_tokens[:, -1:]
            positions = None if positions is None else positions[:, -1:]
        return self.embed_at(prev_output_tokens, positions)

    def embed_at(self, tokens: Tensor, positions: Optional[Tensor]) -> Tensor:
        """Tokens (B, n) and the embedding of their positions, (B, n, D) or (1, D) of one step -> X."""
        x = self.word_dropout(self.embed_scale * self.embed_tokens(tokens))
        if positions is not None:
            x = x + positions
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return self.dropout(x)

    def positions_of_steps(self, most: int) -> Tensor:
        """The embedding of each step's position, (steps, D): as far as it reaches, and no farther than so many."""
        assert self.embed_positions is not None
        steps = min(most, self.max_target_positions)
        tokens = torch.full((1, steps), self.padding_idx + 1, device=self.embed_tokens.weight.device)
        return self.embed_positions(tokens)[0]

    def step_of(self, t: Any, incremental_state: Dict[Any, Any]) -> Step:
        """Step t of a decoding, counted from 1, an int or a tensor; 1/w_t is the same in all layers."""
        attn = self.layers[0].self_attn
        decays = attn.decays(self.embed_tokens.weight.device) if isinstance(attn, LunaCausalAttention) else None
        return Step(incremental_state, share_of_step(t, decays), in_place=not torch.is_grad_enabled())

    def output_layer(self, features: Tensor) -> Tensor:
        """Features (B, n, D) -> logits (B, n, V), or the features where an adaptive softmax takes them."""
        return features if self.output_projection is None else self.output_projection(features)

    def get_normalized_probs(
        self, net_output: Tuple[Tensor, Any], log_probs: bool, sample: Optional[Dict[str, Tensor]] = None
    ) -> Tensor:
        """As fairseq's, but log-probabilities in float32 take the place of the logits, in their memory:
        `net_output[0]` holds them from then on, whose softmax is the same.

        Raises:
            ValueError: if gradients are asked of all probabilities of an adaptive softmax, which has none.
        """
        logits = net_output[0]
        if self.adaptive_softmax is not None:
            if torch.is_grad_enabled() and logits.requires_grad:
                raise ValueError(
                    "--adaptive-softmax-cutoff needs --criterion adaptive_loss --ddp-backend legacy_ddp in training."
                )
        elif log_probs and logits.dtype == torch.float32:
            return log_softmax_(logits)
        return super().get_normalized_probs(net_output, log_probs, sample)

    def max_positions(self) -> int:
        """The longest target that fairseq lets in."""
        return self.max_target_positions
