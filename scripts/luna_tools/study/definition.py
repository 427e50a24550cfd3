"""A study for compare.sh: its YAML, read and checked, and what the trainings of its arms are told."""

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Sequence

from fairseq_luna.errors import Problem
from luna_tools.paths import REPO
from luna_tools.training.run import Training
from luna_tools.training.settings import text as hydra_text

STUDIES = REPO / "configs" / "compare"
DECODING = {"beam": 5, "lenpen": 1.0, "max_tokens": 4096}
KINDS = {list: "list of numbers, such as [1, 2, 3]", dict: "table, such as {key: value}"}
KEYS = {"config", "overrides", "average", "decoding", "seeds", "baseline", "arms"}


def read_study(name: str) -> Dict[str, Any]:
    """A study out of its YAML, complete and sound.

    Raises:
        Problem: if there is none of that name, or if something in it is wrong.
    """
    path = find(name)
    study = load(path)
    check_arms(path, study["arms"])
    names = [arm["name"] for arm in study["arms"]]
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
        raise Problem(f"{path}: the baseline {study['baseline']} is none of the arms: {', '.join(names)}")
    return study


def find(name: str) -> Path:
    paths = Path(name), STUDIES / f"{name}.yaml"
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.yaml")))
        raise Problem(f"there is no study {name}: give the path of a YAML, or one of {known}")
    return path


def load(path: Path) -> Dict[str, Any]:
    """What the YAML says, with a list of arms at least."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        study: Any = OmegaConf.to_container(OmegaConf.load(str(path)))
    except (YAMLError, UnicodeDecodeError) as error:
        raise Problem(f"{path} is no YAML: {error}") from None
    if not isinstance(study, dict) or not study.get("arms") or not isinstance(study["arms"], list):
        raise Problem(f"{path} has no list of arms: see {STUDIES / 'quickstart.yaml'} for the form")
    unknown = sorted(set(study) - KEYS)
    if unknown:
        raise Problem(f"{path} has {', '.join(unknown)}, which no study has; possible are {', '.join(sorted(KEYS))}")
    return study


def check_arms(path: Path, arms: List[Any]) -> None:
    for arm in arms:
        wrong = not isinstance(arm, dict) or not {"name", "arch"} <= set(arm) <= {"name", "arch", "overrides"}
        if wrong:
            raise Problem(f"{path}: an arm has a name, an arch and perhaps overrides, but here is {arm}")
        if not isinstance(arm["name"], str) or not re.search(r"\w", arm["name"]):
            raise Problem(f"{path}: the name of an arm must be text with a letter or a digit, but is {arm['name']!r}")
        if not (REPO / "configs" / "model" / f"{arm['arch']}.yaml").exists():
            known = ", ".join(sorted(path.stem for path in (REPO / "configs" / "model").glob("*.yaml")))
            raise Problem(f"{path}: arch {arm['arch']} of {arm['name']} is not in configs/model/; possible are {known}")
    names = [arm["name"] for arm in arms]
    if "data" in map(folder, names):
        raise Problem(f"{path}: no arm can be named data: that folder is for the data of the study")
    if len({folder(name) for name in names}) < len(names):
        raise Problem(f"{path}: two arms share a name: {', '.join(names)}")


def check_kinds(path: Path, study: Dict[str, Any]) -> None:
    kinds = ("seeds", list, int), ("overrides", dict, object), ("decoding", dict, object)
    for owner in [study, *study["arms"]]:
        for key, kind, inner in kinds:
            value = owner.get(key, kind())
            if not isinstance(value, kind) or not all(isinstance(each, inner) for each in value):
                raise Problem(f"{path}: {key} must be a {KINDS[kind]}, but is {value}")
        for key, value in owner.get("overrides", {}).items():
            if key == "model" or isinstance(value, dict):
                raise Problem(
                    f"{path}: {key}: {value} is no override: write each as model.dropout: 0.1, an arm's model as arch"
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
    """The name of an arm as that of a folder."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.")


def words_of(study: Dict[str, Any], arm: dict, seed: int, limits: Dict[str, Any], given: Sequence[str]) -> List[str]:
    """The overrides of a training, as words for train.sh; of those for one key the last counts.

    Args:
        limits: how long the training is, where that is not as the study says.
        given: KEY=VALUE for all arms.
    """
    shared, own = study.get("overrides", {}), arm.get("overrides", {})
    overrides = {**shared, "model": arm["arch"], **own, **limits}
    words = [f"{key}={hydra_value(value)}" for key, value in overrides.items()]
    return [*words, *given, f"common.seed={seed}"]


def hydra_value(value: Any) -> str:
    """A value of a study as hydra reads it back."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, str):
        return value if value.startswith("${") else hydra_text(value)
    return json.dumps(value)
