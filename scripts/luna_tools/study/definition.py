"""A study for compare.sh: its YAML, read and checked, and what the trainings of its models are told."""

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Sequence

from fairseq_luna.errors import Problem
from fairseq_luna.renamed import current
from luna_tools.console import tell_name
from luna_tools.paths import REPO
from luna_tools.training.run import Training
from luna_tools.training.settings import text as hydra_text

STUDIES = REPO / "configs" / "compare"
DECODING = {"beam": 5, "lenpen": 1.0, "max_tokens": 4096}
KINDS = {list: "list of numbers, such as [1, 2, 3]", dict: "table, such as {key: value}"}
KEYS = {"config", "overrides", "average", "decoding", "seeds", "baseline", "models"}


def read_study(name: str) -> Dict[str, Any]:
    """A study out of its YAML, complete and sound.

    Raises:
        Problem: if there is none of that name, or if something in it is wrong.
    """
    path = find(name)
    study = load(path)
    check_models(path, study["models"])
    names = [model["name"] for model in study["models"]]
    study.setdefault("config", "quickstart")
    Training.find_config(str(study["config"]))
    study.setdefault("baseline", names[0])
    study.setdefault("seeds", [1])
    study.setdefault("average", 3)
    check_kinds(path, study)
    check_decoding(path, study)
    if not study["seeds"]:
        raise Problem(f"{path}: there must be a seed")
    if study["baseline"] not in names:
        raise Problem(f"{path}: the baseline {study['baseline']} is none of the models: {', '.join(names)}")
    return study


def find(name: str) -> Path:
    paths = Path(name), STUDIES / f"{name}.yaml"
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.yaml")))
        raise Problem(f"there is no study {name}: give the path of a YAML, or one of {known}")
    return path


def load(path: Path) -> Dict[str, Any]:
    """What the YAML says, with a list of models at least."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        study: Any = OmegaConf.to_container(OmegaConf.load(str(path)))
    except (YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"{path} is no YAML: {error}") from None
    if isinstance(study, dict) and "arms" in study and "models" not in study:
        study["models"] = study.pop("arms")
        tell_name(f"{path}: arms", "models")
    if not isinstance(study, dict) or not study.get("models") or not isinstance(study["models"], list):
        raise Problem(f"{path} has no list of models: see {STUDIES / 'quickstart.yaml'} for the form")
    unknown = sorted(set(study) - KEYS)
    if unknown:
        raise Problem(f"{path} has {', '.join(unknown)}, which no study has; possible are {', '.join(sorted(KEYS))}")
    return study


def check_models(path: Path, models: List[Any]) -> None:
    for model in models:
        wrong = not isinstance(model, dict) or not {"name", "arch"} <= set(model) <= {"name", "arch", "overrides"}
        if wrong:
            raise Problem(f"{path}: a model has a name, an arch and perhaps overrides, but here is {model}")
        if not isinstance(model["name"], str) or not re.search(r"\w", model["name"]):
            raise Problem(
                f"{path}: the name of a model must be text with a letter or a digit, but is {model['name']!r}"
            )
        now = current("arch", model["arch"])
        if now != model["arch"]:
            tell_name(f"{path}: arch {model['arch']}", now)
            model["arch"] = now
        if not (REPO / "configs" / "model" / f"{model['arch']}.yaml").exists():
            known = ", ".join(sorted(path.stem for path in (REPO / "configs" / "model").glob("*.yaml")))
            told = f"arch {model['arch']} of {model['name']} is not in configs/model/"
            raise Problem(f"{path}: {told}; possible are {known}")
    names = [model["name"] for model in models]
    if "data" in map(folder, names):
        raise Problem(f"{path}: no model can be named data: that folder is for the data of the study")
    if len({folder(name) for name in names}) < len(names):
        raise Problem(f"{path}: two models share a name: {', '.join(names)}")


def check_kinds(path: Path, study: Dict[str, Any]) -> None:
    kinds = ("seeds", list, int), ("overrides", dict, object), ("decoding", dict, object)
    for owner in [study, *study["models"]]:
        for key, kind, inner in kinds:
            value = owner.get(key, kind())
            if not isinstance(value, kind) or not all(isinstance(each, inner) for each in value):
                raise Problem(f"{path}: {key} must be a {KINDS[kind]}, but is {value}")
        for key, value in owner.get("overrides", {}).items():
            if key == "model" or isinstance(value, dict):
                raise Problem(
                    f"{path}: {key}: {value} is no override: write each as model.dropout: 0.1, and the architecture as "
                    "arch"
                )


def check_decoding(path: Path, study: Dict[str, Any]) -> None:
    """Complete it, too."""
    wrong = set(study.get("decoding", {})) - set(DECODING)
    if wrong:
        raise Problem(f"{path}: decoding has {', '.join(sorted(wrong))}; possible are {', '.join(sorted(DECODING))}")
    study["decoding"] = {**DECODING, **study.get("decoding", {})}
    for key, value in {"average": study["average"], **study["decoding"]}.items():
        kind: Any = (int, float) if key == "lenpen" else int
        if isinstance(value, bool) or not isinstance(value, kind) or (key != "lenpen" and value < 1):
            needed = "a number" if key == "lenpen" else "a whole number above 0"
            raise Problem(f"{path}: {key} must be {needed}, but is {value!r}")


def folder(name: str) -> str:
    """The name of a model as that of a folder."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.")


def words_of(study: Dict[str, Any], model: dict, seed: int, limits: Dict[str, Any], given: Sequence[str]) -> List[str]:
    """The overrides of a training, as words for train.sh; of those for one key the last counts.

    Args:
        limits: how long the training is, where that is not as the study says.
        given: KEY=VALUE for all models.
    """
    shared, own = study.get("overrides", {}), model.get("overrides", {})
    overrides = {**shared, "model": model["arch"], **own, **limits}
    words = [f"{key}={hydra_value(value)}" for key, value in overrides.items()]
    return [*words, *given, f"common.seed={seed}"]


def hydra_value(value: Any) -> str:
    """A value of a study as hydra reads it back."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, str):
        return value if value.startswith("${") else hydra_text(value)
    return json.dumps(value)
