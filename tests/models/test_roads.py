"""Every named architecture builds the same model by every road that fairseq has to one."""

import functools
import pickle
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from commands import ROOT
from fairseq import checkpoint_utils, models, options, tasks
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from tiny import dictionary, each

from fairseq_luna.models.checks import flag
from fairseq_luna.models.luna_transformer import LunaTransformerModel
from fairseq_luna.models.luna_transformer.architectures import ARCHITECTURES, CONFIGS
from fairseq_luna.models.luna_transformer.checks import checked
from fairseq_luna.models.luna_transformer.config import LunaTransformerConfig

try:
    from hydra import compose, initialize_config_dir
except ImportError:  # hydra 1.0
    from hydra.experimental import compose, initialize_config_dir

pytestmark = [pytest.mark.stock, pytest.mark.filterwarnings("ignore::UserWarning")]  # hydra's, of deprecations

HAS_META = hasattr(torch, "set_default_device")  # torch >= 2.0: the large models then cost neither time nor memory
NAMES = [name for name in ARCHITECTURES if HAS_META or "tiny" in name]
named = pytest.mark.parametrize(
    "name", each({name: name for name in NAMES}, [name for name in NAMES if "tiny" in name])
)
OTHER = "luna_transformer_tiny_hybrid"
LANGUAGES = {"source_lang": "in", "target_lang": "out"}
SMALL = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "share_all_embeddings": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    for lang in "in", "out":
        dictionary().save(str(folder / f"dict.{lang}.txt"))
    return str(folder)


def build(model, data, device="meta"):
    """As fairseq's commands do; on "meta" without initial values."""
    task = tasks.setup_task(OmegaConf.create({"_name": "translation", "data": data, **LANGUAGES}))
    with torch.device(device) if HAS_META else nullcontext():
        return task.build_model(model)


# ---- the roads: each gives the settings to build from, once for each way in which they may arrive


def by_arch(name, given, data="data"):
    """The whole configuration of fairseq-train."""
    words = [word for key, value in given.items() for word in ([flag(key)] if value is True else [flag(key), value])]
    words = [data, "--arch", name, *map(str, words), "-s", "in", "-t", "out", "--optimizer", "adam", "--lr", "1e-3"]
    args = options.parse_args_and_arch(options.get_training_parser(), words)
    return convert_namespace_to_omegaconf(args)


def composed(folder, name, *overrides):
    """Of scripts/train.sh, where the plugin is known before hydra composes, and of fairseq-hydra-train, where it is
    not and values come without types."""
    hydra_init(name)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(folder)):
        typed = compose(name, overrides=list(overrides))
    plain = OmegaConf.to_container(typed.model, resolve=True, enum_to_str=True)
    return [with_defaults(typed), with_defaults({"model": plain})]


def with_defaults(cfg):
    cfg = OmegaConf.create(cfg)
    add_defaults(cfg)
    return cfg.model


def own_yaml(folder, model, *overrides):
    OmegaConf.save(OmegaConf.create({"model": model}), str(folder / "own.yaml"))
    return composed(folder, "own", *overrides)


def in_group(name, given, folder):
    return composed(ROOT / "configs", "quickstart", f"model={name}", *(f"model.{k}={v}" for k, v in given.items()))


ROADS = {
    "arch": lambda name, given, folder: [by_arch(name, given).model],
    "own-yaml": lambda name, given, folder: own_yaml(folder, {"_name": name, **given}),
    "name-over-own-yaml": lambda name, given, folder: own_yaml(
        folder, {"_name": OTHER, **given}, f"model._name={name}"
    ),
    "group": in_group,
    "arch-for-name": lambda name, given, folder: [with_defaults({"model": {"arch": name, **given}})],
    "name-as-key": lambda name, given, folder: [with_defaults({"model": {name: given}})],
    "name-alone": lambda name, given, folder: [] if given else [with_defaults({"model": name})],
}
COMPOSED = "arch", "own-yaml", "name-over-own-yaml", "group"  # by hydra, which takes its time


def assert_is(model, name, given, data):
    """By every setting, and by the parameters that they make."""
    want, expected = by_settings(name, tuple(given.items()), data)
    assert model.cfg == want
    assert shapes(model) == shapes(expected)
    assert parameters(model) == parameters(expected)


@functools.lru_cache(maxsize=None)
def by_settings(name, given, data):
    settings = {**ARCHITECTURES[name], **dict(given)}
    expected = build(OmegaConf.create({"_name": "luna_transformer", **settings}), data)
    return checked({"arch": name, **settings}), expected


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@named
@pytest.mark.parametrize("road", ROADS)
def test_each_road_builds_the_same_model(data, tmp_path, road, name):
    for given in ({}, SMALL) if road not in COMPOSED or "tiny_local" in name else ({},):
        for settings in ROADS[road](name, given, tmp_path):
            model = build(settings, data)
            assert type(model) is models.ARCH_MODEL_REGISTRY[name]
            assert_is(model, name, given, data)


def test_a_switch_that_the_architecture_has_on_stays_on(data):
    model = build(by_arch("luna_transformer_tiny", {"encoder_normalize_before": True}).model, data)
    assert_is(model, "luna_transformer_tiny", {}, data)


def test_a_switch_that_the_architecture_has_on_is_turned_off(data, tmp_path):
    off = {"encoder_normalize_before": False, "decoder_normalize_before": False}
    for settings in own_yaml(tmp_path, {"_name": "luna_transformer_tiny", **off}):
        assert_is(build(settings, data), "luna_transformer_tiny", off, data)


# ---- checkpoints

LATER = (  # than the first version, in which a model had all else
    *("word_dropout", "inference_precision", "pack_bias", "encoder_self_attention", "decoder_self_attention"),
    *("cross_attention", "causal_mean", "encoder_unpack_bias", "pack_values", "arch"),
)
# what a checkpoint says of its model, from what one of today says
FORMS = {
    "today": lambda model: model,
    "before-arch": lambda model: {key: value for key, value in model.items() if key != "arch"},
    "before-names": lambda model: {**FORMS["before-arch"](model), "_name": "luna_transformer"},
    "before-settings": lambda model: {
        key: value for key, value in model.items() if key not in LATER or key in ARCHITECTURES[model["_name"]]
    },
}


def save(cfg, model, path):
    history = [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}]
    state = {"cfg": cfg, "args": None, "model": model.state_dict(), "optimizer_history": history}
    torch.save({**state, "extra_state": {"train_iterator": {"epoch": 1}}}, str(path))


@named
def test_a_checkpoint_is_loaded_as_the_model_that_it_is_of(data, tmp_path, name):
    """As fairseq-generate loads it, with and without --model-overrides, and as training and fairseq's hub do."""
    cfg = by_arch(name, SMALL, data)
    trained, path = build(cfg.model, data, "cpu"), tmp_path / "model.pt"
    cfg = OmegaConf.to_container(cfg, enum_to_str=True)
    for form, change in FORMS.items():
        save({**cfg, "model": change(cfg["model"])}, trained, path)
        overrides = {} if form == "today" else {"dropout": 0.3}
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides)
        arch = "luna_transformer" if form == "before-names" else name
        assert model.cfg == checked({**ARCHITECTURES[name], **SMALL, **overrides, "arch": arch})
        loaded = model.state_dict()
        # fairseq 0.12.2 never sets its _float_tensor, which may be no number
        assert all(torch.equal(v, loaded[k]) for k, v in trained.state_dict().items() if "_float_tensor" not in k)
    resumed = build(OmegaConf.create(cfg["model"]), data)
    resumed.load_state_dict(model.state_dict(), strict=True, model_cfg=OmegaConf.create(cfg["model"]))
    hub = LunaTransformerModel.from_pretrained(str(tmp_path), data_name_or_path=data, dropout=0.4)
    assert hub.models[0].cfg == checked({**ARCHITECTURES[name], **SMALL, "dropout": 0.4, "arch": name})


# ---- what is refused: a name alone, over settings that are all given


def test_another_name_over_a_group_is_refused(data):
    for settings in composed(ROOT / "configs", "quickstart", f"model._name={OTHER}"):
        with pytest.raises(ValueError, match=f"are those of luna_transformer_tiny_local: .* by model={OTHER},"):
            build(settings, data)


def test_another_name_over_the_settings_of_a_checkpoint_is_refused(data, tmp_path):
    cfg = by_arch("luna_transformer_tiny", SMALL, data)
    save(OmegaConf.to_container(cfg, enum_to_str=True), build(cfg.model, data, "cpu"), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"is named {OTHER}, but its settings .* are those of luna_transformer_tiny:"):
        checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "model.pt")], {"model": {"_name": OTHER}})


def test_architectures_of_others(data, tmp_path, monkeypatch):
    """Those that somebody registers for our model, as fairseq's documentation tells: by --arch they work as ever, and
    by YAML, where fairseq gives them the settings of the base, they are refused and not another model."""

    def mine(args):
        args.encoder_layers = getattr(args, "encoder_layers", 1)

    for registry in "ARCH_MODEL_REGISTRY", "ARCH_MODEL_NAME_REGISTRY", "ARCH_CONFIG_REGISTRY":
        monkeypatch.setattr(models, registry, dict(getattr(models, registry)))
    models.register_model_architecture("luna_transformer", "mine")(mine)
    assert len(build(by_arch("mine", {}).model, data).encoder.layers) == 1
    with pytest.raises(ValueError, match="is named mine, but its settings .* are those of luna_transformer:"):
        build(with_defaults({"model": {"_name": "mine"}}), data)


# ---- what fairseq does with the classes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_classes_can_be_pickled(name):
    """fairseq sends configurations, which may name their classes, to the processes of several GPUs."""
    for found in CONFIGS[name], models.ARCH_MODEL_REGISTRY[name]:
        assert pickle.loads(pickle.dumps(found)) is found


# ---- models of others, and settings of before


def test_a_model_that_extends_ours_builds_by_name(data, monkeypatch):
    """Its settings inherit the name of the architecture that they extend."""

    @dataclass
    class Config(LunaTransformerConfig):
        encoder_layers: int = 1

    for registry in (
        *("MODEL_REGISTRY", "MODEL_DATACLASS_REGISTRY"),
        *("ARCH_MODEL_REGISTRY", "ARCH_MODEL_NAME_REGISTRY", "ARCH_CONFIG_REGISTRY"),
    ):
        monkeypatch.setattr(models, registry, dict(getattr(models, registry)))
    models.register_model("theirs", dataclass=Config)(type("Theirs", (LunaTransformerModel,), {}))
    model = build(with_defaults({"model": {"_name": "theirs", **SMALL, "encoder_layers": 1}}), data)
    assert len(model.encoder.layers) == 1 and type(model).__name__ == "Theirs"


def test_a_name_over_the_settings_of_another_is_told(data, caplog):
    """A YAML of before lists all settings and not the architecture that they are of."""
    listed = {**FORMS["before-arch"](vars(CONFIGS["luna_transformer_tiny"]())), "_name": OTHER}
    build(with_defaults({"model": listed}), data)
    assert f"The model is named {OTHER}, but all its settings are those of luna_transformer_tiny." in caplog.messages
