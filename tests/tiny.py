"""Tiny models and batches for the tests."""

from itertools import product
from types import SimpleNamespace
from typing import Any, Dict, List, Sequence

import pytest
import torch
from fairseq.data import Dictionary

from fairseq_luna.models.luna_transformer import LunaTransformerModel
from fairseq_luna.models.luna_transformer.architectures import HYBRID, LOCAL
from fairseq_luna.models.luna_transformer.config import CROSS_ATTENTIONS, SELF_ATTENTIONS, LunaTransformerConfig

PAD, EOS = 1, 2
DIMS = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "projection_length": 6,
    "share_all_embeddings": True,
}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
UNTIED = {"untie_luna_kv": True}

# settings that change which code runs, each by its id
VARIANTS: Dict[str, Dict[str, Any]] = {
    "tied": {},
    "untied": UNTIED,
    "pre-norm": PRE_NORM,
    "untied-pre-norm": {**UNTIED, **PRE_NORM},
    "fixed-length": {"fix_projection_length": True},
    "elu": {"causal_activation": "elu"},
    "pack-heads": {"encoder_projected_attention_heads": 2, "decoder_projected_attention_heads": 1},
    "two-dims": {
        "share_all_embeddings": False,
        "decoder_embed_dim": 16,
        "decoder_ffn_embed_dim": 24,
    },
    "layernorm-embedding": {"layernorm_embedding": True},
    "learned-positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "gaussian": {"pack_bias": "gaussian"},
    "gaussian-fixed-length": {"pack_bias": "gaussian", "fix_projection_length": True},
    "gaussian-unpack": {"encoder_unpack_bias": "gaussian"},
    "decaying": {"causal_mean": "decaying"},
    "decaying-untied-pre-norm": {"causal_mean": "decaying", **UNTIED, **PRE_NORM},
    "hybrid": {**HYBRID, **PRE_NORM},
    "shared-slots": {**LOCAL, **PRE_NORM, "projection_length": DIMS["projection_length"], "tokens_per_slot": 1.7},
    "local": {**LOCAL, **PRE_NORM, "projection_length": DIMS["projection_length"]},
}
# a Transformer, and one with what makes our Lunas local
ORDINARY = {"encoder_self_attention": "softmax", "decoder_self_attention": "softmax", "cross_attention": "softmax"}
LOCAL_ORDINARY = {**ORDINARY, "causal_mean": "decaying", "encoder_unpack_bias": "gaussian"}
VARIANTS["local-transformer"] = {**LOCAL_ORDINARY, **PRE_NORM}
# and every choice of attentions but the paper's
VARIANTS.update(
    (
        f"encoder-{encoder}-decoder-{decoder}-cross-{cross}",
        {"encoder_self_attention": encoder, "decoder_self_attention": decoder, "cross_attention": cross},
    )
    for encoder, decoder, cross in product(SELF_ATTENTIONS, SELF_ATTENTIONS, CROSS_ATTENTIONS)
    if (encoder, decoder, cross) != ("luna", "luna", "packed")
)
LINFORMER = {"encoder_self_attention": "linformer", "linformer_length": 5, "max_source_positions": 64}
VARIANTS["linformer"] = {**LINFORMER, **PRE_NORM}
TWO_DIMS = {**VARIANTS["two-dims"], **PRE_NORM}
VARIANTS["two-dims-cross-softmax"] = {**TWO_DIMS, "cross_attention": "softmax", "pack_bias": "gaussian"}
VARIANTS["two-dims-unprojected"] = {**TWO_DIMS, "pack_values": "unprojected", "decoder_projected_attention_heads": 8}
VARIANTS["two-dims-decoder-softmax"] = {**TWO_DIMS, **UNTIED, "decoder_self_attention": "softmax"}

# which between them have every setting; the others are more ways to put these together
FEW = (
    "tied untied-pre-norm elu pack-heads layernorm-embedding learned-positions gaussian-fixed-length gaussian-unpack "
    "decaying-untied-pre-norm hybrid local shared-slots local-transformer linformer two-dims-unprojected "
    "two-dims-decoder-softmax "
    "encoder-softmax-decoder-luna-cross-packed encoder-softmax-decoder-softmax-cross-softmax"
).split()


def each(among: Dict[str, Any], few: Sequence[str]) -> List[Any]:
    """Parameters of a test by their ids, of which all but a few wait for a release."""
    assert set(few) <= set(among)
    marks = {name: () if name in few else pytest.mark.release for name in among}
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in among.items()}
    return [pytest.param(*values[name], id=name, marks=marks[name]) for name in among]


variants = pytest.mark.parametrize("settings", each(VARIANTS, FEW))


def close_enough(settings: Dict[str, Any]) -> Dict[str, float]:
    """How equal two ways of decoding are, for assert_close: fairseq's own attention takes its softmax in float64 all
    at once and in float32 step by step."""
    ordinary = any(settings.get(name) == choice for name, choice in ORDINARY.items())
    return {"rtol": 0, "atol": 3e-6 if ordinary else 1e-9}


def dictionary(size: int = 44) -> Dictionary:
    """4 specials and words w0, w1, ..."""
    result = Dictionary()
    for i in range(size - 4):
        result.add_symbol(f"w{i}")
    return result


def task(source: Dictionary, target: Dictionary) -> Any:
    """What building a model asks of a task."""
    return SimpleNamespace(source_dictionary=source, target_dictionary=target)


def build(size: int = 44, double: bool = True, seed: int = 1, **settings: Any) -> LunaTransformerModel:
    """A tiny model, without dropout unless given, in evaluation mode."""
    torch.manual_seed(seed)
    words = dictionary(size)
    cfg = LunaTransformerConfig(**{**DIMS, "dropout": 0.0, **settings})
    model = LunaTransformerModel.build_model(cfg, task(words, words)).eval()
    return model.double() if double else model


def sharpen(model: LunaTransformerModel, seed: int = 2) -> LunaTransformerModel:
    """Makes a fresh model opinionated: random biases, also of places, embeddings that tell words apart, and an
    end of sentence that comes at times."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("bias", "bias.shift", "bias.sharpness")):
                p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64), alpha=0.3)
            elif "embed_tokens" in name or "output_projection" in name or "adaptive_softmax" in name:
                p.mul_(2)
        decoder = model.decoder
        last_norm = decoder.layer_norm or decoder.layers[-1].ffn_residual.layer_norm
        output = decoder.output_projection if decoder.adaptive_softmax is None else decoder.adaptive_softmax.head
        eos = output.weight[EOS]
        last_norm.bias.add_(eos, alpha=float(4 / eos.dot(eos)))
    return model


def sentences(lengths: List[int], left_pad: bool = True, size: int = 44, seed: int = 3) -> torch.Tensor:
    """(B, n) random source sentences of these lengths, eos included, padded on the left or right."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.full((len(lengths), max(lengths)), PAD)
    for row, n in zip(batch, lengths):
        words = torch.randint(4, size, (n,), generator=generator)
        words[-1] = EOS
        if left_pad:
            row[len(row) - n :] = words
        else:
            row[:n] = words
    return batch


def targets(lengths: List[int], size: int = 44, seed: int = 4) -> torch.Tensor:
    """(B, n) shifted targets, eos first, padded on the right."""
    batch = sentences([n + 1 for n in lengths], left_pad=False, size=size, seed=seed)[:, :-1]
    return torch.cat((torch.full((len(lengths), 1), EOS), batch), dim=1)[:, : max(lengths)].masked_fill(
        torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1), PAD
    )


def generation_of_a_command(**asked):
    """fairseq's configuration of a command that generates, as far as models look at it."""
    asked = SimpleNamespace(**{"beam": 5, "print_alignment": None, "replace_unk": None, **asked})
    return SimpleNamespace(common_eval=SimpleNamespace(path="model.pt"), generation=asked)
