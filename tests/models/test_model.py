"""The whole model: settings, masks, gradients, causality."""

import re
from argparse import Namespace

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.transformer import TransformerModel, base_architecture
from fairseq.modules import FairseqDropout
from omegaconf import OmegaConf
from tiny import (
    DIMS,
    EOS,
    LOCAL_ORDINARY,
    ORDINARY,
    PAD,
    PRE_NORM,
    UNTIED,
    build,
    dictionary,
    sentences,
    sharpen,
    targets,
    task,
    variants,
)

from fairseq_luna.models.luna_transformer import LunaTransformerModel
from fairseq_luna.models.luna_transformer.architectures import ARCHITECTURES
from fairseq_luna.models.luna_transformer.checks import checked
from fairseq_luna.models.luna_transformer.config import LunaTransformerConfig
from fairseq_luna.models.luna_transformer.source import EncodedSource
from fairseq_luna.modules.causal_attention import head_decays
from fairseq_luna.modules.locality import Locality
from fairseq_luna.ops.slots import slot_positions


def logits(model, source, prev):
    return model(source, None, prev)[0]


@variants
def test_every_parameter_has_a_gradient(settings):
    """So that DDP needs no --find-unused-parameters."""
    model = build(**settings).train()
    logits(model, sentences([9, 5]), targets([7, 3])).logsumexp(-1).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a bias on keys shifts all logits of a softmax alike: its gradient is there, but zero
    assert [n for n in without if not n.endswith(".key.bias")] == []


@variants
@pytest.mark.parametrize("left_pad", [True, False], ids=["left-padded", "right-padded"])
def test_a_sentence_alone_is_the_same_in_a_batch(settings, left_pad):
    model = sharpen(build(**settings))
    lengths, target_lengths = [12, 5, 2], [7, 9, 1]
    source, prev = sentences(lengths, left_pad), targets(target_lengths)
    batch = logits(model, source, prev)
    for i, (n, t) in enumerate(zip(lengths, target_lengths)):
        alone = source[i, -n:] if left_pad else source[i, :n]
        one = logits(model, alone.unsqueeze(0), prev[i : i + 1, :t])
        torch.testing.assert_close(batch[i : i + 1, :t], one, rtol=0, atol=1e-12)


@variants
def test_the_future_changes_nothing_to_the_bit(settings):
    model, source = sharpen(build(**settings, double=False)), sentences([9, 5])
    prev = targets([90, 90])
    changed = prev.clone()
    changed[:, 70] = (changed[:, 70] + 1).clamp(min=4) % 44
    before, after = logits(model, source, prev), logits(model, source, changed)
    assert torch.equal(before[:, :70], after[:, :70])
    assert not torch.equal(before[:, 70], after[:, 70])


@variants
def test_the_source_matters_and_padding_does_not(settings):
    model, prev = sharpen(build(**settings)), targets([5, 5])
    source = sentences([9, 4])
    wider = torch.cat((torch.full((2, 3), PAD), source), dim=1)
    changed = source.clone()
    changed[:, -2] = (changed[:, -2] + 1).clamp(min=4) % 44
    want = logits(model, source, prev)
    torch.testing.assert_close(logits(model, wider, prev), want, rtol=0, atol=1e-12)
    assert (logits(model, changed, prev) - want).abs().max() > 1e-3


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "cut"])
def test_slots_beyond_every_sentence(fixed):
    """l larger than every sentence: no slot is read that a sentence does not have."""
    model = build(projection_length=50, fix_projection_length=fixed)
    out = model.encoder(sentences([7, 3]))
    assert out["packed_out"][0].size(0) == (50 if fixed else 7)
    if fixed:
        assert out["packed_padding_mask"] == []
    else:
        assert out["packed_padding_mask"][0].sum(dim=1).tolist() == [0, 4]


def test_a_batch_of_one_token():
    model = build()
    out = logits(model, torch.tensor([[EOS]]), torch.tensor([[EOS]]))
    padded = logits(model, sentences([1, 5]), targets([1, 5]))
    assert out.isfinite().all()
    torch.testing.assert_close(out[0], padded[0, :1], rtol=0, atol=1e-12)


def test_an_empty_line_in_the_middle_of_a_batch():
    """An empty line is a source of eos alone."""
    model = build()
    source, prev = sentences([9, 1, 6]), targets([5, 5, 5])
    out = logits(model, source, prev)
    assert out.isfinite().all()
    torch.testing.assert_close(out[1:2], logits(model, torch.tensor([[EOS]]), prev[1:2]), rtol=0, atol=1e-12)


HALVES = {
    "tied": {},
    "untied": {"untie_luna_kv": True},
    "gaussian-decaying": {"pack_bias": "gaussian", "encoder_unpack_bias": "gaussian", "causal_mean": "decaying"},
    "plain": {"pack_values": "unprojected"},
    "ordinary": ORDINARY,
    "local-ordinary": LOCAL_ORDINARY,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("settings", HALVES.values(), ids=HALVES)
def test_half_precision_model(dtype, settings):
    model = sharpen(build(**settings))
    source, prev = sentences([9, 5]), targets([300, 300])
    want = logits(model, source, prev).log_softmax(-1)
    out = logits(model.to(dtype), source, prev)
    assert out.dtype == dtype
    # the tolerance of one model in half precision against float64, not of a sum that drifts
    error = (out.double().log_softmax(-1) - want).abs()
    assert error.mean() < 20 * torch.finfo(dtype).eps
    assert error[:, 250:].mean() < 2 * error[:, :50].mean()


def test_every_dropout_counts():
    """Each alone changes the outcome: of embeddings, residuals, feed-forwards and all attention weights."""
    model = build().train()
    source, prev = sentences([9, 5]), targets([5, 5])
    want = logits(model, source, prev)
    modules = {n: m for n, m in model.named_modules() if isinstance(m, FairseqDropout)}
    # the last layer's P' has no reader
    unread = "encoder.memory.layers.1.residual.dropout"
    assert unread in modules and len(modules) == 30
    for name, module in modules.items():
        module.p = 0.5
        assert torch.equal(logits(model, source, prev), want) == (name == unread), name
        module.p = 0.0


@variants
def test_ddp_without_find_unused_parameters(settings, one_process_group):
    """DDP complains at the second step if a parameter had no gradient in the first."""
    model = torch.nn.parallel.DistributedDataParallel(build(**settings).train())
    for _ in range(3):
        logits(model, sentences([9, 5]), targets([7, 3])).logsumexp(-1).sum().backward()


# --- ordinary attention

THEIR_NAMES = {
    "self_attn_residual.layer_norm": "self_attn_layer_norm",
    "cross_attn_residual.layer_norm": "encoder_attn_layer_norm",
    "ffn_residual.layer_norm": "final_layer_norm",
    "cross_attn.": "encoder_attn.",
    "ffn.fc": "fc",
}


@pytest.mark.stock
@pytest.mark.parametrize(
    "settings",
    [
        {},
        PRE_NORM,
        {**PRE_NORM, "no_decoder_final_norm": True},
        {"adaptive_softmax_cutoff": [12, 30], "adaptive_softmax_factor": 2.0, "share_all_embeddings": False},
    ],
    ids=["post-norm", "pre-norm", "no-final-norm", "adaptive-softmax"],
)
def test_three_ordinary_attentions_are_fairseqs_transformer(settings):
    """The same parameters, in number and by other names, and the same results."""
    ours = sharpen(build(**settings, **ORDINARY))
    args = Namespace(**{**DIMS, "dropout": 0.0, **settings, "max_source_positions": 99, "max_target_positions": 99})
    base_architecture(args)
    words = dictionary()
    theirs = TransformerModel.build_model(args, task(words, words)).eval().double()
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        for mine, other in THEIR_NAMES.items():
            name = name.replace(mine, other)
        assert state[name].shape == value.shape
        state[name] = value
    theirs.load_state_dict(state)
    # fairseq 0.12.2 has the encoder's twice, for a fast path without gradients
    twice = re.compile(r".*(in_proj|out_proj|fc\d)_(weight|bias)")
    sizes = [p.numel() for name, p in theirs.named_parameters() if not twice.fullmatch(name)]
    assert sum(p.numel() for p in ours.parameters()) == sum(sizes)
    source, prev = sentences([12, 5, 2]), targets([7, 9, 1])
    real, lengths = prev.ne(PAD), source.ne(PAD).sum(dim=1)
    with torch.no_grad():
        found, want = (
            model.get_normalized_probs(model(source, lengths, prev), log_probs=True)[real] for model in (ours, theirs)
        )
    torch.testing.assert_close(found, want, rtol=1e-6, atol=3e-6)
    for asked in (
        {"alignment_layer": 0, "alignment_heads": 3},
        {"alignment_layer": 1, "full_context_alignment": True},
    ):
        # fairseq's encoder has the sources as they are, padded; its whole target is without padding, too
        found, want = (
            model.decoder(prev, model.encoder(source, source.ne(PAD).sum(dim=1)), features_only=True, **asked)
            for model in (ours, theirs)
        )
        torch.testing.assert_close(found[0][real], want[0][real], rtol=0, atol=3e-6)
        torch.testing.assert_close(found[1]["attn"][0][real], want[1]["attn"][0][real], rtol=0, atol=3e-6)


def test_a_local_transformer_begins_as_local_as_luna():
    """Where slots are tokens: a position reads slots, and those read positions. It has two numbers a head more than a
    Transformer, and the same seed makes the same weights."""
    local, plain = build(**LOCAL_ORDINARY), build(**ORDINARY)
    own, others = dict(local.named_parameters()), dict(plain.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in others.items())
    more = {name: own[name].numel() for name in own.keys() - others.keys()}
    assert more == {f"encoder.layers.{i}.self_attn.bias.{part}": 4 for i in (0, 1) for part in ("sharpness", "shift")}
    attn = local.encoder.layers[0].self_attn
    luna = build(pack_bias="gaussian", encoder_unpack_bias="gaussian", projection_length=21).encoder.layers[0].self_attn
    with torch.no_grad():
        for module in attn.q_proj, luna.pack.query, luna.unpack.query:  # of all logits the biases alone are left
            module.weight.zero_()
        positions = torch.arange(21).view(1, -1) + 0.5
        x = torch.zeros(1, 21, 32, dtype=torch.float64)
        packs = luna.pack(x, x, None, positions, need_weights=True)[1]
        reads = luna.unpack(x, x.view(1, 21, 4, 8).transpose(1, 2), None, None, positions, need_weights=True)[1]
        found = attn.read(x, *attn.keys_values(x), bias=attn.bias(positions).logits(21))[1]
    torch.testing.assert_close(found[0, :, 10], (reads @ packs)[0, :, 10], rtol=0, atol=0.01)


@pytest.mark.parametrize("fixed", [False, True], ids=["", "fixed"])
@pytest.mark.parametrize("part", ["pack", "unpack"])
def test_a_gaussian_bias_is_the_equation(part, fixed):
    """-gamma_h ((j + 1/2 - c_i) / w - s_h)^2 on the logits of slot i and position j, counted without padding."""
    model = build(pack_bias="gaussian", encoder_unpack_bias="gaussian", fix_projection_length=fixed)
    module = getattr(model.encoder.layers[0].self_attn, part)
    with torch.no_grad():
        module.query.weight.zero_()  # of all logits the bias alone is left
        module.bias.sharpness.copy_(torch.tensor([0.5, 1.0, 2.0, 0.0]))
        module.bias.shift.copy_(torch.tensor([0.0, -0.5, 1.5, 1.0]))
    seen = []
    module.register_forward_hook(lambda module, inputs, out: seen.append(out[1]))
    lengths, most, width = [11, 4, 1], 6, 11
    model.encoder(sentences(lengths))
    for weights, n in zip(seen[0], lengths):
        used = most if fixed else min(most, n)
        w = n / used
        centres = [(i + 0.5) * w for i in range(used)]
        offsets = torch.tensor([[(j + 0.5 - c) / w for j in range(n)] for c in centres], dtype=torch.float64)
        gamma, shift = module.bias.sharpness.view(-1, 1, 1), module.bias.shift.view(-1, 1, 1)
        logits = (-gamma * (offsets - shift) ** 2).clamp(min=-30)
        weights = weights if part == "pack" else weights.transpose(-1, -2)
        want = torch.softmax(logits, dim=-1 if part == "pack" else -2)
        torch.testing.assert_close(weights[:, :used, width - n :].double(), want, rtol=0, atol=1e-6)
        if part == "pack":
            assert not weights[:, :used, : width - n].any()


def test_what_new_parts_begin_with():
    """A checkpoint rests on the decays, which it does not hold, and a training on the gammas."""
    assert head_decays(4, torch.device("cpu")).tolist() == [1 / 2, 3 / 4, 7 / 8, 15 / 16]
    for values, cross in ("projected", 1.0), ("plain", 4.0):
        model = build(pack_bias="gaussian", encoder_unpack_bias="gaussian", pack_values=values)
        encoder = model.encoder.layers[0].self_attn
        biases = encoder.pack.bias, encoder.unpack.bias, model.encoder.memory.layers[0].pack.bias
        assert [bias.sharpness.tolist() for bias in biases] == [[1.0] * 4, [0.5] * 4, [cross] * 4]
        assert not any(bias.shift.any() for bias in biases)
    far = torch.tensor([[0.5, 1.5, -1.5, 3.5]])  # from the centre of the first slot 0, 1, -2, 3
    assert Locality(2, 4.0)(far).logits(1).tolist() == [[[[0.0, -4.0, -16.0, -30.0]]] * 2]


def test_a_checkpoint_of_fixed_centres_loads():
    model = build(pack_bias="gaussian", encoder_unpack_bias="gaussian")
    old = {name: value for name, value in model.state_dict().items() if not name.endswith(".shift")}
    assert len(old) < len(model.state_dict())
    with torch.no_grad():
        model.encoder.layers[0].self_attn.pack.bias.shift.fill_(1)
    part = {**model.state_dict()}
    model.upgrade_state_dict_named(old, "")
    model.load_state_dict(old)
    assert not model.encoder.layers[0].self_attn.pack.bias.shift.any()
    # but one that lacks some of them is damaged
    del part["encoder.layers.1.self_attn.pack.bias.shift"]
    model.upgrade_state_dict_named(part, "")
    with pytest.raises(RuntimeError, match="encoder.layers.1.self_attn.pack.bias.shift"):
        model.load_state_dict(part)


def test_settings_without_effect_are_told(caplog):
    build(encoder_self_attention="softmax", cross_attention="softmax", pack_values="unprojected")
    (said,) = caplog.messages
    assert said == "--pack-values unprojected has no effect: nothing in this model reads it."
    caplog.clear()
    build(encoder_self_attention="linformer", encoder_unpack_bias="gaussian", pack_bias="gaussian")
    assert [said.split(" has")[0] for said in caplog.messages] == ["--encoder-unpack-bias gaussian"]
    caplog.clear()
    build(decoder_self_attention="softmax", causal_activation="elu", decoder_projected_attention_heads=2)
    assert [said.split(" has")[0] for said in caplog.messages] == ["--causal-activation elu"]
    caplog.clear()
    build(**ORDINARY, untie_luna_kv=True, fix_projection_length=True, encoder_projected_attention_heads=2)
    told = [said.split(" has")[0] for said in caplog.messages]
    assert told == ["--fix-projection-length True", "--untie-luna-kv True", "--encoder-projected-attention-heads 2"]
    caplog.clear()
    build(pack_values="unprojected", pack_bias="gaussian", encoder_unpack_bias="gaussian", causal_mean="decaying")
    build(**LOCAL_ORDINARY)
    build(decoder_attention_heads=2, untie_luna_kv=True, cross_attention="softmax", encoder_projected_attention_heads=2)
    assert not caplog.messages


@pytest.mark.parametrize("length", [7, 300], ids=["direct", "moved"])
def test_plain_values_are_averages_of_the_states(length):
    """Of the encoder's in its packs, of its output in those of the cross attention; nothing is projected."""
    model = build(pack_values="unprojected", max_source_positions=400)
    packs = [model.encoder.layers[1].self_attn.pack, model.encoder.memory.layers[0].pack]
    seen = []
    for pack in packs:
        pack.register_forward_hook(lambda module, inputs, out: seen.append((inputs[1], *out)))
        assert [name for name, _ in pack.key_value.named_parameters()] == ["key.weight", "key.bias"]
    model.encoder(sentences([length]))
    for context, y_p, weights in seen:
        shares = context.chunk(weights.size(1), dim=-1)
        want = torch.cat([weights[:, head] @ share for head, share in enumerate(shares)], dim=-1)
        torch.testing.assert_close(y_p, want, rtol=0, atol=1e-12)


def test_a_gaussian_bias_of_many_slots_has_gradients_in_half_precision():
    """Squares of offsets could be beyond what float16 can say."""
    model = build(pack_bias="gaussian", projection_length=300, double=False).bfloat16()
    model.encoder(sentences([400]))["packed_out"][0].float().sum().backward()
    assert model.encoder.layers[0].self_attn.pack.bias.sharpness.grad.isfinite().all()
    positions = slot_positions(torch.zeros(1, 400, dtype=torch.bool), torch.tensor([[300]]))
    bias = Locality(2, 1.0).half()
    with torch.no_grad():
        bias.shift.copy_(torch.tensor([300.0, -200.0]))
        bias.sharpness.copy_(torch.tensor([-0.01, 1e-3]))  # a negative one would push away without bound
    found = bias(positions).logits(300)
    found.float().mean().backward()
    assert found.dtype == torch.half and found.min() == -30 and found.max() <= 0
    assert bias.shift.grad.isfinite().all() and bias.sharpness.grad.isfinite().all()
    # and a row of nothing but padding is no reason for anything but numbers
    assert slot_positions(torch.ones(1, 5, dtype=torch.bool), torch.tensor([[0]])).isfinite().all()


# --- settings


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_architectures_build_and_count_layers(arch):
    words = dictionary(20)
    cfg = LunaTransformerConfig(**{**ARCHITECTURES[arch], "encoder_layers": 2, "decoder_layers": 1})
    model = LunaTransformerModel.build_model(cfg, task(words, words))
    assert len(model.encoder.layers) == 2
    assert len(model.decoder.layers) == len(model.encoder.memory.layers) == 1


# of which a checkpoint has as many: beside fairseq's Transformer of the same dimensions 3 % more in the last four
PARAMETERS = {
    "luna_transformer_tiny": 2_181_504,
    "luna_transformer_tiny_hybrid": 2_081_904,
    "luna_transformer_tiny_local": 2_085_128,
    "luna_transformer_hybrid": 48_301_760,
    "luna_transformer_local": 48_311_072,
}


@pytest.mark.parametrize("arch", PARAMETERS)
def test_architectures_have_as_many_parameters_as_they_say(arch):
    words, small = dictionary(5000), arch.startswith("luna_transformer_tiny")
    ours = LunaTransformerModel.build_model(
        LunaTransformerConfig(**{**ARCHITECTURES[arch], "share_all_embeddings": True}), task(words, words)
    )
    count = sum(p.numel() for p in ours.parameters())
    assert count == PARAMETERS[arch]
    if arch != "luna_transformer_tiny":
        assert 1.02 < count / (2_029_056 if small else 46_698_496) < 1.035
    key_value = {
        name.split(".")[0] for name, _ in ours.encoder.memory.layers[0].named_parameters() if "key_value" in name
    }
    assert key_value == (set() if "hybrid" in arch else {"pack", "key_value"})
    if "hybrid" not in arch:
        own = {name.split(".")[0] for name, _ in ours.encoder.memory.layers[0].key_value.named_parameters()}
        assert own == ({"key", "value"} if "local" in arch else {"both"})


def test_settings_as_a_dictionary():
    assert checked({"encoder_embed_dim": 64, "projection_length": 7}).projection_length == 7


def test_settings_that_follow_others():
    cfg = checked(LunaTransformerConfig(encoder_embed_dim=64, encoder_ffn_embed_dim=96))
    assert (cfg.decoder_embed_dim, cfg.decoder_ffn_embed_dim) == (64, 96)
    assert cfg.encoder_projected_attention_heads == 8


def test_shared_embeddings_are_one():
    model = build()
    assert model.encoder.embed_tokens.weight is model.decoder.output_projection.weight


BAD = {
    "heads": (
        {"encoder_attention_heads": 5},
        r"--encoder-attention-heads 5 does not divide --encoder-embed-dim 32.*1, 2, 4, 8, 16, 32",
    ),
    "pack-heads": (
        {"decoder_projected_attention_heads": 3},
        r"--decoder-projected-attention-heads 3 does not divide --encoder-embed-dim 32",
    ),
    "no-heads": ({"decoder_attention_heads": 0}, r"--decoder-attention-heads 0 does not divide"),
    "no-slots": ({"projection_length": 0}, r"--projection-length must be at least 1, but is 0"),
    "no-dimension": ({"encoder_embed_dim": 0}, r"--encoder-embed-dim must be at least 1, but is 0"),
    "dropout": ({"dropout": 1.5}, r"--dropout must be in \[0, 1\), but is 1.5"),
    "attention-dropout": ({"attention_dropout": -0.5}, r"--attention-dropout must be in \[0, 1\), but is -0.5"),
    "nan": ({"activation_dropout": float("nan")}, r"--activation-dropout must be in \[0, 1\), but is nan"),
    "alignment-layer": (
        {"alignment_layer": 2},
        r"--alignment-layer must be from 0 to 1, since --decoder-layers is 2, but is 2",
    ),
    "alignment-layer-below": ({"alignment_layer": -1}, r"--alignment-layer must be from 0 to 1, .* but is -1"),
    "alignment-heads": (
        {"alignment_heads": 5},
        r"--alignment-heads must be from 1 to 4, since --decoder-attention-heads is 4, but is 5",
    ),
    "no-alignment-heads": ({"alignment_heads": 0}, r"--alignment-heads must be from 1 to 4, .* but is 0"),
    "no-layers": ({"decoder_layers": 0}, r"--decoder-layers must be at least 1, but is 0"),
    "activation": ({"activation_fn": "swash"}, r"--activation-fn 'swash' is unknown; choose from relu"),
    "attention": ({"cross_attention": "ful"}, r"--cross-attention 'ful' is unknown; choose from packed, softmax"),
    "pack-values": ({"pack_values": "plane"}, r"--pack-values 'plane' is unknown; choose from projected, unprojected"),
    "causal-activation": (
        {"causal_activation": "softmax"},
        r"--causal-activation 'softmax' is unknown; choose from softplus, elu",
    ),
    "shared-dims": ({"decoder_embed_dim": 16}, r"--encoder-embed-dim is 32 and --decoder-embed-dim 16"),
    "shared-paths": (
        {"decoder_embed_path": "b.txt"},
        r"--share-all-embeddings takes --encoder-embed-path alone, but --decoder-embed-path b.txt",
    ),
}


@pytest.mark.parametrize("settings, message", BAD.values(), ids=BAD)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_shared_embeddings_with_two_dictionaries_are_refused():
    with pytest.raises(ValueError, match=r"the source has 20 words and the target 30 .*--joined-dict"):
        LunaTransformerModel.build_model(LunaTransformerConfig(**DIMS), task(dictionary(20), dictionary(30)))


LEFT_PAD = {  # as each of fairseq's tasks spells it
    "translation": "-s in -t out --left-pad-target",
    "translation_multi_simple_epoch": "--lang-pairs in-out --left-pad-target True",
}


@pytest.mark.stock
@pytest.mark.parametrize("name", LEFT_PAD)
def test_left_padded_targets_are_refused(tmp_path, name):
    for lang in "in", "out":
        dictionary(20).save(str(tmp_path / f"dict.{lang}.txt"))
    words = f"{tmp_path} --task {name} --arch luna_transformer --optimizer adam {LEFT_PAD[name]}".split()
    parsed = options.parse_args_and_arch(options.get_training_parser(name), words)
    two_sided = tasks.setup_task(parsed if name != "translation" else convert_namespace_to_omegaconf(parsed).task)
    with pytest.raises(ValueError, match="^--left-pad-target does not go with Luna") as refused:
        LunaTransformerModel.build_model(LunaTransformerConfig(**DIMS), two_sided)
    if name == "translation":  # the flag that the sentence names is one that fairseq takes, as it stands there
        named = str(refused.value).partition(" does")[0].split()
        words[-1:] = named
        assert options.parse_args_and_arch(options.get_training_parser(), words).left_pad_target is True


def test_sources_beyond_learned_positions_are_refused():
    model = build(encoder_learned_pos=True, max_source_positions=8)
    assert model.encoder(sentences([8]))["encoder_out"][0].size(0) == 8
    padded = sentences([8, 8], left_pad=False)
    assert model.encoder(torch.cat((padded, torch.full((2, 4), PAD)), dim=1))  # as --required-seq-len-multiple pads
    with pytest.raises(ValueError, match="--max-source-positions is 8, but a source of 9 tokens"):
        model.encoder(sentences([9]))


def test_sources_beyond_fixed_positions_are_right():
    short, long = build(max_source_positions=8), build(max_source_positions=64)
    source, prev = sentences([30]), targets([20])
    torch.testing.assert_close(logits(short, source, prev), logits(long, source, prev))


# --- checkpoints


def test_a_model_loads_its_own_state():
    one, other = build(seed=1), build(seed=2)
    other.load_state_dict(one.state_dict())
    source, prev = sentences([9, 5]), targets([7, 3])
    assert torch.equal(logits(one, source, prev), logits(other, source, prev))


def test_a_state_of_other_settings_is_refused():
    with pytest.raises(RuntimeError, match=r"encoder\.layers\.0\.key_value|key_value\.both"):
        build().load_state_dict(build(untie_luna_kv=True).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for encoder.packed_embedding"):
        build().load_state_dict(build(projection_length=7).state_dict())


def test_softmax_attention_of_before_it_could_be_local():
    """Settings that had no effect on it are in checkpoints; it translates as it did."""
    plain, local = build(**ORDINARY), build(seed=2, **LOCAL_ORDINARY)
    state = plain.state_dict()
    local.upgrade_state_dict_named(state, "")
    local.load_state_dict(state)
    source, prev = sentences([9, 5]), targets([7, 3])
    torch.testing.assert_close(logits(local, source, prev), logits(plain, source, prev), rtol=0, atol=3e-6)
    now = build(**LOCAL_ORDINARY)  # with the weights of the plain one
    state = now.state_dict()
    local.upgrade_state_dict_named(state, "")
    local.load_state_dict(state)
    assert torch.equal(logits(local, source, prev), logits(now, source, prev))
    assert (logits(now, source, prev) - logits(plain, source, prev)).abs().max() > 1e-3


@pytest.mark.stock
@pytest.mark.parametrize("struct", (True, False), ids=("struct", "open"))
def test_settings_of_an_earlier_version_lack_later_ones(struct):
    """As a checkpoint holds them; what is missing is as it was before there was a setting for it."""
    settings = {**DIMS, "dropout": 0.0}
    cfg = OmegaConf.create(settings)
    OmegaConf.set_struct(cfg, struct)
    words = dictionary()
    torch.manual_seed(1)
    earlier = LunaTransformerModel.build_model(cfg, task(words, words))
    now = build(double=False)
    assert all(torch.equal(p, q) for p, q in zip(earlier.parameters(), now.parameters()))
    assert earlier.encoder.word_dropout.p == 0


@pytest.mark.parametrize("wanted", [False, True], ids=["generation", "training"])
def test_what_every_step_reads_is_in_one_piece(wanted):
    """A training reads it once, as kernels can: without a copy."""
    model = build(**UNTIED)
    with torch.set_grad_enabled(wanted):
        views = EncodedSource.from_fairseq(model.encoder(sentences([5, 3]))).views
    assert all(part.is_contiguous() != wanted for view in views for part in view)
