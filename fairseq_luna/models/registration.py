"""How a named architecture becomes settings and a model of its own, which fairseq finds by its name."""

from dataclasses import field, make_dataclass
from typing import Any, Dict, Type

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from hydra.core.config_store import ConfigStore


def camel_case(arch: str) -> str:
    """luna_transformer_tiny -> LunaTransformerTiny"""
    return "".join(part.capitalize() for part in arch.split("_"))


def same_field(config: Type[Any], name: str) -> Any:
    """A field for a dataclass, with the default and the description that other settings have under that name."""
    theirs = config.__dataclass_fields__[name]
    return field(default=theirs.default, metadata=theirs.metadata)


def config_of(
    arch: str, settings: Dict[str, Any], description: str, base: Type[Any], module: Dict[str, Any]
) -> Type[Any]:
    """The settings of an architecture as a class, with its own defaults.

    Args:
        arch: its name.
        settings: what it sets beside the defaults of `base`; nothing in that of the base itself.
        description: in a few words.
        base: the settings that it extends.
        module: the `globals()` of the caller, where pickle looks for the class.
    """
    if not settings:
        return base
    fields = base.__dataclass_fields__
    defaults = [
        (name, fields[name].type, field(default=value, metadata=fields[name].metadata))
        for name, value in {"arch": arch, **settings}.items()
    ]
    name = camel_case(arch) + "Config"
    config = make_dataclass(name, defaults, bases=(base,), namespace={"__module__": module["__name__"]})
    config.__module__ = module["__name__"]  # Python 3.12 writes this file's there
    config.__doc__ = f"Settings of `{arch}`: {description}."
    module[name] = config
    return config


def register(arch: str, config: Type[FairseqDataclass], base: Type[BaseFairseqModel], module: Dict[str, Any]) -> None:
    """A model of its own for an architecture: fairseq fills in the defaults of the model before it asks what an
    architecture would set.

    Args:
        arch: its name.
        config: its settings.
        base: the model, which is registered by itself.
        module: the `globals()` of the caller, where pickle looks for the class.
    """
    if config.arch != base.arch:
        name = camel_case(arch) + "Model"
        model = type(name, (base,), {"__module__": module["__name__"], "__doc__": config.__doc__})
        module[name] = register_model(arch, dataclass=config)(model)
    # As values without the type that fairseq has put in: settings of one type that are read as another would be refused
    # by omegaconf before the model's check can say what to do.
    node = {**vars(config()), "_name": arch}
    ConfigStore.instance().store(name=arch, group="model", node=node, provider="fairseq")
