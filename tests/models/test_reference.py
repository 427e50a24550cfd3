"""Our model, given the authors' parameters, computes what theirs does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import PAD, dictionary, task

from fairseq_luna.models.luna_transformer import LunaTransformerModel
from fairseq_luna.models.luna_transformer.architectures import ARCHITECTURES
from fairseq_luna.models.luna_transformer.config import LunaTransformerConfig

ARRAYS = Path(__file__).resolve().parent.parent / "data"
CASES = sorted(p.stem for p in ARRAYS.glob("*.npz"))
pytestmark = pytest.mark.stock


def build(settings, theirs, **changes):
    """A model of their settings, and of ours where they have none, with their parameters."""
    known = LunaTransformerConfig.__dataclass_fields__
    cfg = LunaTransformerConfig(**{k: v for k, v in {**settings, **changes}.items() if k in known})
    words = dictionary(len(theirs["decoder.embed_tokens.weight"]))
    model = LunaTransformerModel.build_model(cfg, task(words, words)).double().eval()
    model.load_state_dict(dict(theirs))
    return model


def read(name):
    """The arrays of a case as tensors, and its settings."""
    with np.load(ARRAYS / f"{name}.npz") as data:
        return {k: torch.from_numpy(data[k]) for k in data.files if k != "args"}, json.loads(str(data["args"]))


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model loaded with the parameters of a case, its arrays and its settings."""
    arrays, settings = read(request.param)
    return build(settings, parameters(arrays)), arrays, settings


def parameters(arrays):
    """Theirs, by name."""
    prefix = "param/"
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


def agrees(ours, theirs, mask=None):
    if mask is not None:
        ours, theirs = ours[mask], theirs[mask]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_all_cases_are_here():
    assert CASES == ["tied_fixed_projection", "tied_postnorm", "tied_prenorm", "untied_postnorm"]


@torch.no_grad()
def test_encoder(case):
    model, arrays, _ = case
    out = model.encoder(arrays["src_tokens"])
    agrees(out["encoder_out"][0], arrays["encoder_out"])
    agrees(out["packed_out"][0], arrays["packed_out"])
    if arrays["packed_padding_mask"].numel():
        assert torch.equal(out["packed_padding_mask"][0], arrays["packed_padding_mask"])
    else:
        assert out["packed_padding_mask"] == []


@torch.no_grad()
def test_decoder(case):
    model, arrays, _ = case
    prev = arrays["prev_output_tokens"]
    real = prev.ne(PAD)
    unpack = []
    model.decoder.layers[-1].cross_attn.register_forward_hook(lambda *args: unpack.append(args[-1][1]))
    encoder_out = model.encoder(arrays["src_tokens"])
    logits, _ = model.decoder(prev, encoder_out)
    features, _ = model.decoder(prev, encoder_out, features_only=True)
    agrees(logits, arrays["logits"], real)
    agrees(features, arrays["features"], real)
    agrees(unpack[0].mean(dim=1), arrays["attn"], real)


@torch.no_grad()
def test_incremental_decoder(case):
    model, arrays, _ = case
    prev = arrays["prev_output_tokens"]
    encoder_out, state = model.encoder(arrays["src_tokens"]), {}
    steps = [model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(prev.size(1))]
    agrees(torch.cat(steps, dim=1), arrays["incremental_logits"], prev.ne(PAD))


@pytest.mark.parametrize(
    "arch, millions", [("luna_transformer_wmt_en_de", 69.69), ("luna_transformer_wmt_en_de_untied", 77.57)]
)
def test_parameter_counts_of_the_paper(arch, millions):
    words = dictionary(40_624)
    cfg = LunaTransformerConfig(**ARCHITECTURES[arch], share_all_embeddings=True)
    model = LunaTransformerModel.build_model(cfg, task(words, words))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


@torch.no_grad()
def test_norms_of_embeddings():
    """No case of theirs was trained with --layernorm-embedding. So its six parameters are added to one, and it ought to
    compute what the case without does when its first layers read the norm of scaled embeddings plus positions."""
    arrays, settings = read("tied_postnorm")
    theirs = parameters(arrays)
    names = "encoder.layernorm_embedding", "encoder.layernorm_porjected_embedding", "decoder.layernorm_embedding"
    torch.manual_seed(1)
    norms = {f"{name}.{kind}": torch.randn(32).double() for name in names for kind in ("weight", "bias")}
    model = build(settings, {**theirs, **norms}, layernorm_embedding=True)
    plain = build(settings, theirs)
    source, prev = arrays["src_tokens"], arrays["prev_output_tokens"]

    def normed(embeddings, positions, name):
        return F.layer_norm(32**0.5 * embeddings + positions, (32,), norms[f"{name}.weight"], norms[f"{name}.bias"])

    embeddings, slots = theirs["encoder.embed_tokens.weight"], theirs["encoder.projected_embeddings"]
    x = normed(embeddings[source], plain.encoder.embed_positions(source), names[0])
    packed = normed(slots, theirs["encoder.projected_positions"], names[1])
    y = normed(embeddings[prev], plain.decoder.embed_positions(prev), names[2])
    plain.encoder.layers[0].register_forward_pre_hook(
        lambda layer, inputs: (x, packed[: inputs[1].size(1)].expand_as(inputs[1]), *inputs[2:])
    )
    plain.decoder.layers[0].register_forward_pre_hook(lambda layer, inputs: (y, *inputs[1:]))
    found, want = (each.decoder(prev, each.encoder(source))[0] for each in (model, plain))
    agrees(found, want, prev.ne(PAD))
    assert not torch.allclose(want, arrays["logits"])


def test_a_parameter_of_theirs_that_is_missing_is_named(case):
    model, arrays, _ = case
    theirs = parameters(arrays)
    del theirs["decoder.layers.0.encoder_attn.pq_proj.weight"]
    with pytest.raises(RuntimeError, match=r"encoder\.memory\.layers\.0\.pack\.query\.weight"):
        model.load_state_dict(theirs)


@torch.no_grad()
@pytest.mark.parametrize("kept", [0, 1])
def test_layers_of_theirs_are_pruned_as_ours(case, kept):
    """Those of the decoder with their halves on the source; the new last layer loses the norm that nothing reads."""
    model, arrays, settings = case
    keep = {"encoder_layers_to_keep": str(kept), "decoder_layers_to_keep": str(kept)}
    batch = arrays["src_tokens"], None, arrays["prev_output_tokens"]
    outputs = [build(settings, state, **keep)(*batch)[0] for state in (parameters(arrays), model.state_dict())]
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], arrays["logits"])
