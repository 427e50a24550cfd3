"""Activation checkpointing: the same training in less memory."""

import gc

import pytest
import torch
from tiny import PAD, VARIANTS, build, sentences, targets, variants
from torch.profiler import ProfilerActivity, profile

DROPOUTS = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "word_dropout": 0.1}
# and whatever else draws random numbers in a layer or beside it
NOISES = {**DROPOUTS, "quant_noise_pq": 0.1, "encoder_layerdrop": 0.3, "decoder_layerdrop": 0.3}
FEW = ("tied", "untied-pre-norm", "local", "hybrid")


def loss(model, source, prev):
    torch.manual_seed(3)
    return model(source, None, prev)[0].logsumexp(-1)[prev.ne(PAD)].sum()


def assert_the_same_training(source, prev, name, **settings):
    plain, checkpointed = (build(**settings, **{name: on}).train() for on in (False, True))
    want, found = (loss(model, source, prev) for model in (plain, checkpointed))
    assert torch.equal(found, want)
    want.backward()
    found.backward()
    for p, q in zip(plain.parameters(), checkpointed.parameters()):
        assert (p.grad is None) == (q.grad is None)  # where its layer was left out
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.stock
@variants
def test_the_same_loss_and_gradients(settings):
    assert_the_same_training(sentences([12, 5, 2]), targets([7, 9, 1]), "checkpoint_activations", **settings, **NOISES)


@pytest.mark.stock
@pytest.mark.parametrize("variant", FEW)
@pytest.mark.parametrize("name", ["checkpoint_activations", "offload_activations"])
def test_the_same_with_long_texts(variant, name):
    """So long that projections are moved to the slots."""
    settings = {**VARIANTS[variant], **NOISES, "projection_length": 3}
    assert_the_same_training(sentences([200, 9]), targets([150, 20]), name, **settings)


def bytes_kept(model, source, prev):
    """What a forward pass has allocated and not freed by its end."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = loss(model, source, prev)
    result.backward()
    return sum(event.self_cpu_memory_usage for event in profiled.key_averages())


@pytest.mark.stock
@pytest.mark.parametrize("variant", FEW)
def test_less_is_kept(variant):
    """Of each layer what enters it, and no mask of a dropout; the rest is embeddings, source memory and logits."""
    sizes = {"encoder_embed_dim": 64, "encoder_ffn_embed_dim": 256, "encoder_layers": 4, "decoder_layers": 4}
    settings = {**VARIANTS[variant], **DROPOUTS, **sizes, "double": False}
    batch = sentences([60] * 8), targets([60] * 8)
    whole, kept = (bytes_kept(build(**settings, checkpoint_activations=on).train(), *batch) for on in (False, True))
    states = 8 * 8 * 60 * 64 * 4  # bytes of X before each of eight layers
    assert whole > 18 * states
    assert kept < 2.5 * states


def test_steps_of_a_generation_run_once():
    """With gradients, too: a second run would find the state of after the first."""
    model = build(checkpoint_activations=True).train()
    source, prev = sentences([12, 5]), targets([6, 6])

    def gradient(logits):
        return torch.autograd.grad(logits.square().sum(), model.encoder.packed_embedding)[0]

    state, encoder_out = {}, model.encoder(source)
    steps = [model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(6)]
    want = gradient(model.decoder(prev, model.encoder(source))[0])
    torch.testing.assert_close(gradient(torch.cat(steps, dim=1)), want, rtol=1e-6, atol=1e-9)
