"""Training with alignments; and every search of fairseq by Python and by command, beside its Transformer."""

import contextlib
import io
import json
import logging
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import USER_DIR, cli, in_child, in_children
from fairseq import checkpoint_utils, hub_utils, options
from fairseq.criterions.label_smoothed_cross_entropy_with_alignment import (
    LabelSmoothedCrossEntropyCriterionWithAlignment,
)
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import ModuleProxyWrapper
from fairseq.models.transformer import TransformerModel
from fairseq_cli import generate, interactive, preprocess
from fairseq_cli import train as fairseq_train
from tiny import DIMS, EOS, PAD, VARIANTS, dictionary, each, sentences, targets
from torch.nn.parallel import DistributedDataParallel

from fairseq_luna.models.luna_transformer import LunaTransformerModel
from fairseq_luna.models.luna_transformer.config import LunaTransformerConfig

pytestmark = pytest.mark.stock

torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports torch's compiler, once for all forked processes

SIZES = {"layers": 2, "embed-dim": 32, "ffn-embed-dim": 32, "attention-heads": 4}
TRAINING = (
    *("--cpu", "--num-workers", 0, "--max-tokens", 300, "--optimizer", "adam", "--lr", 0.01, "--seed", 1),
    *(
        "--no-epoch-checkpoints",
        "--disable-validation",
        "--valid-subset",
        "train",
        "--log-format",
        "json",
        "--log-interval",
        1,
    ),
)
ALIGNED = (
    *("--load-alignments", "--criterion", "label_smoothed_cross_entropy_with_alignment", "--alignment-lambda", 1),
    *("--alignment-layer", 0, "--alignment-heads", 1),
)
LUNA = "--arch", "luna_transformer_tiny_local", "--projection-length", 6, "--share-all-embeddings"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Words and the same backwards, with alignments, binarised; the targets also for a language model."""
    folder, rng = tmp_path_factory.mktemp("backwards"), random.Random(0)
    for split, size in ("train", 200), ("test", 7):
        lines = [rng.choices("abcdefgh", k=rng.randint(1, 6)) for _ in range(size)]
        alignments = [[f"{i}-{len(line) - 1 - i}" for i in range(len(line))] for line in lines]
        for suffix, text in ("in", lines), ("out", [line[::-1] for line in lines]), ("align", alignments):
            (folder / f"{split}.{suffix}").write_text("".join(" ".join(words) + "\n" for words in text))
    bins = "--destdir", folder / "bin"
    prefixes = "--trainpref", folder / "train", "--testpref", folder / "test", "--align-suffix", "align"
    assert in_child(cli, preprocess, "-s", "in", "-t", "out", "--joined-dictionary", *prefixes, *bins) == 0
    text = "--only-source", "--trainpref", folder / "train.out", "--srcdict", folder / "bin" / "dict.out.txt"
    assert in_child(cli, preprocess, *text, *bins) == 0
    return folder


def train(folder: Path, name: str, epochs: int, *words) -> list:
    """Trains a model, of checkpoint FOLDER/NAME/checkpoint_last.pt; returns what it logged of each update."""
    sides = ("encoder", "decoder") if name != "lm" else ("decoder",)
    sizes = [word for side in sides for key, value in SIZES.items() for word in (f"--{side}-{key}", value)]
    out = "--save-dir", folder / name, "--log-file", folder / f"{name}.log", "--max-epoch", epochs
    words = *sizes, *TRAINING, "--user-dir", USER_DIR, *words

    def logging_training():
        logging.getLogger().setLevel(logging.INFO)
        cli(fairseq_train, folder / "bin", *out, *words)

    assert in_child(logging_training) == 0
    records = [json.loads(line) for line in open(folder / f"{name}.log") if line.startswith('{"epoch"')]
    return list({record["num_updates"]: record for record in records if "num_updates" in record}.values())


@pytest.fixture(scope="module")
def luna(folder) -> list:
    return train(folder, "luna", 7, *LUNA, *ALIGNED)


@pytest.fixture(scope="module")
def hybrid(folder) -> list:
    """With the loss of one head, as fairseq's own architecture for alignments has it."""
    return train(folder, "hybrid", 7, "--arch", "luna_transformer_tiny_hybrid", *LUNA[2:], *ALIGNED)


@pytest.fixture(scope="module")
def full_context(folder) -> list:
    return train(folder, "full_context", 4, *LUNA, *ALIGNED, "--full-context-alignment")


@pytest.fixture(scope="module")
def models(folder, luna) -> Path:
    """The folder, with a Luna, a Transformer and a language model."""
    train(folder, "transformer", 4, "--arch", "transformer", "--share-all-embeddings")
    train(folder, "lm", 1, "--task", "language_modeling", "--arch", "transformer_lm", "--tokens-per-sample", 64)
    return folder


# ---- training


@pytest.mark.parametrize("kind", each({kind: kind for kind in ("luna", "hybrid", "full_context")}, ["luna", "hybrid"]))
def test_alignments_are_learnt(kind, request):
    losses: dict = {}
    for update in request.getfixturevalue(kind):
        losses.setdefault(update["epoch"], []).append(float(update["alignment_loss"]))
    first, *_, last = losses.values()
    assert len(first) == len(last) > 2 and sum(last) < 0.7 * sum(first)


def aligned_model(**settings) -> LunaTransformerModel:
    """A tiny model as the task of --load-alignments builds it, in training and without dropout."""
    torch.manual_seed(1)
    words = dictionary()
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words, cfg=SimpleNamespace(load_alignments=True))
    cfg = LunaTransformerConfig(**{**DIMS, "dropout": 0.0, **settings})
    return LunaTransformerModel.build_model(cfg, task).double().train()


def aligned_sample(seed: int) -> dict:
    """A batch of three sentences, of which every target word has one source word."""
    lengths, target_lengths = [7, 5, 9], [6, 8, 4]
    source, previous = sentences(lengths, seed=seed), targets(target_lengths, seed=seed)
    pairs = [
        (source.size(1) - 1 - at % n, row * previous.size(1) + at)
        for row, (n, m) in enumerate(zip(lengths, target_lengths))
        for at in range(m)
    ]
    return {
        "net_input": {"src_tokens": source, "src_lengths": torch.tensor(lengths), "prev_output_tokens": previous},
        "target": sentences(target_lengths, left_pad=False, seed=seed),
        "ntokens": sum(target_lengths),
        "alignments": torch.tensor(pairs),
        "align_weights": torch.ones(len(pairs)),
    }


def aligned_loss(model, sample: dict) -> tuple:
    """The loss of fairseq's criterion, and its part for the alignments, None where there is none."""
    task = SimpleNamespace(target_dictionary=dictionary())
    criterion = LabelSmoothedCrossEntropyCriterionWithAlignment(task, False, 0.1, alignment_lambda=0.5)
    loss, _, logged = criterion(model, sample)
    return loss, logged.get("alignment_loss")


SHAPES = {
    "packed": {},
    "full-context": {"full_context_alignment": True},
    "local": {**VARIANTS["local"], "alignment_heads": 1},
    "hybrid": VARIANTS["hybrid"],
}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_two_processes_have_the_gradients_of_one(settings, tmp_path):
    """By torch's DDP, which fails at the second step if a parameter had no gradient in the first."""
    model = aligned_model(**settings)
    for seed in 1, 2:
        loss, of_alignments = aligned_loss(model, aligned_sample(seed))
        assert of_alignments > 0
        (loss / 2).backward()  # DDP has the mean
    want = {name: p.grad for name, p in model.named_parameters()}
    # a bias on keys shifts all logits of a softmax alike: its gradient is there, but zero
    assert all(
        gradient.abs().sum() > 0 for name, gradient in want.items() if not name.endswith(("key.bias", "k_proj.bias"))
    )

    def rank(number):
        torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=number, world_size=2)
        model = aligned_model(**settings)
        wrapped = ModuleProxyWrapper(DistributedDataParallel(model))
        for _ in range(2):
            model.zero_grad()
            aligned_loss(wrapped, aligned_sample(number + 1))[0].backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, want[name], rtol=1e-9, atol=1e-12)

    assert in_children((rank, 0), (rank, 1)) == [0, 0]


PLACES = {  # of the layer 1 among the layers at work: its own, else that of the next one below, else the lowest
    "all": ([0, 1, 2], 1),
    "another-left-out": ([1, 2], 0),
    "left-out": ([0, 2], 0),
    "left-out-with-those-below": ([2], 0),
    "the-top": ([0, 1], 1),
}


@pytest.mark.parametrize("drawn, place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_layerdrop_takes_the_layer_that_is_there(settings, drawn, place):
    """The update is that of a model which has only the layers at work, and aligns by the one in this place."""
    settings = {**settings, "decoder_layers": 3}
    model = aligned_model(**settings, alignment_layer=1, decoder_layerdrop=0.5)
    model.encoder.draw = lambda layers, p: drawn if p else None
    assert model.decoder.alignment.place(drawn) == place
    pruned = aligned_model(**{**settings, "alignment_layer": drawn[place]}, decoder_layers_to_keep=drawn)
    pruned.load_state_dict(model.state_dict())
    outcomes = [aligned_loss(each, aligned_sample(1)) for each in (model, pruned)]
    assert outcomes[0][1] > 0 and outcomes[0][1] == outcomes[1][1]
    for loss, _ in outcomes:
        loss.backward()
    for layer, number in zip(pruned.decoder.layers, drawn):
        for p, q in zip(layer.parameters(), model.decoder.layers[number].parameters()):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_layerdrop_that_leaves_out_all_layers(settings):
    """As unlikely as it is: the update takes place, and the loss of alignments is that of knowing nothing."""
    model, sample = aligned_model(**settings, decoder_layerdrop=0.5), aligned_sample(1)
    model.encoder.draw = lambda layers, p: [] if p else None
    (attn,) = model(**sample["net_input"])[1]["attn"]
    lengths = sample["net_input"]["src_lengths"].double()
    assert torch.equal(attn.amax(dim=2), (1 / lengths).unsqueeze(1).expand(-1, attn.size(1)))
    torch.testing.assert_close(attn.sum(dim=2), torch.ones_like(attn[:, :, 0]))
    loss, of_alignments = aligned_loss(model, sample)
    words = sample["target"].ne(PAD).sum(dim=1)
    assert of_alignments == pytest.approx(float((lengths.log() * words).sum()))
    loss.backward()
    assert model.decoder.embed_tokens.weight.grad.abs().sum() > 0


def command(folder: Path, name: str, *words, text: str = "") -> str:
    """What fairseq-generate prints with the models of these names ("a:b"); with lines of text, fairseq-interactive."""
    paths = ":".join(str(folder / each / "checkpoint_last.pt") for each in name.split(":"))
    words = folder / "bin", "--user-dir", USER_DIR, "--cpu", "--num-workers", 0, "--path", paths, *words
    module, parser = generate, options.get_generation_parser
    if text:
        (folder / "input").write_text(text)
        module, parser = interactive, options.get_interactive_generation_parser
        words += "--input", folder / "input"
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser(), list(map(str, words))))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        module.main(cfg)
    return out.getvalue()


def lines(out: str, kind: str) -> list:
    """(number of the sentence, rest of the line) of one kind."""
    return [(int(i), rest) for i, rest in re.findall(rf"^{kind}-(\d+)\t(.*)$", out, re.M)]


@pytest.mark.parametrize("kind", ["luna", "full_context"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_print_alignment_prints_what_was_trained(kind, soft, folder, request):
    """Of the layer and head that were trained; with full context those of a pass that has the whole target."""
    request.getfixturevalue(kind)
    words = "--batch-size", 2, "--beam", 2, "--max-len-b", 8, "--print-alignment"
    out = command(folder, kind, *words, *(["soft"] if soft else []))
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(folder / kind / "checkpoint_last.pt")])
    found = dict(lines(out, "A"))
    assert sorted(found) == list(range(7))
    for (i, source), (_, target) in zip(lines(out, "S"), lines(out, "H")):
        tokens = task.source_dictionary.encode_line(source, add_if_not_exist=False).long().unsqueeze(0)
        words = task.target_dictionary.encode_line(target.split("\t")[1], add_if_not_exist=False).long()
        previous = torch.cat((words[-1:], words[:-1])).unsqueeze(0)
        with torch.no_grad():
            (attn,) = model.eval()(tokens, torch.tensor([tokens.size(1)]), previous)[1]["attn"]
            (causal,) = model.decoder(previous, model.encoder(tokens), alignment_layer=0)[1]["attn"]
        assert torch.equal(attn, causal) == (kind == "luna")
        if soft:
            weights = torch.tensor([[float(p) for p in row.split(",")] for row in found[i].split()])
            torch.testing.assert_close(weights, attn[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)), rtol=0, atol=1e-4)
        else:
            want = [f"{source}-{at}" for at, source in enumerate(attn[0, :-1, :-1].argmax(dim=1).tolist())]
            assert found[i].split() == want


# ---- Python

SENTENCES = ["a b c d", "h", "", "f e x y"]


def hub(folder, name, cls=LunaTransformerModel, **overrides):
    """The Python interface to the models of these names ("a:b")."""
    files = ":".join(f"{each}/checkpoint_last.pt" for each in name.split(":"))
    return cls.from_pretrained(str(folder), files, str(folder / "bin"), **{"max_len_b": 8, **overrides})


@pytest.fixture(scope="module")
def hubs(models) -> dict:
    return {"luna": hub(models, "luna"), "transformer": hub(models, "transformer", TransformerModel)}


ARGUMENTS = {
    "nothing": {},
    "beam": {"beam": 1},
    "beam-beyond-the-dictionary": {"beam": 100},
    "hard": {"print_alignment": "hard"},
    "soft": {"print_alignment": "soft", "verbose": False},  # which fairseq cannot print here, whatever the model
    "skip_invalid_size_inputs": {"skip_invalid_size_inputs": True},
    "prefix_tokens": {"inference_step_args": {"prefix_tokens": torch.tensor([[5], [7], [6], [4]])}},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda sentence, tokens: [2, 5, 6]},
    "sampling": {"sampling": True, "beam": 3, "print_alignment": "hard"},
    "sampling_topk": {"sampling": True, "sampling_topk": 3},
    "sampling_topp": {"sampling": True, "sampling_topp": 0.7},
    "diverse_beam_groups": {"diverse_beam_groups": 2, "beam": 4, "print_alignment": "hard"},
    "diversity_rate": {"diversity_rate": 0.5},
    "constraints": {"constraints": "ordered", "inference_step_args": {"constraints": torch.tensor([[1, 5, 0]] * 4)}},
    "match_source_len": {"match_source_len": True, "print_alignment": "hard"},
    "temperature": {"temperature": 2.0},
    "lengths": {"min_len": 3, "max_len_a": 1.0, "max_len_b": 2, "lenpen": 0.3, "unnormalized": True},
    "unkpen": {"unkpen": -100.0, "nbest": 3},
    "replace_unk": {"replace_unk": "", "print_alignment": "hard"},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
}


@pytest.mark.parametrize("kwargs", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("name", ["luna", "transformer"])
def test_generate_and_translate_take_what_they_take_of_a_transformer(kwargs, name, hubs):
    """And give as much of each hypothesis, also of its attention: target x source, none of it on padding."""
    model, kwargs = hubs[name], {"verbose": True, **kwargs}
    sources = [model.encode(sentence) for sentence in SENTENCES]
    found = model.generate(sources, **kwargs)
    assert len(found) == len(sources)
    for source, hypotheses in zip(sources, found):
        for hypothesis in hypotheses:
            attention, alignment, n = hypothesis["attention"], hypothesis["alignment"], len(hypothesis["tokens"])
            torch.testing.assert_close(attention[-len(source) :].sum(dim=0), torch.ones(n))
            if kwargs.get("print_alignment") == "hard":
                words = int(hypothesis["tokens"].gt(EOS).sum())  # diverse beams may have more than one end
                assert [at for _, at in alignment] == list(range(words if len(source) > 1 else 0))
            elif kwargs.get("print_alignment") == "soft":
                assert [len(row) for row in alignment] == [len(source)] * n
            else:
                assert len(alignment) == 0
    if "inference_step_args" not in kwargs:
        assert [type(words) for words in model.translate(SENTENCES, **kwargs)] == [str] * 4


def tokens(found) -> list:
    return [[hypothesis["tokens"].tolist() for hypothesis in hypotheses] for hypotheses in found]


def test_alignments_leave_nothing_behind(hubs):
    model = hubs["luna"]
    sources = [model.encode(sentence) for sentence in SENTENCES]
    plain, hard, again = (model.generate(sources, **kwargs) for kwargs in ({}, {"print_alignment": "hard"}, {}))
    assert tokens(plain) == tokens(hard) == tokens(again)
    assert len(hard[0][0]["alignment"]) and not len(again[0][0]["alignment"])


def by_hand(folder, name):
    parts = hub_utils.from_pretrained(str(folder), f"{name}/checkpoint_last.pt", str(folder / "bin"), max_len_b=8)
    return hub_utils.GeneratorHubInterface(parts["args"], parts["task"], parts["models"])


OTHER_WAYS = {
    "by-hand": lambda folder: by_hand(folder, "luna"),
    "by-another-class": lambda folder: hub(folder, "luna", TransformerModel),
    "alignment-for-all": lambda folder: hub(folder, "luna", print_alignment="hard"),
    "mixed": lambda folder: hub(folder, "luna:transformer"),
    "mixed-the-other-way": lambda folder: hub(folder, "transformer:luna", TransformerModel),
    "half": lambda folder: hub(folder, "luna").bfloat16(),
    "double": lambda folder: hub(folder, "luna").double(),
    "device": lambda folder: hub(folder, "luna").to("cpu"),
    "tokenizer": lambda folder: hub(folder, "luna", tokenizer="moses", bpe="characters"),
    "batches": lambda folder: hub(folder, "luna", batch_size=1),
}


@pytest.mark.parametrize("way", OTHER_WAYS.values(), ids=OTHER_WAYS)
def test_alignments_by_every_way_to_the_interface(way, models):
    model = way(models)
    (source,) = [model.src_dict.encode_line("a b c d", add_if_not_exist=False).long()]
    for hypothesis in model.generate([source, source[-1:]], print_alignment="hard")[0]:
        attention = hypothesis["attention"].float()
        torch.testing.assert_close(attention[-5:].sum(dim=0), torch.ones(attention.size(1)), rtol=0, atol=0.02)
        want = attention[-5:-1].argmax(dim=0)[:-1].tolist()
        assert [source for source, _ in hypothesis["alignment"]] == want
    assert isinstance(model.translate("a b", print_alignment="hard"), str)


def test_a_text_beyond_the_positions(models):
    model = hub(models, "luna", max_tokens=5000)
    with pytest.raises(Exception, match="max_positions=\\(1024, 1024\\)"):
        model.translate("a " * 2000)
    assert len(model.translate(["a " * 2000, "a"], skip_invalid_size_inputs=True)) == 1
    longer = hub(models, "luna", max_tokens=5000, max_source_positions=3000)
    (hypothesis,) = longer.generate([longer.encode("a " * 2000)], beam=1, print_alignment="hard")[0]
    assert hypothesis["attention"].size(0) == 2001


# ---- commands

SEARCHES = {
    "beam": "--beam 3 --nbest 3",
    "alignment": "--print-alignment",
    "prefix": "--prefix-size 2",
    "language-model": "--lm-path LM --lm-weight 0.3",
    "siblings": "--diversity-rate 0.5",
    "source-length": "--match-source-len",
    "lengths": "--min-len 4 --max-len-a 1 --max-len-b 4",
    "length-penalty": "--lenpen 0.3 --no-early-stop",
    "unnormalized": "--unnormalized",
    "unknown": "--unkpen -100",
    "temperature": "--temperature 2",
    "no-repeat": "--no-repeat-ngram-size 1",
    "reference": "--score-reference",
    "aligned-reference": "--score-reference --print-alignment",
    "sampling": "--sampling --beam 2 --nbest 2",
    "sampling-topk": "--sampling --sampling-topk 3 --beam 2 --nbest 2",
    "sampling-topp": "--sampling --sampling-topp 0.8 --beam 2 --nbest 2",
}


@pytest.mark.parametrize("name", each({"luna": "luna", "transformer:luna": "transformer:luna"}, ["luna"]))
@pytest.mark.parametrize("flags", each(SEARCHES, "beam language-model aligned-reference".split()))
def test_searches_in_batches(flags, name, models):
    """In batches after the first as in the first; but for chance the batch changes no hypothesis."""
    words = flags.replace("LM", str(models / "lm" / "checkpoint_last.pt")).split()
    if "len-b" not in flags:
        words += ["--max-len-b", 8]
    out = command(models, name, "--batch-size", 2, *words)
    found = sorted(lines(out, "H"))
    best = 3 if "nbest 3" in flags else 2 if "nbest 2" in flags else 1
    assert [i for i, _ in found] == [i for i in range(7) for _ in range(best)]
    assert len(lines(out, "A")) == (7 if "alignment" in flags else 0)
    if name == "luna" and "sampling" not in flags:
        together = sorted(lines(command(models, name, "--batch-size", 7, *words), "H"))
        assert [text.split("\t")[1] for _, text in found] == [text.split("\t")[1] for _, text in together]


@pytest.mark.parametrize("name", ["luna", "luna:transformer"])
@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_constraints_in_batches(order, name, models):
    """Each sentence has its own, of one word, of two, or none."""
    asked = [["h"], [], ["b a"], ["c", "d"], ["f", "e"]]
    text = "".join("\t".join(["a b c", *words]) + "\n" for words in asked)
    words = "--constraints", order, "--max-len-b", 8, "--batch-size", 2, "--buffer-size", 5
    found = sorted(lines(command(models, name, *words, "--print-alignment", text=text), "H"))
    assert [i for i, _ in found] == list(range(5))
    for (_, hypothesis), wanted in zip(found, asked):
        written = hypothesis.split("\t")[1]
        assert all(each in written for each in wanted)
        if order == "ordered":
            assert written.find(wanted[0] if wanted else "") <= written.rfind(wanted[-1] if wanted else "")


def test_retained_dropout_draws_anew(models):
    """--retain-dropout: by seed another translation; of modules that are named alone."""

    def outcome(seed, *words):
        settings = "--model-overrides", "{'dropout': 0.5}", "--retain-dropout", "--batch-size", 2, "--max-len-b", 8
        return lines(command(models, "luna", *settings, "--seed", seed, *words), "H")

    assert outcome(1) != outcome(2)
    named = "--retain-dropout-modules", "['LunaDecoder']"
    assert outcome(1, *named) != outcome(2, *named)
    unknown = "--retain-dropout-modules", "['Nobody']"
    assert outcome(1, *unknown) == outcome(2, *unknown)
