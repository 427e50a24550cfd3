"""Names of earlier versions go on working, and are told by their names of today."""

import logging
import sys

import pytest
from commands import run
from fairseq import models
from tiny import build

from fairseq_luna import renamed
from fairseq_luna.models import checks
from fairseq_luna.models.luna_lm.checks import checked as checked_lm
from fairseq_luna.models.luna_lm.config import LunaLanguageModelConfig
from fairseq_luna.models.luna_transformer.architectures import ARCHITECTURES, with_settings_of
from fairseq_luna.models.luna_transformer.checks import checked

pytestmark = pytest.mark.stock


@pytest.mark.parametrize("before, now", renamed.ARCHITECTURES.items())
def test_a_former_architecture_is_the_one_of_today(before, now, caplog):
    checks.tell_name.cache_clear()
    cfg = models.MODEL_DATACLASS_REGISTRY[before]()
    assert cfg.arch == before and issubclass(models.MODEL_REGISTRY[before], models.MODEL_REGISTRY["luna_transformer"])
    with caplog.at_level(logging.INFO):
        found = checked(cfg)
    assert found == checked({**ARCHITECTURES[now], "arch": now}) and with_settings_of(cfg) == now
    assert [record.getMessage() for record in caplog.records] == [
        f"--arch {before} is now called {now}. The old name still works."
    ]
    assert with_settings_of(found) == now


@pytest.mark.parametrize("setting", renamed.VALUES)
def test_a_former_value_makes_the_same_model(setting, caplog):
    for before, now in renamed.VALUES[setting].items():
        checks.tell_name.cache_clear()
        with caplog.at_level(logging.INFO):
            found = build(**{setting: before}).cfg
        assert found == build(**{setting: now}).cfg and getattr(found, setting) == now
        assert f"{checks.flag(setting)} {before} is now called {now}" in caplog.text
    assert checked_lm(LunaLanguageModelConfig(causal_mean="flat")).causal_mean == "uniform"


def test_other_names_and_values_stay():
    for setting, value in ("arch", "luna_transformer"), ("dropout", 0.1), ("pack_bias", "plain"), ("layers", [1]):
        assert renamed.current(setting, value) == value
    assert renamed.current("model.causal_mean", "flat") == "uniform"


def test_settings_are_listed_by_a_former_name():
    command = [sys.executable, "-m", "fairseq_luna", "--settings"]
    before, now = (run([*command, f"luna_transformer_tiny_{name}"]).stdout for name in ("plain_packs", "local"))
    assert before == now and now.startswith("luna_transformer_tiny_local: ")


def test_former_names_are_no_difference():
    from luna_tools.run_folder import differences

    begun = {
        "arch": "luna_transformer_tiny_full_cross",
        "overrides": {"model.causal_mean": "flat", "model.dropout": 0.1},
    }
    today = {
        "arch": "luna_transformer_tiny_hybrid",
        "overrides": {"model.causal_mean": "uniform", "model.dropout": 0.1},
    }
    assert differences(begun, today) == []
    assert differences(begun, {**today, "arch": "luna_transformer_tiny"}) == [
        "arch was 'luna_transformer_tiny_full_cross', now 'luna_transformer_tiny'"
    ]


def test_scripts_take_former_architectures(capsys):
    from luna_tools.quickstart.settings import model_of

    assert model_of("luna_transformer_tiny_plain_packs") == "luna_transformer_tiny_local"
    assert (
        "--arch luna_transformer_tiny_plain_packs is now called luna_transformer_tiny_local" in capsys.readouterr().err
    )


def test_a_study_with_former_names(tmp_path, capsys):
    from luna_tools.study.definition import read_study

    (tmp_path / "study.yaml").write_text(
        "config: quickstart\naverage: 1\nseeds: [1]\nbaseline: a\n"
        "arms:\n  - {name: a, arch: luna_transformer_full_cross}\n"
    )
    assert read_study(str(tmp_path / "study.yaml"))["models"][0]["arch"] == "luna_transformer_hybrid"
    assert "arch luna_transformer_full_cross is now called luna_transformer_hybrid" in capsys.readouterr().err
