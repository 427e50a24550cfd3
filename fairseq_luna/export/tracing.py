"""From a model of torch to graphs of ONNX."""

import logging
import warnings
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

import torch
from fairseq.modules import SinusoidalPositionalEmbedding

from ..errors import Problem
from ..models.luna_transformer import LunaTransformerModel
from ..modules.causal_attention import LunaCausalAttention
from ..ops import dispatch
from .graphs import Advance, Encode, Named, Sinusoids, memory_of, states_of

TORCH = 2, 6  # the first release that exports sizes which differ from call to call


class Graph(NamedTuple):
    """A function of tensors as a graph.

    Attributes:
        model: of onnx.
        inputs: of the graph, in their order.
        outputs: of the graph, in their order.
    """

    model: Any
    inputs: List[Named]
    outputs: List[Named]

    def about(self) -> Dict[str, Any]:
        """What a manifest tells of it."""
        return {side: [each._asdict() for each in getattr(self, side)] for side in ("inputs", "outputs")}


def check_torch() -> None:
    """Refuse a torch that cannot export."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < TORCH:
        raise Problem(
            f"torch is {torch.__version__}, but only torch {TORCH[0]}.{TORCH[1]} or later can export this: export in "
            "an environment of Python 3.11 or 3.12 (scripts/setup.sh makes one). What it writes runs without torch"
        )


def check(model: Any, name: str) -> None:
    """Refuse a model that is no function of tensors of constant shape. `name` is what to call it."""
    if not isinstance(model, LunaTransformerModel):
        raise Problem(
            f"the model of {name} is of {type(model).__name__}: only a luna_transformer can be exported, since the "
            "state of its decoder does not grow"
        )
    if not all(isinstance(layer.self_attn, LunaCausalAttention) for layer in model.decoder.layers):
        raise Problem(
            f"the model of {name} has --decoder-self-attention softmax, whose state grows with each step: export one "
            "that was trained with --decoder-self-attention luna"
        )


def prepare(model: Any) -> None:
    """Leave out what translating does not read, and what is bound to a length. The model cannot be trained any more."""
    model.eval()
    model.float()  # which undoes what `prepare_for_inference_` has prepared for a CPU
    model.encoder.keeps_all_packs, model.decoder.need_attn = False, False
    for side in model.encoder, model.decoder:
        if isinstance(side.embed_positions, SinusoidalPositionalEmbedding):
            side.embed_positions = Sinusoids(side.embed_positions)


def graphs_of(model: Any) -> Dict[str, Graph]:
    """The graphs "encode" and "step" of a model that is `prepare`d."""
    encode, words = Encode(model), len(model.decoder.dictionary)
    pad, eos = model.encoder.padding_idx, model.encoder.dictionary.eos()
    tokens = torch.tensor([[pad, pad, *[eos] * 5], [eos] * 7])
    with torch.no_grad(), dispatch.using(fused=False, moved=False), quiet():
        parts = encode.memory(tokens)
        memory, states = memory_of(parts), states_of(model, parts)
        inputs = [Named("tokens", ("sentences", "length"), "int64")]
        found = {"encode": traced(encode, inputs, [tokens], memory)}

        advance = Advance(model, [each.name for each in memory], [each.name for each in states])
        model.decoder.step_of(1, {})  # makes its constants, which belong to no graph
        chosen = [torch.full((2, 3), eos), torch.tensor([[0, 1, 1], [3, 4, 5]]), torch.tensor(3)]
        inputs = [
            *(Named(name, ("sentences", "beams"), "int64") for name in ("tokens", "order")),
            Named("t", (), "int64"),
        ]
        slots = parts["causal_query.0"].size(2)
        past = [torch.zeros([{"rows": 6, "slots": slots}.get(size, size) for size in each.shape]) for each in states]
        before = [each._replace(shape=("rows before", *each.shape[1:])) for each in states]
        outputs = [Named("log_probs", ("sentences", "beams", words))]
        outputs += [each._replace(name=f"next.{each.name}") for each in states]
        given = [*chosen, list(parts.values()), past]
        found["step"] = traced(advance, [*inputs, *memory, *before], given, outputs)
    return found


def traced(module: torch.nn.Module, inputs: List[Named], given: Sequence[Any], outputs: List[Named]) -> Graph:
    """A module as a graph.

    Args:
        module: of tensors.
        inputs: names and shapes of what it takes.
        given: an example of that, of which the last may be lists.
        outputs: names and shapes of what it returns.
    """
    known = iter(inputs)
    sizes = [
        [free(next(known), tensor) for tensor in each] if isinstance(each, list) else free(next(known), each)
        for each in given
    ]
    program = torch.export.export(module, tuple(given), dynamic_shapes=tuple(sizes), strict=False)
    names = [each.name for each in inputs], [each.name for each in outputs]
    made: Any = torch.onnx.export(program, input_names=names[0], output_names=names[1], dynamo=True, verbose=False)
    return Graph(tidied(made.model_proto, inputs, outputs), inputs, outputs)


def tidied(model: Any, inputs: List[Named], outputs: List[Named]) -> Any:
    """A model of onnx whose sizes have names, and which tells nothing of the machine that made it."""
    graph = model.graph
    for found, known in zip([*graph.input, *graph.output], [*inputs, *outputs]):
        for place, size in zip(found.type.tensor_type.shape.dim, known.shape):
            if isinstance(size, str):
                place.dim_param = size
    # the lines of source that each node comes from, and sizes by the names that torch gave them
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, model):
        part.ClearField("metadata_props")
    graph.ClearField("value_info")
    return model


def free(named: Named, example: torch.Tensor) -> Dict[int, Any]:
    """Which sizes of a tensor may differ, as torch.export takes it. Of a model with one slot, that size is always 1."""
    sizes = zip(named.shape, example.shape)
    return {i: torch.export.Dim.DYNAMIC for i, (size, found) in enumerate(sizes) if isinstance(size, str) and found > 1}


@contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile nobody is told what torch and its exporter think of their own parts."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
