"""The two functions of tensors that a translation model is exported as: encoder and memory, and a decoder's step."""

import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor

from ..models.luna_transformer.static_step import through
from ..modules.decoder_layer import Source
from ..modules.source_layer import SourceView
from ..ops.causal.step import CausalState

# sizes that differ from call to call, of what the decoder reads of the source
AXES = {
    **{part: {0: "sentences", 2: "slots"} for part in SourceView._fields},
    **{part: {0: "sentences", 2: "length"} for part in ("source_key", "source_value")},
    **{"slot_padding": {0: "sentences", 1: "slots"}, "padding": {0: "sentences", 1: "length"}},
}


class Named(NamedTuple):
    """A tensor that goes into a graph or comes out of it.

    Attributes:
        name: of the tensor.
        shape: its sizes; a name where a size may differ from call to call. "rows" is sentences * beams.
        dtype: as numpy names it.
    """

    name: str
    shape: Tuple[Any, ...]
    dtype: str = "float32"


class Sinusoids(nn.Module):
    """fairseq's sinusoidal positions, computed for any position where fairseq reads a table that ends somewhere."""

    def __init__(self, table: SinusoidalPositionalEmbedding):
        super().__init__()
        self.padding_idx, half = table.padding_idx, table.embedding_dim // 2
        self.odd = table.embedding_dim % 2 == 1
        # as `SinusoidalPositionalEmbedding.get_embedding` computes them, to the bit
        self.register_buffer("rates", torch.exp(torch.arange(half).float() * -(math.log(10000) / (half - 1))))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, n) -> (B, n, D), zeros where there is padding."""
        real = tokens.ne(self.padding_idx)
        return self.at(real.cumsum(dim=1)) * real.unsqueeze(-1)

    def at(self, positions: Tensor) -> Tensor:
        """Numbers of positions from 1, (...) -> (..., D)."""
        angles = (positions + self.padding_idx).unsqueeze(-1).float() * self.rates
        parts = [angles.sin(), angles.cos()]
        return torch.cat([*parts, torch.zeros_like(angles[..., :1])] if self.odd else parts, dim=-1)


class Encode(nn.Module):
    """Source tokens -> all that the decoder reads of them.

    Args:
        model: a `LunaTransformerModel` that `prepared` has made ready.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(self, tokens: Tensor) -> Tuple[Tensor, ...]:
        """Tokens (B, m), padded on either side -> the tensors of `memory`."""
        return tuple(self.memory(tokens).values())

    def memory(self, tokens: Tensor) -> Dict[str, Tensor]:
        """Tokens (B, m) -> tensors by their names: a part of `AXES`, with the number of the layer if each has one."""
        x, packed, padding, slots = self.encoder.enter(tokens)
        source = self.encoder.source_of(self.encoder.carry(x, packed, padding, slots), padding)
        found: Dict[str, Optional[Tensor]] = {}
        for i, (layer, view) in enumerate(zip(self.decoder.layers, source.views)):
            found.update((f"{part}.{i}", tensor) for part, tensor in view._asdict().items())
            if not layer.packed:
                found[f"source_key.{i}"], found[f"source_value.{i}"] = layer.cross_attn.keys_values(source.out)
                found["padding"] = source.padding
        found["slot_padding"] = source.slot_padding
        return {name: tensor for name, tensor in found.items() if tensor is not None}


class Advance(nn.Module):
    """A step of the decoder: tokens and states -> log-probabilities of the next tokens, and states.

    Args:
        model: as for `Encode`.
        memory: names of the tensors of the source.
        states: names of those of the past.
    """

    positions: Optional[Tensor]  # of all steps, where they are learned

    def __init__(self, model: Any, memory: List[str], states: List[str]):
        super().__init__()
        self.decoder, self.memory, self.states = model.decoder, memory, states
        positions = self.decoder.embed_positions
        learned = positions is not None and not isinstance(positions, Sinusoids)
        table = self.decoder.positions_of_steps(self.decoder.max_target_positions).detach() if learned else None
        self.register_buffer("positions", table)

    def forward(
        self, tokens: Tensor, order: Tensor, t: Tensor, memory: List[Tensor], states: List[Tensor]
    ) -> Tuple[Tensor, ...]:
        """A step.

        Args:
            tokens: the last token of each beam, (B, beams).
            order: of which row of the states each beam takes its own, (B, beams).
            t: number of the step, from 1, ().
            memory: what the decoder reads of the source.
            states: of the past, any number of rows each.

        Returns:
            Log-probabilities (B, beams, V), and the new states, (B * beams, ...) each.
        """
        decoder, rows = self.decoder, order.flatten()
        known = {**dict(zip(self.memory, memory)), **dict(zip(self.states, states))}
        step = decoder.step_of(t, {})
        x = decoder.embed_at(tokens, self.position(t))
        source = Source(None, known.get("padding"), known.get("slot_padding"))
        found: List[Tensor] = []
        for i, layer in enumerate(decoder.layers):
            view = SourceView(*(known.get(f"{part}.{i}") for part in SourceView._fields))
            state = CausalState(known[f"mean.{i}"], known.get(f"value_mean.{i}")).reorder(rows)
            read = None if layer.packed else (known[f"source_key.{i}"], known[f"source_value.{i}"])
            x, after = through(layer, x, source, view, state, read, step)
            found += [mean for mean in after if mean is not None]
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        adaptive, y = decoder.adaptive_softmax, decoder.output_layer(x)
        log_probs = torch.log_softmax(y, dim=-1) if adaptive is None else adaptive.get_log_prob(y, None)
        return (log_probs, *found)

    def position(self, t: Tensor) -> Optional[Tensor]:
        """The embedding of the position of step t, (1, D)."""
        if self.positions is not None:
            return self.positions.index_select(0, t.view(1) - 1)
        positions: Any = self.decoder.embed_positions
        return None if positions is None else positions.at(t.view(1))


def memory_of(parts: Dict[str, Tensor]) -> List[Named]:
    """What the decoder reads of the source, with the shapes that it has for any source.

    Args:
        parts: what `Encode.memory` makes of some source.
    """
    found = []
    for name, tensor in parts.items():
        axes = AXES[name.partition(".")[0]]
        shape = tuple(axes.get(axis, size) for axis, size in enumerate(tensor.shape))
        found.append(Named(name, shape, str(tensor.dtype)[len("torch.") :]))
    return found


def states_of(model: Any, parts: Dict[str, Tensor]) -> List[Named]:
    """What the decoder keeps of the past. Arguments as of `Advance` and `memory_of`."""
    found = []
    for i, layer in enumerate(model.decoder.layers):
        _, heads, _, dim = parts[f"causal_query.{i}"].shape
        found.append(Named(f"mean.{i}", ("rows", heads, dim, "slots")))
        if not layer.self_attn.key_value.tied:
            found.append(Named(f"value_mean.{i}", ("rows", heads, "slots", dim)))
    return found
