"""Names that the scripts had in earlier versions work, and a line tells those of today."""

import importlib
import sys
from argparse import Namespace

import pytest
from luna_tools.benchmark.model_names import spec_of
from luna_tools.study.definition import read_study

from fairseq_luna.errors import Problem


@pytest.mark.parametrize(
    "room, words, names",
    [
        ("study", ["quickstart"], ["Luna", "Luna, local"]),
        ("classification", ["help"], ["luna-16", "linformer"]),
        ("language_model", [], ["transformer"]),
        ("benchmark", ["train"], ["luna-16", "transformer"]),
    ],
)
def test_arms_are_models(room, words, names, monkeypatch, capsys):
    parse_args = importlib.import_module(f"luna_tools.{room}.command").parse_args

    def parsed(*options):
        monkeypatch.setattr(sys, "argv", ["a script", *words, *options])
        return vars(parse_args()), capsys.readouterr().err

    now, said = parsed("--models", *names)
    assert now["models"] == names and not said
    assert parsed("--arms", *names) == (now, "--arms is now called --models. The old name still works.\n")
    assert parsed()[0].keys() == now.keys()
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = capsys.readouterr().out
    assert "--models" in shown and "--arms" not in shown


def test_the_arms_of_a_study_are_its_models(tmp_path, capsys):
    path, models = tmp_path / "study.yaml", "models:\n  - {name: Luna, arch: luna_transformer_tiny}\n"
    path.write_text(models)
    now = read_study(str(path))
    assert [model["name"] for model in now["models"]] == ["Luna"] and not capsys.readouterr().err
    path.write_text(models.replace("models", "arms"))
    assert read_study(str(path)) == now
    assert capsys.readouterr().err == f"{path}: arms is now called models. The old name still works.\n"
    path.write_text(models + models.replace("models", "arms"))
    with pytest.raises(Problem, match="has arms, which no study has; possible are .*models"):
        read_study(str(path))


def test_an_architecture_of_mine_is_one_by_its_arch(capsys):
    """Its results keep the name that was given, by which an earlier run goes on."""
    args = Namespace(command="train", user_dir="a folder", precision="fp32")
    now = spec_of("arch:luna_transformer", args)
    assert now["arch"] == "luna_transformer" and not capsys.readouterr().err
    assert spec_of("mine:luna_transformer", args) == {**now, "name": "mine:luna_transformer"}
    told = "mine:luna_transformer is now called arch:luna_transformer. The old name still works.\n"
    assert capsys.readouterr().err == told
