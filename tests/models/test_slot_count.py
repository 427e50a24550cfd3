"""How many slots a sentence is packed into: by its length, by what it draws in training, by what generation asks."""

import math

import pytest
import torch
from tiny import PAD, build, sentences, sharpen, targets

from fairseq_luna.models.training_graphs import TrainingGraphs
from fairseq_luna.modules.slot_count import SlotCount

LENGTHS = torch.tensor([[1], [2], [9], [11], [30], [100]])


@pytest.mark.parametrize("ratio", [1, 1.1, 1.5, 2, 4, 1000])
def test_slots_follow_the_length(ratio):
    slots, used = SlotCount(most=16, tokens_per_slot=ratio)(LENGTHS, 110)
    assert used.flatten().tolist() == [min(16, math.ceil(n / ratio)) for n in LENGTHS.flatten().tolist()]
    assert slots == min(16, math.ceil(110 / ratio)) and used.dtype == LENGTHS.dtype


def test_a_quotient_that_float32_would_round_up():
    lengths = torch.arange(1, 2000).view(-1, 1)
    _, used = SlotCount(most=9999, tokens_per_slot=1.1)(lengths, 2000)
    assert used.flatten().tolist() == [math.ceil(n / 1.1) for n in range(1, 2000)]


def test_fixed():
    slots, used = SlotCount(most=16, fixed=True)(LENGTHS, 110)
    assert slots == 16 and used.eq(16).all()


def test_drawn_in_training_only():
    count = SlotCount(most=5000, tokens_per_slot=1, up_to=4)
    lengths = torch.full((4000, 1), 1024)
    assert count.eval()(lengths, 1024)[1].eq(1024).all()
    torch.manual_seed(1)
    slots, used = count.train()(lengths, 1024)
    assert slots == 1024  # whatever is drawn, so that a shape of a batch has one number of slots
    drawn = 1024 / used.double()
    assert drawn.min() >= 1 and drawn.max() <= 4.01
    # uniform in the logarithm: a quarter each between 1, sqrt 2, 2, 2 sqrt 2 and 4
    shares = torch.histc(drawn.log2(), bins=4, min=0, max=2.01) / len(drawn)
    torch.testing.assert_close(shares, torch.full_like(shares, 0.25), rtol=0, atol=0.04)


def test_a_share_of_the_sentences_draws():
    count = SlotCount(most=5000, tokens_per_slot=2, up_to=8, share=0.3).train()
    torch.manual_seed(1)
    _, used = count(torch.full((4000, 1), 4096), 4096)
    assert used.lt(2048).double().mean() == pytest.approx(0.3, abs=0.03) and used.min() >= 512


def test_a_seed_draws_the_same_again():
    count = SlotCount(most=50, up_to=4).train()
    draws = []
    for seed in 1, 1, 2:
        torch.manual_seed(seed)
        draws.append(count(LENGTHS, 100)[1])
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_one_token_a_slot_is_as_before_there_was_a_setting():
    model, other = build(), build(tokens_per_slot=1.0)
    source, prev = sentences([9, 4]), targets([5, 5])
    assert torch.equal(model(source, None, prev)[0], other(source, None, prev)[0])


def test_a_ratio_for_generation():
    """A model trained with one ratio takes another, as --model-overrides sets it; parameters are the same."""
    model = sharpen(build(projection_length=16))
    half = sharpen(build(projection_length=16, tokens_per_slot=2.0))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), half.parameters()))
    source = sentences([9, 4, 1])
    assert model.encoder(source)["packed_out"][0].size(0) == 9
    out = half.encoder(source)
    assert out["packed_out"][0].size(0) == 5
    assert out["packed_padding_mask"][0].tolist() == [[False] * 5, [False] * 2 + [True] * 3, [False] + [True] * 4]


def test_drawn_slots_have_gradients_and_differ_by_update():
    model = build(projection_length=16, most_tokens_per_slot=4.0, pack_bias="gaussian").train()
    source, prev = sentences([12, 9]), targets([5, 5])
    losses = []
    for seed in 1, 2:
        torch.manual_seed(seed)
        model.zero_grad()
        loss = model(source, None, prev)[0].square().sum()
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None for p in model.parameters())
    assert losses[0] != losses[1]


def test_drawn_slots_in_passes_of_fixed_shape():
    """Training by graphs: what is drawn comes in from outside, so each replay has other slots."""
    model = sharpen(build(projection_length=16, most_tokens_per_slot=4.0)).train()
    graphs = TrainingGraphs(model.stack(), capture=False)
    source, prev = sentences([12, 9, 5]), targets([7, 5, 4])
    graphs.shapes.captured.add((3, 16, 8))
    found = []
    for seed in 1, 1, 2:
        torch.manual_seed(seed)
        found.append(graphs.features(source, prev).detach())
    assert len(graphs.passes) == 1
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


REFUSED = {
    "below-1": ({"tokens_per_slot": 0.5}, r"--tokens-per-slot must be at least 1, but is 0.5"),
    "endless": ({"most_tokens_per_slot": math.inf}, r"--most-tokens-per-slot must be above 1, but is inf"),
    "no-number": ({"tokens_per_slot": math.nan}, r"--tokens-per-slot must be at least 1, but is nan"),
    "most-below-1": ({"most_tokens_per_slot": 1.0}, r"--most-tokens-per-slot must be above 1, but is 1"),
    "share": ({"most_tokens_per_slot": 2.0, "varied_share": 0.0}, r"--varied-share must be above 0 and at most 1"),
    "fixed": ({"tokens_per_slot": 2.0, "fix_projection_length": True}, "does not go with --fix-projection-length"),
}


@pytest.mark.parametrize("settings, message", REFUSED.values(), ids=REFUSED.keys())
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_row_of_padding_only():
    model = build(tokens_per_slot=2.0)
    source = torch.cat((sentences([6]), torch.full((1, 6), PAD)))
    assert model.encoder(source)["encoder_out"][0][:, 0].isfinite().all()


def test_generation_may_ask_for_more_than_training_drew():
    """Training may not: there would be nothing to draw from."""
    model = build(tokens_per_slot=3.0, most_tokens_per_slot=2.0)
    assert model.encoder(sentences([9]))["packed_out"][0].size(0) == 3
    with pytest.raises(
        ValueError, match="--most-tokens-per-slot must be above --tokens-per-slot, which is 3, but is 2"
    ):
        model.train().encoder(sentences([9]))
