"""scripts/compare.sh, plot_attention.py and gradients.py, whole, on a corpus of a few sentences."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ENV, ROOT, interpreter, prepared, processes_with, run, script, stop_when, wait_until
from luna_tools.console import entry
from luna_tools.inspection import gradients, plot_attention
from luna_tools.study import command as compare_script
from luna_tools.study import definition as compare_study
from luna_tools.study import run as compare_run
from luna_tools.study.pace import Pace, limits_of, updates_within

STUDY = """
config: quickstart
overrides:
  model.encoder_embed_dim: 32
  model.encoder_ffn_embed_dim: 48
  model.encoder_layers: 1
  model.decoder_layers: 1
  model.share_all_embeddings: true
  dataset.max_tokens: 256
  dataset.validate_interval_updates: 6
  checkpoint.save_interval_updates: 6
  optimization.max_update: 12
  lr_scheduler.warmup_updates: 4
  common.log_interval: 2
average: 2
decoding: {beam: 2}
seeds: [1, 2]
models:
  - {name: Transformer, arch: transformer_quickstart}
  - {name: "Luna, a/b", arch: luna_transformer_tiny, overrides: {model.pack_bias: gaussian, model.projection_length: 4}}
"""


LUNA_ALONE = STUDY.replace("  - {name: Transformer, arch: transformer_quickstart}\n", "")
assert LUNA_ALONE != STUDY


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("it's a folder"))


def compare(study: Path, data: Path, out: Path, *words) -> list:
    return script("luna_tools.study.command", study, "--data", data, "--out", out, "--cpu", *words)


@pytest.fixture
def here(monkeypatch, capfd):
    """A script in this process, which saves seconds of imports: what it said, and the message that it ended with."""

    def call_it(module, *words, fails=False) -> str:
        monkeypatch.setattr(sys, "argv", ["a script", *map(str, words)])
        monkeypatch.setattr(compare_script, "go_on_later", lambda: None)
        monkeypatch.setattr(sys, "executable", interpreter())
        capfd.readouterr()
        ended: object = ""
        try:
            entry("a script", module.main)
        except SystemExit as stop:
            ended = stop.code
        said = capfd.readouterr()
        assert bool(ended) == fails and "Traceback" not in said.err, f"{said.out}{said.err}{ended}"
        return f"{said.out}{said.err}{ended}"

    return call_it


@pytest.fixture
def compared(here):
    """compare.sh in this process."""

    def call_it(*command, fails=False) -> str:
        return here(compare_script, *compare(*command)[3:], fails=fails)

    return call_it


@pytest.fixture
def trained(monkeypatch):
    """compare.sh finds all trained: another test asks it to look."""
    monkeypatch.setattr(compare_run.Study, "train", lambda self, model, seed, place: None)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A study, made in two parts."""
    folder = tmp_path_factory.mktemp("a study")
    study, out = folder / "study.yaml", folder / "out"
    study.write_text(STUDY, encoding="utf-8")
    run(compare(study, data, out, "--models", "Transformer", "--seeds", 1))
    run(compare(study, data, out))
    return folder


def test_report_of_a_study(finished, data):
    out = finished / "out"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [model["name"] for model in report["arms"]] == ["Transformer", "Luna, a/b"]
    transformer, luna = (model["trainings"] for model in report["arms"])
    for training in (*transformer, *luna):
        assert training["updates"] == 12 and set(training["valid nll by updates"]) >= {"6", "12"}
        assert training["words per second"] > 0 and training["peak memory (bytes)"] > 1e8
        assert training["parameters"] > 1e4
        found = training["test sets"]["test"]
        assert "tok:13a" in found["scores"]["BLEU"]["signature"]
        assert "nc:6" in found["scores"]["chrF"]["signature"]
        assert len((out / training["run"] / found["file"]).read_text(encoding="utf-8").splitlines()) == 8
    assert [training["seed"] for training in luna] == [1, 2]
    assert luna[0]["valid nll by updates"] != luna[1]["valid nll by updates"]
    for training in luna:
        assert 0 <= training["test sets"]["test"]["paired bootstrap"]["BLEU"]["p-value"] <= 1
    assert not any("paired bootstrap" in training["test sets"]["test"] for training in transformer)
    table = (out / "report.md").read_text(encoding="utf-8")
    best = sum(training["best valid nll (nats per piece)"] for training in luna) / 2
    signature = transformer[0]["test sets"]["test"]["scores"]["BLEU"]["signature"]
    assert f"| {best:.3f} ± " in table and signature in table
    for name in "learning-curves.png", "bleu-by-length.png":
        assert (out / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in table
    for unit in "words", "pieces":
        lengths = luna[0]["test sets"]["test"][f"BLEU by {unit} of the source"]
        first = next(bucket for bucket in lengths if bucket["sentences"])
        assert f"| model | {first[unit]} ({first['sentences']}) |" in table
    assert "deviation. 2 checkpoint(s) averaged, beam 2, length penalty 1;" in table
    assert all(training["checkpoints averaged"] == 2 for training in (*transformer, *luna))
    assert not list(out.rglob("*.part"))


def test_a_finished_study_is_not_done_again(finished, data):
    out = finished / "out"
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    kept.update({path: path.stat().st_mtime_ns for path in out.rglob("scores.json")})
    assert len(kept) > 8
    run(compare(finished / "study.yaml", data, out, "--at-once", 2, "--seeds", 1))
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_a_part_of_a_study_leaves_the_rest_in_the_report(finished, data, compared, trained):
    out = finished / "out"
    before = (out / "report.md").read_text(encoding="utf-8").splitlines()[:5]
    compared(finished / "study.yaml", data, out, "--seeds", 2)
    assert (out / "report.md").read_text(encoding="utf-8").splitlines()[:5] == before
    assert all(cell.startswith("1: ") and ", 2: " in cell for cell in before[3].split(" | ")[-2:])


@pytest.mark.release
def test_trained_on_from_another_study(finished, data, compared, here, monkeypatch):
    study, out = finished / "luna.yaml", finished / "on from it's models"
    study.write_text(LUNA_ALONE, encoding="utf-8")
    words = "--start", finished / "out", "optimization.max_update=6"
    run(compare(study, data, out, "--seeds", 1, *words))
    (model,) = json.loads((out / "report.json").read_text(encoding="utf-8"))["arms"]
    (training,) = model["trainings"]
    there = json.loads((finished / "out" / training["run"] / "scores.json").read_text(encoding="utf-8"))
    assert training["valid nll by updates"]["6"] < there["valid nll by updates"]["6"] - 0.05
    with monkeypatch.context() as patched:
        patched.setattr(compare_run.Study, "train", lambda self, model, seed, place: None)
        compared(study, data, out, "--seeds", 1, "--start", os.path.relpath(finished / "out"), words[-1])
    begun_there = here(gradients, "--start", "--model", out / "Luna-a-b" / "seed1", fails=True)
    assert "did not start from its seed, but from" in begun_there
    said = compared(study, data, out, "--seeds", 7, *words, fails=True)
    assert "to begin with: train this model and seed there, or leave out --start" in said
    said = compared(study, data, out, "optimization.max_update=6", "--seeds", 1, fails=True)
    assert "was begun with other settings: start was" in said


def test_what_training_cannot_begin_with(finished, data, tmp_path, compared):
    study = tmp_path / "study.yaml"
    study.write_text(LUNA_ALONE.replace("projection_length: 4", "projection_length: 5"), encoding="utf-8")
    words = "--start", finished / "out", "--seeds", 1
    assert "is of another model: overrides was" in compared(study, data, tmp_path / "out", *words, fails=True)
    other = tmp_path / "data"
    shutil.copytree(data, other)
    for path in (other / "data-bin").glob("dict.*.txt"):
        path.write_text("".join(reversed(path.read_text(encoding="utf-8").splitlines(True))), encoding="utf-8")
    said = compared(finished / "study.yaml", other, tmp_path / "none yet", *words, fails=True)
    assert "prepare the data with --vocabulary-of" in said and "2 of 2 failed" in said
    assert "the report has the rest" not in said


def test_updates_that_fit_the_time():
    """Of two trainings of 1 and 2 s an update, beside each other and in turn; 10 s each before and after."""
    quick, slow = Pace(5, 1, 0, 5), Pace(5, 2, 0, 5)
    assert updates_within(110, [quick, slow], 2) == 50
    assert updates_within(110, [quick, slow], 1) == 30
    assert updates_within(110, [slow, quick, quick], 2) == 45  # both quick ones in turn
    assert updates_within(110, [slow._replace(pause=5)], 1) == 25
    assert updates_within(5, [quick], 1) == updates_within(-5, [quick], 1) == 0


def test_limits_that_follow_from_the_updates():
    tied = {"lr_scheduler.warmup_updates": 30, "lr_scheduler.total_num_update": "${optimization.max_update}"}
    limits = limits_of(100, tied, 3)
    assert limits["optimization.max_update"] == 100 and limits["lr_scheduler.warmup_updates"] == 25
    assert limits["dataset.validate_interval_updates"] == limits["checkpoint.save_interval_updates"] == 10
    assert "lr_scheduler.total_num_update" not in limits and limits["checkpoint.keep_interval_updates"] == 3
    assert "lr_scheduler.warmup_updates" not in limits_of(120, tied, 3)
    assert limits_of(100, {"lr_scheduler.total_num_update": 5600}, 3)["lr_scheduler.total_num_update"] == 100


@pytest.mark.release
def test_a_study_within_minutes_from_one_file(tmp_path, here, compared, monkeypatch):
    """Two test sets, data in a file, two models side by side; then the same command again, one without --minutes."""
    study, out, file = tmp_path / "study.yaml", tmp_path / "out", tmp_path / "data.tar.xz"
    study.write_text(STUDY.replace("warmup_updates: 4", "warmup_updates: 400"), encoding="utf-8")
    data = prepared(tmp_path, "--test", f"other={tmp_path / 'valid'}")
    assert "wrote" in here(compare_script, "--pack-data", file, "--data", data)
    words = study, file, out, "--seeds", 1, "--at-once", 2, "--minutes", 0.05
    said = compared(*words)
    assert "measuring the pace of the models, 2 at once" in said and "Seconds an update: Transformer " in said
    assert "each training makes 20 updates, the least there is" in said
    assert "The warm-up of Transformer, Luna, a/b is a quarter of that, 5." in said
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert settings["plan"]["updates"] == 20 and settings["minutes"] == 0.05
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for model in report["arms"]:
        (training,) = model["trainings"]
        assert training["updates"] == 20 and len(training["valid nll by updates"]) == 10
        composed = json.loads((out / training["run"] / "settings.json").read_text(encoding="utf-8"))
        assert composed["lr_scheduler.warmup_updates"] == 5
        sets = training["test sets"]
        assert [len(list((out / training["run"]).glob(sets[name]["file"]))) for name in ("test", "other")] == [1, 1]
        assert sum(bucket["sentences"] for bucket in sets["other"]["BLEU by pieces of the source"]) == 12
        assert ("paired bootstrap" in sets["other"]) == (model["name"] != "Transformer")
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "## test: 8 sentences" in text and "## other: 12 sentences" in text and "Of 0.05 minutes" in text
    assert (out / "bleu-by-length.png").exists() and (out / "bleu-by-length.other.png").exists()
    assert not (out / ".trial").exists()

    monkeypatch.setattr(compare_run.Study, "train", lambda self, model, seed, place: None)
    said = compared(*words)
    assert "measuring" not in said and "20 updates of each training" in said
    assert json.loads((out / "settings.json").read_text(encoding="utf-8")) == settings
    assert "begun with other settings: minutes was 0.05" in compared(*words[:-2], fails=True)
    assert "--minutes sets optimization.max_update" in compared(
        study, file, out, *words[-2:], "optimization.max_update=9", fails=True
    )


def test_losses_are_reported_before_translations(finished, data, tmp_path, compared, trained):
    """All that is known where nothing can be translated: the checkpoints are spoilt."""
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out, symlinks=True)
    for path in [*out.glob("report*"), *out.glob("*.png"), *out.rglob("scores.json"), *out.rglob("model.*")]:
        path.unlink()
    for path in out.rglob("checkpoint*.pt"):
        path.write_bytes(b"")
    assert "2 of 2 failed" in compared(finished / "study.yaml", data, out, "--seeds", 1, fails=True)
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "| Transformer | " in text and "| Luna, a/b | " in text and (out / "learning-curves.png").exists()
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    losses = [each["valid nll by updates"] for model in report["arms"] for each in model["trainings"]]
    assert len(losses) == 2 and all({"6", "12"} <= set(each) for each in losses)


@pytest.mark.release
def test_a_study_mended_goes_on_in_the_same_folder(tmp_path, data):
    """What failed before anything was trained binds to nothing."""
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    text = LUNA_ALONE.replace("optimization.max_update: 12", "optimization.max_update: 6")
    study.write_text(text.replace("projection_length: 4", "projection_length: 0"), encoding="utf-8")
    words = "--seeds", 1
    run(compare(study, data, out, "optimization.max_update=x", *words), fails=True)
    assert json.loads((out / "Luna-a-b" / "seed1.conditions.json").read_text(encoding="utf-8")) == []
    study.write_text(text, encoding="utf-8")
    run(compare(study, data, out, *words))
    # another beam and average leave the trainings alone, and say so in the report
    study.write_text(text.replace("beam: 2", "beam: 3").replace("average: 2", "average: 9"), encoding="utf-8")
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint*.pt")}
    run(compare(study, data, out, *words))
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "deviation. 1 checkpoint(s) averaged, beam 3," in report
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.release
def test_a_study_killed_in_its_second_training_goes_on(tmp_path, data):
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(STUDY, encoding="utf-8")
    words = compare(study, data, out, "--seeds", 1)
    process = subprocess.Popen(words, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = out / "Luna-a-b" / "seed1" / "checkpoints" / "checkpoint_1_6.pt"
    stop_when(lambda: begun.exists() and (out / "report.md").exists(), process)
    assert "\n| Transformer |" in (out / "report.md").read_text(encoding="utf-8")  # what was done is reported
    first = (out / "Transformer" / "seed1" / "checkpoints" / "checkpoint_last.pt").stat().st_mtime_ns
    run(words)
    assert (out / "Transformer" / "seed1" / "checkpoints" / "checkpoint_last.pt").stat().st_mtime_ns == first
    assert "Loaded checkpoint" in (out / "Luna-a-b" / "seed1" / "train.log").read_text(encoding="utf-8")
    models = json.loads((out / "report.json").read_text(encoding="utf-8"))["arms"]
    assert [training["updates"] for model in models for training in model["trainings"]] == [12, 12]


@pytest.mark.release
def test_sigterm_ends_a_study_at_once(tmp_path, data):
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(STUDY.replace("max_update: 12", "max_update: 100000"), encoding="utf-8")
    process = subprocess.Popen(compare(study, data, out), env=ENV, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    last = out / "Transformer" / "seed1" / "checkpoints" / "checkpoint_last.pt"
    said = stop_when(last.exists, process, signal.SIGTERM)[1].decode()
    assert process.returncode == 130 and "compare: stopped; the same command goes on from here" in said
    wait_until(lambda: processes_with(str(out)) == [])


def test_another_study_is_not_mixed_in(finished, data, compared):
    said = compared(finished / "study.yaml", data, finished / "out", "optimization.max_update=24", fails=True)
    assert "was begun with other settings: given was [], now ['optimization.max_update=24']" in said
    study = finished / "changed.yaml"
    study.write_text(STUDY.replace("projection_length: 4", "projection_length: 5"), encoding="utf-8")
    said = compared(study, data, finished / "out", "--models", "Transformer", fails=True)
    assert "was trained as another model: overrides was" in said


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("transformer_quickstart}", "transformer_quikstart}", "arch transformer_quikstart of Transformer is not in"),
        ("average: 2", "averages: 2", "has averages, which no study has"),
        ("name: Transformer,", "name: 'Luna,a b',", "two models share a name"),
        ("average: 2", "baseline: nobody", "the baseline nobody is none of the models: Transformer, Luna, a/b"),
        ("{name: Transformer, arch", "{arch", "a model has a name, an arch"),
        ("models:", "seeds:", "has no list of models"),
        ("models:", "models: 5\nseeds:", "has no list of models"),
        ("seeds: [1, 2]", "seeds: 3", "seeds must be a list of numbers, such as [1, 2, 3], but is 3"),
        ("{model.pack_bias: gaussian,", "[model.pack_bias, ", "overrides must be a table, such as {key: value}"),
        ("{beam: 2}", "{beams: 2}", "decoding has beams; possible are beam, lenpen, max_tokens"),
        ("{beam: 2}", "{beam: five}", "beam must be a whole number above 0, but is 'five'"),
        ("{beam: 2}", "{lenpen: '1'}", "lenpen must be a number, but is '1'"),
        ("  model.encoder_layers: 1", "  model: {encoder_layers: 1}", "model: {'encoder_layers': 1} is no override"),
        ("  model.encoder_layers: 1", "  lr_scheduler: {a: 1}", "lr_scheduler: {'a': 1} is no override"),
        ("average: 2", "average: 0", "average must be a whole number above 0, but is 0"),
        ("config: quickstart", "config: quikstart", "there is no configuration quikstart"),
        ("config: quickstart", "config: [quickstart", "is no YAML"),
        ("name: Transformer,", "name: 16,", "the name of a model must be text with a letter or a digit, but is 16"),
        ("name: Transformer,", "name: '..',", "the name of a model must be text with a letter or a digit, but is '..'"),
    ],
)
def test_a_wrong_study_is_told(tmp_path, data, compared, old, new, says):
    study = tmp_path / "study.yaml"
    text = STUDY.replace(old, new, 1)
    if new.endswith("seeds:"):
        text = text.replace("seeds: [1, 2]\n", "")
    if new.startswith("["):
        text = text.replace("model.projection_length: 4}", "model.projection_length]")
    study.write_text(text, encoding="utf-8")
    assert says in compared(study, data, tmp_path / "out", fails=True)
    assert not (tmp_path / "out").exists()


def test_wrong_words_are_told(tmp_path, data, compared):
    assert "there is no study nothing: give the path" in compared("nothing", data, tmp_path, fails=True)
    said = compared("quickstart", data, tmp_path, "--seeds", 1, "model.dropout=0", fails=True)
    assert "model.dropout=0 is no seed: each KEY=VALUE stands right after STUDY" in said
    study = tmp_path / "study.yaml"
    study.write_text(STUDY, encoding="utf-8")
    assert "holds no prepared data" in compared(study, tmp_path, tmp_path / "out", fails=True)
    for word in "model.projection_length=8", "model=luna_transformer":
        said = compared(study, data, tmp_path / "out", word, fails=True)
        assert f"{word} would make other models of" in said and "Luna, a/b" in said
    said = compared(study, data, tmp_path / "out", "--models", "Luna", fails=True)
    assert "Luna is none of the models: Transformer, Luna, a/b" in said


@pytest.mark.release
def test_a_failing_model_does_not_stop_the_others(tmp_path, data):
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(STUDY.replace("projection_length: 4", "projection_length: 0"), encoding="utf-8")
    done = run(compare(study, data, out, "--seeds", 1, "--at-once", 2), fails=True)
    assert "--projection-length must be at least 1, but is 0" in done.stdout + done.stderr
    assert "1 of 2 failed" in done.stderr
    assert "| Transformer |" in (out / "report.md").read_text(encoding="utf-8")


def test_attention_is_drawn(finished, tmp_path, here):
    out = finished / "out"
    luna, text, empty = out / "Luna-a-b" / "seed1", tmp_path / "text", tmp_path / "empty"
    text.write_text("the red cat sees a dog\n\nwe\n", encoding="utf-8")
    empty.write_text("\n", encoding="utf-8")
    said = here(plot_attention, "--model", luna, "--out", tmp_path / "maps.svg", text)
    assert b"</svg>" in (tmp_path / "maps.svg").read_bytes()
    facts = json.loads((tmp_path / "maps.svg.json").read_text(encoding="utf-8"))
    assert facts["sentences"] == 2 and list(facts["means"]) == ["encoder 1", "cross 1"]
    for row in facts["means"].values():
        assert row["reads"] >= 1 and 0 <= row["overlap"] <= 1 and 0 < row["survives"] <= 1 and 0 < row["peak"] <= 1
    assert "cross 1" in said
    transformer, png = out / "Transformer" / "seed1", ["--out", tmp_path / "a.png"]
    assert "is no Luna model" in here(plot_attention, "--model", transformer, *png, text, fails=True)
    assert "there is no sentence" in here(plot_attention, "--model", luna, *png, empty, fails=True)
    assert "must end in .png" in here(plot_attention, "--model", luna, "--out", tmp_path / "a.gif", text, fails=True)
    assert not (tmp_path / "a.png").exists()


def test_figures_of_attention():
    import torch

    words = ([], [])
    sharp, flat = torch.eye(4), torch.full((4, 4), 0.25)
    one = plot_attention.figures(plot_attention.Maps("", sharp, sharp, sharp, sharp.expand(2, 4, 4), words))
    same = plot_attention.figures(plot_attention.Maps("", flat, flat, flat, flat.expand(2, 4, 4), words))
    assert one == pytest.approx({"reads": 1, "overlap": 0, "survives": 1, "peak": 1}, abs=1e-6)
    assert same == pytest.approx({"reads": 4, "overlap": 1, "survives": 0.25, "peak": 0.25})
    # two slots on one word, and the other words in none
    pack = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    product = torch.tensor([[0.5, 0.3, 0.1, 0.1]])
    found = plot_attention.figures(plot_attention.Maps("", pack, None, product, pack[None], words))
    assert found == pytest.approx({"reads": 1, "overlap": 1, "survives": 0.25, "peak": 0.5})


def test_gradients_by_module(finished, tmp_path, here):
    models = [finished / "out" / name / "seed1" for name in ("Luna-a-b", "Transformer")]

    def measured(*words) -> list:
        said = here(gradients, "--batches", 2, "--out", tmp_path / "a", *words, "--model", *models)
        assert "| reaches the source |" in said
        return list(json.loads((tmp_path / "a").read_text(encoding="utf-8"))["means"].values())

    trained, begun = measured(), measured("--start")
    assert begun == measured("--start")
    for after, before in zip(trained, begun):
        assert after["loss"] < before["loss"]
        assert "the rest" not in after and all(value > 0 for value in after.values()) and after["tells apart"] < 1
    luna, transformer = map(set, trained)
    assert luna - transformer == {"packs of the encoder", "packs of the cross attention"} and transformer < luna
    assert "holds no model" in here(gradients, "--model", tmp_path, fails=True)


def test_what_tells_positions_apart():
    import torch

    tokens = torch.tensor([[True, True, True, False]])
    same, opposite = torch.ones(1, 4, 2), torch.tensor([[[1.0], [-1.0], [0.0], [7.0]]])
    assert gradients.apart(same, tokens) == 0
    assert gradients.apart(opposite, tokens) == 1
    # the mean, 2, leaves 1 and 1 of squares 9 and 1
    assert gradients.apart(torch.tensor([[[3.0], [1.0]]]), tokens[:, :2]) == pytest.approx(0.2)


def test_the_studies_here_are_sound():
    studies = sorted(path.stem for path in compare_study.STUDIES.glob("*.yaml"))
    assert {"quickstart", "documents", "wmt14"} <= set(studies)
    for name in studies:
        study = compare_study.read_study(name)
        assert study["baseline"] == study["models"][0]["name"] == "Transformer", name


def test_help():
    shown = run(["bash", str(ROOT / "scripts" / "compare.sh"), "--help"]).stdout
    assert "usage: compare.sh" in shown and "--out" in shown


def test_another_baseline_is_tested_anew(finished, data, tmp_path, compared, trained):
    """The new one's row has no test of it against the former one."""
    study, out = tmp_path / "turned.yaml", tmp_path / "out"
    shutil.copytree(finished / "out", out, symlinks=True)
    study.write_text(STUDY + 'baseline: "Luna, a/b"\n', encoding="utf-8")
    compared(study, data, out)
    text = (out / "report.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines()[:4]]
    assert rows[0][-2:] == ["BLEU against Luna, a/b (p)", "chrF against Luna, a/b (p) |"]
    assert all(cell.startswith("1: ") and ", 2: " in cell for cell in rows[2][-2:])
    assert [cell.strip(" |") for cell in rows[3][-2:]] == ["", ""]
    assert "Test of BLEU: `nrefs:1|bs:1000|seed:12345|" in text and "can tell is 0.001." in text
