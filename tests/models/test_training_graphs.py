"""Training by passes of fixed shapes: the same updates, whatever comes between.

Without a GPU the passes run kernel by kernel. `python -m pytest -m gpu tests/models/test_training_graphs.py` captures
them.
"""

import copy
import gc
import pickle
import random
import warnings

import pytest
import torch
from test_language_model import build as build_lm
from tiny import PAD, VARIANTS, build, sentences, targets, variants

from fairseq_luna.models import shapes, training_graphs
from fairseq_luna.models.shapes import COMMON, MOST, ROOM, Shapes, holds, rounded, tokens
from fairseq_luna.models.training_graphs import TrainingGraphs
from fairseq_luna.ops import dispatch

pytest.importorskip("torch", minversion="2.1")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")]


def pair(settings=None, **more):
    """A model in training, and the same with passes of fixed shapes."""
    plain = build(**{**(settings or {}), **more}).to(DEVICE).train()
    fixed = copy.deepcopy(plain)
    fixed.graphs = TrainingGraphs(fixed.stack(), capture=DEVICE == "cuda")
    return plain, fixed


def batch(lengths, target_lengths):
    return sentences(lengths).to(DEVICE), targets(target_lengths).to(DEVICE)


# of one shape that comes as it is, and of two that are rounded to one
BATCHES = [([8, 5, 2, 8], [8, 7, 1, 3]), ([12, 5, 2], [7, 9, 1]), ([7, 8, 1, 3], [5, 8, 1, 2]), ([11, 9, 2], [9, 9, 9])]


def loss_of(model, source, prev):
    logits, extra = model(source, None, prev)
    assert extra == {"attn": [None]} or len(extra["inner_states"]) > 0
    return -logits.log_softmax(-1)[prev.ne(PAD)][:, 7].sum()


def train(model, batches, updates=12, update_freq=1, lr=0.05):
    """Losses of updates on batches in turn, as fairseq makes them. Each is held until the next is there, and with it
    what adds up the gradients, as DDP holds that."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for i in range(updates):
        optimizer.zero_grad(set_to_none=True)
        for j in range(update_freq):
            loss = loss_of(model, *batch(*batches[(i * update_freq + j) % len(batches)]))
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return torch.stack(losses)


def assert_same(plain, fixed, losses):
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-9)
    for (name, x), (_, y) in zip(plain.named_parameters(), fixed.named_parameters()):
        torch.testing.assert_close(y, x, rtol=1e-7, atol=1e-9, msg=name)


@variants
def test_the_same_updates(settings):
    plain, fixed = pair(settings)
    losses = [train(model, BATCHES) for model in (plain, fixed)]
    assert len(fixed.graphs.passes) == 2
    assert_same(plain, fixed, losses)


def learn(module, features, batches, updates=10):
    """Losses of a module that makes features of a batch of tokens."""
    optimizer, losses = torch.optim.SGD(module.parameters(), lr=0.05), []
    for i in range(updates):
        optimizer.zero_grad(set_to_none=True)
        loss = features(batches[i % len(batches)]).mean(dim=1).pow(2).mean()
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses)


@pytest.mark.parametrize("name", ["tied", "gaussian-fixed-length", "hybrid", "linformer"])
def test_an_encoder_by_itself(name):
    """As a classifier reads it."""
    plain = build(**VARIANTS[name]).encoder.to(DEVICE).train()
    fixed = copy.deepcopy(plain)
    fixed.graphs = TrainingGraphs(fixed.stack(), capture=DEVICE == "cuda")
    batches = [batch(lengths, [1])[0] for lengths in ([8, 5, 2, 8], [12, 5, 2])]
    losses = [learn(plain, lambda x: plain.encode(x).out, batches), learn(fixed, fixed.represent, batches)]
    assert len(fixed.graphs.passes) == 2
    assert_same(plain, fixed, losses)


@pytest.mark.parametrize("settings", [{}, {"causal_mean": "decaying", "untie_luna_kv": True}], ids=str)
def test_a_language_model(settings):
    plain = build_lm(**settings).to(DEVICE).train()
    fixed = copy.deepcopy(plain)
    fixed.decoder.graphs = TrainingGraphs(fixed.decoder.stack(), capture=DEVICE == "cuda")
    batches = [targets(lengths).to(DEVICE) for lengths in ([8, 5, 2, 8], [12, 5, 2])]
    losses = [learn(model, lambda x, model=model: model(x)[0], batches) for model in (plain, fixed)]
    assert len(fixed.decoder.graphs.passes) == 2
    assert_same(plain, fixed, losses)


def test_gradients_of_several_batches_add_up():
    plain, fixed = pair()
    assert_same(plain, fixed, [train(model, BATCHES, update_freq=3) for model in (plain, fixed)])


def warm(model, source, prev):
    """Until the shape has its pass."""
    for _ in range(COMMON + 1):
        loss_of(model, source, prev).backward()
    model.zero_grad(set_to_none=True)
    assert (len(source), source.size(1), prev.size(1)) in [shape for shape, _ in model.graphs.passes]


def test_a_batch_that_comes_between_goes_another_way():
    plain, fixed = pair()
    first, second = batch(*BATCHES[0]), batch(*BATCHES[2])
    warm(fixed, *first)
    for model in plain, fixed:
        one, other = loss_of(model, *first), loss_of(model, *second)
        (other + 2 * one).backward()
    for (name, x), (_, y) in zip(plain.named_parameters(), fixed.named_parameters()):
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_a_batch_without_gradients_keeps_nobody_waiting():
    _, fixed = pair()
    first = batch(*BATCHES[0])
    warm(fixed, *first)
    lost = loss_of(fixed, *first)
    assert fixed.graphs.underway() is not None
    del lost
    gc.collect()
    assert fixed.graphs.underway() is None
    assert fixed.replay(*first) is not None


def test_gradients_come_once():
    _, fixed = pair()
    first = batch(*BATCHES[0])
    warm(fixed, *first)
    loss = loss_of(fixed, *first)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="FAIRSEQ_LUNA_GRAPHS=0"):
        loss.backward()


def test_frozen_parameters_have_no_gradient():
    plain, fixed = pair(cross_attention="packed")
    for model in plain, fixed:
        for parameter in model.encoder.layers[0].parameters():
            parameter.requires_grad_(False)
    fixed.graphs = TrainingGraphs(fixed.stack(), capture=DEVICE == "cuda")
    assert_same(plain, fixed, [train(model, BATCHES) for model in (plain, fixed)])
    assert all(x.grad is None for x in fixed.encoder.layers[0].parameters())
    assert len(fixed.graphs.passes) == 2


def test_what_is_asked_for_besides_goes_another_way():
    """Evaluation, attention, autocast."""
    _, fixed = pair()
    first = batch(*BATCHES[0])
    warm(fixed, *first)
    assert fixed.replay(*first) is not None
    with torch.no_grad():
        assert fixed.replay(*first) is None
    if DEVICE == "cuda":
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert fixed.replay(*first) is None
    fixed.decoder.need_attn = True
    assert fixed.replay(*first) is None
    fixed.decoder.need_attn = None
    fixed.encoder.eval()
    assert fixed.replay(*first) is None


def test_hooks_of_modules_are_called():
    _, fixed = pair()
    called = []
    fixed.decoder.layers[0].register_forward_hook(lambda *args: called.append(1))
    first = batch(*BATCHES[0])
    for _ in range(COMMON + 3):
        loss_of(fixed, *first)
    assert len(called) == COMMON + 3


def test_hooks_that_come_later_are_called():
    _, fixed = pair()
    called, first = [], batch(*BATCHES[0])
    warm(fixed, *first)
    fixed.decoder.layers[0].register_forward_hook(lambda *args: called.append(1))
    loss_of(fixed, *first)
    assert called


def test_embeddings_that_are_trained_later_have_gradients():
    plain, fixed = pair()
    first = batch(*BATCHES[0])
    for model in plain, fixed:
        model.encoder.embed_tokens.weight.requires_grad_(False)
        for _ in range(COMMON + 2):
            loss_of(model, *first).backward()
        model.encoder.embed_tokens.weight.requires_grad_(True)
        model.zero_grad(set_to_none=True)
        loss_of(model, *first).backward()
    for (name, x), (_, y) in zip(plain.named_parameters(), fixed.named_parameters()):
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_a_parameter_or_a_module_that_is_replaced_is_noticed():
    _, fixed = pair()
    layer = fixed.decoder.layers[1]
    for replace in (
        lambda: setattr(layer.ffn.fc1, "weight", torch.nn.Parameter(layer.ffn.fc1.weight.detach().clone())),
        lambda: setattr(layer.ffn, "fc2", copy.deepcopy(layer.ffn.fc2)),
        lambda: layer.eval(),
        lambda: setattr(layer.ffn.dropout, "p", 0.5),
    ):
        fixed.graphs = TrainingGraphs(fixed.stack(), capture=DEVICE == "cuda")
        assert not fixed.graphs.is_stale()
        replace()
        assert fixed.graphs.is_stale()


def test_a_stack_that_is_replaced_whole_is_noticed(monkeypatch):
    monkeypatch.setattr(training_graphs, "can_capture", lambda device: False)
    _, fixed = pair()
    assert training_graphs.renewed(fixed.graphs, fixed.stack()) is fixed.graphs
    fixed.decoder.layers = copy.deepcopy(fixed.decoder.layers)
    assert training_graphs.renewed(fixed.graphs, fixed.stack()) is None


def test_weights_that_change_before_the_gradients_are_told():
    _, fixed = pair()
    first = batch(*BATCHES[0])
    warm(fixed, *first)
    loss = loss_of(fixed, *first)
    with torch.no_grad():
        fixed.decoder.layers[0].ffn.fc1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_weights_that_have_moved_are_read_where_they_are():
    plain, fixed = pair()
    warm(fixed, *batch(*BATCHES[0]))
    old = fixed.graphs
    for model in plain, fixed:
        for parameter in model.parameters():
            parameter.data = parameter.data * 1.5
    assert old.is_stale()
    fixed.graphs = None if DEVICE == "cuda" else TrainingGraphs(fixed.stack(), capture=False)
    assert_same(plain, fixed, [train(model, BATCHES) for model in (plain, fixed)])


def test_a_model_is_copied_and_pickled_without_its_graphs():
    _, fixed = pair()
    warm(fixed, *batch(*BATCHES[0]))
    assert copy.deepcopy(fixed).graphs is None
    assert pickle.loads(pickle.dumps(fixed.graphs)) is None


def test_only_so_many_shapes_are_captured(monkeypatch):
    monkeypatch.setattr(shapes, "MOST", 1)
    plain, fixed = pair()
    assert_same(plain, fixed, [train(model, BATCHES) for model in (plain, fixed)])
    assert len(fixed.graphs.passes) == 1


def test_equal_batches_are_captured_as_they_are():
    chosen = Shapes()
    assert [chosen.of((273, 30, 31)) for _ in range(6)] == [None] * COMMON + [(273, 30, 31)] * 3
    assert chosen.of((270, 29, 31)) == (273, 30, 31)
    assert chosen.of((100, 20, 20)) is None  # which would be mostly padding
    # larger ones, that are rounded to the same, and not all alike
    assert [chosen.of((280 + i, 29, 31)) for i in (0, 0, 0, 1, 2)] == [None] * COMMON + [(320, 32, 32)] * 2


def test_rounded_shapes_are_few_and_not_much_larger():
    assert rounded((273, 30, 31)) == (320, 32, 32) and rounded((3, 9, 8)) == (3, 16, 8)
    assert rounded((16, 1025)) == (16, 1280) and rounded((5, 4096)) == (5, 4096)
    for n in range(1, 5000):
        sentences, length = rounded((n, n))
        assert n <= sentences <= n * 5 / 4 and n <= length < n * 5 / 4 + 8
    assert len({rounded((8, n)) for n in range(1, 1025)}) < 40


def test_most_batches_of_an_epoch_run_in_few_shapes():
    """Of sentences that fairseq sorts by length: 8,192 tokens a batch, one to eighty tokens a side."""
    rng = random.Random(1)
    chosen, with_graphs, real, run = Shapes(), 0, 0, 0
    for _ in range(3000):
        source = min(80, max(1, round(rng.lognormvariate(3.1, 0.6))))
        own = (max(1, 8192 // (source + 5) // 8 * 8), source, source + rng.randint(-source // 3, 5) + 1)
        shape = chosen.of(own)
        if shape is not None:
            assert holds(shape, own) and tokens(shape) <= max(ROOM * tokens(own), tokens(rounded(own)))
            with_graphs, real, run = with_graphs + 1, real + tokens(own), run + tokens(shape)
    assert len(chosen.captured) <= MOST
    assert with_graphs > 0.9 * 3000 and run < 1.3 * real


def test_on_a_cpu_nothing_is_captured():
    model = build().train()
    for _ in range(COMMON + 2):
        loss_of(model, *(x.cpu() for x in batch(*BATCHES[0])))
    assert model.graphs is None


# ---- on a GPU

HALF = pytest.mark.parametrize("dtype", [pytest.param(d, marks=gpu) for d in (torch.float16, torch.bfloat16)])


@HALF
@pytest.mark.parametrize("settings", [VARIANTS[name] for name in list(VARIANTS)[:4]])
def test_half_precision_on_a_gpu(settings, dtype):
    """Captured by themselves, with kernels; the loss falls as without."""
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    plain = build(**{**settings, **heads}, double=False).to(DEVICE, dtype).train()
    other = copy.deepcopy(plain)
    plain.replay = lambda *args: None
    want, found = (train(model, BATCHES, updates=20, lr=0.01) for model in (plain, other))
    assert len(other.graphs.passes) == 2
    torch.testing.assert_close(found.float(), want.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kernels", [pytest.param(kernels, marks=gpu) for kernels in (False, True)])
def test_every_replay_drops_anew(kernels):
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    for rates in ({"dropout": 0.3}, {"attention_dropout": 0.3}):
        model = build(**heads, **rates, double=False).to(DEVICE).train()
        first = batch(*BATCHES[0])
        with dispatch.using(fused=kernels):
            warm(model, *first)
            losses = []
            for _ in range(4):
                loss = loss_of(model, *first)
                loss.backward()
                losses.append(float(loss))
        assert len(set(losses)) == 4
        torch.manual_seed(3)
        one = model.replay(*first).detach()
        torch.manual_seed(3)
        assert torch.equal(model.replay(*first).detach(), one)


@pytest.mark.parametrize("p", [pytest.param(0.3, marks=gpu)])
def test_forward_and_backward_drop_the_same(p):
    """With one update's noise the gradient is the slope of the loss."""
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = build(**heads, dropout=p, attention_dropout=p, double=False).to(DEVICE).train()
    first = batch(*BATCHES[0])
    warm(model, *first)
    weights = [model.encoder.layers[0].self_attn.pack.query.weight, model.decoder.layers[0].self_attn.query.weight]
    for weight in weights:
        torch.manual_seed(3)
        model.zero_grad(set_to_none=True)
        loss_of(model, *first).backward()
        gradient = weight.grad.clone()
        step = 1e-2 * gradient / gradient.norm()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step
                torch.manual_seed(3)
            ends.append(float(loss_of(model, *first)))
            with torch.no_grad():
                weight -= sign * step
        slope = (ends[0] - ends[1]) / 2e-2
        assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize("error", [pytest.param("sync", marks=gpu)])
def test_a_capture_that_fails_is_told_and_training_goes_on(error, monkeypatch):
    plain, _ = pair(dropout=0.1)
    carry, calls = plain.encoder.carry, []

    def failing(*inputs):
        calls.append(1)
        out = carry(*inputs)
        if torch.cuda.is_current_stream_capturing():
            float(out.out.sum())  # waits for the device
        return out

    monkeypatch.setattr(plain.encoder, "carry", failing)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        losses = train(plain, BATCHES)
    assert any("FAIRSEQ_LUNA_GRAPHS=0" in str(one.message) for one in told)
    assert losses.isfinite().all() and not plain.graphs.passes
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert calls and train(build().to(DEVICE).train(), BATCHES).isfinite().all()
