"""Our model, given the authors' parameters, computes what theirs does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import PAD, dictionary, task

from fairseq_luna.config import ARCHITECTURES, LunaTransformerConfig
from fairseq_luna.model import LunaTransformerModel

CASES = sorted(p.stem for p in (Path(__file__).parent / "data").glob("*.npz"))
pytestmark = pytest.mark.stock


def build(settings, theirs, **changes):
    """A model of their settings, and of ours where they have none, with their parameters."""
    known = LunaTransformerConfig.__dataclass_fields__
    cfg = LunaTransformerConfig(**{k: v for k, v in {**settings, **changes}.items() if k in known})
    words = dictionary(len(theirs["decoder.embed_tokens.weight"]))
    model = LunaTransformerModel.build_model(cfg, task(words, words)).double().eval()
    model.load_state_dict(dict(theirs))
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The arrays of a case as tensors, and a model loaded with its parameters."""
    with np.load(Path(__file__).parent / "data" / f"{request.param}.npz") as data:
        settings = json.loads(str(data["args"]))
        arrays = {k: torch.from_numpy(data[k]) for k in data.files if k != "args"}
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
