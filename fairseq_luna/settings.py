"""All settings with their defaults and what they mean, listed from the classes that hold them."""

from argparse import SUPPRESS
from dataclasses import MISSING
from textwrap import wrap
from typing import Any, Dict, List, NamedTuple, Type

from fairseq.dataclass import FairseqDataclass

from .models.checks import flag
from .models.luna_classifier import config as luna_classifier
from .models.luna_lm import config as luna_lm
from .models.luna_transformer import architectures as luna_transformer
from .optim.apollo import FairseqApolloConfig
from .optim.lr_scheduler.milestone import MilestoneConfig

FORMS = (
    "These are flags of fairseq-train. In a YAML, --dropout is model.dropout; a switch that is on can be turned off "
    "there alone, e.g. by model.encoder_normalize_before: false."
)
# of all models, those of translation first
MODELS: Any = (luna_transformer, luna_lm, luna_classifier)
ARCHITECTURES: Dict[str, Dict[str, Any]] = {k: v for model in MODELS for k, v in model.ARCHITECTURES.items()}
DESCRIPTIONS: Dict[str, str] = {k: v for model in MODELS for k, v in model.DESCRIPTIONS.items()}
CONFIGS: Dict[str, Type[FairseqDataclass]] = {k: v for model in MODELS for k, v in model.CONFIGS.items()}
# the setting that each group begins with, where a model has it
GROUPS = {
    "projection_length": "Luna",
    "encoder_embed_path": "encoder",
    "decoder_embed_path": "decoder",
    "decoder_embed_dim": "decoder",
    "alignment_layer": "alignment",
    "dropout": "regularisation and activation",
    "layernorm_embedding": "embeddings and positions",
    "pooling": "classification",
    "checkpoint_activations": "memory in training",
    "inference_precision": "generation",
    "share_all_embeddings": "embeddings and positions",
    "share_decoder_input_output_embed": "embeddings and positions",
    "adaptive_softmax_cutoff": "adaptive softmax",
}
# the options of fairseq-train that bring settings of their own
OTHERS: Dict[str, Type[FairseqDataclass]] = {
    "--optimizer apollo": FairseqApolloConfig,
    "--lr-scheduler milestone": MilestoneConfig,
}


class Setting(NamedTuple):
    """A setting of a class: `model.NAME` in a YAML, --NAME with dashes on the command line."""

    name: str
    default: Any
    help: str


def settings_of(config: Type[FairseqDataclass]) -> List[Setting]:
    """The settings that have a meaning of their own, in order. Others follow fairseq's, or are refused."""
    return [
        Setting(name, item.default if item.default is not MISSING else item.default_factory(), item.metadata["help"])
        for name, item in config.__dataclass_fields__.items()
        if item.metadata.get("help") not in (None, SUPPRESS)
    ]


def groups_of(config: Type[FairseqDataclass]) -> Dict[str, List[Setting]]:
    """The settings of a model by the titles of their groups. Left out is `arch`, which is chosen and not set."""
    groups: Dict[str, List[Setting]] = {"": []}
    for setting in settings_of(config):
        title = GROUPS.get(setting.name, next(reversed(groups)))
        groups.setdefault(title, []).append(setting)
    del groups[""]
    return groups


def base_of(arch: str) -> str:
    """The architecture whose settings another one changes."""
    return next(next(iter(model.ARCHITECTURES)) for model in MODELS if arch in model.ARCHITECTURES)


def shown(value: Any) -> str:
    """A default as people read it: the value of a flag, or whether a switch is on."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value in (None, []) else str(value)


def text(arch: str, width: int) -> str:
    """All settings of an architecture, and of what else the plugin brings, as lines of a terminal.

    Args:
        arch: a key of `ARCHITECTURES`.
        width: of the terminal, in columns.
    """
    parts = [f"{arch}: {DESCRIPTIONS[arch]}", "\n".join(wrap(FORMS, width, break_on_hyphens=False))]
    if ARCHITECTURES[arch]:
        parts.append(f"* marks what this architecture sets; all else is as in {base_of(arch)}.")
    groups = {**groups_of(CONFIGS[arch]), **{title: settings_of(config) for title, config in OTHERS.items()}}
    rows = [
        [
            (f"{'*' if s.name in ARCHITECTURES[arch] else ' '} {flag(s.name)}", shown(s.default), s.help)
            for s in settings
        ]
        for settings in groups.values()
    ]
    first, second = (2 + max(len(row[i]) for group in rows for row in group) for i in (0, 1))
    for title, group in zip(groups, rows):
        lines = [title if title.startswith("--") else title[0].upper() + title[1:]]
        for name, default, meaning in group:
            head, *rest = wrap(meaning, max(24, width - first - second), break_on_hyphens=False)
            lines.append(f"{name:<{first}}{default:<{second}}{head}")
            lines += [" " * (first + second) + line for line in rest]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
