"""Forms for generation alone: prepared products, what is left out, and that training does not know of them."""

import copy
import pickle
import re
from argparse import Namespace

import pytest
import torch
from tiny import build, sentences, sharpen, targets
from tiny import generation_of_a_command as generation

from fairseq_luna.models.luna_transformer.architectures import HYBRID, LOCAL
from fairseq_luna.modules.linear import Linear, prepare_products
from fairseq_luna.ops.linear import PRODUCTS


def steps(model, length=30):
    """Log-probabilities of a step by step decoding, and the last attention."""
    encoder_out, state = model.encoder(sentences([12, 5])), {}
    prev, found = targets([length] * 2), []
    for t in range(length):
        out = model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)
        attention = out[1]["attn"][0]
        found.append(model.get_normalized_probs(out, log_probs=True))
    return torch.cat(found, dim=1), attention


# relative to the largest of a product: roundings of each form
ERRORS = {"fp32": 1e-6, "bf16": 0.02, "int8": 0.03}


@pytest.mark.stock
@pytest.mark.parametrize("precision", PRODUCTS)
@pytest.mark.parametrize("shape", [(1, 7), (3, 5, 7), (80, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_products_of_each_precision(precision, shape, bias):
    torch.manual_seed(0)
    layer, x = Linear(7, 13, bias=bias), torch.randn(shape)
    with torch.no_grad():
        want = layer(x)
        prepare_products(layer, precision)
        found = layer(x)
    assert found.shape == want.shape and found.dtype == torch.float32
    assert (found - want).abs().max() <= ERRORS[precision] * want.abs().max()
    assert (precision == "fp32") or not torch.equal(found, want)  # another product was taken indeed


@pytest.mark.parametrize("precision", PRODUCTS)
def test_products_without_onednn(precision, monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", Namespace(), raising=False)
    torch.manual_seed(0)
    layer, x = Linear(7, 13), torch.randn(3, 7)
    with torch.no_grad():
        want = layer(x)
        prepare_products(layer, precision)
        assert (layer(x) - want).abs().max() <= ERRORS[precision] * want.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [{}, {"untie_luna_kv": True}, LOCAL, HYBRID, {"decoder_self_attention": "softmax"}],
    ids=["tied", "untied", "plain", "full", "softmax"],
)
@pytest.mark.parametrize("precision", PRODUCTS)
def test_a_prepared_model_says_the_same(precision, settings):
    model = sharpen(build(double=False, inference_precision=precision, **settings).double()).float()
    want, _ = steps(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.prepare_for_inference_(generation())
    found, _ = steps(model)
    # log-probabilities of a model whose errors add up over layers and 30 steps
    assert (found - want).abs().mean() <= 3 * ERRORS[precision]
    assert precision == "fp32" or not torch.equal(found, want)
    # what a checkpoint would hold is as before
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, LOCAL, HYBRID], ids=["tied", "plain", "full"])
def test_every_prepared_product_is_used(settings):
    """Also where a source is so long that projections would else be moved to the slots."""
    settings = {**settings, "projection_length": 3, "inference_precision": "bf16", "max_source_positions": 300}
    model = build(double=False, **settings)
    model.prepare_for_inference_(generation())
    calls = dict.fromkeys((name for name, layer in model.named_modules() if isinstance(layer, Linear)), 0)

    def counted(name, product):
        def call(x):
            calls[name] += 1
            return product(x)

        return call

    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            layer.prepared = counted(name, layer.prepared)
    encoder_out, state = model.encoder(sentences([230, 100])), {}
    for t in range(1, 3):
        model.decoder(targets([2, 2])[:, :t], encoder_out, incremental_state=state)
    # what the source decides once, the rest at each of two steps
    once = re.compile(r"encoder\.|.*\.cross_attn\.[kv]_proj")
    assert calls == {name: 1 if once.match(name) else 2 for name in calls}


def test_new_weights_device_or_gradients_bring_the_plain_form_back():
    model = build(double=False, inference_precision="bf16")
    plain, source, prev = build(double=False, seed=2), sentences([12, 5]), targets([5, 5])
    model.prepare_for_inference_(generation())
    want, _ = plain.decoder(prev, plain.encoder(source))
    with torch.no_grad():
        assert not torch.allclose(model.decoder(prev, model.encoder(source))[0], want)
        model.load_state_dict(plain.state_dict())
        assert torch.equal(model.decoder(prev, model.encoder(source))[0], want)
    model.prepare_for_inference_(generation())
    logits, _ = model.decoder(prev, model.encoder(source))
    assert torch.equal(logits, want) and logits.requires_grad
    double = model.double().decoder(prev, model.encoder(source))[0]
    torch.testing.assert_close(double.float(), want)
    model.float().prepare_for_inference_(generation())
    for other in copy.deepcopy(model), pickle.loads(pickle.dumps(model.decoder.output_projection)):
        assert all(layer.prepared is None for layer in other.modules() if isinstance(layer, Linear))


@torch.no_grad()
@pytest.mark.parametrize("asked", [{"print_alignment": "hard"}, {"replace_unk": "dictionary"}, {"replace_unk": ""}])
def test_attention_is_made_only_where_it_is_read(asked):
    model = build()
    assert steps(model, 2)[1] is not None  # who asks the model itself gets it
    model.prepare_for_inference_(generation())
    assert steps(model, 2)[1] is None
    other = build()
    other.prepare_for_inference_(generation(**asked))
    assert steps(other, 2)[1].shape == (2, 1, 12)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lower_precision_of_a_half_model_is_refused(precision):
    model = build(double=False, inference_precision=precision).half()
    with pytest.raises(ValueError, match=f"--inference-precision {precision} .* float16 on cpu; leave it out."):
        model.prepare_for_inference_(generation())


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="--inference-precision 'int4' is unknown; choose from fp32, bf16, int8."):
        build(inference_precision="int4")
