"""The paper's optimiser, its learning rate, its clipping, and word dropout."""

import io
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import USER_DIR, fairseq, run
from fairseq import optim
from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim.lr_scheduler import build_lr_scheduler
from omegaconf import OmegaConf
from tiny import PAD, build, sentences, targets

from fairseq_luna.optim.apollo import Apollo

with np.load(Path(__file__).parent / "data" / "optim" / "apollo_steps.npz") as data:
    ARRAYS = {name: torch.from_numpy(data[name]) for name in data.files if not name.endswith("/settings")}
    CASES = {name.split("/")[0]: json.loads(str(data[name])) for name in data.files if name.endswith("/settings")}

BELIEF = {"rebound": "belief", "weight_decay": 0.01, "weight_decay_type": "decoupled"}
STABLE = {"weight_decay": 0.01, "weight_decay_type": "stable"}
half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


def config(common=None, lr=(0.1,), **settings):
    """fairseq's whole config, with Apollo's settings in it."""
    cfg = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(cfg, False)
    cfg.common = OmegaConf.merge(cfg.common, common or {})
    cfg.optimization.lr = list(lr)
    cfg.optimizer = {"_name": "apollo", **settings}
    return cfg


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((5, 4), (4,))]


def steps(optimizer, params, numbers):
    """One step for each number, with gradients that depend on it."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def test_all_settings_of_apollo_are_here():
    assert sorted(CASES) == ["belief_decoupled", "constant_l2", "constant_stable", "paper"]


@pytest.mark.stock
@pytest.mark.parametrize("case", CASES)
def test_apollo_makes_the_steps_of_the_authors(case):
    settings = CASES[case]
    params = {name: ARRAYS[f"{case}/{name}0"].clone() for name in "wv"}
    optimizer = Apollo(params.values(), **settings)
    for t in range(12):
        optimizer.param_groups[0]["lr"] = settings["lr"] * min(1, (t + 1) / 4)
        for name, p in params.items():
            p.grad = ARRAYS[f"{case}/grad_{name}"][t].clone()
        optimizer.step()
        for name, p in params.items():
            torch.testing.assert_close(p, ARRAYS[f"{case}/{name}"][t], rtol=1e-12, atol=1e-12)


@pytest.mark.stock
@pytest.mark.parametrize("settings", [{}, BELIEF, STABLE], ids=["constant", "belief", "stable"])
def test_a_saved_state_goes_on_to_the_bit(settings):
    whole, parted, file = tensors(), tensors(), io.BytesIO()
    steps(Apollo(whole, **settings), whole, range(12))
    first, second = Apollo(parted, **settings), Apollo(parted)
    steps(first, parted, range(6))
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file))
    steps(second, parted, range(6, 12))
    assert all(torch.equal(a, b) for a, b in zip(whole, parted))


@pytest.mark.stock
@half
def test_half_precision_keeps_its_state_in_float32(dtype):
    """By fairseq's memory-efficient wrapper; a state that is saved and loaded loses nothing."""
    name = "fp16" if dtype == torch.float16 else "bf16"
    cfg = config({name: True, f"memory_efficient_{name}": True, "fp16_scale_window": 1}, apollo_beta=0.8)

    def training(params, *parts):
        saved = None
        for numbers in parts:
            optimizer = optim.MemoryEfficientFP16Optimizer.build_optimizer(cfg, params)
            if saved is not None:
                saved.seek(0)
                optimizer.load_state_dict(torch.load(saved))
            for number in numbers:
                optimizer.zero_grad()
                steps(optimizer, params, [number])
            saved = io.BytesIO()
            torch.save(optimizer.state_dict(), saved)
        return optimizer.optimizer.state[params[0]]

    whole, parted = tensors(dtype), tensors(dtype)
    one, other = training(whole, range(12)), training(parted, range(6), range(6, 12))
    for p, q in zip(whole, parted):
        assert p.dtype == dtype and p.isfinite().all() and torch.equal(p, q)
    for letter in "mBd":
        assert one[letter].dtype == other[letter].dtype == torch.float32
        assert torch.equal(one[letter], other[letter])
        assert not torch.equal(one[letter], one[letter].to(dtype).float())


@pytest.mark.stock
@pytest.mark.parametrize(
    "common", [{"bf16": True}, {"fp16": True, "fp16_no_flatten_grads": True}], ids=["bf16", "fp16-no-flatten-grads"]
)
def test_mixed_precision_steps_on_each_parameter(common):
    """By fairseq's FP16Optimizer, which keeps float32 copies."""
    dtype = torch.bfloat16 if "bf16" in common else torch.float16
    params, want = tensors(dtype), [p.detach().float() for p in tensors(dtype)]
    optimizer = optim.FP16Optimizer.build_optimizer(config({**common, "fp16_scale_window": 1}), params)
    plain = Apollo(want)
    for number in range(5):
        optimizer.zero_grad()
        optimizer.multiply_grads(1 / optimizer._multiply_factor)  # undo the loss scale, since no loss is scaled here
        generator = torch.Generator().manual_seed(number)
        for p, w in zip(params, want):
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
            w.grad = p.grad.float()
        optimizer._needs_sync = True
        optimizer.clip_grad_norm(0)
        optimizer.step()
        plain.step()
    assert all(torch.equal(p, w.to(dtype)) for p, w in zip(params, want))


@pytest.mark.stock
@pytest.mark.parametrize(
    "common, mode, words",
    [
        ({"fp16": True}, "total", ["--fp16-no-flatten-grads", "--bf16"]),
        ({"fp16": True, "fp16_no_flatten_grads": True}, "each", ["--clip-mode each", "--clip-mode total"]),
        ({"bf16": True}, "each", ["--clip-mode each", "--clip-mode total"]),
        ({"bf16": True, "memory_efficient_bf16": True}, "each", ["--clip-mode each"]),
        ({"amp": True, "fp16": True, "memory_efficient_fp16": True}, "each", ["--clip-mode each"]),
    ],
    ids=["flat", "each-fp16", "each-bf16", "each-memory-efficient", "each-amp-memory-efficient"],
)
def test_what_half_precision_cannot_do_is_refused(common, mode, words):
    flat = torch.nn.Parameter(torch.zeros(24))
    with pytest.raises(ValueError) as error:
        optim.build_optimizer(config(common, clip_mode=mode).optimizer, [{0: flat}])
    assert all(word in str(error.value) for word in words)


def test_amp_clips_each_parameter():
    """With --amp alone fairseq hands clipping to the optimizer, in float32."""
    assert optim.build_optimizer(config({"amp": True}, clip_mode="each").optimizer, tensors())


def test_a_state_of_another_optimizer_is_refused():
    """Behind fairseq's half precision wrapper, which has one name for all."""
    params = tensors(torch.bfloat16)
    optimizer = optim.FP16Optimizer.build_optimizer(config({"bf16": True, "fp16_scale_window": 1}), params)
    with pytest.raises(ValueError, match="another optimizer than apollo: add --reset-optimizer"):
        optimizer.load_state_dict(torch.optim.Adam(params).state_dict())


def test_flat_parameters_are_not_supported():
    """fairseq asks before it shards parameters (--ddp-backend fully_sharded)."""
    assert not optim.build_optimizer(config().optimizer, tensors()).supports_flat_params


BAD_APOLLO = {
    "lr": (-0.1, "at least 0"),
    "beta": (1.0, "in [0, 1)"),
    "eps": (0.0, "above 0"),
    "rebound": ("belif", "constant or belief"),
    "weight_decay": (-1e-8, "at least 0"),
    "weight_decay_type": ("l2", "L2 or decoupled or stable"),
}


@pytest.mark.parametrize("name, bad", BAD_APOLLO.items(), ids=BAD_APOLLO)
def test_bad_settings_of_apollo(name, bad):
    value, want = bad
    with pytest.raises(ValueError, match=re.escape(f"Apollo's {name} must be {want}, but is {value}.")):
        Apollo(tensors(), **{name: value})


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="Apollo does not support sparse gradients"):
        Apollo(embedding.parameters()).step()


def test_a_closure_runs_with_gradients():
    (p, q), optimizer = tensors(), None
    optimizer = Apollo([p, q])  # q has no gradient, and stays

    def closure():
        optimizer.zero_grad()
        loss = p.pow(2).sum()
        loss.backward()
        return loss

    before, unused = p.detach().clone(), q.detach().clone()
    assert optimizer.step(closure) == before.pow(2).sum()
    assert not torch.equal(p, before) and torch.equal(q, unused) and q not in optimizer.state


@pytest.mark.stock
@pytest.mark.parametrize("max_norm", [0.1, 1.5, 0], ids=["all", "some", "off"])
@pytest.mark.parametrize("mode", ["total", "each"])
def test_clip_mode_against_torch(mode, max_norm):
    params, want = tensors() + tensors()[:1], tensors() + tensors()[:1]
    optimizer = optim.build_optimizer(config(clip_mode=mode).optimizer, params)
    for i, (p, w) in enumerate(zip(params[:2], want)):  # the third has no gradient
        p.grad, w.grad = (torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for _ in "pw")
    norm = torch.stack([w.grad.norm() for w in want[:2]]).norm()
    if max_norm > 0:
        for group in [want[:2]] if mode == "total" else [[w] for w in want[:2]]:
            torch.nn.utils.clip_grad_norm_(group, max_norm)
    torch.testing.assert_close(optimizer.clip_grad_norm(max_norm), norm)
    for p, w in zip(params[:2], want):
        torch.testing.assert_close(p.grad, w.grad)


def schedule(lr=(0.1,), **settings):
    cfg = config(lr=lr)
    cfg.lr_scheduler = {"_name": "milestone", **settings}
    return build_lr_scheduler(cfg.lr_scheduler, optim.build_optimizer(cfg.optimizer, tensors()))


@pytest.mark.stock
def test_milestone_rates():
    """By hand: the rate of update u + 1, after u."""
    rates = schedule(warmup_updates=4, warmup_init_lr=0.02, milestones=[6, 8], lr_decay_rate=0.5)
    want = {0: 0.02, 1: 0.04, 3: 0.08, 4: 0.1, 5: 0.1, 6: 0.05, 7: 0.05, 8: 0.025, 100: 0.025}
    assert rates.optimizer.get_lr() == 0.02
    for updates in sorted(want, key=lambda u: -u % 7):  # in any order: a resumed run starts anywhere
        assert rates.step_update(updates) == rates.optimizer.get_lr() == pytest.approx(want[updates], rel=1e-12)


def test_milestones_as_torch_has_them():
    """torch's MultiStepLR, where there is no warm-up."""
    rates = schedule(milestones=[3, 5])
    theirs = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD(tensors(), lr=0.1), [3, 5], gamma=0.1)
    for updates in range(8):
        assert rates.step_update(updates) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        theirs.optimizer.step()
        theirs.step()


BAD_SCHEDULES = {
    "none": ({}, "--milestones must be given, e.g. 300000,450000, but is []."),
    "falling": ({"milestones": [5, 3]}, "--milestones must be rising, but is [5, 3]."),
    "twice": ({"milestones": [5, 5]}, "--milestones must be rising, but is [5, 5]."),
    "in-warm-up": (
        {"milestones": [5, 9], "warmup_updates": 5},
        "The first of --milestones, 5, must come after --warmup-updates 5.",
    ),
    "before-the-start": ({"milestones": [0]}, "The first of --milestones, 0, must come after --warmup-updates 0."),
    "warm-up": ({"milestones": [5], "warmup_updates": -1}, "--warmup-updates must be at least 0, but is -1."),
    "start": ({"milestones": [5], "warmup_init_lr": 0.2}, "--warmup-init-lr must be from 0 to --lr 0.1, but is 0.2."),
    "growth": ({"milestones": [5], "lr_decay_rate": 10.0}, "--lr-decay-rate must be in (0, 1], but is 10.0."),
    "two-rates": ({"milestones": [5], "lr": (0.1, 0.2)}, "takes one --lr, but got [0.1, 0.2]"),
}


@pytest.mark.parametrize("settings, message", BAD_SCHEDULES.values(), ids=BAD_SCHEDULES)
def test_bad_settings_of_the_schedule(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule(**settings)


TAKEN = {
    "apollo": "from fairseq.optim import FairseqOptimizer as Base, register_optimizer as register",
    "milestone": "from fairseq.optim.lr_scheduler import FairseqLRScheduler as Base, register_lr_scheduler as register",
}


@pytest.mark.stock
@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_taken_already(name):
    code = f"{TAKEN[name]}\n@register({name!r})\nclass Other(Base):\n    __module__ = 'theirs'\nimport fairseq_luna"
    done = run([sys.executable, "-c", code], fails=True, cwd=USER_DIR.parent)
    assert f" {name}, but theirs has registered another of that name" in done.stderr.strip().splitlines()[-1]


# word dropout


def embedded(model, side, tokens):
    """X of the first layer, without positions."""
    return model.encoder.embed(tokens) if side == "encoder" else model.decoder.embed(tokens, None)


@pytest.mark.stock
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_word_dropout_drops_whole_words(side):
    model = build(word_dropout=0.3).train()
    tokens = targets([200] * 20 + [150] * 20) if side == "decoder" else sentences([200] * 20 + [150] * 20)
    x = embedded(model, side, tokens)
    model.eval()
    want = embedded(model, side, tokens)
    positions = want - getattr(model, side).embed_scale * model.encoder.embed_tokens(tokens)
    words, want = x - positions, want - positions
    real = tokens.ne(PAD)
    dropped = words.abs().sum(dim=-1) < 1e-9
    assert dropped[real].double().mean() == pytest.approx(0.3, abs=0.03)  # of 7000 words: 5 standard deviations
    torch.testing.assert_close(words[~dropped], want[~dropped] / 0.7)
    assert torch.equal(x[~real], want[~real])  # padding has neither word nor position


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_dropped_word_has_no_gradient(side):
    model = build(word_dropout=0.5, share_all_embeddings=False).train()
    tokens = torch.arange(4, 44).unsqueeze(0)  # each word once
    embedding = getattr(model, side).embed_tokens
    dropped = []
    getattr(model, side).word_dropout.register_forward_hook(
        lambda module, inputs, output: dropped.append(output[0].eq(0).all(dim=-1))
    )
    embedded(model, side, tokens).pow(3).sum().backward()
    assert 0 < dropped[0].sum() < 40
    assert torch.equal(embedding.weight.grad[4:].eq(0).all(dim=-1), dropped[0])


@pytest.mark.stock
def test_no_word_dropout_draws_no_random_number():
    """So that the results of a seed stay what they were."""
    model = build().train()  # no dropout at all
    before = torch.get_rng_state()
    model(sentences([9, 5]), None, targets([7, 3]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_word_dropout_that_is_no_probability(p):
    with pytest.raises(ValueError, match=re.escape(f"--word-dropout must be in [0, 1), but is {p}.")):
        build(word_dropout=p)


# the real commands

UPDATES = 10
MODEL = {
    "projection_length": 8,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "share_all_embeddings": True,
    "word_dropout": 0.1,
}
APOLLO = {"apollo_beta": 0.8, "apollo_eps": 0.001, "rebound": "belief", "weight_decay": 0.01}
APOLLO = {**APOLLO, "weight_decay_type": "decoupled", "clip_mode": "each"}
MILESTONE = {"warmup_updates": 3, "warmup_init_lr": 0.01, "milestones": [6, 8], "lr_decay_rate": 0.5}
RATES = [0.04, 0.07, 0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.025]  # after each update


def flags(**settings):
    """encoder_layers=1 -> --encoder-layers 1"""
    for name, value in settings.items():
        yield "--" + name.replace("_", "-")
        if value is not True:
            yield ",".join(map(str, value)) if isinstance(value, list) else value


def training(data, folder, *more, updates=UPDATES, apollo=APOLLO):
    return fairseq(
        *("train", data, "--save-dir", folder, "--arch", "luna_transformer", *flags(**MODEL)),
        *("--cpu", "--seed", 1, "--num-workers", 0, "--max-tokens", 60, "--criterion", "cross_entropy"),
        *("--optimizer", "apollo", *flags(**apollo), "--lr", 0.1, "--clip-norm", 0.1),
        *("--lr-scheduler", "milestone", *flags(**MILESTONE), "--max-update", updates),
        *("--disable-validation", "--no-epoch-checkpoints", "--log-format", "json", "--log-interval", 1, *more),
    )


def logged(done, key):
    """What each update logged under a key."""
    return [float(x) for x in re.findall(rf'"{key}": "([^"]+)"', done.stdout + done.stderr)]


def checkpoint(folder):
    return torch.load(folder / "checkpoint_last.pt", map_location="cpu")


def same(one, other):
    """Whether two checkpoints hold the same model and state of the optimizer, to the bit."""
    states = one["last_optimizer_state"]["state"], other["last_optimizer_state"]["state"]
    assert list(states[0]) == list(states[1]) and len(states[0]) > 20
    return all(
        torch.equal(value, other["model"][name])
        for name, value in one["model"].items()
        if not name.endswith("._float_tensor")  # fairseq 0.12.2 saves uninitialised memory
    ) and all(
        state["step"] == states[1][i]["step"] and all(torch.equal(state[k], states[1][i][k]) for k in "mBd")
        for i, state in states[0].items()
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A hundred words of one to six letters and the same backwards, binarised."""
    folder, rng = tmp_path_factory.mktemp("optim"), random.Random(0)
    words = [[rng.choice("abcdefghij") for _ in range(rng.randint(1, 6))] for _ in range(100)]
    (folder / "train.in").write_text("".join(" ".join(w) + "\n" for w in words))
    (folder / "train.out").write_text("".join(" ".join(w[::-1]) + "\n" for w in words))
    run(
        fairseq(
            *("preprocess", "-s", "in", "-t", "out", "--trainpref", folder / "train", "--validpref", folder / "train"),
            *("--joined-dictionary", "--destdir", folder / "bin"),
        )
    )
    return folder / "bin"


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """The folder of an unbroken run, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(training(corpus, folder))


@pytest.mark.stock
def test_the_rate_of_each_update_is_logged(trained):
    _, done = trained
    assert logged(done, "lr") == RATES


@pytest.mark.stock
def test_a_resumed_run_equals_an_unbroken_one(corpus, trained, tmp_path):
    """5 updates and 5 more, with dropout and word dropout, within an epoch (fairseq makes other batches when it begins
    in a later one)."""
    run(training(corpus, tmp_path, updates=5))
    half = checkpoint(tmp_path)
    done = run(training(corpus, tmp_path))
    assert "Loaded checkpoint" in done.stdout + done.stderr
    assert same(checkpoint(trained[0]), checkpoint(tmp_path)) and not same(half, checkpoint(tmp_path))


@pytest.mark.stock
def test_hydra_trains_the_same(corpus, trained, tmp_path):
    """A YAML with the same settings, and one of them given on the command line."""
    cfg = {
        "common": {"user_dir": str(USER_DIR), "cpu": True, "seed": 1},
        "model": {"_name": "luna_transformer", **MODEL},
        "task": {"_name": "translation", "data": str(corpus), "source_lang": "in", "target_lang": "out"},
        "criterion": {"_name": "cross_entropy"},
        "dataset": {"num_workers": 0, "max_tokens": 60, "disable_validation": True},
        "optimization": {"max_update": UPDATES, "lr": [0.1], "clip_norm": 0.1},
        "optimizer": {"_name": "apollo", **APOLLO},
        "lr_scheduler": {"_name": "milestone", **MILESTONE, "milestones": [6]},
        "checkpoint": {"save_dir": str(tmp_path / "hydra"), "no_epoch_checkpoints": True},
    }
    (tmp_path / "apollo.yaml").write_text("# @package _group_\n" + OmegaConf.to_yaml(OmegaConf.create(cfg)))
    run(
        [
            *(sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", str(tmp_path)),
            *("--config-name", "apollo", "lr_scheduler.milestones=[6,8]", f"hydra.run.dir={tmp_path}"),
        ]
    )
    assert same(checkpoint(trained[0]), checkpoint(tmp_path / "hydra"))


@pytest.mark.release
@pytest.mark.stock
def test_clipping_in_training(corpus, tmp_path):
    """After one update of Apollo m is the gradient that it got; unclipped it says what the others must be."""

    def first(name, *more):
        done = run(training(corpus, tmp_path / name, *more, updates=1, apollo={}))
        state = checkpoint(tmp_path / name)["last_optimizer_state"]["state"]
        return [state[i]["m"] for i in state], logged(done, "gnorm")[0]

    grads, norm = first("free", "--clip-norm", 0)
    total, logged_total = first("total", "--clip-norm", 0.1)
    each, logged_each = first("each", "--clip-norm", 0.1, "--clip-mode", "each")
    norms = [g.norm() for g in grads]
    assert min(norms) < 0.1 < max(norms)  # so that some are clipped, and some are not
    whole = torch.stack(norms).norm()
    assert norm == logged_total == logged_each == pytest.approx(whole.item(), rel=1e-2)  # three digits are logged
    for g, n, t, e in zip(grads, norms, total, each):
        torch.testing.assert_close(t, g * (0.1 / whole))
        torch.testing.assert_close(e, g * min(1, 0.1 / n))


BAD_FLAGS = {
    "milestones": (("--milestones", "8,6"), "--milestones must be rising, but is [8, 6]."),
    "rebound": (("--rebound", "none"), "argument --rebound: invalid choice: 'none'"),
    "beta": (("--apollo-beta", 1), "Apollo's beta must be in [0, 1), but is 1.0."),
}


@pytest.mark.parametrize("more, message", BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags_are_refused(corpus, tmp_path, more, message):
    done = run(training(corpus, tmp_path, *more), fails=True)
    assert message in done.stderr.strip().splitlines()[-1]
