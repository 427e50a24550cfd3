"""The losses in chunks are fairseq's, of our models and of fairseq's own."""

import argparse
import functools
from types import SimpleNamespace

import pytest
import torch
from commands import in_children
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.models.transformer import TransformerModel, base_architecture
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from test_language_model import build as build_lm
from tiny import PAD, VARIANTS, build, dictionary, sentences, targets, task
from torch.nn.parallel import DistributedDataParallel

from fairseq_luna.criterions import chunked_cross_entropy
from fairseq_luna.criterions.chunked_cross_entropy import ChunkedCrossEntropy, ChunkedLabelSmoothedCrossEntropy
from fairseq_luna.models.training_graphs import TrainingGraphs

pytestmark = pytest.mark.stock
LOSSES = {
    "plain": (CrossEntropyCriterion, ChunkedCrossEntropy, {}),
    "smoothed": (LabelSmoothedCrossEntropyCriterion, ChunkedLabelSmoothedCrossEntropy, {"label_smoothing": 0.1}),
    "by-sentence": (
        LabelSmoothedCrossEntropyCriterion,
        ChunkedLabelSmoothedCrossEntropy,
        {"label_smoothing": 0.1, "sentence_avg": True},
    ),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}  # fairseq's probabilities are in float32, whatever the model
losses = pytest.mark.parametrize("classes", LOSSES.values(), ids=LOSSES)


def transformer(**settings):
    """fairseq's Transformer, tiny."""
    torch.manual_seed(1)
    sizes = dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim", "encoder_ffn_embed_dim"), 16)
    args = argparse.Namespace(**{**sizes, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0, **settings})
    base_architecture(args)
    words = dictionary()
    return TransformerModel.build_model(args, task(words, words)).double()


def transformer_lm():
    torch.manual_seed(1)
    args = argparse.Namespace(decoder_embed_dim=16, decoder_ffn_embed_dim=16, decoder_layers=1, dropout=0.0)
    base_lm_architecture(args)
    args.tokens_per_sample = 64
    words = dictionary()
    return TransformerLanguageModel.build_model(args, task(words, words)).double()


def translation(seed=0):
    source, previous = sentences([8, 5, 2], seed=seed), targets([6, 3, 9], seed=seed)
    target = torch.cat((previous[:, 1:], torch.full((3, 1), PAD)), dim=1)
    net_input = {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1), "prev_output_tokens": previous}
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(PAD).sum())}


def text():
    tokens = targets([6, 3, 9])
    target = torch.cat((tokens[:, 1:], torch.full((3, 1), PAD)), dim=1)
    net_input = {"src_tokens": tokens, "src_lengths": tokens.ne(PAD).sum(1)}
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(PAD).sum())}


MODELS = {
    "luna": (build, translation),
    "local-luna": (lambda: build(**VARIANTS["local"]), translation),
    "untied-embeddings": (lambda: build(share_all_embeddings=False), translation),
    "transformer": (transformer, translation),
    "luna-lm": (build_lm, text),
    "transformer-lm": (transformer_lm, text),
}


def criterion(kind, **settings):
    setup = SimpleNamespace(target_dictionary=dictionary())
    return kind(setup, **{"sentence_avg": False, **settings})


def outcome(loss, model, sample, **more):
    """Value, divisor and log of a loss, and the gradients of a model."""
    model.zero_grad()
    value, size, log = loss(model, sample, **more)
    value.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return value.detach(), size, log, gradients


def assert_same(model, sample, fairseqs, chunked, **more):
    assert chunked.__class__.__name__ == fairseqs.__class__.__name__  # or fairseq would not go on with a training
    expected, got = (outcome(loss, model, sample, **more) for loss in (fairseqs, chunked))
    torch.testing.assert_close(got, expected, **CLOSE)


def asked_for(model):
    """The ways in which a model is called from now on: True for features alone."""
    ways, forward = [], model.forward

    @functools.wraps(forward)
    def recorded(*args, **kwargs):
        ways.append(kwargs.get("features_only", False))
        return forward(*args, **kwargs)

    model.forward = recorded
    return ways


@losses
@pytest.mark.parametrize("make, batch", MODELS.values(), ids=MODELS)
def test_fairseqs_loss(make, batch, classes):
    fairseqs, chunked, settings = classes
    model = make().train()
    ways = asked_for(model)
    assert_same(model, batch(), criterion(fairseqs, **settings), criterion(chunked, **settings))
    assert ways == [False, True]


@losses
def test_validation(classes):
    fairseqs, chunked, settings = classes
    model, sample = build().eval(), translation()
    with torch.no_grad():
        expected, got = (criterion(kind, **settings)(model, sample) for kind in (fairseqs, chunked))
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("make, batch", [MODELS["luna"], MODELS["luna-lm"]], ids=["translation", "language-model"])
def test_training_by_passes_of_fixed_shapes(make, batch):
    pytest.importorskip("torch", minversion="2.1")
    model = make().train()
    owner = model if hasattr(model, "stack") else model.decoder
    owner.graphs = TrainingGraphs(owner.stack(), capture=False)
    fairseqs, chunked, settings = LOSSES["smoothed"]
    ways = asked_for(model)
    for _ in range(5):  # the shape is kept from the fourth time on
        assert_same(model, batch(), criterion(fairseqs, **settings), criterion(chunked, **settings))
    assert len(owner.graphs.passes) == 1 and ways == [False, True] * 5


WRAPPERS = {
    "pytorch-ddp": lambda model: DistributedDataParallel(model),
    "unused-parameters-looked-for": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "legacy-ddp": lambda model: LegacyDistributedDataParallel(model, torch.distributed.new_group([0, 1])),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_two_processes_have_the_gradients_of_one(wrap, tmp_path):
    """torch's DDP watches for the gradient of every parameter, the output projection's too."""
    loss = criterion(ChunkedLabelSmoothedCrossEntropy, label_smoothing=0.1)

    def made():
        return build(share_all_embeddings=False).train()

    model = made()
    for seed in 0, 1:
        (loss(model, translation(seed))[0] / 2).backward()  # DDP has the mean
    want = {name: p.grad for name, p in model.named_parameters()}

    def rank(number):
        torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=number, world_size=2)
        model = made()
        wrapped = ModuleProxyWrapper(wrap(model))
        for _ in range(2):
            model.zero_grad()
            loss(wrapped, translation(number))[0].backward()
            if isinstance(wrapped.module, LegacyDistributedDataParallel):
                wrapped.all_reduce_grads()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, want[name], rtol=1e-5, atol=1e-6)

    assert in_children((rank, 0), (rank, 1)) == [0, 0]


def changed(part, **methods):
    """An object with other methods."""
    part.__class__ = type(part.__class__.__name__, (part.__class__,), methods)
    return part


def speech(self, src_tokens, src_lengths, prev_output_tokens):
    """A `forward` as of fairseq's models of speech."""
    return TransformerModel.forward(self, src_tokens, src_lengths, prev_output_tokens)


def cross_modal(self, src_tokens, src_lengths, prev_output_tokens, **kwargs):
    """As of fairseq's xm_transformer, which takes everything, and gives logits."""
    return TransformerModel.forward(self, src_tokens, src_lengths, prev_output_tokens)


def flatter(self, net_output, log_probs, sample=None):
    return (0.5 * net_output[0]).log_softmax(-1)


def louder(self, features):
    return 2 * self.output_projection(features)


def change_decoder(model, **methods):
    changed(model.decoder, **methods)
    return model


def change_projection(model, change):
    change(model.decoder.output_projection)
    return model


def add_bias(projection):
    projection.bias = torch.nn.Parameter(torch.randn(len(projection.weight), dtype=torch.float64))


UNKNOWN = {
    "another-forward": lambda model: changed(model, forward=speech),
    "a-forward-that-takes-everything": lambda model: changed(model, forward=cross_modal),
    "other-probabilities": lambda model: changed(model, get_normalized_probs=flatter),
    "other-probabilities-of-the-decoder": lambda model: change_decoder(model, get_normalized_probs=flatter),
    "another-output-layer": lambda model: change_decoder(model, output_layer=louder),
    "projection-with-bias": lambda model: change_projection(model, add_bias),
    "another-projection": lambda model: change_projection(model, changed),
    "watched-projection": lambda model: change_projection(
        model, lambda projection: projection.register_forward_hook(lambda module, inputs, logits: 2 * logits)
    ),
}


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_other_models_have_fairseqs_way(change):
    model = change(transformer().train())
    ways = asked_for(model)
    fairseqs, chunked, settings = LOSSES["smoothed"]
    assert_same(model, translation(), criterion(fairseqs, **settings), criterion(chunked, **settings))
    assert ways == [False, False]


FAIRSEQS_WAY = {"accuracy": ({"report_accuracy": True}, {}), "prefix": ({"ignore_prefix_size": 1}, {})}
FAIRSEQS_WAY["each-word"] = ({}, {"reduce": False})


@pytest.mark.parametrize("settings, more", FAIRSEQS_WAY.values(), ids=FAIRSEQS_WAY)
def test_fairseqs_way_where_all_logits_are_read(settings, more):
    model, settings = transformer().train(), {"label_smoothing": 0.1, **settings}
    ways = asked_for(model)
    fairseqs, chunked, _ = LOSSES["smoothed"]
    assert_same(model, translation(), criterion(fairseqs, **settings), criterion(chunked, **settings), **more)
    assert ways == [False, False]


def test_a_wrapper_hides_no_other_model(one_process_group):
    model = changed(transformer().train(), forward=speech)
    ways = asked_for(model)
    criterion(ChunkedCrossEntropy)(ModuleProxyWrapper(DistributedDataParallel(model)), translation())
    assert ways == [False]


def test_weights_in_shards_are_whole_within_a_model_alone(monkeypatch):
    """Whatever is around the shards, such as a watch over the time."""
    model = transformer().train()
    ways = asked_for(model)
    monkeypatch.setattr(chunked_cross_entropy, "FullyShardedDataParallel", TransformerModel)
    criterion(ChunkedCrossEntropy)(ModuleProxyWrapper(Timed(model)), translation())
    assert ways == [False]


class Timed(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_an_adaptive_softmax_keeps_its_own_loss():
    model = build(share_all_embeddings=False, adaptive_softmax_cutoff=[12, 30]).train()
    with pytest.raises(ValueError, match="--criterion adaptive_loss"):
        criterion(ChunkedLabelSmoothedCrossEntropy, label_smoothing=0.1)(model, translation())
