"""What all models check of their settings."""

import argparse
import logging
import math
from dataclasses import field
from functools import lru_cache
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Type

from fairseq import models
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass

from ..renamed import current

logger = logging.getLogger(__name__)


def flag(name: str) -> str:
    """encoder_layers -> --encoder-layers"""
    return "--" + name.replace("_", "-")


def refused(off: Any, instead: str, same_as: Optional[str] = None) -> Any:
    """A field whose one good value is `off`, or the value of the setting that `same_as` names."""
    return field(default=off, metadata={"help": argparse.SUPPRESS, "instead": instead, "same_as": same_as})


def given_by(cfg: Any, name: str) -> Any:
    """A setting of a dataclass, an omegaconf or argparse object or a dictionary; None where there is none."""
    return cfg.get(name) if isinstance(cfg, dict) else getattr(cfg, name, None)


def completed(cfg: Any, config: Type[FairseqDataclass], follows: Dict[str, str]) -> Dict[str, Any]:
    """All settings of a class by their names, from whatever fairseq hands over.

    Args:
        cfg: as in `given_by`.
        config: whose fields are the settings; a checkpoint of an earlier version lacks what has come since.
        follows: settings that follow another one unless given.

    Raises:
        ValueError: if the settings are of another model than the one that is named, or one is refused.
    """
    model, arch = given_by(cfg, "_name"), given_by(cfg, "arch")
    if model and arch and current("arch", arch) != current("arch", _arch_of(model)):
        raise ValueError(
            f"The model is named {model}, but its settings are listed and are those of {arch}: a name alone does not "
            f"change them. Choose the model by model={model}, or by --arch {model}."
        )
    values: Dict[str, Any] = {}
    for name, setting in config.__dataclass_fields__.items():
        if not name.startswith("_"):
            value = given_by(cfg, name)
            values[name] = setting.default if value is None else current(name, value)
            if value is not None and value != values[name]:
                tell_name(flag(name), str(value), str(values[name]))
    for name, leader in follows.items():
        if values[name] is None:
            values[name] = values[leader]
    refuse(values, config)
    if "checkpoint_activations" in values:
        values["checkpoint_activations"] = values["checkpoint_activations"] or values["offload_activations"]
    if values.get("adaptive_softmax_cutoff") is not None:
        values["adaptive_softmax_cutoff"] = list(values["adaptive_softmax_cutoff"])
    return values


@lru_cache(maxsize=None)  # once in a process
def tell_name(setting: str, before: str, now: str) -> None:
    # where fairseq's commands log, and no warning: an earlier checkpoint has such names without anybody's doing
    logger.info(f"{setting} {before} is now called {now}. The old name still works.")


def _arch_of(model: str) -> str:
    """The architecture whose settings a model has by default: that of its name, or of what its settings extend."""
    return getattr(models.MODEL_DATACLASS_REGISTRY.get(model), "arch", model)


def refuse(values: Dict[str, Any], config: Type[FairseqDataclass]) -> None:
    """Refuses what fairseq's model of the kind takes and Luna does not.

    Raises:
        ValueError: with the first such setting that is not off, and what to do instead.
    """
    for name, setting in config.__dataclass_fields__.items():
        if "instead" not in setting.metadata:
            continue
        if values[name] in (setting.default, values.get(setting.metadata["same_as"])):
            continue
        given = flag(name) if values[name] is True else f"{flag(name)} {values[name]}"
        raise ValueError(f"{given} does not go with Luna: {setting.metadata['instead']}.")


def check_sizes(values: Dict[str, Any], names: Iterable[str]) -> None:
    """Sizes and numbers of parts.

    Raises:
        ValueError: if one is below 1.
    """
    for name in names:
        if values[name] < 1:
            raise ValueError(f"{flag(name)} must be at least 1, but is {values[name]}.")


def check_slots(values: Dict[str, Any]) -> None:
    """How many tokens share a slot.

    Raises:
        ValueError: if there would be more slots than tokens, or the settings contradict each other.
    """
    least, most, share = values["tokens_per_slot"], values["most_tokens_per_slot"], values["varied_share"]
    if not 1 <= least < math.inf:
        raise ValueError(f"--tokens-per-slot must be at least 1, but is {least:g}: a slot holds a token or more.")
    if most is not None and not 1 < most < math.inf:
        raise ValueError(
            f"--most-tokens-per-slot must be above 1, but is {most:g}. Leave it out if all sentences are to have the "
            "same."
        )
    if not 0 < share <= 1:
        raise ValueError(f"--varied-share must be above 0 and at most 1, but is {share:g}.")
    if values["fix_projection_length"] and (least > 1 or most is not None):
        given = f"--tokens-per-slot {least:g}" if least > 1 else f"--most-tokens-per-slot {most:g}"
        raise ValueError(
            f"{given} does not go with --fix-projection-length, which gives every sentence all slots: leave one out."
        )


def check_probabilities(values: Dict[str, Any], names: Iterable[str]) -> None:
    """Probabilities of dropout and the like.

    Raises:
        ValueError: if one is not in [0, 1).
    """
    for name in names:
        if not 0 <= values[name] < 1:
            raise ValueError(f"{flag(name)} must be in [0, 1), but is {values[name]}.")


def check_heads(values: Dict[str, Any], rows: Iterable[Tuple[str, str, str]]) -> None:
    """Numbers of heads. rows: whose dimension it is, the names of the dimension and of the number of heads.

    Raises:
        ValueError: if heads do not divide a dimension.
    """
    for side, dim_name, heads_name in rows:
        dim, heads = values[dim_name], values[heads_name]
        if heads < 1 or dim % heads:
            fits = [str(h) for h in range(1, min(dim, 64) + 1) if dim % h == 0]
            raise ValueError(
                f"{flag(heads_name)} {heads} does not divide {flag(dim_name)} {dim} "
                f"of the {side}; possible are {', '.join(fits)}."
            )


def check_blocks(values: Dict[str, Any], names: Iterable[str]) -> None:
    """Blocks of quantisation noise.

    Raises:
        ValueError: if they do not divide one of the dimensions.
    """
    size = values["quant_noise_pq_block_size"]
    for name in names if values["quant_noise_pq"] > 0 else ():
        if values[name] % size:
            raise ValueError(f"--quant-noise-pq-block-size {size} does not divide {flag(name)} {values[name]}.")


def check_choices(values: Dict[str, Any], rows: Iterable[Tuple[str, Sequence[str]]]) -> None:
    """Settings that are one of a few words.

    Raises:
        ValueError: if one is another word.
    """
    for name, choices in rows:
        if values[name] not in choices:
            raise ValueError(f"{flag(name)} {values[name]!r} is unknown; choose from {', '.join(choices)}.")


def tell_unread(cfg: Any, read: Dict[str, bool], follows: Dict[str, str]) -> None:
    """Warns of settings other than the defaults that nothing in the model reads.

    Args:
        cfg: complete settings, a dataclass.
        read: whether the model reads each of these settings.
        follows: as in `completed`.
    """
    for name, is_read in read.items():
        usual = getattr(cfg, follows[name]) if name in follows else cfg.__dataclass_fields__[name].default
        value = getattr(cfg, name)
        if not is_read and value != usual:
            logger.warning(f"{flag(name)} {value} has no effect: nothing in this model reads it.")


def kept_layers(name: str, given: Any, layers: int) -> Optional[List[int]]:
    """The numbers in a setting such as `encoder_layers_to_keep`, ascending; None for all of so many layers.

    Raises:
        ValueError: if it does not list layers of the model, each once.
    """
    if given in (None, ""):
        return None
    listed = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else list(given)
    try:
        numbers = sorted(map(int, listed))
    except (TypeError, ValueError):
        numbers = []
    if not numbers or len({*numbers}) < len(numbers) or not 0 <= numbers[0] <= numbers[-1] < layers:
        raise ValueError(
            f"{flag(name)} {','.join(map(str, listed))} must list layers to keep, each once, from 0 to {layers - 1}."
        )
    return numbers


def check_adaptive_softmax(values: Dict[str, Any]) -> None:
    """Looks at the bands of words.

    Raises:
        ValueError: if they do not follow each other, or one would have no dimension.
    """
    cutoffs, factor = values["adaptive_softmax_cutoff"], values["adaptive_softmax_factor"]
    if cutoffs is None:
        return
    told = f"--adaptive-softmax-cutoff {','.join(map(str, cutoffs))}"
    if not cutoffs or cutoffs != sorted({*cutoffs}) or cutoffs[0] < 1:
        raise ValueError(f"{told} must be rising numbers of words, from 1, e.g. 2000,10000.")
    if not factor >= 1 or values["decoder_embed_dim"] // factor ** len(cutoffs) < 1:
        raise ValueError(
            f"--adaptive-softmax-factor {factor} must be at least 1, and so small that --decoder-embed-dim "
            f"{values['decoder_embed_dim']} can be divided by it for each of the {len(cutoffs)} bands of {told}."
        )


def check_cutoffs(cutoffs: Optional[List[int]], dictionary: Dictionary) -> None:
    """Looks at the bands of words of a dictionary.

    Raises:
        ValueError: if the last one begins beyond it.
    """
    if cutoffs is not None and cutoffs[-1] > len(dictionary):
        raise ValueError(
            f"--adaptive-softmax-cutoff {','.join(map(str, cutoffs))} goes beyond the dictionary of "
            f"{len(dictionary)} words that are predicted; end at a smaller one."
        )
