"""Decoding: incremental = full, beams, alignments, and what is computed once."""

from argparse import Namespace

import pytest
import torch
from fairseq.models import FairseqDecoder, FairseqEncoderDecoderModel
from fairseq.sequence_generator import SequenceGenerator
from tiny import (
    DIMS,
    EOS,
    ORDINARY,
    PAD,
    VARIANTS,
    build,
    close_enough,
    dictionary,
    each,
    sentences,
    sharpen,
    targets,
    variants,
)

from fairseq_luna.models.luna_transformer import LunaTransformerModel
from fairseq_luna.models.luna_transformer.config import LunaTransformerConfig
from fairseq_luna.ops import dispatch


class FullRecomputation(FairseqDecoder):
    """A Luna decoder that forgets: every step runs over the whole prefix."""

    def __init__(self, decoder):
        super().__init__(decoder.dictionary)
        self.decoder = decoder

    def forward(self, prev_output_tokens, encoder_out=None, **kwargs):
        return self.decoder(prev_output_tokens, encoder_out)

    def max_positions(self):
        return self.decoder.max_positions()


def generate(models, source, beam, prefix_tokens=None):
    models = models if isinstance(models, list) else [models]
    generator = SequenceGenerator(models, models[0].decoder.dictionary, beam_size=beam, max_len_b=25)
    lengths = source.ne(PAD).sum(dim=1)
    sample = {"id": torch.arange(len(source)), "net_input": {"src_tokens": source, "src_lengths": lengths}}
    return generator.generate(models, sample, prefix_tokens=prefix_tokens)


@torch.no_grad()
@variants
@pytest.mark.parametrize("length", [1, 70])
def test_step_by_step_equals_all_at_once(settings, length):
    model = sharpen(build(**settings))
    source, prev = sentences([12, 5, 2]), targets([length] * 3)
    encoder_out, state = model.encoder(source), {}
    want = model.decoder(prev, encoder_out)[0]
    steps = [model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(length)]
    torch.testing.assert_close(torch.cat(steps, dim=1), want, **close_enough(settings))


@torch.no_grad()
@pytest.mark.stock
@variants
@pytest.mark.parametrize("beam", each({"greedy": 1, "beam": 5}, ["beam"]))
def test_beam_search_equals_full_recomputation(settings, beam):
    source = sentences([12, 5, 2, 9, 30, 1])
    # a model whose sentences end at different times, so that the batch shrinks on the way
    for seed in range(50):
        model = sharpen(build(seed=seed + 1, **settings), seed)
        found = generate(model, source, beam)
        if len({len(hypotheses[0]["tokens"]) for hypotheses in found}) > 1:
            break
    else:
        pytest.fail("all 50 models end all sentences at the same time")
    forgetful = FairseqEncoderDecoderModel(model.encoder, FullRecomputation(model.decoder))
    for ours, theirs in zip(found, generate(forgetful, source, beam)):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a["score"], b["score"])


@torch.no_grad()
@pytest.mark.parametrize("prefix", [None, [[7, 9], [5, PAD]]], ids=["ensemble", "ensemble-with-prefix"])
def test_ensemble_equals_full_recomputation(prefix):
    """Two models of different l and tying, and hypotheses that must begin with given words."""
    models = [sharpen(build(seed=1)), sharpen(build(seed=2, projection_length=9, untie_luna_kv=True))]
    forgetful = [FairseqEncoderDecoderModel(m.encoder, FullRecomputation(m.decoder)) for m in models]
    source = sentences([12, 5])
    prefix = None if prefix is None else torch.tensor(prefix)
    found, want = (generate(each, source, beam=3, prefix_tokens=prefix) for each in (models, forgetful))
    for ours, theirs in zip(found, want):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
    if prefix is not None:
        assert [h[0]["tokens"][0] for h in found] == [7, 5]


@torch.no_grad()
@variants
def test_a_sentence_alone_translates_as_in_a_batch(settings):
    model, lengths = sharpen(build(**settings)), [12, 5, 2, 9]
    source = sentences(lengths)
    batch = generate(model, source, beam=3)
    for i, n in enumerate(lengths):
        alone = generate(model, source[i : i + 1, -n:], beam=3)[0]
        assert batch[i][0]["tokens"].tolist() == alone[0]["tokens"].tolist()


@torch.no_grad()
@variants
def test_attention_is_target_by_source(settings):
    """unpack @ pack: a distribution over the source words, none of it on padding."""
    model = sharpen(build(**settings))
    source = sentences([12, 5, 1])
    for hypotheses, row in zip(generate(model, source, beam=2), source):
        attention, tokens = hypotheses[0]["attention"], hypotheses[0]["tokens"]
        n = int(row.ne(PAD).sum())
        assert attention.size(1) == len(tokens)
        # fairseq hands out the columns of the real words
        torch.testing.assert_close(attention[-n:].sum(dim=0), torch.ones(len(tokens), dtype=attention.dtype))


@torch.no_grad()
def test_attention_is_the_product_of_the_last_unpack_and_pack():
    model = sharpen(build())
    source, prev = sentences([12, 5]), targets([1, 1])
    seen = {}
    model.encoder.memory.layers[-1].pack.register_forward_hook(lambda *args: seen.update(pack=args[-1][1]))
    model.decoder.layers[-1].cross_attn.register_forward_hook(lambda *args: seen.update(unpack=args[-1][1]))
    _, extra = model.decoder(prev, model.encoder(source), incremental_state={})
    want = torch.einsum("bhtl,bgls->bts", seen["unpack"], seen["pack"]) / 16
    torch.testing.assert_close(extra["attn"][0], want)
    # the same from a whole pass, once fairseq has said that it wants alignments
    assert model.decoder(prev, model.encoder(source))[1]["attn"] == [None]
    model.decoder.need_attn = True
    torch.testing.assert_close(model.decoder(prev, model.encoder(source))[1]["attn"][0], want)


def generation(**asked):
    """A configuration as a program has it: fairseq's of a training, which names no --path."""
    return Namespace(common_eval=Namespace(path=None), generation=Namespace(beam=5, **asked))


ALIGNMENTS = {
    "first-layer": ({}, {"alignment_layer": 0}),
    "two-heads": ({}, {"alignment_heads": 2}),
    "both": ({}, {"alignment_layer": 0, "alignment_heads": 1}),
    "fewer-packs": (VARIANTS["pack-heads"], {"alignment_heads": 1}),  # of one head
    "more-packs": ({"decoder_projected_attention_heads": 8}, {"alignment_heads": 3}),
    "full": ({"cross_attention": "softmax"}, {"alignment_layer": 0, "alignment_heads": 3}),
    "plain": (VARIANTS["local"], {"alignment_layer": 0, "alignment_heads": 3}),
}


@torch.no_grad()
@pytest.mark.stock
@pytest.mark.parametrize("by_setting", [False, True], ids=["asked", "set"])
@pytest.mark.parametrize("settings, asked", ALIGNMENTS.values(), ids=ALIGNMENTS)
def test_the_layer_and_the_heads_that_align(settings, asked, by_setting):
    """As arguments of a whole pass; as settings also step by step, and once prepared for generation."""
    model = sharpen(build(**settings, **(asked if by_setting else {})))
    source, prev, seen = sentences([12, 5]), targets([4, 4]), {}
    i, heads = asked.get("alignment_layer", 1), asked.get("alignment_heads", 4)
    model.decoder.layers[i].cross_attn.register_forward_hook(lambda *args: seen.update(unpack=args[-1][1]))
    if settings.get("cross_attention") != "softmax":
        pack = model.encoder.memory.layers[i].pack
        pack.register_forward_hook(lambda *args: seen.update(pack=args[-1][1]))
    if by_setting:
        model.decoder.need_attn = True
    (attn,) = model.decoder(prev, model.encoder(source), **({} if by_setting else asked))[1]["attn"]
    want = seen["unpack"][:, :heads].mean(dim=1)
    if "pack" in seen:
        share = {1: 1, 4: heads, 8: 2 * heads}[seen["pack"].size(1)]
        want = want @ seen["pack"][:, :share].mean(dim=1)
    torch.testing.assert_close(attn, want)
    torch.testing.assert_close(attn.sum(dim=-1), torch.ones(2, 4, dtype=attn.dtype))
    if by_setting:
        model.prepare_for_inference_(generation())
        encoder_out, state = model.encoder(source), {}
        assert "pack" not in seen or [pack.shape for pack in encoder_out["aligned_pack"]] == [(2, 6, 12)]
        for t in range(4):
            (step,) = model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)[1]["attn"]
            torch.testing.assert_close(step[:, 0].double(), want[:, t], **close_enough(settings))


@torch.no_grad()
def test_attention_that_is_not_there_is_refused():
    model = build()
    source, prev = sentences([12, 5]), targets([4, 4])
    with pytest.raises(ValueError, match="alignment_layer must be from 0 to 1, but is 2"):
        model(source, None, prev, alignment_layer=2)
    with pytest.raises(ValueError, match="alignment_heads must be from 1 to 4, but is 5"):
        model(source, None, prev, alignment_heads=5)
    model.prepare_for_inference_(generation())
    with pytest.raises(ValueError, match="layer 0 with .* keeps the attention of alignment_layer 1 .* Set --alignment"):
        model(source, None, prev, alignment_layer=0)
    assert model(source, None, prev, alignment_layer=1)[1]["attn"][0].shape == (2, 4, 12)


@torch.no_grad()
def test_a_prepared_model_of_one_layer_keeps_one_alignment():
    model = build(decoder_layers=1)
    model.prepare_for_inference_(generation())
    with pytest.raises(ValueError, match="alignment_heads 1 was asked for"):
        model(sentences([12, 5]), None, targets([4, 4]), alignment_heads=1)


@torch.no_grad()
@pytest.mark.stock
@variants
def test_full_context_reads_the_whole_target(settings):
    """A later word matters to the attention and padding does not; the model's own pass stays causal."""
    model = sharpen(build(**settings, full_context_alignment=True))
    source, prev = sentences([12, 5]), targets([9, 6])
    later = prev.clone()
    later[:, 5] = (later[:, 5] + 1).clamp(min=4) % 44
    encoder_out = model.encoder(source)

    def attn(prev):
        return model.decoder(prev, encoder_out, full_context_alignment=True)[1]["attn"][0]

    assert (attn(later) - attn(prev)).abs()[:, :5].amax(dim=-1).min() > 1e-9
    wider = torch.cat((prev, torch.full((2, 3), PAD)), dim=1)
    torch.testing.assert_close(attn(wider)[0, :9], attn(prev)[0], **close_enough(settings))
    torch.testing.assert_close(attn(wider)[1, :6], attn(prev)[1, :6], **close_enough(settings))
    # the model makes that second pass where attention is read, and its first is what it would be without
    causal = model.decoder(prev, encoder_out)
    assert causal[1]["attn"] == model(source, None, prev)[1]["attn"] == [None]
    model.decoder.need_attn = True
    out, extra = model(source, None, prev)
    torch.testing.assert_close(out, causal[0], rtol=0, atol=3e-6)
    torch.testing.assert_close(extra["attn"][0], attn(prev), rtol=0, atol=3e-6)


def aligned_task():
    words = dictionary()
    return Namespace(source_dictionary=words, target_dictionary=words, cfg=Namespace(load_alignments=True))


@pytest.mark.stock
@pytest.mark.parametrize("full_context", [False, True], ids=["causal", "full-context"])
@variants
def test_the_loss_of_alignments_has_gradients(settings, full_context):
    """In a training with alignments attention is there; it reaches what the layer that aligns reads by, and
    with dropout it is nowhere 0, whose logarithm no loss can bear."""
    settings = {**DIMS, "alignment_layer": 0, "full_context_alignment": full_context, **settings}
    torch.manual_seed(1)
    cfg = LunaTransformerConfig(**{**settings, "attention_dropout": 0.9})
    model = LunaTransformerModel.build_model(cfg, aligned_task()).train()
    source, prev = sentences([7, 7]), targets([5, 5])
    (attn,) = model(source, None, prev)[1]["attn"]
    assert attn.shape == (2, 5, 7)
    (-attn.log()).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    read = ["decoder.layers.0.cross_attn." + ("query." if model.decoder.layers[0].packed else "q_proj.")]
    if model.decoder.layers[0].packed:
        read += ["encoder.memory.layers.0.pack.query.", "encoder.memory.layers.0.pack.key_value."]
        assert any(name.startswith("encoder.memory.layers.1.pack.") for name in without)
    for part in read:
        found = [name for name, _ in model.named_parameters() if name.startswith(part) and "bias" not in name]
        assert found and not without.intersection(found), part
    assert any(name.startswith("decoder.layers.1.") for name in without)


@torch.no_grad()
def test_what_the_source_decides_is_computed_once_per_sentence():
    """Before the beams are expanded: P, causal pack queries, packed cross keys and values."""
    model = sharpen(build(untie_luna_kv=True))
    calls = {}
    for name, module in model.encoder.named_modules():
        # the embedding is the decoder's too, and a dropout at rest is called for X and P
        if "." in name and not name.endswith("dropout"):
            module.register_forward_hook(
                lambda m, inputs, out, name=name: calls.setdefault(name, []).append(inputs[0].size(0))
            )
    hypotheses = generate(model, sentences([12, 5, 2]), beam=4)
    assert max(len(h[0]["tokens"]) for h in hypotheses) > 3
    for layer in range(2):
        for part in ("causal_query", "pack", "key_value", "key_value.key", "key_value.value"):
            assert calls[f"memory.layers.{layer}.{part}"] == [3]
    assert {name: batches for name, batches in calls.items() if batches != [3]} == {}

    # nor is it copied for the beams, nor when they change places, only when sentences leave
    reorder, whole = model.encoder.reorder_encoder_out, model.encoder(sentences([12, 5]))
    expanded = reorder(whole, torch.tensor([0, 0, 1, 1]))
    assert expanded["cross_key"][0] is whole["cross_key"][0]
    assert reorder(expanded, torch.tensor([1, 1, 2, 3])) is expanded
    shrunk = reorder(expanded, torch.tensor([3, 2]))
    assert torch.equal(shrunk["cross_key"][0], whole["cross_key"][0][1:])
    assert shrunk["sentence"][0].tolist() == [0, 0]
    # and the decoder has no parameter that reads P or the source
    names = [n for n, _ in model.decoder.named_modules()]
    assert not [n for n in names if "pack" in n and not n.endswith("pack_key")]


@torch.no_grad()
@pytest.mark.stock
def test_keys_of_a_softmax_cross_attention_are_computed_once_per_sentence():
    """At the first step, for each sentence and not each beam; kept until sentences leave."""
    model = sharpen(build(cross_attention="softmax"))
    seen, kept = [], set()
    attn = model.decoder.layers[0].cross_attn
    attn.k_proj.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].size(0)))
    source = sentences([12, 5, 2])
    generate(model, source, beam=4)
    assert seen == [3]
    order, state = torch.tensor([0, 0, 1, 1, 2, 2]), {}
    expanded = model.encoder.reorder_encoder_out(model.encoder(source), order)
    prev = targets([5] * 6)
    for t in range(5):
        model.decoder(prev[:, : t + 1], expanded, incremental_state=state)
        kept.add(state[attn].key.data_ptr())
        model.decoder.reorder_incremental_state_scripting(state, torch.tensor([1, 0, 3, 3, 4, 5]))
    assert len(kept) == 1
    assert state[attn].key.shape == (3, 4, 12, 8)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_state_is_of_constant_size(tied):
    model = build(untie_luna_kv=not tied, double=False).bfloat16()
    source = sentences([12, 5])
    encoder_out, state, sizes = model.encoder(source), {}, set()
    prev = torch.full((2, 1), EOS)
    for _ in range(20):
        model.decoder(prev, encoder_out, incremental_state=state)
        prev = torch.cat((prev, torch.full((2, 1), 7)), dim=1)
        memories = [m for s in state.values() for m in s if m is not None]
        assert {m.dtype for m in memories} == {torch.float32}
        sizes.add(sum(m.numel() for m in memories))
    heads, d, slots, layers = 4, 8, 6, 2
    assert sizes == {2 * layers * heads * d * slots * (1 if tied else 2)}


@torch.no_grad()
@variants
@pytest.mark.parametrize("order", [[2, 0], [2, 0, 1]], ids=str)
def test_reordering_follows_the_beams(settings, order):
    """Also when all hidden states are asked for, when the batch shrinks, and when sentences change places."""
    model = sharpen(build(**settings))
    source, prev = sentences([12, 5, 2]), targets([6, 6, 6])
    order = torch.tensor(order)
    encoder_out, state = model.encoder(source, return_all_hiddens=True), {}
    assert len(encoder_out["encoder_states"]) == 3
    for t in range(5):
        model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)
    model.decoder.reorder_incremental_state_scripting(state, order)
    moved = model.encoder.reorder_encoder_out(encoder_out, order)
    out, _ = model.decoder(prev[order], moved, incremental_state=state)
    want, _ = model.decoder(prev, encoder_out)
    torch.testing.assert_close(out[:, 0], want[order, -1], **close_enough(settings))
    torch.testing.assert_close(moved["encoder_states"][1], encoder_out["encoder_states"][1][:, order])


@torch.no_grad()
@variants
@pytest.mark.parametrize("order", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2], [2, 1, 1], [1, 1, 1], [2, 0, 2]], ids=str)
def test_rows_in_any_number_and_order(settings, order):
    """Beams that share a sentence, uneven ones that cannot, step by step and all at once."""
    model, order = sharpen(build(**settings)), torch.tensor(order)
    source, prev = sentences([12, 5, 2]), targets([4, 4, 4])
    whole = model.encoder(source)
    want = model.decoder(prev, whole)[0][order]
    expanded, state = model.encoder.reorder_encoder_out(whole, order), {}
    close = close_enough(settings)
    torch.testing.assert_close(model.decoder(prev[order], expanded)[0], want, **close)
    steps = [model.decoder(prev[order, : t + 1], expanded, incremental_state=state)[0] for t in range(4)]
    torch.testing.assert_close(torch.cat(steps, dim=1), want, **close)


def test_steps_have_gradients():
    """Without them a step writes over the state; with them it must not."""
    model = sharpen(build())
    source, prev = sentences([12, 5]), targets([6, 6])

    def gradient(logits):
        return torch.autograd.grad(logits.square().sum(), model.encoder.packed_embedding)[0]

    state, encoder_out = {}, model.encoder(source)
    steps = [model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(6)]
    want = gradient(model.decoder(prev, model.encoder(source))[0])
    torch.testing.assert_close(gradient(torch.cat(steps, dim=1)), want, rtol=1e-6, atol=1e-9)


@torch.no_grad()
@pytest.mark.stock
@variants
def test_long_source_and_target(settings):
    """So long that projections are moved to the slots, in the encoder and in a whole pass of the decoder."""
    settings = {**settings, "projection_length": 3, "max_source_positions": 300, "max_target_positions": 300}
    model = sharpen(build(**settings))
    source, prev = sentences([230, 100, 2]), targets([200, 200, 200])
    encoder_out, state = model.encoder(source), {}
    want = model.decoder(prev, encoder_out)[0]
    choice = {**dict.fromkeys(ORDINARY, "luna"), "cross_attention": "packed", **settings}
    packs = choice["encoder_self_attention"] == "luna" or choice["cross_attention"] == "packed"
    for operator, used in (
        ("pack", packs),
        ("unpack", packs),
        ("pack logits", choice["decoder_self_attention"] == "luna"),
    ):
        assert not used or dispatch.forms()[operator].form == "moved"
    short = model.encoder(sentences([230, 100, 2])[1:2, -100:])
    torch.testing.assert_close(model.decoder(prev[1:2], short)[0], want[1:2], **close_enough(settings))
    steps = [model.decoder(prev[:, : t + 1], encoder_out, incremental_state=state)[0] for t in range(200)]
    torch.testing.assert_close(torch.cat(steps, dim=1), want, **close_enough(settings))
