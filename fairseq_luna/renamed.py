"""Names of earlier versions. They still work in commands, in YAML files and in checkpoints.

Imports the standard library only: what compares the settings of two runs needs it before fairseq is there.
"""

from enum import Enum
from typing import Any, Dict, List

ARCHITECTURES = {
    f"luna_transformer{size}_{before}": f"luna_transformer{size}_{now}"
    for size in ("", "_tiny", "_wmt_en_de")
    for before, now in (("plain_packs", "local"), ("full_cross", "hybrid"))
}
VALUES = {
    "causal_mean": {"flat": "uniform"},
    "cross_attention": {"full": "softmax"},
    "pack_values": {"plain": "unprojected"},
}


def former(setting: str) -> List[str]:
    """The values that a setting had before others took their place."""
    return list(VALUES[setting])


def current(setting: str, value: Any) -> Any:
    """The value of a setting by its name of today.

    Args:
        setting: its name, such as causal_mean. It may be dotted, as in a YAML file: model.causal_mean.
        value: of any type. One that has no newer name is returned as it is.
    """
    if not isinstance(value, (str, Enum)):
        return value
    names: Dict[Any, Any] = {**ARCHITECTURES, **VALUES.get(setting.rpartition(".")[2], {})}
    return names.get(value, value)
