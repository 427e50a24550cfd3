"""Settings that the Transformer has: taken, or refused by a sentence, on every road."""

import argparse
import sys
import types

import pytest
import torch
from fairseq import models, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.transformer import TransformerModel
from fairseq.modules import layer_norm
from omegaconf import OmegaConf
from tiny import DIMS, PRE_NORM, build, dictionary, task

from fairseq_luna.models.checks import flag
from fairseq_luna.models.luna_transformer import LunaTransformerModel
from fairseq_luna.models.luna_transformer.config import LunaTransformerConfig
from fairseq_luna.models.luna_transformer.refused import RefusedSettings

pytestmark = [pytest.mark.stock, pytest.mark.filterwarnings("ignore")]
REFUSED = {
    "no_cross_attention": True,
    "cross_self_attention": True,
    "decoder_input_dim": 16,
    "decoder_output_dim": 16,
    "merge_src_tgt_embed": True,
    "char_inputs": True,
    "encoder_xformers_att_config": '{"name": "linformer"}',
    "decoder_xformers_att_config": '{"name": "linformer"}',
    "adaptive_input": True,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
    "quant_noise_scalar": 0.5,
    "base_layers": 1,
    "base_sublayers": 2,
    "base_shuffle": 0,
}
refused = pytest.mark.parametrize("name", REFUSED)


def flags_of(model):
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, allow_abbrev=False)
    model.add_args(parser)
    return parser


def by_command(*words):
    """The model that a fairseq-train with these words would build."""
    sizes = [word for name, value in DIMS.items() if value is not True for word in (flag(name), str(value))]
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(
        parser, ["data", "--arch", "luna_transformer", "--share-all-embeddings", *sizes, *map(str, words)]
    )
    return by_settings(convert_namespace_to_omegaconf(args).model)


def by_settings(cfg):
    """The model of settings in YAML or in a checkpoint."""
    words = dictionary()
    return models.build_model(cfg, task(words, words))


def test_every_flag_of_the_transformer_is_known():
    theirs, ours = (set(flags_of(model)._option_string_actions) for model in (TransformerModel, LunaTransformerModel))
    assert theirs - ours == set()


def test_what_is_refused_is_not_offered():
    said = flags_of(LunaTransformerModel).format_help()
    assert [name for name in REFUSED if flag(name) + " " in said] == []
    for name in LunaTransformerConfig.__dataclass_fields__:
        assert name in REFUSED or name.startswith("_") or flag(name) in said


def test_everything_refused_is_tested():
    assert {name for name in RefusedSettings.__dataclass_fields__ if not name.startswith("_")} == set(REFUSED)


@refused
def test_refused_settings_end_in_a_sentence(name):
    """Given as flags, or by a YAML or --model-overrides."""
    value = REFUSED[name]
    given = [flag(name)] if value is True else [flag(name), str(value)]
    flags = vars(flags_of(LunaTransformerModel).parse_args(given))
    for settings in flags, {name: value}:
        with pytest.raises(ValueError) as caught:
            by_settings(OmegaConf.create({"_name": "luna_transformer", **DIMS, **settings}))
        said = str(caught.value)
        assert said.startswith(f"{' '.join(given)} does not go with Luna: ") and said.endswith(".") and ";" in said


def test_a_refused_flag_of_a_command():
    with pytest.raises(ValueError, match="^--quant-noise-scalar 0.5 does not go with Luna: .* --quant-noise-pq"):
        by_command("--quant-noise-scalar", 0.5)


def test_refused_settings_may_be_off():
    off = {name: RefusedSettings.__dataclass_fields__[name].default for name in REFUSED}
    by_settings(OmegaConf.create({"_name": "luna_transformer", **DIMS, **off}))
    by_command("--decoder-output-dim", 32, "--base-layers", 0, "--quant-noise-scalar", 0)


def test_flags_reach_the_model():
    model = by_command(
        *("--relu-dropout", 0.25, "--encoder-layers-to-keep", "1", "--decoder-layers-to-keep", "0"),
        *("--adaptive-softmax-cutoff", "12,30", "--adaptive-softmax-factor", 2, "--adaptive-softmax-dropout", 0.125),
        *("--offload-activations", "--encoder-layerdrop", 0.25, "--decoder-layerdrop", 0.5),
        *("--quant-noise-pq", 0.25, "--quant-noise-pq-block-size", 4, "--min-params-to-wrap", 10),
        *("--decoder-normalize-before", "--no-decoder-final-norm", "--export"),
    )
    assert model.layers_to_keep == {"encoder": [1], "decoder": [0]}
    assert len(model.encoder.layers) == len(model.decoder.layers) == len(model.encoder.memory.layers) == 1
    layer = model.encoder.layers[0]
    assert (layer.recompute, layer.offload, layer.ffn.dropout.p) == (True, True, 0.25)
    assert layer.ffn.fc1.noise.keywords == {"p": 0.25, "block_size": 4}
    assert (model.encoder.layerdrop, model.encoder.decoder_layerdrop) == (0.25, 0.5)
    softmax = model.decoder.adaptive_softmax
    assert (softmax.cutoff, softmax.factor, softmax.dropout_module.p) == ([12, 30, 44], 2, 0.125)
    assert model.decoder.layer_norm is None


@pytest.mark.parametrize("given", ["1,0", [0, 1], (1, 0), "0, 1"], ids=str)
def test_layers_to_keep_as_text_or_list(given):
    cfg = OmegaConf.create({"_name": "luna_transformer", **DIMS, "encoder_layers": 3})
    cfg.encoder_layers_to_keep = given  # as --model-overrides does
    model = by_settings(cfg)
    assert model.layers_to_keep == {"encoder": [0, 1], "decoder": None}
    assert len(model.encoder.layers) == 2


BAD = {
    "keep-beyond": ({"encoder_layers_to_keep": "0,2"}, r"--encoder-layers-to-keep 0,2 must list .* from 0 to 1"),
    "keep-negative": ({"decoder_layers_to_keep": [-1]}, r"--decoder-layers-to-keep -1 must list .* from 0 to 1"),
    "keep-twice": ({"decoder_layers_to_keep": "1,1"}, r"--decoder-layers-to-keep 1,1 must list .* each once"),
    "keep-none": ({"decoder_layers_to_keep": []}, r"--decoder-layers-to-keep  must list"),
    "keep-words": ({"encoder_layers_to_keep": "all"}, r"--encoder-layers-to-keep all must list"),
    "layerdrop": ({"encoder_layerdrop": 1.0}, r"--encoder-layerdrop must be in \[0, 1\), but is 1.0"),
    "layerdrop-negative": ({"decoder_layerdrop": -0.1}, r"--decoder-layerdrop must be in \[0, 1\), but is -0.1"),
    "noise": ({"quant_noise_pq": 1.0}, r"--quant-noise-pq must be in \[0, 1\), but is 1.0"),
    "noise-block": (
        {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 5},
        r"--quant-noise-pq-block-size 5 does not divide --encoder-embed-dim 32",
    ),
    "noise-block-of-ffn": (
        {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 32},
        r"--quant-noise-pq-block-size 32 does not divide --encoder-ffn-embed-dim 48",
    ),
    "noise-block-of-none": ({"quant_noise_pq_block_size": 0}, r"--quant-noise-pq-block-size must be at least 1"),
    "cutoffs-fall": ({"adaptive_softmax_cutoff": [30, 12]}, r"--adaptive-softmax-cutoff 30,12 must be rising"),
    "cutoffs-equal": ({"adaptive_softmax_cutoff": [12, 12]}, r"--adaptive-softmax-cutoff 12,12 must be rising"),
    "cutoffs-none": ({"adaptive_softmax_cutoff": []}, r"--adaptive-softmax-cutoff  must be rising"),
    "cutoffs-zero": ({"adaptive_softmax_cutoff": [0, 12]}, r"--adaptive-softmax-cutoff 0,12 must be rising"),
    "cutoffs-beyond": (
        {"adaptive_softmax_cutoff": [12, 45]},
        r"--adaptive-softmax-cutoff 12,45 goes beyond the dictionary of 44 words",
    ),
    "factor": (
        {"adaptive_softmax_cutoff": [12, 24, 36]},
        r"--adaptive-softmax-factor 4.0 must .* --decoder-embed-dim 32 .* 3 bands of --adaptive-softmax-cutoff 12,24,",
    ),
    "factor-zero": (
        {"adaptive_softmax_cutoff": [12], "adaptive_softmax_factor": 0.0},
        r"--adaptive-softmax-factor 0.0",
    ),
    "adaptive-dropout": ({"adaptive_softmax_dropout": 1.0}, r"--adaptive-softmax-dropout must be in \[0, 1\)"),
}


@pytest.mark.parametrize("settings, message", BAD.values(), ids=BAD)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_settings_without_effect_are_told(caplog):
    build(no_decoder_final_norm=True, quant_noise_pq_block_size=4, adaptive_softmax_factor=2.0)
    build(share_all_embeddings=False, share_decoder_input_output_embed=True, adaptive_softmax_cutoff=[12])
    told = [said.split(" has no effect")[0] for said in caplog.messages]
    assert told == [
        *("--quant-noise-pq-block-size 4", "--no-decoder-final-norm True", "--adaptive-softmax-factor 2.0"),
        "--share-decoder-input-output-embed True",
    ]
    caplog.clear()
    build(decoder_normalize_before=True, no_decoder_final_norm=True, quant_noise_pq=0.1, quant_noise_pq_block_size=4)
    build(adaptive_softmax_cutoff=[12], adaptive_softmax_factor=2.0, adaptive_softmax_dropout=0.1)
    assert not caplog.messages


def test_layers_to_shard(monkeypatch):
    """For --ddp-backend fully_sharded each layer that is large enough, or that is computed again."""
    sharded = []
    fairscale = types.ModuleType("fairscale.nn")
    fairscale.wrap = lambda layer: sharded.append(type(layer).__name__) or layer
    monkeypatch.setitem(sys.modules, "fairscale", types.ModuleType("fairscale"))
    monkeypatch.setitem(sys.modules, "fairscale.nn", fairscale)
    size = sum(p.numel() for p in build().decoder.layers[0].parameters())
    assert sharded == []
    for least, found in (size, True), (size + 1, False):
        sharded.clear()
        build(min_params_to_wrap=least)
        assert ("LunaDecoderLayer" in sharded) == found
    for settings in {"min_params_to_wrap": 0}, {"checkpoint_activations": True}:
        sharded.clear()
        build(**settings)
        assert sharded == ["LunaEncoderLayer"] * 2 + ["SourceMemoryLayer"] * 2 + ["LunaDecoderLayer"] * 2


def test_export_asks_for_norms_of_torch(monkeypatch):
    """Where apex has faster ones, which TorchScript does not know."""

    class Fused(torch.nn.LayerNorm):
        pass

    monkeypatch.setattr(layer_norm, "FusedLayerNorm", Fused, raising=False)
    monkeypatch.setattr(layer_norm, "has_fused_layernorm", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for export in False, True:
        model = build(**PRE_NORM, layernorm_embedding=True, export=export)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
        assert len(norms) > 10 and all(isinstance(norm, Fused) != export for norm in norms)
