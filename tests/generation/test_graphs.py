"""Decoding by steps of fixed shapes: the same hypotheses, whatever leaves or changes place on the way.

Slots beyond the batch's, though nothing sees them, change the order of a softmax's sum, which is taken in float32.

Without a GPU the steps run kernel by kernel. `python -m pytest -m gpu tests/generation/test_graphs.py` captures them.
"""

import copy
import gc

import pytest
import torch
from fairseq.modules import FairseqDropout
from fairseq.sequence_generator import SequenceGenerator
from tiny import FEW, PAD, VARIANTS, build, each, sentences, sharpen, targets
from tiny import generation_of_a_command as generation

from fairseq_luna.models.luna_transformer.graphs import Graphs
from fairseq_luna.models.luna_transformer.static_step import StaticStep
from fairseq_luna.models.sizes import some
from fairseq_luna.ops import dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHOSEN = {name: settings for name, settings in VARIANTS.items() if settings.get("decoder_self_attention") != "softmax"}
SOME = [name for name in FEW if name in CHOSEN]
variants = pytest.mark.parametrize("settings", each(CHOSEN, SOME))
BEAMS = {f"{beam}-{name}": (settings, beam) for beam in (1, 4) for name, settings in CHOSEN.items()}


def prepared(settings, seed=1, **more):
    """A model as a command generates with it, and the same with steps of fixed shapes."""
    plain = sharpen(build(seed=seed, **settings, **more), seed).to(DEVICE)
    plain.prepare_for_inference_(generation())
    plain.decoder.uses_graphs = False
    fixed = copy.deepcopy(plain)
    use_graphs(fixed)
    return plain, fixed


def use_graphs(model):
    model.decoder.uses_graphs = True
    model.decoder.graphs = Graphs(model.decoder, capture=DEVICE == "cuda")


def generate(models, source, beam, **settings):
    models = models if isinstance(models, list) else [models]
    generator = SequenceGenerator(models, models[0].decoder.dictionary, beam_size=beam, max_len_b=25, **settings)
    source = source.to(DEVICE)
    net_input = {"src_tokens": source, "src_lengths": source.ne(PAD).sum(dim=1)}
    return generator.generate(models, {"id": torch.arange(len(source)), "net_input": net_input})


def assert_same(found, want):
    for ours, theirs in zip(found, want):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a["score"], b["score"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.stock
@pytest.mark.parametrize("settings, beam", each(BEAMS, ["1-tied", *(f"4-{name}" for name in SOME)]))
def test_beam_search_finds_the_same(settings, beam):
    """Of sentences that end at different times; twice, for what a batch leaves behind is nothing to the next."""
    source = sentences([12, 5, 2, 9, 30, 1, 3, 20])
    for seed in range(50):
        plain, fixed = prepared(settings, seed + 1)
        want = generate(plain, source, beam)
        ends = sorted(len(hypotheses[0]["tokens"]) for hypotheses in want)
        if ends[0] < ends[-1]:
            break
    else:
        pytest.fail("all 50 models end all sentences at the same time")
    assert_same(generate(fixed, source, beam), want)
    shapes = {step.shape for step in fixed.decoder.graphs.steps}
    assert {shape.beams for shape in shapes} == {beam}
    assert max(shape.sentences for shape in shapes) == 8
    if beam == 1 and ends[3] < ends[-1]:  # so few are left, and not all end at once
        assert min(shape.sentences for shape in shapes) <= 4
    assert_same(generate(fixed, source[2:5], beam), generate(plain, source[2:5], beam))
    assert_same(generate(fixed, source, beam), want)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[12, 5, 2, 9], [5, 5]], ids=str)
def test_an_ensemble_finds_the_same(lengths):
    """Of a model with steps of fixed shapes, one without, and the first a second time."""
    plain, fixed = prepared({})
    other, _ = prepared({"decoder_self_attention": "softmax"}, seed=2)
    source = sentences(lengths)
    want = generate([plain, other, plain], source, 3)
    assert_same(generate([fixed, other, fixed], source, 3), want)
    # both are of the same shape, so each has had a step of its own
    shapes = [step.shape for step in fixed.decoder.graphs.steps]
    assert len(shapes) > len(set(shapes))


@torch.no_grad()
@pytest.mark.stock
@variants
@pytest.mark.parametrize("order", [[2, 0], [2, 0, 1], [1, 1, 1], [0, 1, 0], [0, 0, 1, 1, 2, 2]], ids=str)
def test_reordering_follows_the_rows(settings, order):
    """Also where sentences change places; where rows become more it goes on without steps of fixed shapes."""
    _, model = prepared(settings)
    source, prev, order = (
        sentences([12, 5, 2]).to(DEVICE),
        targets([6, 6, 6]).to(DEVICE),
        torch.tensor(order).to(DEVICE),
    )
    encoder_out, state = model.encoder(source), {}
    for t in range(4):
        model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)
    assert model.decoder in state
    model.decoder.reorder_incremental_state_scripting(state, order)
    moved = model.encoder.reorder_encoder_out(encoder_out, order)
    want, _ = model.decoder(prev, encoder_out)
    for t in (4, 5):
        out, _ = model.decoder(prev[order, : t + 1], moved, incremental_state=state)
        torch.testing.assert_close(out[:, 0], want[order, t], rtol=0, atol=3e-6)


@torch.no_grad()
@variants
def test_it_goes_on_without_a_graph_where_more_is_asked_for(settings):
    """In the midst of a batch of which sentences have left."""
    _, model = prepared(settings)
    source, prev = sentences([12, 5, 2, 9]).to(DEVICE), targets([6] * 4).to(DEVICE)
    encoder_out, state = model.encoder(source), {}
    for t in range(3):
        model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)
    order = torch.tensor([1, 2, 3], device=DEVICE)
    model.decoder.reorder_incremental_state_scripting(state, order)
    encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
    prev = prev[order]
    want, _ = model.decoder(prev, encoder_out)
    found, _ = model.decoder(prev[:, :4], encoder_out, incremental_state=state)
    torch.testing.assert_close(found[:, 0], want[:, 3], rtol=0, atol=3e-6)
    model.decoder.need_attn = True
    found, extra = model.decoder(prev[:, :5], encoder_out, incremental_state=state)
    assert model.decoder not in state and extra["attn"][0].shape == (3, 1, 12)
    torch.testing.assert_close(found[:, 0], want[:, 4], rtol=0, atol=3e-6)


@torch.no_grad()
def test_a_step_asks_the_device_for_nothing():
    """What would wait for it, or has another shape every time, cannot be captured."""
    dispatch = pytest.importorskip("torch.utils._python_dispatch")
    seen = set()

    class Watch(dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    for settings in CHOSEN.values():
        _, model = prepared(settings)
        generate(model, sentences([5, 3]), 2)
        (step,) = {step.shape: step for step in model.decoder.graphs.steps if step.shape.sentences == 2}.values()
        with Watch():
            step.compute()
    assert "baddbmm_" in seen
    assert not seen & {"_local_scalar_dense", "item", "nonzero", "unique_consecutive", "masked_select", "is_nonzero"}


@torch.no_grad()
def test_results_are_not_written_over():
    _, model = prepared({})
    encoder_out, state = model.encoder(sentences([5, 3]).to(DEVICE)), {}
    prev = targets([4, 4]).to(DEVICE)
    first, _ = model.decoder(prev[:, :1], encoder_out, incremental_state=state)
    kept = first.clone()
    model.decoder(prev[:, :2], encoder_out, incremental_state=state)
    assert torch.equal(first, kept)


@torch.no_grad()
def test_a_target_beyond_the_positions_goes_on(monkeypatch):
    monkeypatch.setattr("fairseq_luna.models.luna_transformer.graphs.LONGEST", 3)
    plain, fixed = prepared({})
    source = sentences([12, 5])
    assert_same(generate(fixed, source, 2), generate(plain, source, 2))


def test_gradients_and_training_take_no_graph():
    _, model = prepared({})
    state = {}
    out, _ = model.decoder(targets([1]).to(DEVICE), model.encoder(sentences([5]).to(DEVICE)), incremental_state=state)
    assert out.requires_grad and model.decoder not in state


@torch.no_grad()
def test_as_many_steps_are_kept_as_one_may(monkeypatch):
    monkeypatch.setattr("fairseq_luna.models.luna_transformer.graphs.MOST_STEPS", 2)
    _, model = prepared({})
    for beam in 1, 2, 3, 4:
        generate(model, sentences([5, 3]), beam)
    gc.collect()
    steps = model.decoder.graphs.steps
    assert len(steps) == 2 and steps[-1].shape.beams == 4


@torch.no_grad()
def test_copies_and_other_devices_make_their_own():
    _, model = prepared({})
    generate(model, sentences([5, 3]), 2)
    assert model.decoder.graphs.steps and copy.deepcopy(model).decoder.graphs is None
    assert model.float().decoder.graphs is None
    use_graphs(model)
    model.load_state_dict(model.state_dict())
    assert model.decoder.graphs is None
    use_graphs(model)
    assert not model.decoder.graphs.is_stale()
    weight = model.decoder.layers[0].ffn.fc1.weight
    weight.data = weight.data.clone()
    assert model.decoder.graphs.is_stale()


@torch.no_grad()
def test_what_a_graph_would_repeat_or_lose_takes_none():
    """Dropout at every step, and the casts of autocast."""
    _, model = prepared({"dropout": 0.3})
    net = model.encoder(sentences([5, 3]).to(DEVICE))
    for module in model.modules():
        if isinstance(module, FairseqDropout):
            module.make_generation_fast_("", retain_dropout=True)
    state = {}
    first, _ = model.decoder(targets([1, 1]).to(DEVICE), net, incremental_state=state)
    second, _ = model.decoder(targets([1, 1]).to(DEVICE), net, incremental_state={})
    assert model.decoder not in state and not torch.equal(first, second)


def test_a_step_of_one_mode_serves_another():
    """That of torch.inference_mode has tensors of its own."""
    plain, fixed = prepared({})
    source = sentences([5, 3])
    with torch.inference_mode():
        found = generate(fixed, source, 2)
    with torch.no_grad():
        want = generate(plain, source, 2)
        assert_same(generate(fixed, source, 2), want)
    assert_same(found, want)


def test_a_cpu_has_no_graphs_by_itself():
    model = build()
    model.prepare_for_inference_(generation())
    with torch.no_grad():
        generate(model.to("cpu"), sentences([5, 3]), 2) if DEVICE == "cpu" else None
    assert DEVICE != "cpu" or model.decoder.graphs is None


def test_sizes_that_steps_are_made_for():
    sizes = [some(n) for n in range(1, 200)]
    assert all(n <= size <= max(n + 1, 1.25 * n) for n, size in enumerate(sizes, 1))
    assert sorted({*sizes}) == sorted({some(size) for size in sizes}) and len({*sizes}) < 35


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["tied", "decaying-untied-pre-norm", "local", "hybrid"])
@torch.no_grad()
def test_commands_on_a_gpu_use_graphs(name, dtype, monkeypatch):
    monkeypatch.delenv("FAIRSEQ_LUNA_GRAPHS", raising=False)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}  # as many channels as kernels take
    model = build(**CHOSEN[name], **heads, double=False).to(DEVICE, dtype)
    model.prepare_for_inference_(generation())
    source = sentences([12, 5, 2, 9])
    found = generate(model, source, 4)
    assert model.decoder.graphs.steps and all(step.run != step.compute for step in model.decoder.graphs.steps)
    assert dispatch.forms()["causal step"].form == "fused"
    model.decoder.uses_graphs = False
    want = generate(model, source, 4)
    same = [a[0]["tokens"].tolist() == b[0]["tokens"].tolist() for a, b in zip(found, want)]
    assert all(same) if dtype == torch.float32 else sum(same) >= 3  # a near tie may fall the other way


def test_a_step_that_cannot_be_captured_is_told(monkeypatch):
    def fail(*args):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("fairseq_luna.models.luna_transformer.graphs.record", fail)
    plain, fixed = prepared({})
    fixed.decoder.graphs.capture = True
    source = sentences([5, 3])
    with torch.no_grad(), pytest.warns(UserWarning, match="not permitted.*FAIRSEQ_LUNA_GRAPHS=0"):
        found = generate(fixed, source, 2)
    assert_same(found, generate(plain, source, 2))
    assert not fixed.decoder.uses_graphs and isinstance(fixed.decoder.graphs, Graphs)
    assert not [step for step in fixed.decoder.graphs.steps if isinstance(step, StaticStep)]
