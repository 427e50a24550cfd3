"""The language model: forms, causality, gradients, generation, fairseq's commands."""

import re
from argparse import Namespace

import pytest
import torch
from commands import ROOT, assert_resumes, fairseq, run
from fairseq import options, tasks
from fairseq.dataclass.initialize import add_defaults
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.transformer_lm import TransformerLanguageModelConfig
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from tiny import EOS, PAD, dictionary, sharpen, targets
from tiny import generation_of_a_command as generation

from fairseq_luna.models.luna_lm import LunaLanguageModel
from fairseq_luna.models.luna_lm.config import ARCHITECTURES, LunaLanguageModelConfig
from fairseq_luna.modules.linear import Linear

pytestmark = pytest.mark.stock
DIMS = {
    "decoder_embed_dim": 32,
    "decoder_ffn_embed_dim": 48,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "projection_length": 6,
    "share_decoder_input_output_embed": True,
    "max_target_positions": 400,
    "dropout": 0.0,
}
VARIANTS = {
    "tied": {},
    "untied": {"untie_luna_kv": True},
    "elu": {"causal_activation": "elu"},
    "decaying": {"causal_mean": "decaying"},
    "pre-norm": {"decoder_normalize_before": True},
    "untied-decaying-pre-norm": {"untie_luna_kv": True, "causal_mean": "decaying", "decoder_normalize_before": True},
    "learned-positions": {"decoder_learned_pos": True},
    "no-positions": {"no_token_positional_embeddings": True},
    "layernorm-embedding": {"layernorm_embedding": True},
    "adaptive-softmax": {
        "adaptive_softmax_cutoff": [12, 30],
        "adaptive_softmax_factor": 2.0,
        "share_decoder_input_output_embed": False,
    },
}
variants = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


def build(seed=1, double=True, **settings):
    torch.manual_seed(seed)
    words = dictionary()
    task = Namespace(source_dictionary=words, target_dictionary=words)
    model = LunaLanguageModel.build_model(LunaLanguageModelConfig(**{**DIMS, **settings}), task).eval()
    return model.double() if double else model


def features(model, tokens, state=None):
    return model.decoder(tokens, incremental_state=state, features_only=True)[0]


@variants
def test_every_parameter_has_a_gradient(settings):
    model = build(**settings).train()
    tokens = targets([9, 5])
    features(model, tokens).square().sum().backward()
    model.decoder.output_layer(features(model, tokens)).logsumexp(-1).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert [name for name in without if "adaptive_softmax" not in name] == []


@torch.no_grad()
@variants
@pytest.mark.parametrize("length", [1, 70])
def test_step_by_step_equals_all_at_once(settings, length):
    model = sharpen(build(**settings))
    tokens, state = targets([length] * 3), {}
    want = features(model, tokens)
    found = torch.cat([features(model, tokens[:, : t + 1], state) for t in range(length)], dim=1)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)


@torch.no_grad()
@variants
def test_the_future_changes_nothing_to_the_bit(settings):
    model, tokens = sharpen(build(double=False, **settings)), targets([90, 90])
    changed = tokens.clone()
    changed[:, 70] = (changed[:, 70] + 1).clamp(min=4) % 44
    before, after = features(model, tokens), features(model, changed)
    assert torch.equal(before[:, :70], after[:, :70])
    assert not torch.equal(before[:, 70:], after[:, 70:])


@torch.no_grad()
@variants
def test_a_text_alone_is_the_same_in_a_batch(settings):
    model, lengths = sharpen(build(**settings)), [12, 5, 1]
    tokens = targets(lengths)
    batch = features(model, tokens)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(batch[i : i + 1, :n], features(model, tokens[i : i + 1, :n]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_state_is_of_constant_size():
    model, state, sizes = build(), {}, set()
    for t in range(1, 20):
        features(model, targets([t]), state)
        sizes.add(sum(m.numel() for s in state.values() for m in s if m is not None))
    heads, d, slots, layers = 4, 8, 6, 2
    assert sizes == {2 * layers * heads * d * slots}  # the means, and P as all steps read it


def generate(model, prefix, **settings):
    generator = SequenceGenerator([model], model.decoder.dictionary, max_len_a=0, max_len_b=25, **settings)
    sample = {
        "id": torch.arange(len(prefix)),
        "net_input": {"src_tokens": prefix, "src_lengths": prefix.ne(PAD).sum(1)},
    }
    return generator.generate([model], sample, prefix_tokens=prefix, bos_token=EOS)


@torch.no_grad()
@variants
def test_beams_equal_full_recomputation(settings, monkeypatch):
    model = sharpen(build(**settings))
    prefix = targets([3, 3])[:, 1:]
    found = generate(model, prefix, beam_size=4)
    forward = type(model.decoder).forward
    monkeypatch.setattr(
        type(model.decoder),
        "forward",
        lambda self, tokens, **kwargs: _last(forward(self, tokens)),
    )
    for ours, theirs in zip(found, generate(model, prefix, beam_size=4)):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]


def _last(out):
    return out[0][:, -1:], out[1]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_prepared_model_says_nearly_the_same(precision):
    model = build(double=False, inference_precision=precision)
    want = features(model, targets([9, 5]))
    model.prepare_for_inference_(generation())
    assert all(layer.prepared for layer in model.modules() if isinstance(layer, Linear))
    assert (features(model, targets([9, 5])) - want).abs().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["tied", "untied-decaying-pre-norm"])
def test_half_precision(name, dtype):
    """Close to float32 over a long text, step by step too: the state is kept in float32."""
    if dtype == torch.float16 and torch.__version__ < (2,):
        pytest.skip("torch 1 has no products in float16 on a CPU")
    settings = {**VARIANTS[name], "max_target_positions": 600}
    wide, half = build(double=False, **settings), build(double=False, **settings).to(dtype)
    tokens = targets([500])
    want, found = features(wide, tokens), features(half, tokens).float()
    scale, allowed = want.abs().max(), 0.05 if dtype == torch.bfloat16 else 0.01
    assert (found - want).abs().max() < allowed * scale
    state = {}
    for t in range(1, 21):
        step = features(half, tokens[:, :t], state).float()
    assert (step[:, -1] - want[:, 19]).abs().max() < allowed * scale


def test_layers_are_dropped_and_pruned():
    model = build(decoder_layers=3, decoder_layerdrop=0.5).train()
    assert len({features(model, targets([5]))[0, 0, 0].item() for _ in range(20)}) > 3
    pruned = build(decoder_layers=3, decoder_layers_to_keep="0,2", seed=2)
    pruned.load_state_dict(model.state_dict())
    assert torch.equal(pruned.decoder.pack_queries[1].weight, model.decoder.pack_queries[2].weight)
    assert torch.equal(pruned.decoder.layers[1].ffn.fc1.weight, model.decoder.layers[2].ffn.fc1.weight)


def test_recomputed_activations_have_the_same_gradients():
    grads = []
    for on in False, True:
        model = build(checkpoint_activations=on).train()
        features(model, targets([9, 5])).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"decoder_attention_heads": 5}, "--decoder-attention-heads 5 does not divide --decoder-embed-dim 32"),
        ({"projection_length": 0}, "--projection-length must be at least 1, but is 0"),
        ({"causal_mean": "rising"}, "--causal-mean 'rising' is unknown; choose from uniform, decaying"),
        ({"adaptive_input": True}, "--adaptive-input does not go with Luna: its input embeddings are plain"),
        ({"adaptive_softmax_cutoff": [12, 99]}, "12,99 goes beyond the dictionary of 44 words"),
    ],
)
def test_settings_that_make_no_model(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_architectures_build(arch):
    cfg = LunaLanguageModelConfig(**{**ARCHITECTURES[arch], "decoder_layers": 1, "max_target_positions": 50})
    words = dictionary(20)
    model = LunaLanguageModel.build_model(cfg, Namespace(source_dictionary=words, target_dictionary=words))
    assert features(model, targets([3]).clamp(max=20)).shape[-1] == cfg.decoder_embed_dim


# ---- fairseq's commands

COUNTING = "zero one two three four five six seven eight nine".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that counts from any digit on, after fairseq-preprocess and fairseq-train as anybody types them."""
    folder = tmp_path_factory.mktemp("counting")
    lines = [" ".join(COUNTING[(first + i) % 10] for i in range(12)) for first in range(10)]
    for split, times in ("train", 30), ("valid", 1), ("test", 1):
        (folder / split).write_text("\n".join(lines * times) + "\n")
    texts = [word for split in ("train", "valid", "test") for word in (f"--{split}pref", folder / split)]
    run(fairseq("preprocess", "--only-source", *texts, "--destdir", folder / "bin"))
    run(
        fairseq(
            *("train", folder / "bin", "--task", "language_modeling", "--arch", "luna_lm_tiny"),
            *("--decoder-layers", 1, "--decoder-embed-dim", 32, "--decoder-ffn-embed-dim", 64),
            *("--tokens-per-sample", 64, "--sample-break-mode", "eos", "--batch-size", 30, "--max-epoch", 8),
            *("--optimizer", "adam", "--lr", 0.02, "--clip-norm", 1, "--save-dir", folder, "--no-epoch-checkpoints"),
        )
    )
    return folder


def test_fairseq_eval_lm(trained):
    """Whole, and with a window of context; a text that is known but for its first word costs little."""
    for window in (), ("--context-window", 20):
        done = run(fairseq("eval_lm", trained / "bin", "--path", trained / "checkpoint_best.pt", *window))
        perplexity = float(re.search(r"Perplexity: ([\d.]+)", done.stdout + done.stderr)[1])
        assert perplexity < 1.6  # of a first word that is any of ten, and twelve that follow: 10 ** (1 / 13) = 1.19


def test_a_resumed_training_equals_an_unbroken_one(trained, tmp_path):
    """To the bit, in the midst of an epoch, with dropout."""
    words = "--task", "language_modeling", "--arch", "luna_lm_tiny", "--decoder-layers", 1, "--decoder-embed-dim", 32
    words += "--tokens-per-sample", 64, "--sample-break-mode", "eos", "--batch-size", 50, "--optimizer", "adam"
    words += "--dropout", 0.2, "--lr", 0.01, "--no-epoch-checkpoints", "--disable-validation"
    assert_resumes(tmp_path, trained / "bin", *words)


def test_fairseq_interactive_goes_on_counting(trained):
    words = "--task", "language_modeling", "--path", trained / "checkpoint_best.pt", "--max-len-b", 14
    for search in ("--beam", 3), ("--sampling", "--sampling-topk", 1, "--beam", 1):
        done = run(fairseq("interactive", trained / "bin", *words, *search), input="three four five\n")
        (said,) = re.findall(r"^H-0\t\S+\t(.*)$", done.stdout, re.M)
        assert said.split()[:8] == COUNTING[3:] + ["zero"]


def test_the_interface_of_python(trained):
    model = LunaLanguageModel.from_pretrained(str(trained), "checkpoint_best.pt", str(trained / "bin"))
    assert model.sample(["seven eight"], beam=2, max_len_b=6)[0].split()[:4] == ["seven", "eight", "nine", "zero"]
    assert model.models[0].cfg.arch == "luna_lm_tiny"


def test_the_guide_names_what_there_is():
    """The page's commands are parsed in tests of all guides; these are its architectures."""
    page = (ROOT / "docs" / "language-model.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(luna_lm\w*)`", page)) == set(ARCHITECTURES)


@pytest.mark.parametrize("positions", [None, 300], ids=["of-the-samples", "of-the-task"])
@pytest.mark.parametrize("road", ["arch", "yaml"])
def test_positions_reach_as_far_as_the_task_says(tmp_path, road, positions):
    """By fairseq-train, and by fairseq-hydra-train with a model of configs/model/."""
    dictionary().save(str(tmp_path / "dict.txt"))
    asked = {"data": str(tmp_path), "tokens_per_sample": 200, "max_target_positions": positions}
    if road == "arch":
        words = [str(tmp_path), "--task", "language_modeling", "--arch", "luna_lm_tiny", "--tokens-per-sample", "200"]
        words += [] if positions is None else ["--max-target-positions", str(positions)]
        args = options.parse_args_and_arch(options.get_training_parser(), [*words, "--optimizer", "adam"])
        cfg = convert_namespace_to_omegaconf(args)
    else:
        model = OmegaConf.load(str(ROOT / "configs" / "model" / "luna_lm_tiny.yaml"))
        cfg = OmegaConf.create({"task": {"_name": "language_modeling", **asked}, "model": model})
        add_defaults(cfg)
    built = tasks.setup_task(cfg.task).build_model(cfg.model)
    assert built.max_positions() == (positions or 200) and built.cfg.projection_length == 16
    assert type(built).__name__ == "LunaLmTinyModel"


def test_settings_of_the_transformer_have_its_defaults():
    theirs = TransformerLanguageModelConfig.__dataclass_fields__
    ours = {name: field.default for name, field in LunaLanguageModelConfig.__dataclass_fields__.items()}
    both = [name for name in ours if name in theirs and name not in ("adaptive_input", "character_embeddings")]
    assert len(both) > 25
    assert {name: ours[name] for name in both} == {name: theirs[name].default for name in both}
