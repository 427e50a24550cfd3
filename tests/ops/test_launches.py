"""How many kernels a layer launches on a GPU, counted on a CPU: each operator of torch and each kernel of ours, but for
those that move no numbers."""

import argparse

import pytest
import torch
from fairseq.models.transformer import TransformerModel, base_architecture
from luna_tools.benchmark.counting import IDLE
from tiny import HYBRID, LOCAL, PAD, PRE_NORM, build, dictionary, each, sentences, targets, task
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_luna.models.luna_transformer.source import EncodedSource
from fairseq_luna.models.luna_transformer.static_step import Shape, StaticStep
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
    """Counts them."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = 0, False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if not self.inside and name not in IDLE | ON_THE_HOST:
            self.found += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    counting, run = Launches(), interpreter.GridExecutor.__call__

    def launch(executor, *args, **kwargs):
        counting.found += 1
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


def of_a_layer(work, launches):
    """Of a layer of the encoder and one of the decoder. `work` is given their number, and returns what is counted."""
    found = []
    for layers in (1, 2):
        run = work(layers)
        with dispatch.using(fused=True):
            run()  # the first call of a kernel is tried before it is trusted
            launches.found = 0
            with launches:
                run()
            found.append(launches.found)
    return found[1] - found[0]


def update(model):
    """Forward and backward."""
    source, prev = sentences([20, 20]), targets([20, 20])

    def run():
        model.zero_grad(set_to_none=True)
        model(source, source.ne(PAD).sum(dim=1), prev)[0].sum().backward()

    return run


# without dropout; before dropouts and products were joined: 133, 145, 141
MODELS = {
    "paper's": ({}, 121),
    "local": ({**LOCAL, **PRE_NORM}, 131),
    "hybrid": ({**HYBRID, **PRE_NORM}, 131),
}


@pytest.mark.parametrize(("settings", "most"), each(MODELS, ["paper's", "local"]))
def test_an_update_launches_fewer_kernels_than_a_transformers(settings, most, launches):
    ours = of_a_layer(lambda layers: update(luna(layers, **settings).train()), launches)
    theirs = of_a_layer(lambda layers: update(transformer(layers).train()), launches)
    assert 0 < ours <= most < theirs


def test_dropout_adds_a_kernel_for_each_residual(launches):
    """That of the pass backward: forward, it and the sum are one."""
    with_dropout = of_a_layer(lambda layers: update(luna(layers, dropout=0.1).train()), launches)
    without = of_a_layer(lambda layers: update(luna(layers).train()), launches)
    assert with_dropout - without == 7


@torch.no_grad()
@pytest.mark.parametrize(("settings", "most"), [({}, 18), (LOCAL, 18)], ids=["paper's", "local"])
def test_a_step_of_decoding(settings, most, launches):
    """Before it had a kernel of its own, it launched 34."""

    def step(layers):
        model = luna(layers, **settings)
        source = EncodedSource.from_fairseq(model.encoder(sentences([20, 20])))
        static = StaticStep(model.decoder, Shape.of(source, 2), None, source.views)
        static.load(source)
        return static.compute

    assert 0 < of_a_layer(step, launches) <= most
