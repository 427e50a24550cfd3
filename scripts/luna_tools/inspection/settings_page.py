"""Write what lists the model's settings again: configs/model/luna_*.yaml and docs/settings.md."""

import json
from pathlib import Path
from textwrap import wrap
from typing import Any, Dict, List

from fairseq_luna.files import write_text
from luna_tools.machine import import_plugin
from luna_tools.paths import REPO

HEAD = """# Settings

`python -m fairseq_luna --settings [ARCH]` prints the settings of an architecture. This page lists those of
`luna_transformer`, of `luna_lm` and of `luna_classifier`, what the other architectures change, and the settings of the
optimiser and the schedule.
`make settings` writes it from the classes that hold the settings.

{forms}
"""
LANGUAGE_MODEL_HEAD = """## The language model

`luna_lm`, for `--task language_modeling`.
"""
CLASSIFIER_HEAD = """## The classifier

`luna_classifier`, for `--task text_classification`.
"""
ARCHITECTURES_HEAD = """## Architectures

Each is chosen by its name: `--arch NAME` with `fairseq-train`; `model=NAME`, a file of `configs/model/`, with
`fairseq-hydra-train` and `scripts/train.sh`; or `model: {_name: NAME}` in a YAML of your own, with the settings that
are to differ. `model._name=NAME` is refused over a YAML that lists the settings of another architecture.
"""


def main() -> None:
    for path, text in files().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(f"wrote {path.relative_to(REPO)}")


def files() -> Dict[Path, str]:
    """What each of the files is to hold."""
    import_plugin()
    from fairseq_luna.settings import ARCHITECTURES

    yamls = {REPO / "configs" / "model" / f"{arch}.yaml": yaml(arch) for arch in ARCHITECTURES}
    return {**yamls, REPO / "docs" / "settings.md": page()}


def yaml(arch: str) -> str:
    """All settings of an architecture as a group of hydra's."""
    from fairseq_luna.settings import CONFIGS, DESCRIPTIONS, groups_of, settings_of

    own = next(setting for setting in settings_of(CONFIGS[arch]) if setting.name == "arch")
    title = wrap(f"--arch {arch}: {DESCRIPTIONS[arch]}.", 116)
    parts = ["\n".join(["# @package _group_", *(f"# {line}" for line in [*title, "Written by `make settings`."])])]
    for group, settings in {f"_name: {arch}": [own], **groups_of(CONFIGS[arch])}.items():
        lines = [f"{f'{setting.name}: {scalar(setting.default)}':<43} # {setting.help}" for setting in settings]
        parts.append("\n".join([group if group.startswith("_name") else f"# {group}", *lines]))
    return "\n\n".join(parts) + "\n"


def scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def page() -> str:
    """The settings and the architectures as a page of the documentation."""
    from fairseq_luna.models.checks import flag
    from fairseq_luna.settings import ARCHITECTURES, CONFIGS, DESCRIPTIONS, FORMS, OTHERS, groups_of, settings_of, shown

    def listed(settings: List[Any]) -> str:
        return table(
            ["flag", "default", "meaning"], [[f"`{flag(s.name)}`", shown(s.default), s.help] for s in settings]
        )

    parts = [HEAD.format(forms="\n".join(wrap(FORMS, 118, break_on_hyphens=False)))]
    for title, settings in groups_of(CONFIGS["luna_transformer"]).items():
        parts += [f"## {title[0].upper()}{title[1:]}\n", listed(settings)]
    for arch, head in (("luna_lm", LANGUAGE_MODEL_HEAD), ("luna_classifier", CLASSIFIER_HEAD)):
        every = [setting for settings in groups_of(CONFIGS[arch]).values() for setting in settings]
        parts += [head, listed(every)]
    rows = [
        [f"`{arch}`", DESCRIPTIONS[arch], ", ".join(f"{name} {shown(value)}" for name, value in changed.items())]
        for arch, changed in ARCHITECTURES.items()
    ]
    parts += [ARCHITECTURES_HEAD, table(["name", "what it is", "what it sets"], rows)]
    for title, config in OTHERS.items():
        parts += [f"## `{title}`\n", listed(settings_of(config))]
    return "\n".join(parts)


def table(heads: List[str], rows: List[List[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    main()
