"""Layers left out in training, and pruned checkpoints."""

import re

import pytest
import torch
from fairseq.distributed.legacy_distributed_data_parallel import LegacyDistributedDataParallel
from tiny import PRE_NORM, build, sentences, targets, variants

from fairseq_luna.modules.layer import draw_layers

LAYERS = {"encoder_layers": 3, "decoder_layers": 3}
DROPS = {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
STACK = re.compile(r"(encoder\.layers|encoder\.memory\.layers|decoder\.layers)\.(\d)\.(.*)")
BATCH = sentences([12, 5, 2]), targets([7, 9, 1])


def logits(model, batch=BATCH):
    return model(batch[0], None, batch[1])[0]


def watched(model):
    """The layers that run, by the name of their stack, as they do."""
    ran = {}
    for name, module in model.named_modules():
        stack, _, number = name.rpartition(".")
        if stack.endswith("layers"):
            module.register_forward_hook(lambda *_, stack=stack, n=int(number): ran.setdefault(stack, []).append(n))
    return ran


@pytest.mark.stock
def test_each_layer_is_left_out_as_often_as_asked():
    torch.manual_seed(1)
    draws = [draw_layers(4, 0.3) for _ in range(5000)]
    left_out = [sum(layer not in draw for draw in draws) / len(draws) for layer in range(4)]
    assert all(abs(rate - 0.3) < 0.03 for rate in left_out)  # over four standard deviations
    assert all(draw == sorted({*draw}) for draw in draws)
    both = sum(0 not in draw and 1 not in draw for draw in draws) / len(draws)
    assert abs(both - 0.09) < 0.02


@pytest.mark.stock
@variants
def test_an_update_is_that_of_the_pruned_model(settings):
    """Whatever is drawn: the decoder's layers and their halves on the source go together, and P goes on."""
    settings = {**settings, **LAYERS}
    model = build(**settings, **DROPS).train()
    ran, seen = watched(model), set()
    for seed in range(100):
        torch.manual_seed(seed)
        ran.clear()
        found = logits(model)
        kept = {side: ran.get(f"{side}.layers", []) for side in ("encoder", "decoder")}
        if model.encoder.memory is not None:
            assert ran.get("encoder.memory.layers", []) == kept["decoder"]
        if all(kept.values()) and str(kept) not in seen:
            seen.add(str(kept))
            pruned = build(**settings, **{f"{side}_layers_to_keep": numbers for side, numbers in kept.items()})
            pruned.load_state_dict(model.state_dict())
            assert torch.equal(logits(pruned), found)
        if len(seen) == 3:
            break
    model.eval()
    ran.clear()
    logits(model)
    assert all(numbers == [0, 1, 2] for numbers in ran.values()) and len(ran) > 1


def test_updates_without_any_layer():
    """As unlikely as it is."""
    model = build(**DROPS).train()
    ran = watched(model)
    for seed in range(100):
        torch.manual_seed(seed)
        ran.clear()
        out = logits(model)
        if not ran:
            break
    assert not ran
    out.sum().backward()
    assert model.decoder.embed_tokens.weight.grad.abs().sum() > 0


def test_none_is_left_out_unless_asked():
    one, other = build().train(), build(encoder_layerdrop=0.0, decoder_layerdrop=0.0).train()
    state = torch.get_rng_state()
    assert torch.equal(logits(one), logits(other))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.stock
@variants
def test_a_pruned_model_has_the_parameters_of_its_layers(settings):
    model = build(**settings, **LAYERS)
    keep = {"encoder": [0, 1], "decoder": [0, 2]}
    pruned = build(**settings, **LAYERS, encoder_layers_to_keep="1,0", decoder_layers_to_keep=[0, 2], seed=2)
    pruned.load_state_dict(model.state_dict())
    whole = model.state_dict()
    for name, value in pruned.state_dict().items():
        if name.endswith("._float_tensor"):  # of fairseq 0.12.2, which never sets it: it may be no number
            continue
        match = STACK.fullmatch(name)
        if match:
            side = "encoder" if match[1] == "encoder.layers" else "decoder"
            name = f"{match[1]}.{keep[side][int(match[2])]}.{match[3]}"
        assert torch.equal(value, whole[name]), name
    assert len(pruned.encoder.layers) == len(pruned.decoder.layers) == 2
    # and in a checkpoint of its own there is nothing more to prune
    again = build(**settings, **LAYERS, encoder_layers_to_keep="0,1", decoder_layers_to_keep="0,2", seed=3)
    again.load_state_dict(pruned.state_dict())
    assert torch.equal(logits(again), logits(pruned))


def test_the_layer_that_aligns_keeps_its_number_when_others_are_left_out():
    settings = {"decoder_layers": 4, "alignment_layer": 2}
    model = build(**settings)
    pruned = build(**settings, decoder_layers_to_keep="0,2,3")
    assert pruned.decoder.alignment.layer == 1
    assert build(**{**settings, "alignment_layer": 3}, decoder_layers_to_keep="0,3").decoder.alignment.layer == 1
    pruned.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="--alignment-layer 2 is left out by --decoder-layers-to-keep 0,3: keep it"):
        build(**settings, decoder_layers_to_keep="0,3")


def test_layers_that_a_checkpoint_does_not_have():
    state = build(**LAYERS).state_dict()
    with pytest.raises(ValueError, match="--decoder-layers-to-keep 0,4 asks for .*: its decoder has 3"):
        build(decoder_layers=5, decoder_layers_to_keep="0,4").load_state_dict(state)


def test_a_damaged_checkpoint_is_not_pruned_into_a_whole_one():
    state = build(**LAYERS, **PRE_NORM).state_dict()
    del state["encoder.layers.2.packed_residual.layer_norm.weight"]
    with pytest.raises(RuntimeError, match=r"encoder\.layers\.1\.packed_residual\.layer_norm\.weight"):
        build(**LAYERS, **PRE_NORM, encoder_layers_to_keep="0,2").load_state_dict(state)


def test_centres_that_were_fixed_are_pruned_too():
    model = build(**LAYERS, pack_bias="gaussian", encoder_layers_to_keep="2", decoder_layers_to_keep="1")
    old = build(**LAYERS, pack_bias="gaussian").state_dict()
    model.load_state_dict({name: value for name, value in old.items() if not name.endswith(".shift")})
    assert not model.encoder.layers[0].self_attn.pack.bias.shift.any()


@pytest.mark.parametrize("wrapper", ["torch", "fairseq"])
def test_two_ways_of_ddp(wrapper, one_process_group):
    """As fairseq's Transformer does: torch's with --find-unused-parameters, --ddp-backend legacy_ddp without."""
    model = build(**LAYERS, **DROPS).train()
    ran = watched(model)
    if wrapper == "torch":
        wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    else:
        wrapped = LegacyDistributedDataParallel(model, torch.distributed.group.WORLD)
    torch.manual_seed(1)
    for _ in range(4):
        wrapped(BATCH[0], None, BATCH[1])[0].logsumexp(-1).sum().backward()
        if wrapper == "fairseq":
            wrapped.all_reduce_grads()
    assert 4 < sum(map(len, ran.values())) < 4 * 9
