"""Models out of checkpoints, ready to translate on a device."""

import logging
import pickle
import sys
from contextlib import contextmanager
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Union

import torch
from fairseq import checkpoint_utils
from fairseq.modules import LearnedPositionalEmbedding
from omegaconf import open_dict

from ..errors import Problem
from ..models.luna_transformer import LunaTransformerModel
from .places import Place

PRECISIONS = "fp32", "fp16", "bf16", "int8"


class Loaded(NamedTuple):
    """Models that translate together, and the task of fairseq that they share."""

    models: List[Any]
    task: Any


def device_of(name: Union[str, torch.device, None]) -> torch.device:
    """The device of that name; a GPU if there is one where it is None."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise Problem(f"device {name!r} is none of torch's: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Problem(f"device {name!r} is a GPU, but torch finds none here: take device='cpu'")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def check_precision(device: torch.device, precision: Optional[str]) -> None:
    """Refuse a precision that the device cannot compute in."""
    if precision is not None and precision not in PRECISIONS:
        raise Problem(f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}")
    if device.type == "cpu" and precision == "fp16":
        raise Problem("precision fp16 is for a GPU: leave it out")
    if device.type != "cpu" and precision == "int8":
        raise Problem("precision int8 is for a CPU: add --cpu (in Python device='cpu'), or leave it out")


def check_slots(model: Any, name: str) -> None:
    """Refuse a model whose slots do not follow the length of the source."""
    encoder: Any = getattr(model, "encoder", None)
    if getattr(encoder, "packed_embedding", None) is None:
        raise Problem(f"the model of {name} has no slots: leave tokens_per_slot out")
    if encoder.slot_count.fixed:
        raise Problem(
            f"the model of {name} was trained with --fix-projection-length, so that its slots do not follow the "
            "source: leave tokens_per_slot out"
        )


def load(
    places: Sequence[Place], device: torch.device, precision: Optional[str], tokens_per_slot: Optional[float] = None
) -> Loaded:
    """Load models for translating, on a device.

    Args:
        places: of their files.
        device: on which they are to be.
        precision: see `Translator`.
        tokens_per_slot: see `Translator`.

    Raises:
        Problem: if a checkpoint cannot be loaded, or does not suit the precision or the slots.
    """
    check_precision(device, precision)
    recipe = places[0].recipe
    task, models = None, []
    overrides = {
        **{"data": str(places[0].dictionaries), "source_lang": recipe.source, "target_lang": recipe.target},
        **{"encoder_embed_path": None, "decoder_embed_path": None},  # the checkpoint has what was read from them
    }
    for place in places:
        try:
            with quiet():
                (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
                    [str(place.checkpoint)], overrides, task
                )
            if tokens_per_slot is not None:
                check_slots(model, place.name)
                model.encoder.slot_count.tokens_per_slot = model.cfg.tokens_per_slot = tokens_per_slot
            lift_limits(model)
            set_precision(model, place.name, device, precision)
            with open_dict(cfg):
                cfg.common_eval.path = str(place.checkpoint)  # as in fairseq's commands, which then make no attention
                cfg.common.fp16 = cfg.common.bf16 = False  # those of the training
            model.prepare_for_inference_(cfg)
        except Problem:
            raise
        except Exception as error:  # a damaged file may fail anyhow
            reason = str(error).replace(str(place.checkpoint), place.checkpoint.name)
            if not isinstance(error, (pickle.UnpicklingError, ValueError, RuntimeError)):
                reason = f"{type(error).__name__}: {reason}"
            raise Problem(f"the model of {place.name} cannot be loaded: {reason}") from error
        models.append(model)
    return Loaded(models, task)


def set_precision(model: Any, name: str, device: torch.device, precision: Optional[str]) -> None:
    """Put a model on the device in the precision; on a CPU a lower one is only that of a Luna's products."""
    if device.type != "cpu":
        if isinstance(model, LunaTransformerModel):
            model.inference_precision = "fp32"  # its own setting is for a CPU
        model.to(device, {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision or "fp32", torch.float32))
        return
    if isinstance(model, LunaTransformerModel):
        model.inference_precision = precision or model.inference_precision
    elif precision in ("bf16", "int8"):
        raise Problem(f"precision {precision} on a CPU is for Luna models, which that of {name} is not")


def lift_limits(model: Any) -> None:
    """Let a model read and write texts of any length, where nothing that it learnt ends: positions, or sums of them."""
    for name, limit in ("encoder", "max_source_positions"), ("decoder", "max_target_positions"):
        side = getattr(model, name, None)
        learned = isinstance(getattr(side, "embed_positions", None), LearnedPositionalEmbedding)
        if hasattr(side, limit) and not learned and not getattr(side, "ends", ""):
            setattr(side, limit, sys.maxsize)


@contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile fairseq's log and ours hold no more than warnings."""
    levels = {log: log.level for log in map(logging.getLogger, ("fairseq", "fairseq_luna.models"))}
    for log in levels:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)
