"""What a training is set to: hydra's configuration as composed, and what of it makes another experiment."""

import argparse
import re
import subprocess
from typing import Any, Dict, Iterator, List, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.renamed import current
from luna_tools.machine import import_plugin
from luna_tools.paths import REPO
from luna_tools.processes import python

PROCESS = "luna_tools.training.process"
# what makes it another experiment, of all that may change when a training goes on: not how much memory the gradients
# take, how a trained model is used, and what is looked at meanwhile
NEITHER = (
    r"model\.(checkpoint_activations|offload_activations|min_params_to_wrap|export|inference_precision) |task\.eval_"
)
EXPERIMENT = re.compile(
    rf"(?!{NEITHER})"
    r"(data: |(model|task|criterion|optimizer|lr_scheduler)\.|optimization\.(lr|clip_norm|sentence_avg) |common\.seed )"
)
PLACES = "common.user_dir", "common.tensorboard_logdir", "task.data", "checkpoint.save_dir", "checkpoint.restore_file"
ONCE = "checkpoint.reset_dataloader", "checkpoint.finetune_from_model"  # what a training taken up has otherwise


def compose(process: List[str]) -> Dict[str, Any]:
    """The configuration that hydra makes of all, by dotted keys."""
    from omegaconf import OmegaConf

    done = subprocess.run(python(PROCESS, "--cfg", "job", *process), capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Problem(f"hydra cannot compose the configuration:\n\n{done.stderr.strip()}")

    def flat(values: dict, prefix: str = "") -> Iterator[Tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    composed: Any = OmegaConf.to_container(OmegaConf.create(done.stdout))
    return dict(flat(composed))


def known_keys(composed: Dict[str, Any]) -> Iterator[str]:
    """The dotted keys that fairseq has for the task, model, optimizer and so on that are chosen by their `_name`."""
    import_plugin()
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY

    kinds = {kind: (known["registry"], known["dataclass_registry"]) for kind, known in REGISTRIES.items()}
    kinds.update(task=(TASK_REGISTRY, TASK_DATACLASS_REGISTRY), model=(MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY))
    for kind, (classes, dataclasses) in kinds.items():
        yield kind
        name = composed.get(f"{kind}._name")
        name = ARCH_MODEL_NAME_REGISTRY.get(name, name)
        if name in dataclasses:
            yield from (f"{kind}.{key}" for key in dataclasses[name].__dataclass_fields__)
        elif name in classes:
            parser = argparse.ArgumentParser(add_help=False)
            classes[name].add_args(parser)
            yield from (f"{kind}.{action.dest}" for action in parser._actions)


def luna_settings(state: dict) -> Dict[str, Any]:
    """The settings of the model of a checkpoint, by dotted keys, where that is a Luna."""
    model = state["cfg"]["model"]
    luna = isinstance(model, dict) and "projection_length" in model
    return {f"model.{key}": value for key, value in model.items()} if luna else {}


def complete(settings: Dict[str, Any]) -> Dict[str, Any]:
    """Settings with all of a Luna model's: the name of an architecture stands for those that are not listed. A loss has
    one name, whether it is computed in chunks or not."""
    from omegaconf import OmegaConf

    if "criterion._name" in settings:
        settings = {**settings, "criterion._name": settings["criterion._name"].replace("chunked_", "")}
    arch = current("arch", settings.get("model._name", settings.get("model")))
    path = REPO / "configs" / "model" / f"{arch}.yaml"
    if not (path.stem.startswith("luna_transformer") and path.exists()):
        return settings
    model: Any = OmegaConf.to_container(OmegaConf.load(str(path)))
    named = {f"model.{key}": value for key, value in model.items()}
    others = {key: value for key, value in settings.items() if not key.startswith("model.") and key != "model"}
    # what the file does not list every Luna refuses: it is off
    listed = {key: settings.get(key, value) for key, value in named.items() if key != "model.arch"}
    return {**others, **listed, "model._name": "luna_transformer"}


def text(value: object) -> str:
    """A path or a text as a string of hydra's, whatever signs it holds."""
    return "'" + str(value).replace("'", r"\'") + "'"
