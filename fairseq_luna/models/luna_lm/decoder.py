"""The decoder of the language model: causal Luna layers that read a learned P."""

from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
import torch.nn as nn
from fairseq.data import Dictionary
from torch import Tensor

from ...modules.decoder_layer import Source
from ...modules.head_projection import HeadProjection
from ...modules.layer import at_work, draw_layers
from ...modules.source_layer import SourceView
from ...modules.step import Step
from ..build import decoder_layer
from ..static_pass import Inputs
from ..token_decoder import TokenDecoder
from ..training_graphs import Stack, TrainingGraphs, allowed, renewed, trains


class LunaLMDecoder(TokenDecoder):
    """Predicts the next word of a text, all at once or word by word with a state of constant size.

    All layers read one P, each through a projection of its own: P_i = P W_i is the query of its causal pack.

    Args:
        cfg: a `LunaLanguageModelConfig`, checked.
        dictionary: of the words that it predicts.
        embed_tokens: of the words that it reads.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary, embed_tokens: nn.Embedding):
        layers = (decoder_layer(cfg) for _ in range(cfg.decoder_layers))
        super().__init__(cfg, dictionary, embed_tokens, layers)
        dim, heads = cfg.decoder_embed_dim, cfg.decoder_attention_heads
        self.packed_embedding = nn.Parameter(torch.empty(cfg.projection_length, dim))
        nn.init.normal_(self.packed_embedding, std=dim**-0.5)
        projections = (HeadProjection(dim, dim, heads, is_query=True) for _ in range(cfg.decoder_layers))
        self.pack_queries = nn.ModuleList(projections)
        self.layerdrop = cfg.decoder_layerdrop
        self.captured = allowed(cfg)
        self.graphs: Optional[TrainingGraphs] = None

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[Dict[Any, Any]] = None,
        features_only: bool = False,
        src_lengths: Optional[Tensor] = None,
        return_all_hiddens: bool = False,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Predicts every next word, or the next one alone on an incremental state.

        Args:
            prev_output_tokens: (B, n), padded on the right; with an incremental state all words so far, of which
                the last is new.
            encoder_out: not read.
            incremental_state: fairseq's dictionary, empty at the first step.
            features_only: return the features in place of logits, as always with an adaptive softmax.
            src_lengths: not read.
            return_all_hiddens: not read: hidden states always come along.

        Returns:
            Logits (B, n, V), or features (B, n, D), and a dictionary with `inner_states`, X before the first and after
            each layer at work, (n, B, D) each, and `attn`: [None]. In training by CUDA graphs
            (models/training_graphs.py) there are no `inner_states`.
        """
        features = self.replay(prev_output_tokens) if incremental_state is None else None
        extra: Dict[str, Any] = {"attn": [None]}
        if features is None:
            features, extra = self.extract_features(prev_output_tokens, encoder_out, incremental_state)
        return (features if features_only else self.output_layer(features)), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Optional[Dict[Any, Any]] = None,
        **kwargs: Any,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """As `forward`, with features (B, n, D) in place of logits."""
        x, step = self.embed(prev_output_tokens, incremental_state), None
        if incremental_state is not None:
            step = self.step_of(prev_output_tokens.size(1), incremental_state)
        drawn: Optional[List[int]] = None
        if self.layerdrop > 0 and self.training:
            drawn = draw_layers(len(self.layers), self.layerdrop)
        x, states = self.carry(x, self.queries(drawn, incremental_state), drawn, step)
        return x, {"attn": [None], "inner_states": [state.transpose(0, 1) for state in states]}

    def carry(
        self, x: Tensor, queries: Iterable[Tensor], drawn: Optional[List[int]] = None, step: Optional[Step] = None
    ) -> Tuple[Tensor, List[Tensor]]:
        """X (B, n, D) and P_i of all layers, or of those at work -> features, and X before the first and after each."""
        states = [x]
        for layer, query in zip(at_work(self.layers, drawn), queries):
            x, _ = layer(x, Source(), SourceView(causal_query=query.expand(len(x), -1, -1, -1)), step)
            states.append(x)
        return (x if self.layer_norm is None else self.layer_norm(x)), states

    def replay(self, tokens: Tensor) -> Optional[Tensor]:
        """Features (B, n, D) of a batch in training by a graph, or None where there is none."""
        if not (self.captured and trains(self)):
            return None
        self.graphs = renewed(self.graphs, self.stack())
        return None if self.graphs is None else self.graphs.features(tokens)

    def stack(self) -> Stack:
        """What is captured of a training: all layers."""

        def enter(tokens: Tensor) -> Inputs:
            return [self.embed(tokens, None), self.packed()]

        def carry(x: Tensor, packed: Tensor) -> Tensor:
            return self.carry(x, (project(packed) for project in self.pack_queries))[0]

        parts = [part for part in (self.pack_queries, self.layers, self.layer_norm) if part is not None]
        return Stack(parts, enter, carry, [self.dictionary])

    def _apply(self, *args: Any, **kwargs: Any) -> "LunaLMDecoder":
        self.graphs = None  # with the memory of the weights that were there
        return super()._apply(*args, **kwargs)

    def packed(self) -> Tensor:
        """P, (1, l, D), without positions: a slot is told from another by what it learns."""
        return (self.embed_scale * self.packed_embedding).unsqueeze(0)

    def queries(self, drawn: Optional[List[int]], incremental_state: Optional[Dict[Any, Any]]) -> Tuple[Tensor, ...]:
        """P_i of each layer at work, (1, H, l, d); kept for all steps of a decoding."""
        if incremental_state is not None and self in incremental_state:
            return incremental_state[self]
        packed = self.packed()
        queries = tuple(project(packed) for project in at_work(self.pack_queries, drawn))
        if incremental_state is not None:
            incremental_state[self] = queries
        return queries
