"""Settings of a checkpoint that may come from anybody.

fairseq runs some texts among the settings of its models and tasks as Python. So a packed model may have only models and
a task that are known here, and a text only where a setting has choices. `pack` writes no others.
"""

import pickle
from argparse import Namespace
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Dict, List

from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.tasks.translation import TranslationConfig

from ..models.luna_transformer import LunaTransformerModel

NAMES = "_name", "arch"  # settings with the name of the model
REPLACED = "data", "source_lang", "target_lang"  # settings of the task that loading sets anew


def check_settings(state: Any) -> None:
    """Refuse a checkpoint whose settings fairseq could run, or whose model is neither a Luna nor fairseq's Transformer.

    Args:
        state: what the checkpoint holds.

    Raises:
        pickle.UnpicklingError: if there is such a setting.
    """
    if not isinstance(state, dict) or state.get("args") is not None or not isinstance(state.get("cfg"), dict):
        raise pickle.UnpicklingError("it is no checkpoint that scripts/pack.sh wrote")
    task, model = (dictionary(state["cfg"].get(part)) for part in ("task", "model"))
    if task.get("_name") != "translation":
        raise pickle.UnpicklingError(f"its task is {task.get('_name')!r}, but only 'translation' is taken")
    if task.get("eval_bleu"):
        raise pickle.UnpicklingError("it asks for BLEU in training: eval_bleu")
    for name in REPLACED:
        if not isinstance(task.get(name, ""), str) or "${" in task.get(name, ""):
            raise pickle.UnpicklingError(f"its {name} is {task[name]!r}, which is no text")
    check_values(task, types_of(TranslationConfig), ("_name", *REPLACED))
    check_values(model, model_types(model), NAMES)


def model_types(model: Dict[str, Any]) -> Dict[str, Any]:
    """The settings that a model may have, with their types."""
    names = {model[name] for name in NAMES if isinstance(model.get(name), str)}
    found = [ARCH_MODEL_REGISTRY.get(name, MODEL_REGISTRY.get(name)) for name in names]
    if found and all(each and issubclass(each, LunaTransformerModel) for each in found):
        return types_of(MODEL_DATACLASS_REGISTRY[min(names)])
    if found and all(each is TransformerModel for each in found):
        return {"arch": str, **types_of(TransformerConfig)}
    raise pickle.UnpicklingError(
        f"its model is {' or '.join(map(repr, sorted(names)))}, but only a Luna or a Transformer of fairseq is taken"
    )


def types_of(config: Any) -> Dict[str, Any]:
    """The types of settings by their names. fairseq's Transformer nests some: encoder.layers is encoder_layers."""
    found: Dict[str, Any] = {}
    for each in fields(config):
        if is_dataclass(each.type):
            found.update({f"{each.name}_{name}": kind for name, kind in types_of(each.type).items()})
        else:
            found[each.name] = each.type
    return found


def check_values(settings: Dict[str, Any], types: Dict[str, Any], names: Any) -> None:
    for name, value in settings.items():
        if name not in types:
            raise pickle.UnpicklingError(f"it has a setting {name!r}, which is unknown")
        if name in names and (value is None or isinstance(value, str)):
            continue  # they are checked by themselves
        if not harmless(value, types[name]):
            raise pickle.UnpicklingError(f"its setting {name} is {value!r}, which is no number and none of its choices")


def harmless(value: Any, kind: Any) -> bool:
    """Whether a value of a setting is numbers, or one of the texts that the setting can have."""
    if type(value) is list:
        return all(type(each) in (int, float) for each in value)
    if type(value) is str:
        return value in choices(kind)
    return value is None or type(value) in (bool, int, float)


def choices(kind: Any) -> List[str]:
    """The texts that a setting of a type can have: none but those of an Enum."""
    kinds = [each for each in (kind, *getattr(kind, "__args__", ())) if isinstance(each, type)]  # those of Optional too
    return [member.value for each in kinds if issubclass(each, Enum) for member in each]


def dictionary(settings: Any) -> Dict[str, Any]:
    """Settings that are a dictionary or, of models without a dataclass, a Namespace."""
    found = vars(settings) if isinstance(settings, Namespace) else settings
    if type(found) is not dict:
        raise pickle.UnpicklingError("it is no checkpoint of fairseq: it lacks settings")
    return found


# ---- writing


def portable(model: Any, task: Any) -> Dict[str, Any]:
    """The settings of a trained model and its task that are of use elsewhere: without paths, and those of the training.

    Raises:
        pickle.UnpicklingError: if it is neither a Luna nor fairseq's Transformer.
    """
    types = model_types(dictionary(model))
    kept = {name: value for name, value in dictionary(model).items() if name in types}
    kept.update(encoder_embed_path=None, decoder_embed_path=None)
    known = types_of(TranslationConfig)
    tasked = {
        name: value
        for name, value in dictionary(task).items()
        if name in known and (name == "_name" or harmless(value, known[name]))
    }
    tasked.update(data=".", eval_bleu=False)
    return {"model": Namespace(**kept) if isinstance(model, Namespace) else kept, "task": tasked}
