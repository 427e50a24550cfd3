"""fairseq's adaptive softmax as the decoder's output: bands of ever rarer words with ever fewer dimensions."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.models import FairseqEncoderDecoderModel
from test_generation import FullRecomputation, generate
from test_inference import generation, steps
from tiny import PAD, VARIANTS, build, close_enough, sentences, sharpen, targets, variants

BANDS = {"adaptive_softmax_cutoff": [12, 30], "adaptive_softmax_factor": 2.0}
FEW = ("tied", "local", "hybrid", "two-dims")


@torch.no_grad()
@pytest.mark.stock
@variants
def test_probabilities_sum_to_one(settings):
    """Of all 44 words, all at once and step by step."""
    model = sharpen(build(**settings, **BANDS))
    source, prev = sentences([12, 5, 2]), targets([7, 7, 7])
    encoder_out, state = model.encoder(source), {}
    out = model.decoder(prev, encoder_out)
    assert out[0].shape == (3, 7, model.decoder.embed_tokens.embedding_dim)  # the features
    logs = model.get_normalized_probs(out, log_probs=True)
    assert logs.shape == (3, 7, 44)
    torch.testing.assert_close(logs.exp().sum(dim=-1), torch.ones(3, 7, dtype=torch.float64))
    torch.testing.assert_close(model.get_normalized_probs(out, log_probs=False), logs.exp())
    steps = [model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state) for t in range(7)]
    found = torch.cat([model.get_normalized_probs(step, log_probs=True) for step in steps], dim=1)
    torch.testing.assert_close(found, logs, **close_enough(settings))


def adaptive_loss(model):
    """As --criterion adaptive_loss has it, of a batch with all words of the dictionary; and the batch."""
    target = torch.cat((torch.arange(44), torch.full((4,), PAD))).view(3, 16)
    net_input = {"src_tokens": sentences([12, 5, 2]), "src_lengths": None, "prev_output_tokens": targets([16, 16, 16])}
    sample = {"net_input": net_input, "target": target}
    task = SimpleNamespace(target_dictionary=model.decoder.dictionary)
    return AdaptiveLoss(task, sentence_avg=False)(model, sample)[0].squeeze(), sample


@torch.no_grad()
@pytest.mark.stock
@pytest.mark.parametrize("variant", FEW)
def test_the_adaptive_loss_is_that_of_the_probabilities(variant):
    model = sharpen(build(**VARIANTS[variant], **BANDS)).train()
    loss, sample = adaptive_loss(model)
    out, target = model(**sample["net_input"]), sample["target"].unsqueeze(2)
    found = model.get_normalized_probs(out, log_probs=True).gather(2, target)
    torch.testing.assert_close(loss, -found[target.ne(PAD)].sum())
    # of the words of the target alone, as scores of given sentences have it
    scores = model.get_normalized_probs(out, log_probs=True, sample=sample).gather(2, target)
    torch.testing.assert_close(scores, found)


@pytest.mark.stock
@variants
def test_every_parameter_has_a_gradient(settings):
    model = build(**settings, **BANDS).train()
    adaptive_loss(model)[0].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in without if not n.endswith(".key.bias")] == []


def test_another_criterion_is_refused():
    model = build(**BANDS).train()
    with pytest.raises(ValueError, match="--adaptive-softmax-cutoff needs --criterion adaptive_loss"):
        model.get_normalized_probs(model(sentences([9, 5]), None, targets([7, 3])), log_probs=True)


@torch.no_grad()
@pytest.mark.stock
@pytest.mark.parametrize("variant", FEW)
def test_beam_search_equals_full_recomputation(variant):
    source = sentences([12, 5, 2, 9])
    for seed in range(50):
        model = sharpen(build(seed=seed + 1, **VARIANTS[variant], **BANDS), seed)
        found = generate(model, source, beam=4)
        if len({len(hypotheses[0]["tokens"]) for hypotheses in found}) > 1:
            break
    else:
        pytest.fail("all 50 models end all sentences at the same time")
    decoder = FullRecomputation(model.decoder)
    decoder.adaptive_softmax = model.decoder.adaptive_softmax
    forgetful = FairseqEncoderDecoderModel(model.encoder, decoder)
    for ours, theirs in zip(found, generate(forgetful, source, beam=4)):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a["score"], b["score"])


def test_sizes_of_the_bands():
    """[0, 12), [12, 30) and [30, 44), the rarer ones in a half and a quarter of the dimensions."""
    adaptive = build(**BANDS).decoder.adaptive_softmax
    assert adaptive.head.weight.shape == (12 + 2, 32)
    assert [tuple(p.shape) for p in adaptive.tail.parameters()] == [(16, 32), (18, 16), (8, 32), (14, 8)]
    assert [tuple(p.shape) for p in build(adaptive_softmax_cutoff=[20]).decoder.adaptive_softmax.parameters()] == [
        (21, 32),
        *((8, 32), (24, 8)),  # a fourth unless said
    ]
    whole = build(adaptive_softmax_cutoff=[20, 44]).decoder.adaptive_softmax
    assert whole.cutoff == [20, 44]


@torch.no_grad()
def test_dropout_inside_the_bands():
    model = build(**BANDS, adaptive_softmax_dropout=0.5)
    out = model(sentences([9, 5]), None, targets([7, 3]))
    want = model.get_normalized_probs(out, log_probs=True)
    model.train()
    found = model.get_normalized_probs(out, log_probs=True)
    assert not torch.equal(found[..., 12:], want[..., 12:])


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prepared_model_says_the_same(precision):
    model = sharpen(build(double=False, inference_precision=precision, **BANDS).double()).float()
    want, _ = steps(model)
    model.prepare_for_inference_(generation())
    found, _ = steps(model)
    assert (found - want).abs().mean() <= (3e-6 if precision == "fp32" else 0.06)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(dtype):
    model = sharpen(build(**BANDS))
    batch = sentences([9, 5]), None, targets([7, 7])
    want = model.get_normalized_probs(model(*batch), log_probs=True)
    model.to(dtype)
    found = model.get_normalized_probs(model(*batch), log_probs=True)
    assert (found.double() - want).abs().mean() < 20 * torch.finfo(dtype).eps


@torch.no_grad()
def test_a_checkpoint_loads():
    one, other = build(seed=1, **BANDS), build(seed=2, **BANDS)
    other.load_state_dict(one.state_dict())
    batch = sentences([9, 5]), None, targets([7, 3])
    assert torch.equal(*(m.get_normalized_probs(m(*batch), log_probs=True) for m in (one, other)))
