"""How many kernels a layer launches in an update on a GPU, counted without one: what an operator of torch or a kernel
of ours does there is a launch, but for what moves no numbers."""

import argparse
from collections import Counter

import pytest
import torch
from fairseq.models.transformer import TransformerModel, base_architecture
from luna_tools.benchmark.counting import IDLE
from tiny import HYBRID, LOCAL, PRE_NORM, build, dictionary, sentences, targets, task
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_luna.ops import dispatch

pytest.importorskip("triton")
from triton.runtime import interpreter  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch's profiler counts them on a GPU")
# what torch does on the host alone
ON_THE_HOST = {"_local_scalar_dense", "promote_types", "randint"}
SIZES = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}


class Launches(TorchDispatchMode):
    """Counts them, by name."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = Counter(), False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if not self.inside and name not in IDLE | ON_THE_HOST:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    counting, run = Launches(), interpreter.GridExecutor.__call__

    def launch(executor, *args, **kwargs):
        counting.found[executor.fn.__name__] += 1
        counting.inside = True
        try:
            return run(executor, *args, **kwargs)
        finally:
            counting.inside = False

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    return counting


def luna(layers, **settings):
    return build(**{**SIZES, "encoder_layers": layers, "decoder_layers": layers, **settings}, double=False)


def transformer(layers):
    args = argparse.Namespace(**SIZES, encoder_layers=layers, decoder_layers=layers, dropout=0.0)
    base_architecture(args)
    words = dictionary()
    return TransformerModel.build_model(args, task(words, words))


def of_a_layer(make, launches):
    """Of a layer of the encoder and one of the decoder, forward and backward, without dropout."""
    found = []
    for layers in (1, 2):
        model = make(layers).train()
        source = sentences([20, 20])
        given = source, source.ne(1).sum(dim=1), targets([20, 20])
        with dispatch.using(fused=True):
            model(*given)  # the first call of a kernel is tried before it is trusted
            launches.found = Counter()
            with launches:
                model(*given)[0].sum().backward()
        found.append(launches.found)
    return sum(found[1].values()) - sum(found[0].values())


MODELS = {"paper's": {}, "local": {**LOCAL, **PRE_NORM}, "hybrid": {**HYBRID, **PRE_NORM}}


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_a_layer_launches_fewer_kernels_than_a_transformers(settings, launches):
    ours = of_a_layer(lambda layers: luna(layers, **settings), launches)
    assert 0 < ours < of_a_layer(transformer, launches)
