"""The lists of settings: `python -m fairseq_luna --settings`, configs/model/ and docs/settings.md."""

import os
import re
import subprocess
import sys

import pytest
from commands import ENV, ROOT, interpreter
from fairseq import options
from luna_tools.inspection import settings_page as write_settings
from omegaconf import OmegaConf

from fairseq_luna.__main__ import main
from fairseq_luna.models.checks import flag
from fairseq_luna.settings import ARCHITECTURES, CONFIGS, DESCRIPTIONS, GROUPS, OTHERS, groups_of, settings_of, text

MODEL = ROOT / "configs" / "model"


def settings(*words):
    command = [interpreter(), *words]
    return subprocess.run(command, cwd="/", env={**ENV, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def listed(config):
    return [setting.name for settings in groups_of(config).values() for setting in settings]


def test_files_are_current():
    files = write_settings.files()
    stale = [path.name for path, wanted in files.items() if path.read_text(encoding="utf-8") != wanted]
    assert not stale, f"{stale} are not what the classes of settings say: run `make settings`"
    assert set(MODEL.glob("luna*.yaml")) | {ROOT / "docs" / "settings.md"} == set(files)


@pytest.mark.stock
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_yaml_of_each_architecture_says_what_the_architecture_does(arch):
    """Every setting is listed, so that `model.KEY=VALUE` overrides without a plus."""
    said = OmegaConf.to_container(OmegaConf.load(str(MODEL / f"{arch}.yaml")))
    wanted = OmegaConf.to_container(OmegaConf.structured(CONFIGS[arch]), enum_to_str=True)
    offered = {name: value for name, value in wanted.items() if name == "arch" or name in listed(CONFIGS[arch])}
    assert said == {**offered, "_name": arch}
    assert all(said[name] == value for name, value in ARCHITECTURES[arch].items())


def test_every_setting_has_its_place_and_meaning():
    for arch, config in CONFIGS.items():
        assert set(groups_of(config)) == {GROUPS[name] for name in GROUPS if name in config.__dataclass_fields__}
        # what is refused, and what the task tells
        hidden = [name for name, item in config.__dataclass_fields__.items() if "same_as" in item.metadata]
        hidden += ["arch", "tokens_per_sample", *(["max_target_positions"] if arch.startswith("luna_lm") else [])]
        hidden += ["max_source_positions"] if arch.startswith("luna_classifier") else []
        assert listed(config) == [name for name in config.__dataclass_fields__ if name not in {*hidden, "_name"}]
        assert config.__doc__ and arch in DESCRIPTIONS


@pytest.mark.stock
def test_fairseq_takes_every_flag_that_is_listed():
    parser = options.get_training_parser()
    words = "data --arch luna_transformer --optimizer apollo --lr-scheduler milestone --milestones 9 --lr 1".split()
    options.parse_args_and_arch(parser, words)
    told = [s for group in groups_of(CONFIGS["luna_transformer"]).values() for s in group]
    told += [setting for config in OTHERS.values() for setting in settings_of(config)]
    helps = {option: action.help for action in parser._actions for option in action.option_strings}
    assert {flag(setting.name): setting.help for setting in told}.items() <= helps.items()
    assert {"--clip-mode", "--milestones", "--projection-length"} <= {flag(setting.name) for setting in told}
    guide = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    known = {"--arch", *(flag(setting.name) for setting in told)}
    rows = [line.split("|")[1] for line in guide.splitlines() if line.startswith("|")]
    assert len(rows) > 10 and set(re.findall("`(--[a-z-]+)`", "".join(rows))) <= known
    translating = {name for name in ARCHITECTURES if name.startswith("luna_transformer")}
    assert set(re.findall(r"`(luna_transformer\w*)`", guide)) == translating


@pytest.mark.stock
def test_command_prints_the_settings_of_an_architecture():
    done = settings("-m", "fairseq_luna", "--settings", "luna_transformer_tiny_local")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("luna_transformer_tiny_local: luna_transformer_tiny with l = 32")
    assert re.search(r"^\* --pack-values +unprojected +what slots average", done.stdout, re.M)
    assert re.search(r"^\* --encoder-normalize-before +on ", done.stdout, re.M)
    assert re.search(r"^  --share-all-embeddings +off ", done.stdout, re.M)
    assert "\n--optimizer apollo\n" in done.stdout and re.search(r"^  --milestones +not set ", done.stdout, re.M)


def test_command_whose_reader_has_read_enough():
    """As with `| head`: nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fairseq_luna", "--settings"]
    done = subprocess.run(command, cwd=str(ROOT), env=ENV, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_the_terminal(width):
    for arch in ARCHITECTURES:
        lines = text(arch, width).splitlines()
        assert max(map(len, lines[1:])) <= width
        marked = {line.split()[1] for line in lines if line.startswith("* --")}
        assert marked == {flag(name) for name in ARCHITECTURES[arch]}


def test_unknown_architecture_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fairseq_luna", "--settings", "luna_transformer_tyni"])
    assert main() == 1
    said = capsys.readouterr().err
    assert said.startswith("--settings luna_transformer_tyni is no architecture; choose from luna_transformer, ")


@pytest.mark.stock
def test_settings_without_fairseq():
    done = settings("-S", "-m", "fairseq_luna", "--settings")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fairseq_luna needs fairseq, which is not installed: run ")
