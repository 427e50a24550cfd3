"""The fused operators: equal to the equations in float64, and a model with them to one without.

On a CPU they run by Triton's interpreter at few shapes. On a GPU, `python -m pytest -m gpu tests/ops`
checks what is compiled for it.
"""

import functools
import itertools

import ops_reference as reference
import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from tiny import DIMS, HYBRID, LOCAL, PAD, PRE_NORM, UNTIED, build, each, sentences, sharpen, targets

from fairseq_luna.ops import dispatch, fused
from fairseq_luna.ops.slots import slot_positions

pytest.importorskip("triton")
from fairseq_luna.ops.triton import launch  # noqa: E402
from fairseq_luna.ops.triton.causal import causal_attention, plan  # noqa: E402
from fairseq_luna.ops.triton.launch import padded  # noqa: E402
from fairseq_luna.ops.triton.pack import pack  # noqa: E402
from fairseq_luna.ops.triton.unpack import unpack  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 1234567
gpu = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")]
# of float32 on tensor cores, and of what is stored in half; the interpreter cuts float32 to bfloat16, a GPU rounds
ROUNDING = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 3e-2 if DEVICE == "cpu" else 8e-3}


def on_device(shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(shape) * scale).to(DEVICE, dtype).requires_grad_()


def by_head(x, heads):
    """(B, n, H d) -> (B, H, n, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def joined(x):
    """(B, H, n, d) -> (B, n, H d)."""
    return x.transpose(1, 2).flatten(2)


def passes(form, inputs, grad, dtype=None):
    """Output and gradients of a form of an operator, by what they are."""
    inputs = {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in inputs.items()}
    out = form(**inputs)
    gradients = torch.autograd.grad(out, list(inputs.values()), grad.to(out))
    return {"output": out.detach(), **{f"gradient of {name}": x for name, x in zip(inputs, gradients)}}


def assert_close(kernel, plain, inputs, dtype):
    """Output and all gradients beside the plain form in float64, each by its largest error: at most twice that of the
    plain form in the same dtype, and a rounding of the largest number besides."""
    grad = torch.randn_like(inputs["query"])
    found, rough = passes(kernel, inputs, grad), passes(plain, inputs, grad)
    want = passes(plain, inputs, grad, torch.float64)
    terms = passes(functools.partial(plain, cancelling=False), inputs, grad, torch.float64)
    failed = []
    for name, right in want.items():
        # the terms of a softmax's gradient may cancel, to 0 where it sees one element: their rounding errors do not
        size = max(0.5, *(x[name].abs().max().item() for x in (want, terms)))
        # a number for each head is a long sum, in which rounded terms cancel
        rounding = ROUNDING[dtype] * size * (4 if right.dim() == 1 else 1)
        error, plain_error = ((x[name].double() - right).abs().max().item() for x in (found, rough))
        if not error <= 2 * plain_error + rounding:  # nor is a nan
            failed.append(f"{name}: error {error:.2g}, allowed 2 x {plain_error:.2g} + {rounding:.2g}")
    assert not failed, "; ".join(failed)


def check_causal(
    n, slots, tied, decaying, dtype=torch.float32, batch=1, heads=2, dim=16, activation="softplus", p=0.25
):
    torch.manual_seed(n + slots)
    width, query_scale = heads * dim, dim**-0.5
    names = ("query", "key", "pack_key") if tied else ("query", "key", "pack_key", "value")
    inputs = {name: on_device((batch, n, width), dtype) for name in names}
    # both layouts that come: of heads, and of slots
    shape = (batch, heads, slots, dim) if decaying else (batch, slots, heads, dim)
    inputs["pack_query"] = on_device(shape, dtype, dim**-0.5)
    hidden = (torch.arange(slots) >= (slots + 1) // 2).expand(batch, -1).to(DEVICE)
    decay = 1 - 0.5 ** torch.arange(1.0, heads + 1, device=DEVICE) if decaying else None
    masks = reference.dropout_masks(SEED, p, batch, heads, n, slots, padded(slots), DEVICE) if p else None

    def of_slots(x):
        """(B, H, l, d) of either layout."""
        return x if decaying else x.transpose(1, 2)

    def kernel(query, key, pack_key, pack_query, value=None):
        projected = torch.cat([x for x in (query, key, value, pack_key) if x is not None], dim=-1)
        rest = hidden, decay, activation, p, SEED
        return causal_attention(projected, of_slots(pack_query), *rest, query_scale=query_scale)

    def plain(query, key, pack_key, pack_query, value=None, cancelling=True):
        q, k, v, c = (None if x is None else by_head(x, heads) for x in (query, key, value, pack_key))
        pack_query = of_slots(pack_query)
        rest = hidden, decay, activation, p, masks, cancelling
        return joined(reference.causal_attention(q * query_scale, k, v, c, pack_query, *rest))

    assert_close(kernel, plain, inputs, dtype)


def check_pack_or_unpack(which, n, slots, tied, padding, biased, dtype=torch.float32, heads=2, dim=16, p=0.25):
    torch.manual_seed(n + slots)
    width, query_scale, lengths = heads * dim, dim**-0.5, [n, max(1, n // 2)]
    real = torch.zeros(2, n, dtype=torch.bool, device=DEVICE)
    for row, length in zip(real, lengths):
        start = {"right": 0, "left": n - length, "both": (n - length) // 2}[padding]
        row[start : start + length] = True
    used = torch.tensor([[slots], [max(1, slots - 1)]], device=DEVICE)
    positions = slot_positions(~real, used) if biased else None
    mask = reference.dropout_masks(SEED, p, 2, heads, n, slots, padded(slots), DEVICE)[0] if p else None
    if which == "pack":
        shapes, hidden = ((2, slots, width), (2, n, width)), ~real
        mask = None if mask is None else mask.transpose(-1, -2)
    else:
        # both layouts that come: of heads in a decoder, of slots in an encoder
        shapes = (2, n, width), (2, heads, slots, dim) if biased else (2, slots, heads, dim)
        hidden = torch.arange(slots, device=DEVICE) >= used
    inputs = {"query": on_device(shapes[0], dtype), "key": on_device(shapes[1], dtype)}
    if not tied:
        inputs["value"] = on_device(shapes[1], dtype)
    if biased:
        inputs["sharpness"] = torch.tensor([1.0, -0.3], device=DEVICE)
        inputs["shift"] = torch.tensor([0.2, -1.0], device=DEVICE)

    def of_slots(x):
        """(B, H, l, d) of either layout."""
        return x if x is None or biased else x.transpose(1, 2)

    def kernel(query, key, value=None, sharpness=None, shift=None):
        bias = positions, sharpness, shift
        if which == "pack":
            return pack(query, key, value, heads, hidden, *bias, p, SEED, query_scale=query_scale)
        return unpack(query, of_slots(key), of_slots(value), hidden, *bias, p, SEED, query_scale=query_scale)

    def plain(query, key, value=None, sharpness=None, shift=None, cancelling=True):
        bias = reference.gaussian_bias(sharpness, shift, slots, positions) if biased else None
        if which == "pack":
            key, value = (None if x is None else by_head(x, heads) for x in (key, value))
        else:
            key, value = of_slots(key), of_slots(value)
            bias = None if bias is None else bias.transpose(-1, -2)
        query = by_head(query, heads) * query_scale
        return joined(reference.attention(query, key, value, hidden, bias, p, mask, cancelling))

    assert_close(kernel, plain, inputs, dtype)


@pytest.mark.parametrize(
    ("n", "slots", "tied", "decaying"),
    [
        (1, 5, True, False),
        (2, 1, False, True),
        (31, 16, False, False),
        (63, 5, True, True),
        (64, 32, False, True),
        (65, 5, True, False),
    ],
)
def test_causal_attention(n, slots, tied, decaying):
    check_causal(n, slots, tied, decaying)


@pytest.mark.parametrize(("tied", "decaying"), [(True, False), (False, True), (True, True)])
def test_causal_attention_in_segments(tied, decaying, monkeypatch):
    """As on a device of many processors, which two sentences with two heads do not fill."""
    monkeypatch.setattr(launch, "_processors", lambda device: 8)
    plan.cache_clear()
    check_causal(130, 5, tied, decaying, batch=2)
    plan.cache_clear()


def test_causal_attention_with_elu_and_without_dropout():
    check_causal(20, 5, True, False, activation="elu", p=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_causal_attention_in_half_precision(dtype):
    check_causal(40, 5, False, True, dtype)


@pytest.mark.parametrize("which", ["pack", "unpack"])
@pytest.mark.parametrize(
    ("n", "slots", "tied", "padding", "biased"),
    [
        (1, 5, True, "left", True),
        (63, 16, False, "right", True),
        (64, 32, True, "both", False),
        (130, 5, False, "left", True),
        (65, 1, False, "left", False),
    ],
)
def test_pack_and_unpack(which, n, slots, tied, padding, biased):
    check_pack_or_unpack(which, n, slots, tied, padding, biased)


@pytest.mark.parametrize("which", ["pack", "unpack"])
def test_pack_and_unpack_in_half_precision(which):
    check_pack_or_unpack(which, 40, 5, False, "left", True, torch.float16)


def test_dropout_drops_as_much_as_it_says():
    for mask in reference.dropout_masks(SEED, 0.3, 2, 4, 100, 16, 16):
        assert abs(mask.float().mean() - 0.7) < 0.01


def turn_of(number):
    return torch.tensor([number], dtype=torch.int32, device=DEVICE)


def drawn(operator, n, seed, turn=None):
    """Its output and gradients, of inputs that are always the same."""
    torch.manual_seed(0)
    x, key, projected = (on_device((1, n, width)) for width in (32, 32, 96))
    slots, packed = on_device((1, 2, 5, 16)), on_device((1, 5, 32))
    draws = {"dropout": 0.5, "seed": seed, "turn": turn}
    if operator == "causal attention":
        inputs = projected, slots
        out = causal_attention(projected, slots, **draws)
    elif operator == "pack":
        inputs = packed, key
        out = pack(packed, key, None, 2, **draws)
    else:
        inputs = x, slots
        out = unpack(x, slots, None, **draws)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


OPERATORS = pytest.mark.parametrize("operator", ["causal attention", "pack", "unpack"])


@OPERATORS
@pytest.mark.parametrize(("n", "seed"), each({"whole": (20, 2**31 - 1), "in-parts": (200, SEED)}, ["whole"]))
def test_a_turn_is_added_to_the_seed(operator, n, seed):
    plain, turned = drawn(operator, n, seed), drawn(operator, n, seed, turn_of(7))
    assert all(map(torch.equal, turned, drawn(operator, n, seed + 7)))
    assert all(map(torch.equal, plain, drawn(operator, n, seed, turn_of(0))))
    assert not any(map(torch.equal, plain, turned))


@OPERATORS
def test_operators_are_of_the_turn_they_run_in(operator):
    x, key, slots = torch.randn(1, 20, 32), torch.randn(1, 5, 32), torch.randn(1, 2, 5, 16)
    x, key, slots = (u.to(DEVICE) for u in (x, key, slots))

    def run(turn):
        torch.manual_seed(0)
        with dispatch.turning(turn_of(turn)):
            if operator == "causal attention":
                return fused.causal_attention(x.repeat(1, 1, 3), slots, None, None, "elu", 0.5, 1.0)
            if operator == "pack":
                return fused.pack(key, x, None, 2, None, None, 0.5, 1.0)
            return fused.unpack(x, slots, None, None, None, 0.5, 1.0)

    assert torch.equal(run(3), run(3)) and not torch.equal(run(3), run(4))


# ---- the whole model

# heads of 16 channels
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
MODELS = {
    "paper's": {},
    "untied-decaying": {**UNTIED, **PRE_NORM, "causal_mean": "decaying", "encoder_unpack_bias": "gaussian"},
    "local": {**LOCAL, "projection_length": 6},
    "hybrid": HYBRID,
}


def forms():
    """In which the operators ran, or why not in a kernel."""
    ran = [dispatch.forms()[operator] for operator in ("causal attention", "pack", "unpack")]
    return {chosen.unfused or chosen.form for chosen in ran}


def model_of(name, dtype=torch.float32, **settings):
    return build(**{**MODELS[name], **HEADS, **settings}, double=False).to(DEVICE, dtype)


def gradients(model, kernels, source, prev):
    """The loss, and all gradients by name."""
    model.zero_grad()
    torch.manual_seed(5)
    with dispatch.using(fused=kernels):
        logits, _ = model(source, None, prev)
        loss = logits.float().log_softmax(-1)[prev.ne(PAD)][:, 7].sum()
        loss.backward()
    assert forms() == {"fused" if kernels else "told so"}
    return loss.detach(), {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(model, tolerance, source, prev, other=None):
    want_loss, want = gradients(other or model, other is not None, source, prev)
    loss, found = gradients(model, True, source, prev)
    torch.testing.assert_close(loss, want_loss, rtol=tolerance, atol=0)
    assert found.keys() == want.keys()
    largest = max(x.abs().max() for x in want.values())
    for name in want:
        assert (found[name] - want[name]).abs().max() <= tolerance * largest, name


@pytest.fixture
def batch():
    return sentences([12, 5, 2]).to(DEVICE), targets([7, 9, 1]).to(DEVICE)


@pytest.mark.parametrize("name", each({name: name for name in MODELS}, ["paper's", "local"]))
def test_a_model_trains_as_without_kernels(name, batch):
    assert_same_training(model_of(name).train(), 1e-5, *batch)


@pytest.mark.release
def test_activation_checkpointing_draws_the_same_dropouts(batch):
    settings = {"attention_dropout": 0.2, "encoder_layers": 1, "decoder_layers": 1}
    plain, recomputed = (model_of("local", **settings, checkpoint_activations=on).train() for on in (False, True))
    assert_same_training(recomputed, 1e-6, *batch, other=plain)


@pytest.mark.release
def test_a_seed_says_what_is_dropped(batch):
    model = model_of("local", attention_dropout=0.5, encoder_layers=1, decoder_layers=1).train()
    first, _ = gradients(model, True, *batch)
    again, _ = gradients(model, True, *batch)
    assert torch.equal(first, again)
    with dispatch.using(fused=True):
        logits, _ = model(batch[0], None, batch[1])  # goes on with another seed
    assert not torch.equal(logits.float().log_softmax(-1)[batch[1].ne(PAD)][:, 7].sum(), first)


def bytes_kept(model, kernels, source, prev):
    """What a pass forward keeps for the pass backward, beside parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no other takes its place
        return tensor

    with dispatch.using(fused=kernels, moved=False):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(source, None, prev)
    assert forms() == {"fused" if kernels else "told so"}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in parameters)


@pytest.mark.release
@pytest.mark.parametrize("name", ["paper's", "local"])
def test_kernels_keep_no_weights_of_slots(name):
    """Of a layer each of encoder and decoder less than 27 tensors like X, feed-forwards of 1.5 D included."""
    batch = sentences([150, 150]).to(DEVICE), targets([150, 150]).to(DEVICE)
    settings = {"projection_length": 32, "dropout": 0.1}
    models = [model_of(name, encoder_layers=n, decoder_layers=n, **settings).train() for n in (1, 2)]
    x = batch[0].numel() * DIMS["encoder_embed_dim"] * 4
    fused, plain = (
        (bytes_kept(models[1], kernels, *batch) - bytes_kept(models[0], kernels, *batch)) / x
        for kernels in (True, False)
    )
    assert fused < 27 < plain


def hypotheses(model, kernels, source):
    generator = SequenceGenerator([model], model.decoder.dictionary, beam_size=3, max_len_b=12)
    lengths = source.ne(PAD).sum(dim=1)
    net_input = {"src_tokens": source, "src_lengths": lengths}
    with dispatch.using(fused=kernels):
        found = generator.generate([model], {"id": torch.arange(len(source)), "net_input": net_input})
    return [[h["tokens"].tolist() for h in beams] for beams in found], [beams[0]["alignment"] for beams in found]


@torch.no_grad()
@pytest.mark.parametrize("name", ["untied-decaying", "local"])
def test_beam_search_finds_the_same(name):
    model = sharpen(model_of(name).cpu().double()).float().to(DEVICE)
    source = sentences([12, 5]).to(DEVICE)
    (want, want_alignment), (found, alignment) = (hypotheses(model, kernels, source) for kernels in (False, True))
    assert found == want
    for a, b in zip(alignment, want_alignment):
        torch.testing.assert_close(a, b)


def test_an_untied_causal_attention_of_many_slots_runs_in_no_kernel():
    """That one was wrong on a GPU."""
    for slots, form in ((16, "fused"), (17, "direct")):
        model = build(**UNTIED, **HEADS, projection_length=slots, fix_projection_length=True, double=False).to(DEVICE)
        with dispatch.using(fused=True):
            model(sentences([5]).to(DEVICE), None, targets([4]).to(DEVICE))
        assert dispatch.forms()["causal attention"].form == form


# ---- on a GPU

DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=["fp32", "fp16", "bf16"])
EVERY = [pytest.param(*case, marks=gpu) for case in itertools.product((True, False), (True, False))]


@DTYPES
@pytest.mark.parametrize(("tied", "biased_or_decaying"), EVERY)
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize(("n", "slots", "batch"), [(1, 2, 2), (15, 16, 2), (30, 16, 64), (60, 5, 2), (64, 32, 3)])
def test_short_sequences_on_a_gpu(n, slots, batch, dim, tied, biased_or_decaying, dtype):
    check_causal(n, slots, tied, biased_or_decaying, dtype, batch, 2, dim, p=0.1)
    for which in ("pack", "unpack"):
        check_pack_or_unpack(which, n, slots, tied, "left", biased_or_decaying, dtype, 2, dim, p=0.1)


@DTYPES
@pytest.mark.parametrize(("tied", "biased_or_decaying"), EVERY)
@pytest.mark.parametrize(
    ("n", "slots", "heads", "dim"), [(65, 16, 8, 64), (500, 32, 8, 64), (1000, 16, 8, 64), (300, 128, 2, 128)]
)
def test_long_sequences_on_a_gpu(n, slots, heads, dim, tied, biased_or_decaying, dtype):
    check_causal(n, slots, tied, biased_or_decaying, dtype, 2, heads, dim, p=0.1)
    for which in ("pack", "unpack"):
        check_pack_or_unpack(which, n, slots, tied, "both", biased_or_decaying, dtype, 2, dim, p=0.1)


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in MODELS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)], ids=["fp16", "bf16"])
def test_a_model_in_half_precision_on_a_gpu(name, dtype, tolerance, batch):
    """By default, and as without kernels."""
    model = model_of(name, dtype).train()
    assert_same_training(model, tolerance, *batch)
    model(batch[0], None, batch[1])
    assert forms() == {"fused"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in MODELS])
def test_autocast_on_a_gpu(name, batch):
    model = model_of(name).train()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert_same_training(model, 0.1, *batch)
